//! `farside prune`: remove what is kept of ended sessions.

use std::time::Duration;

use serde_json::json;

use super::{Exit, Output, duration};
use crate::config::{Config, Flags};
use crate::state_dir::{Session, Sessions, now};

/// Remove the records of sessions that ended long ago. A living session is never touched.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside prune                       those past keep_records (`farside config`)\n  \
                        farside prune --older-than 1d       those that ended more than a day ago"
)]
pub struct Args {
    /// Those that ended longer ago than this, `0s` for all [default: the setting keep_records]
    #[arg(long, value_name = "DURATION", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Print a JSON list of what was removed
    #[arg(long)]
    pub json: bool,
}

/// A duration, or none at all.
fn age(text: &str) -> Result<Duration, String> {
    if text == "0s" {
        return Ok(Duration::ZERO);
    }
    duration(text)
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let keep = match args.older_than {
        Some(age) => Some(age),
        None => Config::load(&Flags::default())?.config.keep_records,
    };
    let Some(keep) = keep else {
        out.message("nothing removed: keep_records is none; say how old with --older-than");
        return Ok(Exit::Done);
    };
    let sessions = Sessions::open()?;
    let ended_before = now().saturating_sub(u64::try_from(keep.as_micros()).unwrap_or(u64::MAX));
    let mut removed = Vec::new();
    for session in sessions.list()? {
        if ended_at(&session) < ended_before && sessions.remove_ended(&session)? {
            removed.push(session.json);
        }
    }
    if args.json {
        let list: Vec<_> = removed
            .iter()
            .map(|json| json!({ "id": json.id, "name": json.name }))
            .collect();
        out.json(&list)?;
        return Ok(Exit::Done);
    }
    for json in &removed {
        out.line(&format!(
            "{}  {}",
            json.id,
            super::render::visible(&json.name)
        ))?;
    }
    if removed.is_empty() {
        out.message("nothing to remove");
    }
    Ok(Exit::Done)
}

/// When a session ended, as far as can be known.
fn ended_at(session: &Session) -> u64 {
    let status = session.status();
    let known = status.as_ref().and_then(|s| s.ended_at.or(s.last_activity));
    known.unwrap_or(session.json.created)
}
