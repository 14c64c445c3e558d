//! The session's folders, which somebody may delete under a host that lives.

use tokio::net::UnixListener;

use super::Driver;
use crate::host::{clients, ground};
use crate::state_dir::Session;

/// The link's socket, and the task that accepts there.
pub(super) struct Accepting {
    /// `None`: there is no socket at the moment.
    pub(super) socket: Option<(u64, u64)>,
    pub(super) task: tokio::task::JoinHandle<()>,
}

/// The link's socket, ours alone from its first moment on: its folder is 0700.
fn bind_link(session: &Session) -> std::io::Result<UnixListener> {
    let path = session.dir.link_socket();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

impl Driver {
    /// The link's socket is made (again), and who was served stays served.
    pub(super) fn accept(&mut self) -> std::io::Result<()> {
        self.session
            .dir
            .ensure_sockets_dir()
            .map_err(std::io::Error::other)?;
        let listener = bind_link(&self.session)?;
        let socket = ground::identity(&self.session.dir.link_socket());
        let task = tokio::task::spawn_local(clients::accept(listener, self.inbox.clone()));
        // The streams of the old one live in it, so it goes on; nobody finds it any more.
        self.accepting = Accepting { socket, task };
        Ok(())
    }

    pub(super) fn on_deleted(&mut self) {
        if self.over {
            return;
        }
        if !self.homeless && ground::is_gone(&self.session.dir) {
            let why = "the session's folder was deleted";
            tracing::error!("{why}; the session ends when nobody is attached");
            self.homeless = true;
            self.log.close(why);
        }
        self.log.look_after_file();
        let there = ground::identity(&self.session.dir.link_socket());
        if there.is_none() || there != self.accepting.socket {
            tracing::warn!("the link's socket was deleted; it is made again");
            if let Err(error) = self.accept() {
                tracing::error!(%error, "the link's socket cannot be made");
            }
        }
    }

    /// Nobody could ever come back to it.
    pub(super) fn end_if_homeless(&mut self) {
        if self.homeless && self.clients.is_empty() && self.core.state().lifetime.ending.is_none() {
            self.end("stopped: its folder was deleted");
        }
    }
}
