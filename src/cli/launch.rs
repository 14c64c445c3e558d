//! `farside launch` (hidden): what a frontend starts from our kernelspec.

use std::path::PathBuf;

use super::{Exit, Output, not_built_yet};
use crate::config::{Config, Flags};

/// Serve a frontend's connection file; started by frontends from a kernelspec that `farside install` wrote.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The connection file
    #[arg(short = 'f', value_name = "FILE")]
    pub connection_file: PathBuf,
    /// Kernelspec of the engine
    #[arg(long, value_name = "NAME", default_value = "python3")]
    pub engine: String,
    /// The engine as `farside install` found it
    #[arg(long, value_name = "FILE")]
    pub engine_spec: Option<PathBuf>,
    /// The session to come back to, or to start under this key (also FARSIDE_SESSION)
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Settings for a session that it starts.
    #[command(flatten)]
    pub settings: Flags,
}

/// Runs the command.
pub fn run(args: &Args, _out: &mut Output) -> anyhow::Result<Exit> {
    let _settings = Config::load(&args.settings)?;
    not_built_yet("launch")
}
