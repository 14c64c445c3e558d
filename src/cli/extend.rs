//! `farside extend`: more time for a session.

use std::time::Duration;

use super::client::command;
use super::{Exit, Output, duration, find_session};
use crate::session::event::Command;

/// Give a session more time: its lifetime ends so much later, and it does not end for idleness before then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farside extend train 2h")]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// How much, e.g. 90m, 2h30m, 1d
    #[arg(value_parser = duration)]
    pub duration: Duration,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let seconds = args.duration.as_secs();
    let answer = command(&session, "extend", Command::Extend { seconds })?;
    let ends = answer["text"].as_str().unwrap_or_default();
    out.message(&format!(
        "{} now ends {}",
        session.json.name,
        ends.trim_end()
    ));
    Ok(Exit::Done)
}
