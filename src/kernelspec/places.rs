//! PURE. The folders in which Jupyter looks for its data.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::Python;

/// Jupyter's data folders, then `/kernels` (jupyter_core's `jupyter_path`).
pub(super) fn kernel_dirs(
    var: &dyn Fn(&str) -> Option<OsString>,
    pythons: &[Python],
) -> Vec<PathBuf> {
    const SYSTEM: [&str; 2] = ["/usr/local/share/jupyter", "/usr/share/jupyter"];
    let mut user: Vec<PathBuf> = data_dir(var).into_iter().collect();
    user.extend(
        pythons
            .iter()
            .filter_map(|python| Some(python.user_base.as_ref()?.join("share/jupyter"))),
    );
    let env = pythons
        .iter()
        .map(|python| python.prefix.join("share/jupyter"));
    let env: Vec<PathBuf> = env
        .filter(|dir| !SYSTEM.iter().any(|s| dir == Path::new(s)))
        .collect();
    let prefer_env = match var("JUPYTER_PREFER_ENV_PATH") {
        Some(value) => is_set(&value),
        None => pythons.first().is_some_and(|python| python.is_environment),
    };
    let mut dirs: Vec<PathBuf> = var("JUPYTER_PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .collect();
    if prefer_env {
        dirs.extend(env);
        dirs.extend(user);
    } else {
        dirs.extend(user);
        dirs.extend(env);
    }
    dirs.extend(SYSTEM.map(PathBuf::from));
    let mut seen = BTreeSet::new();
    dirs.retain(|dir| dir.is_absolute() && seen.insert(dir.clone()));
    dirs.iter_mut().for_each(|dir| dir.push("kernels"));
    dirs
}

/// jupyter_core's `jupyter_data_dir`.
pub(super) fn data_dir(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(dir) = var("JUPYTER_DATA_DIR") {
        return Some(PathBuf::from(dir));
    }
    let base = match var("XDG_DATA_HOME") {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(var("HOME")?).join(".local/share"),
    };
    Some(base.join("jupyter"))
}

/// jupyter_core's `envset`.
fn is_set(value: &OsStr) -> bool {
    let value = value.to_string_lossy().to_lowercase();
    !["no", "n", "false", "off", "0", "0.0"].contains(&value.as_str())
}
