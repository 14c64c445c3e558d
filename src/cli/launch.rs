//! `farside launch` (hidden): what a frontend starts from our kernelspec.

use std::path::PathBuf;

use super::{Exit, Output};
use crate::config::{Config, Flags};
use crate::launcher::{self, choice::Wanted};

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
    // A bad one is told where it can be seen: in the notebook.
    crate::logging::to_stderr(&Config::log_filter(&args.settings));
    let file = launcher::read_connection_file(&args.connection_file)?;
    let named = args
        .session
        .clone()
        .or_else(|| std::env::var("FARSIDE_SESSION").ok());
    let wanted = Wanted {
        name: named
            .filter(|name| !name.is_empty())
            .or_else(|| file.jupyter_session.clone()),
        connection_file: std::path::absolute(&args.connection_file)?,
        engine: args.engine.clone(),
        engine_spec: args.engine_spec.clone(),
        cwd: std::env::current_dir()?,
        settings: args.settings.clone(),
    };
    super::client::block_on(async { Ok(launcher::launch(file, wanted).await?) })?;
    Ok(Exit::Done)
}
