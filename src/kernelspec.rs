//! Kernelspecs: which engines there are, and how each is started. Finds them where Jupyter does.
//!
//! Owns: the search order, reading `kernel.json`, resolving the program to an absolute path, templates in argv and
//! env, and ([`install`]) the `farside-<engine>` specs that frontends start.
//! Refuses to know: sessions, and how a process is started.
//! Invariants: an [`EngineSpec`] has an absolute program and no template but `{connection_file}` left in its argv;
//! farside's own specs are never engines, so that farside cannot be made to run inside itself.
//!
//! Sources: jupyter_client's kernelspec.py and manager.py (`format_kernel_cmd`), jupyter_core's paths.py
//! (`jupyter_path`).

mod error;
pub mod install;
mod places;
mod python;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use error::SpecError;
use places::{data_dir, kernel_dirs};
pub use python::Python;
pub use template::{CONNECTION_FILE, expand_argv, expand_env};

/// What every one of our own specs' names begins with.
pub const OWN_PREFIX: &str = "farside-";
/// The spec that jupyter_client makes up from an ipykernel that has no `kernel.json`.
const NATIVE_NAME: &str = "python3";
/// A `kernel.json` is a few hundred bytes; something far beyond is not one.
const KERNEL_JSON_BYTES_MAX: u64 = 1 << 20;

/// How an engine is interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterruptMode {
    /// SIGINT to its process group.
    #[default]
    Signal,
    /// An interrupt_request on control.
    Message,
}

/// An engine, ready to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// The kernelspec's name: its folder's, in lower case.
    pub name: String,
    /// The command line: the program an absolute path, `{connection_file}` the only template left.
    pub argv: Vec<String>,
    /// What it adds to the environment, with Jupyter's `${VAR}` templates in it; see [`Self::environment`].
    pub env: BTreeMap<String, String>,
    /// The language's name.
    pub language: String,
    /// For people.
    pub display_name: String,
    /// How it wants to be interrupted.
    pub interrupt_mode: InterruptMode,
    /// As the spec has it, e.g. `debugger`.
    pub metadata: Map<String, Value>,
    /// The spec's folder: logos and the like.
    pub resource_dir: PathBuf,
    /// `kernel_protocol_version`, where the spec says it.
    #[serde(default)]
    pub protocol_version: Option<String>,
}

impl EngineSpec {
    /// What the engine needs in its environment beside `base`, where no frontend has set it already.
    pub fn environment(&self, base: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
        self.env
            .iter()
            .map(|(name, value)| (name.clone(), expand_env(value, &base)))
            .collect()
    }

    /// The same for a process that a frontend started from our own spec, which has the same env as the engine's:
    /// what is set there was set by it and is taken as it is. `PATH=/x:${PATH}` must not be applied twice.
    pub fn environment_under_frontend(
        &self,
        base: impl Fn(&str) -> Option<String>,
    ) -> Vec<(String, String)> {
        let value = |(name, value): (&String, &String)| {
            base(name).unwrap_or_else(|| expand_env(value, &base))
        };
        self.env
            .iter()
            .map(|entry| (entry.0.clone(), value(entry)))
            .collect()
    }
}

/// The engine that our own spec was installed for: as [`install`] recorded it in `recorded`, so that it is the same
/// one in every environment; found by name where there is no such record (any more).
pub fn resolve(name: &str, recorded: Option<&Path>) -> Result<EngineSpec, SpecError> {
    let Some(path) = recorded else {
        return Search::from_environment().find(name);
    };
    match install::read_record(path) {
        Ok(spec) if is_executable(Path::new(&spec.argv[0])) => Ok(spec),
        Ok(spec) => {
            let gone = SpecError::Unusable {
                path: path.to_owned(),
                why: format!(
                    "{} is gone since `farside install`; run it again",
                    spec.argv[0]
                ),
            };
            Search::from_environment().find(name).map_err(|_| gone)
        }
        Err(damage) => Search::from_environment().find(name).map_err(|_| damage),
    }
}

/// Where to look for kernelspecs.
#[derive(Clone, Debug)]
pub struct Search {
    /// Folders that hold spec folders, the first match wins.
    pub kernel_dirs: Vec<PathBuf>,
    /// Python interpreters: the one on PATH, then that of the `jupyter` command. The first that has ipykernel
    /// gives the native spec.
    pub pythons: Vec<Python>,
    /// `PATH`.
    pub path: OsString,
}

impl Search {
    /// As Jupyter would look in this environment. Runs python to ask it for its prefix.
    pub fn from_environment() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = var("PATH").unwrap_or_default();
        let pythons = python::find(&path);
        Self {
            kernel_dirs: kernel_dirs(&var, &pythons),
            pythons,
            path,
        }
    }

    /// The engine with this name, ready to start.
    pub fn find(&self, name: &str) -> Result<EngineSpec, SpecError> {
        let name = name.to_lowercase();
        if let Some(engine) = name.strip_prefix(OWN_PREFIX) {
            return Err(SpecError::OwnSpec {
                engine: engine.to_owned(),
                name,
            });
        }
        for dir in &self.kernel_dirs {
            if let Some(resource_dir) = specs_in(dir).remove(&name) {
                return self.read(&name, &resource_dir);
            }
        }
        if name == NATIVE_NAME
            && let Some(spec) = self.pythons.iter().find_map(Python::native_spec)
        {
            return Ok(spec);
        }
        Err(SpecError::NotFound {
            name,
            found: self.names().into_iter().collect(),
            looked: self.kernel_dirs.clone(),
        })
    }

    /// The names of all engines, farside's own specs left out.
    pub fn names(&self) -> BTreeSet<String> {
        let native = self
            .pythons
            .iter()
            .any(|python| python.native_spec().is_some());
        self.kernel_dirs
            .iter()
            .flat_map(|dir| specs_in(dir).into_keys())
            .chain(native.then(|| NATIVE_NAME.to_owned()))
            .filter(|name| !name.starts_with(OWN_PREFIX))
            .collect()
    }

    /// Reads the spec in a folder and resolves its program.
    fn read(&self, name: &str, resource_dir: &Path) -> Result<EngineSpec, SpecError> {
        let path = resource_dir.join("kernel.json");
        let unusable = |why: String| SpecError::Unusable {
            path: path.clone(),
            why,
        };
        let spec = read_object(&path)?;
        let mut spec = parse(name, resource_dir, spec).map_err(unusable)?;
        if spec.metadata.contains_key("farside") {
            let engine = spec.metadata["farside"]["engine"]
                .as_str()
                .unwrap_or(NATIVE_NAME)
                .to_owned();
            return Err(SpecError::OwnSpec {
                name: name.to_owned(),
                engine,
            });
        }
        let prefix = prefix_of(resource_dir);
        let program =
            self.program(&spec.argv[0], prefix)
                .map_err(|looked| SpecError::NoProgram {
                    path: path.clone(),
                    program: spec.argv[0].clone(),
                    looked,
                })?;
        spec.argv[0] = program
            .into_os_string()
            .into_string()
            .map_err(|p| unusable(format!("{p:?} is not UTF-8")))?;
        let python_prefix = prefix.or(self.pythons.first().map(|python| python.prefix.as_path()));
        template::expand_fixed(&mut spec.argv, resource_dir, python_prefix);
        Ok(spec)
    }

    /// The absolute path of a spec's program, else where it was looked for. A bare name is looked for beside the
    /// spec's own prefix first: a spec of an environment that is not active must not run another one's python.
    fn program(&self, program: &str, prefix: Option<&Path>) -> Result<PathBuf, Vec<PathBuf>> {
        let as_path = Path::new(program);
        if as_path.is_absolute() {
            return if is_executable(as_path) {
                Ok(as_path.to_owned())
            } else {
                Err(vec![as_path.to_owned()])
            };
        }
        if program.contains('/') {
            // As a shell and Jupyter have it: from the working directory.
            let absolute = std::path::absolute(as_path).unwrap_or_else(|_| as_path.to_owned());
            return if is_executable(&absolute) {
                Ok(absolute)
            } else {
                Err(vec![absolute])
            };
        }
        let bin = prefix.map(|prefix| prefix.join("bin"));
        let is_python = python::is_python_name(program);
        let beside: &[&str] = if is_python {
            &[program, "python3", "python"]
        } else {
            &[program]
        };
        if let Some(bin) = &bin
            && let Some(found) = beside
                .iter()
                .map(|name| bin.join(name))
                .find(|path| is_executable(path))
        {
            return Ok(found);
        }
        // jupyter_client starts its own interpreter for `python`, `python3` and its own `python3.x`.
        if let Some(python) = self
            .pythons
            .iter()
            .find(|python| python.answers_to(program))
        {
            return Ok(python.executable.clone());
        }
        python::on_path(program, &self.path).ok_or_else(|| {
            bin.into_iter()
                .chain(std::env::split_paths(&self.path))
                .collect()
        })
    }
}

/// Spec folders in a folder, by their name in lower case.
fn specs_in(dir: &Path) -> BTreeMap<String, PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.to_lowercase();
            let named = name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            (named && path.join("kernel.json").is_file()).then_some((name, path))
        })
        .collect()
}

/// `P` of a spec folder `P/share/jupyter/kernels/NAME`.
fn prefix_of(resource_dir: &Path) -> Option<&Path> {
    let mut up = resource_dir.ancestors().skip(1);
    for expected in ["kernels", "jupyter", "share"] {
        up.next()
            .filter(|dir| dir.file_name() == Some(OsStr::new(expected)))?;
    }
    up.next()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Reads a JSON object from a small file.
fn read_object(path: &Path) -> Result<Map<String, Value>, SpecError> {
    let unusable = |why: String| SpecError::Unusable {
        path: path.to_owned(),
        why,
    };
    let size = fs::metadata(path)
        .map_err(SpecError::io("read", path))?
        .len();
    if size > KERNEL_JSON_BYTES_MAX {
        return Err(unusable(format!(
            "{size} bytes are more than a kernelspec has"
        )));
    }
    let text = fs::read(path).map_err(SpecError::io("read", path))?;
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    serde_json::from_slice(text).map_err(|e| unusable(format!("not a JSON object: {e}")))
}

/// A spec from its JSON, as leniently as Jupyter reads it; `Err` says which field is wrong and how.
fn parse(
    name: &str,
    resource_dir: &Path,
    mut json: Map<String, Value>,
) -> Result<EngineSpec, String> {
    let mut text = |key: &str| match json.get_mut(key).map(Value::take) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let language = text("language").unwrap_or_default();
    let display_name = text("display_name")
        .filter(|s| !s.is_empty())
        .unwrap_or_else(|| name.to_owned());
    let protocol_version = text("kernel_protocol_version");
    let interrupt_mode = match text("interrupt_mode")
        .map(|mode| mode.to_lowercase())
        .as_deref()
    {
        None | Some("signal") => InterruptMode::Signal,
        Some("message") => InterruptMode::Message,
        Some(other) => {
            return Err(format!(
                "`interrupt_mode` is `{other}`, not `signal` or `message`"
            ));
        }
    };
    let argv: Vec<String> = match json.remove("argv") {
        Some(argv) => serde_json::from_value(argv)
            .map_err(|_| "`argv` is not a list of strings".to_owned())?,
        None => return Err("it has no `argv`".to_owned()),
    };
    if argv.first().is_none_or(String::is_empty) {
        return Err("`argv` is empty".to_owned());
    }
    if !argv.iter().any(|arg| arg.contains(CONNECTION_FILE)) {
        return Err(format!(
            "`argv` has no `{CONNECTION_FILE}`, so the engine would not know where to listen"
        ));
    }
    let mut env = BTreeMap::new();
    if let Some(Value::Object(entries)) = json.remove("env") {
        for (key, value) in entries {
            let value = match value {
                Value::String(text) => text,
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                _ => return Err(format!("`env.{key}` is not a string")),
            };
            env.insert(key, value);
        }
    }
    let metadata = match json.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        _ => Map::new(),
    };
    let provisioner = metadata
        .get("kernel_provisioner")
        .and_then(|p| p.get("provisioner_name")?.as_str());
    if let Some(provisioner) = provisioner.filter(|name| *name != "local-provisioner") {
        return Err(format!(
            "it is started by Jupyter's `{provisioner}`, and farside starts local processes only"
        ));
    }
    let resource_dir = resource_dir.to_owned();
    let name = name.to_owned();
    Ok(EngineSpec {
        name,
        argv,
        env,
        language,
        display_name,
        interrupt_mode,
        metadata,
        resource_dir,
        protocol_version,
    })
}
