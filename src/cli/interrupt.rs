//! `farside interrupt`: what Ctrl-C in a notebook does.

use std::time::{Duration, Instant};

use super::client::command;
use super::{Exit, Output, find_session};
use crate::session::event::Command;

/// How long the running code is waited for: it may tidy up, or not hear of it at all.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

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
    let running = || session.status().and_then(|status| status.running);
    let interrupted = running();
    command(&session, "interrupt", Command::Interrupt)?;
    // What is asked of the engine before that is not run (stop_on_error).
    let until = Instant::now() + END_TIMEOUT;
    while interrupted.is_some() && running() == interrupted {
        if Instant::now() >= until {
            let name = &session.json.name;
            out.message(&format!(
                "what runs in {name} was interrupted, and has not ended yet; `farside stop {name} --now` kills its engine"
            ));
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(Exit::Done)
}
