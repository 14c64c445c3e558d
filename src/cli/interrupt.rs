//! `farside interrupt`: what Ctrl-C in a notebook does.

use super::client::command;
use super::{Exit, Output, find_session};
use crate::session::event::Command;

/// Interrupt what a session runs, as a notebook's stop button does.
///
/// Python raises KeyboardInterrupt in the running code, and what was queued behind it is not run. The session goes
/// on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    command(&session, "interrupt", Command::Interrupt)?;
    Ok(Exit::Done)
}
