//! A process, told apart from a later one with the same number.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process id with its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The running process with this number; `None` where there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_ticks = start_ticks_of_living(&stat)?;
        Some(Self { pid, start_ticks })
    }

    /// Whether this very process still runs (one that has exited and was not yet waited for does not).
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Field 22 of `/proc/<pid>/stat`, counted from behind the command's name, which may hold anything.
fn start_ticks_of_living(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    // `state` is field 3; 22 is the nineteenth one after it.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let fields: Vec<String> = (4..=30).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b (c)) S {}", fields.join(" "));
        assert_eq!(start_ticks_of_living(&stat), Some(22));
        assert_eq!(start_ticks_of_living(&stat.replace(" S ", " Z ")), None);
        for broken in [
            "",
            "7 (x",
            "7 (x) S 1 2",
            "7 (x) S a b c d e f g h i j k l m n o p q r s t",
        ] {
            assert_eq!(start_ticks_of_living(broken), None);
        }
    }

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
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
