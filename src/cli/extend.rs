//! `farside extend`: more time for a session.

use std::time::Duration;

use super::client::command;
use super::{Exit, Output, duration, find_session};
use crate::session::event::Command;

/// Move the time at which a session ends by itself: this long from now.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "No session ends by itself yet: it runs until it is stopped, and there is nothing to extend.\n\nExample:\n  farside extend train 2h"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// From now, e.g. 90m, 2h30m, 1d
    #[arg(value_parser = duration)]
    pub duration: Duration,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let seconds = args.duration.as_secs();
    let answer = command(&session, "extend", Command::Extend { seconds })?;
    if let Some(end) = answer["ends_at"].as_str() {
        out.message(&format!("{} ends at {end}", session.json.name));
    }
    Ok(Exit::Done)
}
