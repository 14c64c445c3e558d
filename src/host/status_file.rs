//! The thread that writes status.json.
//!
//! Creating and renaming a file takes longer than all that a small request costs otherwise, so the loop does not wait
//! for it: it says what is to be shown, and the newest word counts.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::state_dir::{HostLock, Session, Status};

/// Where it could not be written (the disk is full, say), it is tried again after this: nothing else may change for a long
/// time, and what people look at would be wrong as long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

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
                write_all(&receiver, |status| session.dir.write_status(&lock, status));
                lock
            })?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Shows this from now on, or as soon as the disk takes it again.
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

/// Until the last word is there, or has failed once more.
fn write_all<T: Clone, E: std::fmt::Display>(
    receiver: &mpsc::Receiver<T>,
    mut write: impl FnMut(&T) -> Result<(), E>,
) {
    let mut unwritten: Option<T> = None;
    loop {
        let next = match unwritten {
            None => receiver.recv().ok(),
            Some(_) => match receiver.recv_timeout(RETRY_AFTER) {
                Ok(next) => Some(next),
                Err(mpsc::RecvTimeoutError::Timeout) => unwritten.clone(),
                Err(mpsc::RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(next) = next else { break };
        // The driver bounds how often it speaks; what came during the last write is one more.
        let newest = receiver.try_iter().last().unwrap_or(next);
        match write(&newest) {
            Ok(()) => unwritten = None,
            Err(error) => {
                if unwritten.is_none() {
                    tracing::warn!(%error, "status.json cannot be written; it is tried again");
                }
                unwritten = Some(newest);
            }
        }
    }
    if let Some(status) = unwritten {
        let _ = write(&status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_written_later_if_nothing_newer_comes() {
        let (sender, receiver) = mpsc::channel();
        let (written, seen) = mpsc::channel();
        let mut failures = 2;
        let thread = std::thread::spawn(move || {
            write_all(&receiver, |status: &u32| {
                if failures > 0 {
                    failures -= 1;
                    return Err("no room");
                }
                written.send(*status).map_err(|_| "nobody looks")
            });
        });
        sender.send(1).unwrap();
        assert_eq!(seen.recv(), Ok(1));
        sender.send(2).unwrap();
        assert_eq!(seen.recv(), Ok(2));
        drop(sender);
        thread.join().unwrap();
        assert!(seen.recv().is_err());
    }
}
