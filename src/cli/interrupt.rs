//! `farside interrupt`: what Ctrl-C in a notebook does.

use super::{Exit, Output, find_session, not_built_yet};

/// Interrupt what a session runs, as a notebook's stop button does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("interrupt")
}
