//! `farside stop`: end a session.

use super::{Exit, Output, find_session, not_built_yet};

/// End a session and its engine. Its records stay (`farside logs`, `farside prune`).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Do not give the running code time to finish
    #[arg(long)]
    pub now: bool,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("stop")
}
