//! A process, told apart from a later one with the same number.

use serde::{Deserialize, Serialize};

use crate::process::PidFd;

/// A process id with its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot ([`crate::process::start_time`]).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The running process with this number; `None` where there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let process = PidFd::open(pid)
            .ok()
            .filter(|process| !process.has_ended())?;
        Some(Self {
            pid,
            start_ticks: process.start_time(),
        })
    }

    /// Whether this very process still runs (one that has exited and was not yet waited for does not).
    pub fn is_alive(self) -> bool {
        PidFd::open_verified(self.pid, self.start_ticks).is_ok_and(|process| !process.has_ended())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_until_it_has_ended() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(
            !ProcessId {
                start_ticks: id.start_ticks + 1,
                ..id
            }
            .is_alive()
        );
        let held = PidFd::open(child.id()).unwrap();
        drop(child.stdin.take());
        assert!(held.wait_blocking(std::time::Duration::from_secs(10)));
        assert!(!id.is_alive(), "a zombie is not alive");
        assert_eq!(ProcessId::of(child.id()), None);
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
