//! Detach or shut down: what a frontend's shutdown_request means (design: "detach or shut down").
//!
//! A Jupyter Server sends the same requests when a person shuts a kernel down and when the server itself stops. But
//! before it stops it deletes `jpserver-<its pid>.json` (jupyter_server serverapp.py, `cleanup_server`).

use std::path::{Path, PathBuf};

use crate::journal::record::Micros;
use crate::process::{PidFd, parent_pid};
use crate::wire::Message;
use crate::wire::message::sent_at;

/// What waited for the launcher before us in a server's socket reaches us within this, once our sockets are bound.
/// libzmq tries a lost connection again after 0.1 s.
const STALE_WITHIN: Micros = 10_000_000;

/// The process that a launcher lives for.
#[derive(Debug)]
pub struct Frontend {
    pid: u32,
    /// `None`: it cannot be held, or has ended meanwhile.
    process: Option<PidFd>,
    /// A Jupyter Server's file, if the parent had one when the launcher began.
    server_file: Option<PathBuf>,
    /// When the launcher began, wall time.
    began: Micros,
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
        let pid = parent_pid();
        let name = format!("jpserver-{pid}.json");
        let folders = connection_file
            .parent()
            .map(Path::to_owned)
            .into_iter()
            .chain(runtime_folder());
        let server_file = folders
            .map(|folder| folder.join(&name))
            .find(|file| file.exists());
        Self {
            pid,
            process: PidFd::of_parent(Some(pid)).ok().flatten(),
            server_file,
            began: crate::state_dir::now(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, which it may have before this is called.
    pub async fn ended(&self) {
        let has_ended = match &self.process {
            Some(process) => process.wait().await.is_ok(),
            None => self.is_gone(),
        };
        if !has_ended {
            std::future::pending().await
        }
    }

    fn is_gone(&self) -> bool {
        parent_pid() != self.pid
    }

    /// Whether it is a Jupyter Server, which starts a kernel anew whose process ends.
    pub fn is_jupyter_server(&self) -> bool {
        self.server_file.is_some()
    }

    /// What a request of it means now.
    pub fn meaning(&self) -> Meaning {
        match &self.server_file {
            _ if self.is_gone() => Meaning::Leaving,
            Some(file) if !file.exists() => Meaning::Leaving,
            Some(_) | None => Meaning::Meant,
        }
    }
}

impl Frontend {
    /// Whether a request was meant for a launcher before this one. A Jupyter Server whose kernel died starts another
    /// one on the same ports, and before that interrupts the dead one (jupyter_client manager.py, `shutdown_kernel`):
    /// the request waits in the server's socket, and we would be the ones to get it, as soon as we are there. Only of
    /// such a server is its word on the time taken, whose clock is ours, and only at our beginning: other frontends'
    /// clocks may be wrong, and an interrupt that is meant must never be swallowed. A request that does not say when it
    /// was sent is for us.
    pub fn came_before_us(&self, message: &Message) -> bool {
        self.is_jupyter_server() && self.is_stale(message, crate::state_dir::now())
    }

    fn is_stale(&self, message: &Message, now: Micros) -> bool {
        let just_began = now.saturating_sub(self.began) < STALE_WITHIN;
        just_began && sent_at(&message.header).is_some_and(|sent| sent < self.began)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The server's interrupt of a launcher that was killed waited for the next one on the same ports, and ended the
    /// cell that the session had kept running.
    #[test]
    fn what_was_sent_before_the_launcher_began_is_not_for_it() {
        let frontend = Frontend {
            pid: 1,
            process: None,
            server_file: None,
            began: 1_750_000_000_000_000,
        };
        let stale_at = |date: &str, now: Micros| {
            let header = format!(r#"{{"msg_id":"m"{date}}}"#).into();
            let message = Message {
                header,
                ..Message::default()
            };
            frontend.is_stale(&message, now)
        };
        let came_before = |date: &str| stale_at(date, frontend.began + 100_000);
        // 1,750,000,000 s are 2025-06-15T15:06:40Z.
        assert!(came_before(r#","date":"2025-06-15T15:06:39.999999Z""#));
        assert!(came_before(r#","date":"2025-06-15T17:06:39.5+02:00""#));
        assert!(!came_before(r#","date":"2025-06-15T15:06:40.000000Z""#));
        assert!(!came_before(r#","date":"2025-06-15T15:06:39-01:00""#));
        for unreadable in [
            "",
            r#","date":null"#,
            r#","date":"""#,
            r#","date":"yesterday""#,
            r#","date":"2025-06-15T15:06:39""#,
        ] {
            assert!(!came_before(unreadable), "{unreadable}");
        }
        let later = frontend.began + STALE_WITHIN;
        assert!(
            !stale_at(r#","date":"2025-06-15T15:06:39.999999Z""#, later),
            "nothing of the last launcher's waits so long: the clock was set, and it is meant"
        );
    }

    /// A frontend whose clock is behind could not interrupt anything.
    #[test]
    fn only_a_jupyter_servers_clock_is_believed() {
        let old = Message {
            header: r#"{"msg_id":"m","date":"2020-01-01T00:00:00Z"}"#.into(),
            ..Message::default()
        };
        let of = |server_file: Option<&str>| Frontend {
            pid: 1,
            process: None,
            server_file: server_file.map(PathBuf::from),
            began: crate::state_dir::now(),
        };
        assert!(!of(None).came_before_us(&old));
        assert!(of(Some("jpserver-1.json")).came_before_us(&old));
    }
}
