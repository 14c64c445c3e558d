//! `farside top`: what the sessions are doing now.
//!
//! Owns: [`model`] (rates), [`view`] (what it looks like), both pure, and [`live`], the loop on a terminal.
//! Refuses to know: hosts. It reads status.json, and disturbs nobody.

mod live;
mod model;
pub mod view;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::readings::Reading;
use super::{Exit, Output, UsageError};
use crate::state_dir::{Sessions, now};

/// Between the two looks of `--once`: a busy session's host writes more often than this.
const ONCE_INTERVAL: Duration = Duration::from_secs(1);

/// Watch all sessions: what they run, CPU, memory, output and the time they have left.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: q, Esc or Ctrl-C quits; c, m, o and t sort by CPU, memory, output and time left; a by age.\n\n\
                        AGE is that of the running execution, CPU% of one processor, CPU the CPU time used (and left \
                        of the budget), OUT/S bytes of output a second. In a narrow terminal the less important \
                        columns are left out."
)]
pub struct Args {
    /// Look for a second, print one table and end; needs no terminal
    #[arg(long)]
    pub once: bool,
    /// The same as a JSON list
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    if args.once || args.json {
        return once(args.json, out);
    }
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if !io::stdout().is_terminal() || is_dumb {
        let text = "there is no terminal to draw on: use `farside top --once`, or `farside ls`";
        return Err(UsageError(text.to_owned()).into());
    }
    live::run(&Sessions::open()?, out.style.colour)?;
    Ok(Exit::Done)
}

fn once(json: bool, out: &mut Output) -> anyhow::Result<Exit> {
    let sessions = Sessions::open()?;
    let mut history = model::History::default();
    let first = history.samples(&Reading::all(&sessions)?, now());
    let samples = if first.is_empty() {
        first
    } else {
        std::thread::sleep(ONCE_INTERVAL);
        history.samples(&Reading::all(&sessions)?, now())
    };
    if json {
        out.json(&samples)?;
    } else if samples.is_empty() {
        out.message("no session is running; `farside ls --all` shows those that have ended");
    } else {
        out.line(&view::text(&samples, now(), out.style))?;
    }
    Ok(Exit::Done)
}
