//! `farside install` and `farside uninstall`: the kernelspecs that frontends start.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Exit, Output};
use crate::config::{Config, Flags};
use crate::kernelspec::install::{
    Installed, Target, install as write_spec, uninstall as remove_specs,
};
use crate::kernelspec::{EngineSpec, Search};

/// Where kernelspecs go.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Where {
    /// Into your own Jupyter folder (the default; honours JUPYTER_DATA_DIR)
    #[arg(long)]
    pub user: bool,
    /// Into the environment of the python3 on PATH
    #[arg(long)]
    pub sys_prefix: bool,
    /// Into DIR/share/jupyter
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
}

impl Where {
    fn target(&self) -> Target {
        match &self.prefix {
            Some(prefix) => Target::Prefix(prefix.clone()),
            None if self.sys_prefix => Target::SysPrefix,
            None => Target::User,
        }
    }
}

/// Offer engines under farside to Jupyter: writes a kernelspec `farside-<engine>` for each.
///
/// It can be repeated at any time: after an update of farside, or when an engine has moved.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside install\n  farside install --engine python3 --engine ir\n  \
                        farside install --sys-prefix --engine-start-timeout 2m"
)]
pub struct InstallArgs {
    /// Where to.
    #[command(flatten)]
    pub place: Where,
    /// Kernelspec of an engine, as `jupyter kernelspec list` names it; may be given several times
    #[arg(long = "engine", value_name = "NAME", default_value = "python3")]
    pub engines: Vec<String>,
    /// What frontends show [default: the engine's own, and "(farside)"]
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// Print a JSON list of what was written
    #[arg(long)]
    pub json: bool,
    /// Settings for all sessions that are started from these kernelspecs, kept in their env.
    #[command(flatten)]
    pub settings: Flags,
}

/// Take the kernelspecs away again that `farside install` wrote. Sessions are not touched.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// Where from.
    #[command(flatten)]
    pub place: Where,
    /// Only that of this engine; may be given several times [default: all]
    #[arg(long = "engine", value_name = "NAME")]
    pub engines: Vec<String>,
    /// Print a JSON list of what was removed
    #[arg(long)]
    pub json: bool,
}

/// Runs `farside install`.
pub fn install(args: &InstallArgs, out: &mut Output) -> anyhow::Result<Exit> {
    let settings = args.settings.to_env()?;
    // What no session could be started with (past the administrator's cap) is not written either.
    Config::load(&args.settings)?;
    let farside = std::env::current_exe().context("cannot find the path of this program")?;
    let search = Search::from_environment();
    let kernel_dir = args.place.target().kernel_dir(&search)?;
    // All or nothing: the second engine's absence must not be found out after the first one was written.
    let engines: Vec<EngineSpec> = args
        .engines
        .iter()
        .map(|name| search.find(name))
        .collect::<Result<_, _>>()?;
    let mut written = Vec::new();
    for engine in &engines {
        written.push(write_spec(
            engine,
            &kernel_dir,
            &farside,
            args.display_name.as_deref(),
            &settings,
        )?);
    }
    if args.json {
        out.json(&written)?;
        return Ok(Exit::Done);
    }
    for installed in &written {
        out.line(&format!("{}  {}", installed.name, installed.path.display()))?;
    }
    if !search.kernel_dirs.iter().any(|dir| dir == &kernel_dir) {
        out.message(&format!(
            "note: Jupyter does not look in {} in this environment; add {} to JUPYTER_PATH",
            kernel_dir.display(),
            kernel_dir.parent().unwrap_or(Path::new("/")).display(),
        ));
    }
    Ok(Exit::Done)
}

/// Runs `farside uninstall`.
pub fn uninstall(args: &UninstallArgs, out: &mut Output) -> anyhow::Result<Exit> {
    let kernel_dir = args
        .place
        .target()
        .kernel_dir(&Search::from_environment())?;
    let removed: Vec<Installed> = remove_specs(&kernel_dir, &args.engines)?;
    if args.json {
        out.json(&removed)?;
        return Ok(Exit::Done);
    }
    for spec in &removed {
        out.line(&format!("{}  {}", spec.name, spec.path.display()))?;
    }
    if removed.is_empty() {
        let of = match args.engines.as_slice() {
            [] => String::new(),
            engines => format!(" for {}", engines.join(", ")),
        };
        out.message(&format!(
            "nothing of farside's{of} is in {}",
            kernel_dir.display()
        ));
    }
    Ok(Exit::Done)
}
