//! `farside new`: a session with no frontend.

use std::path::PathBuf;

use super::{Exit, Output, not_built_yet};
use crate::config::{Config, Flags};

/// Start a session with no frontend, and print its id.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside new --name train --max-lifetime 3d\n  farside new --engine ir --cwd ~/work"
)]
pub struct Args {
    /// Kernelspec of the engine
    #[arg(long, value_name = "NAME", default_value = "python3")]
    pub engine: String,
    /// What to call the session [default: the engine's name and the session's id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The engine's working directory [default: this one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Print the session as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Settings for this session.
    #[command(flatten)]
    pub settings: Flags,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _settings = Config::load(&args.settings)?;
    not_built_yet("new")
}
