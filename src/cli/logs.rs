//! `farside logs`: outputs as text.

use super::{Exit, Output, find_session, not_built_yet};

/// Print the outputs of a session's executions as text, also of a session that has ended.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside logs train            everything\n  farside logs train 3 -f       execution 3, \
                        and what it prints from now on\n  farside logs train --json     journal records, one a line"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Only this execution, as `farside history` numbers them
    #[arg(value_name = "N")]
    pub execution: Option<u64>,
    /// Go on until the execution (or the session) has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Put the time before each line
    #[arg(long, short)]
    pub timestamps: bool,
    /// Print journal records instead, one JSON object a line
    #[arg(long, conflicts_with = "timestamps")]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _session = find_session(&args.session)?;
    not_built_yet("logs")
}
