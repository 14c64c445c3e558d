//! pidfds: a process held by a descriptor, to be awaited and signalled without mistaking it for another one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{no_such_process, parent_pid, poll, signal_group, start_time};

/// A process held by a descriptor: it cannot be mistaken for a later one with the same pid.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: u32,
    start_time: u64,
}

impl PidFd {
    /// Opens the process that has `pid` now. A zombie can be opened too, and counts as ended.
    ///
    /// # Errors
    /// `ESRCH` where there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor (close-on-exec), nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let start_time = start_time(pid).ok_or_else(no_such_process)?;
        let opened = Self {
            fd,
            pid,
            start_time,
        };
        // As long as the process we hold has not been reaped, its pid is not given away: so the start time just
        // read was its own.
        match opened.signal(0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(error),
            _ => Ok(opened),
        }
    }

    /// Opens the process that has `pid` and was started at `start_time` ([`start_time`]).
    ///
    /// # Errors
    /// `ESRCH` where there is none, or where another process has that pid now.
    pub fn open_verified(pid: u32, start_time: u64) -> io::Result<Self> {
        let opened = Self::open(pid)?;
        if opened.start_time == start_time {
            Ok(opened)
        } else {
            Err(no_such_process())
        }
    }

    /// Opens the parent of this process; `None` where it has gone already (what took its place, init or a
    /// subreaper, is told apart by `expected`: the parent's pid as noted at start, e.g. from `JPY_PARENT_PID`).
    pub fn of_parent(expected: Option<u32>) -> io::Result<Option<Self>> {
        let pid = parent_pid();
        if pid <= 1 || expected.is_some_and(|expected| expected != pid) {
            return Ok(None);
        }
        match Self::open(pid) {
            // It may have ended, and its pid been reused, between the two calls: then we have a new parent.
            Ok(opened) if parent_pid() == pid => Ok(Some(opened)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its start time, see [`start_time`].
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Whether it has ended (its parent may not have reaped it yet).
    pub fn has_ended(&self) -> bool {
        poll_one(self.fd.as_fd(), Duration::ZERO) != 0
    }

    /// Waits until it has ended, at most for `limit`; says whether it has.
    pub fn wait_blocking(&self, limit: Duration) -> bool {
        poll_one(self.fd.as_fd(), limit) != 0
    }

    /// Waits until it has ended. Cancel-safe. Needs a tokio runtime with I/O.
    pub async fn wait(&self) -> io::Result<()> {
        // A descriptor of its own: one cannot be registered twice, and several may wait.
        let fd = self.fd.try_clone()?;
        // SAFETY: an owned descriptor, which the AsyncFd keeps as it is until both are dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        loop {
            let mut ready = fd.readable().await?;
            if self.has_ended() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// `ESRCH` where it has ended and been reaped, `EPERM` where it is not ours.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: no pointer but a null siginfo, which asks the kernel to fill it in as kill(2) does.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Sends a signal to the process group that this process leads.
    ///
    /// # Errors
    /// `ESRCH` where it has ended or leads no group.
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        if self.has_ended() {
            return Err(no_such_process());
        }
        signal_group(self.pid, signal)
    }

    /// How it ended, also where it was not our child. `None` while it runs, where its parent has not reaped it,
    /// and on kernels before 6.15, which do not tell.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        // SAFETY: pidfd_info is plain integers, for which zero is a valid value.
        let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
        info.mask = u64::from(libc::PIDFD_INFO_EXIT);
        // SAFETY: the request's size is that of `info`, which outlives the call.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::PIDFD_GET_INFO, &mut info) };
        let known = done == 0 && info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
        known.then(|| ExitStatus::from_raw(info.exit_code))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returned events of one descriptor that may become readable; 0 after `limit`.
fn poll_one(fd: BorrowedFd<'_>, limit: Duration) -> libc::c_short {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    poll(std::slice::from_mut(&mut entry), Some(limit)).map_or(0, |_| entry.revents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_pidfd_tells_the_end_of_a_child_and_refuses_a_wrong_start_time() {
        let mut child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let held = PidFd::open(child.id()).unwrap();
        assert_eq!(Some(held.start_time()), start_time(child.id()));
        let wrong = PidFd::open_verified(child.id(), held.start_time() + 1).unwrap_err();
        assert_eq!(wrong.raw_os_error(), Some(libc::ESRCH));
        assert!(!held.has_ended());
        held.signal(libc::SIGTERM).unwrap();
        assert!(held.wait_blocking(Duration::from_secs(10)));
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        assert!(held.exit_status().is_none_or(|told| told == status));
        assert_eq!(
            held.signal(libc::SIGTERM).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
        assert!(PidFd::open_verified(child.id(), held.start_time()).is_err());
    }

    #[tokio::test]
    async fn a_pidfd_can_be_awaited() {
        let mut child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let held = PidFd::open(child.id()).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(1), held.wait()).await;
        assert!(early.is_err(), "still running");
        drop(child.stdin.take());
        tokio::time::timeout(Duration::from_secs(10), held.wait())
            .await
            .unwrap()
            .unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn our_own_parent_can_be_opened_and_another_is_not_taken_for_it() {
        let parent = PidFd::of_parent(None).unwrap();
        assert_eq!(
            parent.map(|p| p.pid()),
            Some(parent_pid()).filter(|&pid| pid > 1)
        );
        assert!(PidFd::of_parent(Some(u32::MAX)).unwrap().is_none());
    }
}
