//! `farside attach`: replay an execution, follow it, answer its input().

use super::{Exit, Output, find_session, not_built_yet};

/// Show what the running (or else the last) execution has printed, go on watching it, answer its input().
///
/// Ctrl-C leaves; it never interrupts the code (`farside interrupt` does).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("attach")
}
