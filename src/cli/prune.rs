//! `farside prune`: remove what is kept of ended sessions.

use std::time::Duration;

use serde_json::json;

use super::{Exit, Output, duration};
use crate::config::{Config, Flags, parse_bytes};
use crate::state_dir::{Age, Retention, Sessions};

/// Remove the records of sessions that are over. A living session is never touched.
///
/// These are those past keep_records, and the longest ended ones where all records take more than keep_records_bytes.
/// Sessions do the same by themselves, a while after they begin and when they end.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside prune                       what the settings say (`farside config`)\n  \
                        farside prune --older-than 1d       those that ended more than a day ago\n  \
                        farside prune --larger-than 2G      until all records take no more than 2 GB"
)]
pub struct Args {
    /// Those that ended longer ago than this, `0s` for all
    #[arg(long, value_name = "DURATION", value_parser = age)]
    pub older_than: Option<Duration>,
    /// The longest ended ones, until all sessions' records take no more than this
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub larger_than: Option<u64>,
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

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "it takes a size like 500M, 10G or 1T".to_owned())
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let retention = match (args.older_than, args.larger_than) {
        (None, None) => {
            let config = Config::load(&Flags::default())?.config;
            Retention {
                age: Age::Own(config.keep_records),
                bytes: config.keep_records_bytes,
            }
        }
        (older_than, bytes) => Retention {
            age: older_than.map_or(Age::Any, Age::All),
            bytes,
        },
    };
    let pruned = Sessions::open()?.prune(&retention)?;
    if args.json {
        let list: Vec<_> = (pruned.removed.iter())
            .map(|json| json!({ "id": json.id, "name": json.name }))
            .collect();
        out.json(&list)?;
    } else {
        for json in &pruned.removed {
            out.line(&format!(
                "{}  {}",
                json.id,
                super::render::visible(&json.name)
            ))?;
        }
    }
    if let Some((json, error)) = pruned.failed.into_iter().next() {
        return Err(anyhow::Error::from(error).context(format!("{} is not removed", json.id)));
    }
    if pruned.removed.is_empty() && !args.json {
        out.message("nothing to remove");
    }
    Ok(Exit::Done)
}
