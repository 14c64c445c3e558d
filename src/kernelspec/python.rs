//! Python interpreters: where they are, and what each says of itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, json};

use super::{EngineSpec, InterruptMode, NATIVE_NAME, is_executable};

/// A python on a cold network file system can take seconds to start; one that takes longer than this hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A script's first line is cut by the kernel at 256 bytes.
const SHEBANG_BYTES_MAX: u64 = 256;

/// What a python says of itself. Imports nothing from the working directory, which `-c` puts first in sys.path.
const QUESTION: &str = r#"
import sys
sys.path = [p for p in sys.path if p not in ("", ".")]
import json, site
from importlib.util import find_spec
try:
    kernel = find_spec("ipykernel")
except Exception:
    kernel = None
print(json.dumps({
    "executable": sys.executable, "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "version": list(sys.version_info[:2]),
    "user_base": site.getuserbase() if site.ENABLE_USER_SITE else None,
    "ipykernel": kernel.origin if kernel else None}))
"#;

/// An interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// `sys.executable`.
    pub executable: PathBuf,
    /// `sys.prefix`.
    pub prefix: PathBuf,
    /// Whether it is a virtual or conda environment, whose specs Jupyter prefers to the user's.
    pub is_environment: bool,
    /// Major and minor.
    pub version: (u32, u32),
    /// Where `pip install --user` puts things, if that is on.
    pub user_base: Option<PathBuf>,
    /// `ipykernel/__init__.py`, if it has it.
    pub ipykernel: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Answer {
    executable: PathBuf,
    prefix: PathBuf,
    base_prefix: PathBuf,
    version: (u32, u32),
    user_base: Option<PathBuf>,
    ipykernel: Option<PathBuf>,
}

impl Python {
    /// Runs the interpreter; `None` where it does not answer.
    pub fn ask(program: &Path) -> Option<Self> {
        let mut child = Command::new(program)
            .args(["-c", QUESTION])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut stdout = child.stdout.take()?;
        let (send, answer) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = send.send(stdout.read_to_string(&mut text).map(|_| text));
        });
        let answer = answer.recv_timeout(ANSWER_WITHIN);
        if answer.is_err() {
            // Nothing to do about a failure: it has ended already.
            let _ = child.kill();
        } else {
            // It has sent all it had to say.
            let _ = reader.join();
        }
        let _ = child.wait();
        let answer: Answer = serde_json::from_str(answer.ok()?.ok()?.lines().last()?).ok()?;
        let conda = std::env::var_os("CONDA_PREFIX")
            .is_some_and(|prefix| answer.prefix.starts_with(prefix))
            && std::env::var("CONDA_DEFAULT_ENV").is_ok_and(|name| name != "base");
        Some(Self {
            is_environment: answer.prefix != answer.base_prefix || conda,
            executable: answer.executable,
            prefix: answer.prefix,
            version: answer.version,
            user_base: answer.user_base,
            ipykernel: answer.ipykernel,
        })
    }

    /// Whether `python`, `python3` or `python3.11` means this one, as jupyter_client sees it.
    pub(super) fn answers_to(&self, name: &str) -> bool {
        let (major, minor) = self.version;
        name == "python"
            || name == format!("python{major}")
            || name == format!("python{major}.{minor}")
    }

    /// The spec of its ipykernel (ipykernel's kernelspec.py, `get_kernel_dict`).
    pub(super) fn native_spec(&self) -> Option<EngineSpec> {
        let resource_dir = self.ipykernel.as_deref()?.parent()?.join("resources");
        let program = self.executable.to_str()?;
        let argv = [
            program,
            "-m",
            "ipykernel_launcher",
            "-f",
            super::CONNECTION_FILE,
        ];
        Some(EngineSpec {
            name: NATIVE_NAME.to_owned(),
            argv: argv.map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            language: "python".to_owned(),
            display_name: "Python 3 (ipykernel)".to_owned(),
            interrupt_mode: InterruptMode::Signal,
            metadata: Map::from_iter([("debugger".to_owned(), json!(true))]),
            resource_dir,
            protocol_version: None,
        })
    }
}

/// The python on PATH, and the one that the `jupyter` on PATH runs with if that is another.
pub(super) fn find(path: &OsStr) -> Vec<Python> {
    let plain = on_path("python3", path).or_else(|| on_path("python", path));
    let jupyter = on_path("jupyter", path).and_then(|script| interpreter_of(&script));
    let mut found: Vec<Python> = Vec::new();
    for program in plain.into_iter().chain(jupyter) {
        if found.iter().any(|known| known.executable == program) {
            continue;
        }
        match Python::ask(&program) {
            Some(python) if !found.contains(&python) => found.push(python),
            _ => {}
        }
    }
    found
}

/// `python`, `python3`, `python3.11`.
pub(super) fn is_python_name(name: &str) -> bool {
    name.strip_prefix("python").is_some_and(|version| {
        version.is_empty()
            || version
                .split('.')
                .all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// The first executable with this name in PATH's absolute folders.
pub(super) fn on_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|p| is_executable(p))
}

/// The absolute interpreter in a script's first line.
fn interpreter_of(script: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    fs::File::open(script)
        .ok()?
        .take(SHEBANG_BYTES_MAX)
        .read_to_end(&mut head)
        .ok()?;
    let line = String::from_utf8_lossy(&head);
    let program = line
        .lines()
        .next()?
        .strip_prefix("#!")?
        .split_whitespace()
        .next()?;
    let program = Path::new(program);
    let is_python = is_python_name(program.file_name()?.to_str()?);
    (is_python && program.is_absolute()).then(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn python_is_known_by_its_name() {
        for name in ["python", "python3", "python3.11", "python2"] {
            assert!(is_python_name(name), "{name}");
        }
        for name in ["pythonw", "python3.", "python-3", "ipython", "R", ""] {
            assert!(!is_python_name(name), "{name}");
        }
    }

    #[test]
    fn a_script_names_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("jupyter");
        for (first_line, expected) in [
            (
                "#!/env/bin/python3.11\nimport x",
                Some("/env/bin/python3.11"),
            ),
            ("#! /env/bin/python -E", Some("/env/bin/python")),
            ("#!/usr/bin/env python3", None),
            ("#!/bin/sh", None),
            ("\u{7f}ELF", None),
            ("", None),
        ] {
            fs::write(&script, first_line).unwrap();
            assert_eq!(
                interpreter_of(&script),
                expected.map(PathBuf::from),
                "{first_line}"
            );
        }
    }

    #[test]
    fn a_python_that_does_not_answer_is_no_python() {
        let dir = tempfile::tempdir().unwrap();
        let fake = dir.path().join("python3");
        fs::write(&fake, "#!/bin/sh\necho no json\n").unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(dir.path().as_os_str()), []);
        assert_eq!(Python::ask(&dir.path().join("none")), None);
    }
}
