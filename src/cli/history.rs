//! `farside history`: a session's executions.

use super::{Exit, Output, find_session, not_built_yet};

/// List a session's executions, also of one that has ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("history")
}
