//! Writes and removes the `farside-<engine>` kernelspecs that frontends start.
//!
//! Beside `kernel.json` each has an `engine.json`: the engine as it was found at install, its program an absolute
//! path. `kernel.json` names that file, so that a launch in whatever environment starts the engine that was meant,
//! and does so without a search. Where the file is gone, the launch looks the engine's name up again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{EngineSpec, OWN_PREFIX, Search, SpecError, data_dir, read_object, specs_in};

/// The record of the engine in our spec's folder.
const ENGINE_JSON: &str = "engine.json";

/// A hundred years. 0 would mean at once, and a number too large for Python's `timedelta` an exception at each look.
const NEVER_CULLED_SECONDS: u64 = 100 * 365 * 86_400;

/// Where a spec is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Jupyter's data folder of the user (`JUPYTER_DATA_DIR` is honoured).
    User,
    /// `sys.prefix` of the python on PATH.
    SysPrefix,
    /// This prefix.
    Prefix(PathBuf),
}

impl Target {
    /// The folder of kernelspecs.
    pub fn kernel_dir(&self, search: &Search) -> Result<PathBuf, SpecError> {
        let data = match self {
            Self::User => data_dir(&|name| std::env::var_os(name).filter(|v| !v.is_empty()))
                .ok_or(SpecError::NoHome)?,
            Self::SysPrefix => search
                .pythons
                .first()
                .ok_or(SpecError::NoPython)?
                .prefix
                .join("share/jupyter"),
            Self::Prefix(prefix) => prefix.join("share/jupyter"),
        };
        let dir = data.join("kernels");
        std::path::absolute(&dir).map_err(SpecError::io("find", &dir))
    }
}

/// What was written or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// `farside-<engine>`.
    pub name: String,
    /// The engine's name.
    pub engine: String,
    /// For people; empty where a removed spec did not say.
    pub display_name: String,
    /// The spec's folder.
    pub path: PathBuf,
}

/// Writes the spec of one engine into a folder of kernelspecs, in one step: a frontend that lists them meanwhile
/// sees the old one or the new one, whole. `settings` are variables for farside itself.
pub fn install(
    engine: &EngineSpec,
    kernel_dir: &Path,
    farside: &Path,
    display_name: Option<&str>,
    settings: &[(String, String)],
) -> Result<Installed, SpecError> {
    let name = format!("{OWN_PREFIX}{}", engine.name);
    let path = kernel_dir.join(&name);
    if path.symlink_metadata().is_ok() && own_engine(&path).is_none() {
        return Err(SpecError::NotOurs { path });
    }
    let display_name = display_name.map_or_else(
        || format!("{} (farside)", engine.display_name),
        str::to_owned,
    );
    fs::create_dir_all(kernel_dir).map_err(SpecError::io("create", kernel_dir))?;
    // Beside the kernels folder, not in it: every folder in there with a kernel.json is a kernel to Jupyter.
    let parent = kernel_dir.parent().unwrap_or(kernel_dir);
    let aside = parent.join(format!(".{name}-{}", uuid::Uuid::new_v4().simple()));
    let kernel_json = kernel_json(engine, &path, farside, &display_name, settings);
    let written =
        write_spec(engine, &aside, &kernel_json).and_then(|()| put_in_place(&aside, &path));
    if aside.exists() {
        // Either the old spec, or what a failure has left.
        fs::remove_dir_all(&aside).map_err(SpecError::io("remove", &aside))?;
    }
    written?;
    Ok(Installed {
        name,
        engine: engine.name.clone(),
        display_name,
        path,
    })
}

/// Removes our specs from a folder of kernelspecs: those of the named engines, or all. Others' are not touched.
pub fn uninstall(kernel_dir: &Path, engines: &[String]) -> Result<Vec<Installed>, SpecError> {
    let mut removed = Vec::new();
    for (name, path) in specs_in(kernel_dir) {
        let Some(engine) = own_engine(&path) else {
            continue;
        };
        if !engines.is_empty() && !engines.contains(&engine) {
            continue;
        }
        let spec = read_object(&path.join("kernel.json"))?;
        let display_name = spec
            .get("display_name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        fs::remove_dir_all(&path).map_err(SpecError::io("remove", &path))?;
        removed.push(Installed {
            name,
            engine,
            display_name,
            path,
        });
    }
    Ok(removed)
}

/// The engine as it was at install.
pub(super) fn read_record(path: &Path) -> Result<EngineSpec, SpecError> {
    let unusable = |why: String| SpecError::Unusable {
        path: path.to_owned(),
        why,
    };
    let spec: EngineSpec = serde_json::from_value(Value::Object(read_object(path)?))
        .map_err(|e| unusable(format!("{e}; run `farside install` again")))?;
    if spec.argv.is_empty() {
        return Err(unusable(
            "`argv` is empty; run `farside install` again".to_owned(),
        ));
    }
    Ok(spec)
}

/// The engine of a spec folder that is ours.
fn own_engine(path: &Path) -> Option<String> {
    let spec = read_object(&path.join("kernel.json")).ok()?;
    Some(
        spec.get("metadata")?
            .get("farside")?
            .get("engine")?
            .as_str()?
            .to_owned(),
    )
}

fn write_spec(engine: &EngineSpec, folder: &Path, kernel_json: &Value) -> Result<(), SpecError> {
    fs::create_dir(folder).map_err(SpecError::io("create", folder))?;
    let write = |name: &str, value: &Value| {
        let path = folder.join(name);
        let text = format!("{value:#}\n");
        fs::write(&path, text).map_err(SpecError::io("write", &path))
    };
    write("kernel.json", kernel_json)?;
    write(
        ENGINE_JSON,
        &serde_json::to_value(engine).expect("strings and JSON"),
    )?;
    copy_resources(&engine.resource_dir, folder)
}

/// Our `kernel.json`. The settings are farside's own and only there: the engine's record has the engine's env.
fn kernel_json(
    engine: &EngineSpec,
    final_path: &Path,
    farside: &Path,
    display_name: &str,
    settings: &[(String, String)],
) -> Value {
    let mut metadata: Map<String, Value> = engine.metadata.clone();
    // What the engine itself can do on its sockets does not hold for ours: a frontend that reads `curve` here would
    // hand the launcher a connection file for encrypted sockets. And it is farside that Jupyter starts, always locally.
    metadata.remove("supported_encryption");
    metadata.remove("kernel_provisioner");
    // When a session ends is its own limits' business. jupyter_server's culler takes this instead of the server's own
    // `cull_idle_timeout` (services/kernels/kernelmanager.py, `cull_kernel_if_idle`), also instead of the engine's.
    metadata.insert("cull_idle_timeout".to_owned(), json!(NEVER_CULLED_SECONDS));
    metadata.insert(
        "farside".to_owned(),
        json!({ "version": env!("CARGO_PKG_VERSION"), "engine": engine.name }),
    );
    let mut env = engine.env.clone();
    env.extend(settings.iter().cloned());
    let mut spec = json!({
        "argv": [
            farside.to_string_lossy(),
            "launch",
            "--engine",
            engine.name,
            "--engine-spec",
            final_path.join(ENGINE_JSON).to_string_lossy(),
            "-f",
            super::CONNECTION_FILE,
        ],
        "display_name": display_name,
        "language": engine.language,
        "interrupt_mode": "message",
        "env": env,
        "metadata": metadata,
    });
    if let Some(version) = &engine.protocol_version {
        spec["kernel_protocol_version"] = json!(version);
    }
    spec
}

/// Logos and the classic notebook's kernel.js and kernel.css.
fn copy_resources(from: &Path, to: &Path) -> Result<(), SpecError> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let wanted = name
            .to_str()
            .is_some_and(|n| n.starts_with("logo-") || n == "kernel.js" || n == "kernel.css");
        if wanted && entry.path().is_file() {
            // The bytes only: a store's read-only mode would make the copy hard to remove.
            let bytes = fs::read(entry.path()).map_err(SpecError::io("read", &entry.path()))?;
            fs::write(to.join(&name), bytes).map_err(SpecError::io("write", &to.join(&name)))?;
        }
    }
    Ok(())
}

/// Moves the new folder to its place; an old one there is afterwards where the new one was.
fn put_in_place(new: &Path, place: &Path) -> Result<(), SpecError> {
    let failed = SpecError::io("put in place", place);
    if place.symlink_metadata().is_err() {
        return fs::rename(new, place).map_err(failed);
    }
    match exchange(new, place) {
        Ok(()) => Ok(()),
        // A file system that cannot exchange: two steps, with a moment in between where there is no such spec.
        Err(_) => {
            let old = new.with_extension("old");
            fs::rename(place, &old)
                .and_then(|()| fs::rename(new, place))
                .and_then(|()| fs::rename(&old, new))
                .map_err(failed)
        }
    }
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (
        CString::new(a.as_os_str().as_bytes())?,
        CString::new(b.as_os_str().as_bytes())?,
    );
    let cwd = libc::AT_FDCWD;
    // SAFETY: both are zero terminated strings that outlive the call.
    match unsafe { libc::renameat2(cwd, a.as_ptr(), cwd, b.as_ptr(), libc::RENAME_EXCHANGE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
