//! `farside extend`: more time for a session.

use std::time::Duration;

use super::{Exit, Output, duration, find_session, not_built_yet};

/// Give a session more time before it ends by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farside extend train 2h")]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// How much more, e.g. 90m, 2h30m, 1d
    #[arg(value_parser = duration)]
    pub duration: Duration,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("extend")
}
