//! What a host stands on: its session's folder and its link's socket. Both can be deleted under it (a cleaner of
//! temporary folders, somebody's `rm -r`), and nothing of what the host has open would tell: records would go on into
//! files that have no name any more, and nobody could come in.
//!
//! Wakes the driver when something was, or may have been, deleted; what is to be done about it is the driver's.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::driver::Input;
use super::inbox::Inbox;
use crate::process::Deletions;
use crate::state_dir::SessionDir;

/// Where there is no inotify (its instances are counted per user) one looks so often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// And where there is: somebody may delete in the very moment in which it is watched anew, or on another machine.
const LOOK_SELDOM: Duration = Duration::from_secs(30);

/// A socket that was just made is watched again after this: its folder may be a new one.
const WATCH_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The task that watches. Dropping it ends it.
pub(super) struct Ground(tokio::task::JoinHandle<()>);

impl Drop for Ground {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ground {
    /// Begins to watch the session's folders.
    pub fn watch(dir: &SessionDir, inbox: Inbox<Input>) -> Self {
        Self(tokio::task::spawn_local(run(dir.clone(), inbox)))
    }
}

async fn run(dir: SessionDir, inbox: Inbox<Input>) {
    let deletions = Deletions::new()
        .inspect_err(
            |error| tracing::warn!(%error, "no inotify: the folders are looked at now and then"),
        )
        .ok();
    loop {
        let woken = match &deletions {
            Some(deletions) => {
                let watched = deletions
                    .watch(dir.root())
                    .and_then(|()| deletions.watch(&dir.journal()))
                    .and_then(|()| deletions.watch(dir.sockets()));
                match watched {
                    Ok(()) => {
                        let waited = tokio::time::timeout(LOOK_SELDOM, deletions.wait());
                        waited.await.unwrap_or(Ok(())).is_ok()
                    }
                    // Deleted already. It is made again, or the session ends.
                    Err(_) => {
                        tokio::time::sleep(WATCH_AGAIN_AFTER).await;
                        true
                    }
                }
            }
            None => false,
        };
        if !woken {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if !inbox.send_now(Input::Deleted) {
            return;
        }
    }
}

/// Whether the session's folder is not there any more, or not whole: its facts are written once and then stay.
pub(super) fn is_gone(dir: &SessionDir) -> bool {
    is_missing(&dir.session_json())
}

/// Whether there is certainly nothing at this path: any other trouble may pass.
fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// What names a socket's file: a new one under the same path is another.
pub(super) fn identity(socket: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(socket).ok()?;
    Some((meta.dev(), meta.ino()))
}
