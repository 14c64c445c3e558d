//! A process that the keeper watches: its own child, or one that it holds by a pidfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::oom::OomWatch;
use super::protocol::Process;
use crate::journal::record::ProcessEnd;
use crate::process::{self, PidFd};

/// How long the exit status of a process that is not our child is waited for: it is there only when its own
/// parent has reaped it.
const STATUS_WAIT_MAX: Duration = Duration::from_millis(200);

/// How often it is asked for meanwhile.
const STATUS_INTERVAL: Duration = Duration::from_millis(5);

/// See the module.
pub struct Watched {
    /// Which.
    pub process: Process,
    by: By,
    oom: OomWatch,
    /// We sent it SIGKILL ourselves.
    killed: bool,
}

enum By {
    Child,
    PidFd {
        pidfd: PidFd,
        ended_at: Option<Instant>,
    },
}

/// What the loop has to wait for.
pub enum WaitFor<'a> {
    /// SIGCHLD.
    Child,
    /// This descriptor to be readable.
    Fd(BorrowedFd<'a>),
    /// Some time to pass.
    Time(Duration),
}

impl Watched {
    /// A child that has not been waited for.
    pub fn child(process: Process) -> Self {
        Self {
            by: By::Child,
            oom: OomWatch::of(process.pid),
            killed: false,
            process,
        }
    }

    /// A process of somebody else.
    ///
    /// # Errors
    /// `ESRCH` where it has ended and been reaped.
    pub fn adopted(process: Process) -> io::Result<Self> {
        let pidfd = PidFd::open_verified(process.pid, process.start_time)?;
        Ok(Self {
            by: By::PidFd {
                pidfd,
                ended_at: None,
            },
            ..Self::child(process)
        })
    }

    /// Whether it is our child, and so its end comes from wait(2).
    pub fn is_child(&self) -> bool {
        matches!(self.by, By::Child)
    }

    /// What to wait for to learn of its end.
    pub fn wait_for(&self) -> WaitFor<'_> {
        match &self.by {
            By::Child => WaitFor::Child,
            By::PidFd {
                pidfd,
                ended_at: None,
            } => WaitFor::Fd(pidfd.as_fd()),
            // Readable for good now: waiting for that would spin.
            By::PidFd {
                ended_at: Some(_), ..
            } => WaitFor::Time(STATUS_INTERVAL),
        }
    }

    /// Sends a signal to it or to the group it leads.
    pub fn signal(&mut self, signal: i32, group: bool) -> io::Result<()> {
        let pid = self.process.pid;
        match (&self.by, group) {
            (By::Child, false) => process::signal(pid, signal),
            (By::Child, true) => process::signal_group(pid, signal),
            (By::PidFd { pidfd, .. }, false) => pidfd.signal(signal),
            (By::PidFd { pidfd, .. }, true) => pidfd.signal_group(signal),
        }?;
        self.killed |= signal == libc::SIGKILL;
        Ok(())
    }

    /// How it ended, given what wait(2) says.
    pub fn end(&mut self, status: ExitStatus) -> ProcessEnd {
        let signal = status.signal();
        let maybe_oom = signal == Some(libc::SIGKILL) && !self.killed;
        ProcessEnd {
            exit_code: status.code(),
            signal,
            out_of_memory: maybe_oom
                && (self.oom.counter_has_grown() || self.oom.log_names(self.process.pid)),
        }
    }

    /// How a process that is not our child ended; the outer `None` while it runs, or its status may yet come.
    pub fn ended_unparented(&mut self, now: Instant) -> Option<Option<ProcessEnd>> {
        let By::PidFd { pidfd, ended_at } = &mut self.by else {
            return None;
        };
        if ended_at.is_none() && !pidfd.has_ended() {
            return None;
        }
        let since = *ended_at.get_or_insert(now);
        match pidfd.exit_status() {
            Some(status) => Some(Some(self.end(status))),
            None if now < since + STATUS_WAIT_MAX => None,
            None => Some(self.oom.log_names(self.process.pid).then_some(ProcessEnd {
                exit_code: None,
                signal: Some(libc::SIGKILL),
                out_of_memory: true,
            })),
        }
    }
}
