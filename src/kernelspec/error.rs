//! Why there is no such engine.

use std::path::{Path, PathBuf};

/// Why there is no such engine.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpecError {
    #[error(
        "no kernelspec named `{name}`; found: {}; looked in: {}",
        list_or(.found, "none (install one, e.g. `python3 -m pip install ipykernel`)"), paths(.looked)
    )]
    NotFound {
        name: String,
        found: Vec<String>,
        looked: Vec<PathBuf>,
    },
    #[error(
        "`{name}` is farside's own kernelspec and cannot be an engine; name the engine itself, e.g. `{engine}`"
    )]
    OwnSpec { name: String, engine: String },
    #[error("the kernelspec in {path} cannot be used: {why}")]
    Unusable { path: PathBuf, why: String },
    #[error("the kernelspec in {path} starts `{program}`, which is in none of: {}", paths(.looked))]
    NoProgram {
        path: PathBuf,
        program: String,
        looked: Vec<PathBuf>,
    },
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} exists and is not farside's; remove it yourself if you do not need it")]
    NotOurs { path: PathBuf },
    #[error("no python3 on PATH, so there is no sys.prefix; use --user or --prefix DIR")]
    NoPython,
    #[error("no home directory to install into: set HOME or JUPYTER_DATA_DIR, or use --prefix DIR")]
    NoHome,
}

fn list_or(items: &[String], none: &str) -> String {
    if items.is_empty() {
        none.to_owned()
    } else {
        items.join(", ")
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|p| p.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

impl SpecError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
