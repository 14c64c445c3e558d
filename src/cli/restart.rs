//! `farside restart`: a fresh engine in the same session.

use super::{Exit, Output, find_session, not_built_yet};

/// Start a session's engine afresh: variables are gone, records stay.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("restart")
}
