//! `farside connect`: a connection file for any Jupyter client.

use super::{Exit, Output, find_session, not_built_yet};

/// Print the path of a connection file for any Jupyter client, and keep it working till Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farside connect train          # in one terminal: prints FILE\n  \
                        jupyter console --existing FILE"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("connect")
}
