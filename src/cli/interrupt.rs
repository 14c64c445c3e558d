//! `farside interrupt`: what Ctrl-C in a notebook does.

use std::time::Duration;

use super::client::{ask, block_on, quiet_hello, require_live};
use super::{Exit, Output, find_session};
use crate::launcher::reach;
use crate::session::event::Command;

/// How long the running code is waited for: it may tidy up, or not hear of it at all.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Interrupt what a session runs, as a notebook's stop button does.
///
/// Python raises KeyboardInterrupt in the running code, and what was queued behind it is not run. The session goes
/// on. Returns when the running code has ended, at most after 10 seconds.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    require_live(&session)?;
    // The answer comes when what was interrupted is over.
    let answer = block_on(async {
        let mut stream = reach::open(&session, &quiet_hello("interrupt")).await?;
        let asked = ask(&mut stream, &session, Command::Interrupt);
        match tokio::time::timeout(END_TIMEOUT, asked).await {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    })?;
    if answer.is_none() {
        let name = &session.json.name;
        out.message(&format!(
            "what runs in {name} was interrupted, and has not ended yet; `farside stop {name} --now` kills its engine"
        ));
    }
    Ok(Exit::Done)
}
