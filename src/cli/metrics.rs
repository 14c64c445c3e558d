//! `farside metrics`: the sessions for Prometheus.
//!
//! Owns: [`text`], the page (pure), and [`serve`], which hands it out. Refuses to know: hosts. It reads status.json.

mod serve;
mod text;

use std::io::Write as _;

use super::client::block_on;
use super::readings::Reading;
use super::{Exit, Output};
use crate::state_dir::Sessions;

/// Print all sessions' numbers in Prometheus' text format, or serve them.
///
/// Without --listen it prints them once, for a textfile collector or a script. With it, it stays in the foreground and
/// answers GET /metrics until Ctrl-C. Nothing listens anywhere unless this is asked for; a loopback port can be read
/// by every user of the machine, a unix socket by you alone.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside metrics\n  farside metrics --listen 127.0.0.1:9464\n  \
                        farside metrics --listen unix:/run/user/1000/farside.sock"
)]
pub struct Args {
    /// Serve them over HTTP: 127.0.0.1:PORT (0: any free one) or unix:/path.sock
    #[arg(long, value_name = "ADDRESS", value_parser = serve::address)]
    pub listen: Option<serve::Address>,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let sessions = Sessions::open()?;
    let page =
        move || -> anyhow::Result<String> { Ok(text::exposition(&Reading::all(&sessions)?)) };
    match &args.listen {
        None => out.data().write_all(page()?.as_bytes())?,
        Some(address) => block_on(serve::serve(address, page, |place| {
            out.message(&format!("serving {place}; Ctrl-C ends it"));
        }))?,
    }
    Ok(Exit::Done)
}
