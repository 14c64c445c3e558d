//! Detach or shut down: what a frontend's shutdown_request means (design: "detach or shut down").
//!
//! A Jupyter Server sends the same requests when a person shuts a kernel down and when the server itself stops. But
//! before it stops it deletes `jpserver-<its pid>.json` (jupyter_server serverapp.py, `cleanup_server`).

use std::path::{Path, PathBuf};

/// The process that a launcher lives for.
#[derive(Debug, Clone)]
pub struct Frontend {
    pid: u32,
    /// A Jupyter Server's file, if the parent had one when the launcher began.
    server_file: Option<PathBuf>,
}

/// What to do with a shutdown_request (not a restart) or an interrupt_request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A person means it.
    Meant,
    /// The server is leaving: answer it, and detach.
    Leaving,
}

impl Frontend {
    /// The parent process; looks for its server file in the connection file's folder and in Jupyter's.
    pub fn of_parent(connection_file: &Path) -> Self {
        let pid = crate::process::parent_pid();
        let name = format!("jpserver-{pid}.json");
        let folders = connection_file
            .parent()
            .map(Path::to_owned)
            .into_iter()
            .chain(runtime_folder());
        let server_file = folders
            .map(|folder| folder.join(&name))
            .find(|file| file.exists());
        Self { pid, server_file }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What a request of it means now.
    pub fn meaning(&self) -> Meaning {
        let is_gone = crate::process::parent_pid() != self.pid;
        match &self.server_file {
            _ if is_gone => Meaning::Leaving,
            Some(file) if !file.exists() => Meaning::Leaving,
            Some(_) | None => Meaning::Meant,
        }
    }
}

/// jupyter_core's runtime folder, as the environment has it.
fn runtime_folder() -> Option<PathBuf> {
    let var = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    var("JUPYTER_RUNTIME_DIR")
        .or_else(|| var("JUPYTER_DATA_DIR").map(|data| data.join("runtime")))
        .or_else(|| var("XDG_DATA_HOME").map(|data| data.join("jupyter/runtime")))
        .or_else(|| var("HOME").map(|home| home.join(".local/share/jupyter/runtime")))
}
