//! inotify: to be woken when something is taken out of a folder.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Whatever is read at once: what exactly happened does not matter, only that something did.
const READ_BYTES: usize = 4096;

/// Watches folders for entries that are deleted, and for their own end.
#[derive(Debug)]
pub struct Deletions {
    fd: AsyncFd<OwnedFd>,
}

impl Deletions {
    /// Watches nothing yet. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// Out of descriptors, or of the user's inotify instances (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        // SAFETY: one integer in, a descriptor of our own or -1 out.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an owned descriptor, which the AsyncFd keeps as it is until both are dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd })
    }

    /// Watches a folder too; again does no harm.
    pub fn watch(&self, folder: &Path) -> io::Result<()> {
        let path = CString::new(folder.as_os_str().as_bytes())?;
        let what = libc::IN_DELETE | libc::IN_DELETE_SELF | libc::IN_MOVE_SELF | libc::IN_ONLYDIR;
        // SAFETY: the descriptor is open and the string ends with its zero, both for the call's duration.
        let added =
            unsafe { libc::inotify_add_watch(self.fd.get_ref().as_raw_fd(), path.as_ptr(), what) };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits until something was deleted. Cancel-safe.
    pub async fn wait(&self) -> io::Result<()> {
        let mut buffer = [0u8; READ_BYTES];
        let read = |fd: &OwnedFd| {
            // SAFETY: the buffer is ours alone and as long as said.
            let got = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), READ_BYTES) };
            if got < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        self.fd.async_io(Interest::READABLE, read).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deletion_wakes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        std::fs::write(&file, "").unwrap();
        std::fs::create_dir(&folder).unwrap();
        let deletions = Deletions::new().unwrap();
        deletions.watch(dir.path()).unwrap();
        deletions.watch(&folder).unwrap();
        assert!(deletions.watch(&file).is_err(), "not a folder");
        std::fs::write(dir.path().join("new"), "").unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("newer")).unwrap();
        let early = tokio::time::timeout(std::time::Duration::ZERO, deletions.wait()).await;
        assert!(early.is_err(), "nothing was deleted");
        std::fs::remove_file(&file).unwrap();
        deletions.wait().await.unwrap();
        std::fs::remove_dir(&folder).unwrap();
        deletions.wait().await.unwrap();
    }
}
