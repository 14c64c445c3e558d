//! `farside host` (hidden): main.rs hands it to the keeper before clap is asked. This entry is there so that
//! `farside host --help` and the list of commands are whole.

use std::ffi::OsString;

use super::{Exit, Output, UsageError};

/// Run a session's keeper and host; started by farside itself, never by a person.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As the keeper reads them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Only reached when the binary was built without the early hand-over.
pub fn run(_args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    Err(UsageError(
        "`farside host` is started by farside itself; use `farside new` to start a session"
            .to_owned(),
    )
    .into())
}
