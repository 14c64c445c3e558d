//! `farside console`: jupyter console on a session.

use super::{Exit, Output, find_session, not_built_yet};

/// Open jupyter console on a session; leaving it leaves the session running.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("console")
}
