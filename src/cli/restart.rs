//! `farside restart`: a fresh engine in the same session.

use super::client::{Progress, command};
use super::{Exit, Output, find_session};
use crate::session::event::Command;

/// Start a session's engine afresh: variables are gone, records stay.
///
/// What runs or is queued is aborted. Attached frontends stay attached, and see a new engine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let _progress = Progress::new(format!("restarting the engine of {}", session.json.name));
    command(&session, "restart", Command::Restart)?;
    Ok(Exit::Done)
}
