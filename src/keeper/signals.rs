//! Signals as something to poll, and the wait for any child.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::protocol::Usage;

/// The signals that the keeper takes from a descriptor, in place of their action.
pub struct Signals(OwnedFd);

impl Signals {
    /// SIGCHLD, SIGTERM, SIGHUP and SIGINT, from now on.
    pub fn block() -> io::Result<Self> {
        // SAFETY: sigset_t is plain data that sigemptyset sets up; SIG_IGN runs no code; the descriptor is new
        // and ours.
        unsafe {
            // A write to a stderr that is a pipe must not kill us.
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
                libc::sigaddset(&mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> io::Result<Option<i32>> {
        // SAFETY: plain integers, for which zero is a valid value.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writes of its size.
        let got = unsafe {
            libc::read(
                self.0.as_raw_fd(),
                (&raw mut info).cast(),
                size_of_val(&info),
            )
        };
        if got == size_of_val(&info) as isize {
            return Ok(Some(info.ssi_signo as i32));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits, without blocking, for any child that has ended.
pub fn wait_for_child() -> Option<(u32, ExitStatus, Usage)> {
    let mut status = 0;
    // SAFETY: plain integers, for which zero is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for writes.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
    let pid = u32::try_from(pid).ok().filter(|&pid| pid > 0)?;
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let usage = Usage {
        user_micros: micros(usage.ru_utime),
        system_micros: micros(usage.ru_stime),
        // In KiB, getrusage(2).
        max_resident_bytes: usage.ru_maxrss as u64 * 1024,
    };
    Some((pid, ExitStatus::from_raw(status), usage))
}
