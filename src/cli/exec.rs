//! `farside exec`: run code in a session.

use super::{Exit, Output, find_session, not_built_yet};

/// Run code in a session and show its outputs. Ctrl-C leaves; the code runs on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: the code ran; 1: it raised an error.\n\nExamples:\n  \
                        farside exec train 'print(loss)'\n  farside exec train --detach - < train.py"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Do not wait: print the execution's number and leave
    #[arg(long)]
    pub detach: bool,
    /// The code, or `-` to read it from stdin
    #[arg(allow_hyphen_values = true)]
    pub code: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("exec")
}
