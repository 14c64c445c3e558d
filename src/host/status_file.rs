//! The thread that writes status.json.
//!
//! Creating and renaming a file takes longer than all that a small request costs otherwise, so the loop does not wait
//! for it: it says what is to be shown, and the newest word counts.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::state_dir::{HostLock, Session, Status};

/// The thread and the way to it.
pub(super) struct StatusFile {
    /// Boxed: they are rare, and large.
    sender: Option<mpsc::Sender<Box<Status>>>,
    thread: Option<JoinHandle<HostLock>>,
}

impl StatusFile {
    /// Starts it. `lock`: who holds it may write the file.
    pub fn start(session: Session, lock: HostLock) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Box<Status>>();
        let thread = std::thread::Builder::new()
            .name("status".into())
            .spawn(move || {
                while let Ok(next) = receiver.recv() {
                    // The driver bounds how often it speaks; what came during the last write is one more.
                    let newest = receiver.try_iter().last().unwrap_or(next);
                    if let Err(error) = session.dir.write_status(&lock, &newest) {
                        tracing::warn!(%error, "status.json cannot be written");
                    }
                }
                lock
            })?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Shows this from now on.
    pub fn show(&self, status: Status) {
        if let Some(sender) = &self.sender {
            // The thread ends with us only.
            let _ = sender.send(Box::new(status));
        }
    }

    /// Ends the thread when all is written. The lock is for who goes on with the session's folder.
    pub fn finish(&mut self) -> Option<HostLock> {
        drop(self.sender.take());
        self.thread.take()?.join().ok()
    }
}
