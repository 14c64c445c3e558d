//! Whether the out-of-memory killer did it. Only ever a yes where there is evidence; the kernel does not tell
//! it in the exit status.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Evidence that gathers from a process's start on.
#[derive(Debug, Default)]
pub struct OomWatch {
    /// The count of kills in the process's memory cgroup, where there is one and it can be read.
    counter: Option<Counter>,
    /// The kernel's log from here on, where we may read it.
    log: Option<File>,
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    before: u64,
}

impl OomWatch {
    /// Of a process that runs.
    pub fn of(pid: u32) -> Self {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Self {
            counter: counter_files(&cgroups).into_iter().find_map(|file| {
                let before = read_counter(&file)?;
                Some(Counter { file, before })
            }),
            log: log_from_here().ok(),
        }
    }

    /// Whether a process of that cgroup has been killed since. To be asked about one that died by SIGKILL.
    pub fn counter_has_grown(&self) -> bool {
        self.counter.as_ref().is_some_and(|counter| {
            read_counter(&counter.file).is_some_and(|now| now > counter.before)
        })
    }

    /// Whether the kernel's log names this process since then as killed for lack of memory.
    pub fn log_names(&mut self, pid: u32) -> bool {
        let Some(log) = &mut self.log else {
            return false;
        };
        // mm/oom_kill.c: "Out of memory: Killed process 123 (python) ...", "Memory cgroup out of memory: ..."
        let needle = format!("Killed process {pid} (");
        // Each read gives one record, at most 8 KiB (CONSOLE_EXT_LOG_MAX); a log has thousands at most.
        let mut record = [0; 8192];
        for _ in 0..100_000 {
            match log.read(&mut record) {
                Ok(length) if length > 0 => {
                    if String::from_utf8_lossy(&record[..length]).contains(&needle) {
                        return true;
                    }
                }
                // That record was overwritten before we got to it; the next one can be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                _ => return false,
            }
        }
        false
    }
}

fn log_from_here() -> io::Result<File> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// Where the counter may be, given /proc/PID/cgroup (cgroups(7)): version 1's or 2's hierarchy; by its path or,
/// in a container that sees only its own part, at the mount's root.
fn counter_files(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mounts, name): (&[_], _) = if controllers.is_empty() {
            let mounts = &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
            (mounts, "memory.events")
        } else if controllers.split(',').any(|name| name == "memory") {
            (&["/sys/fs/cgroup/memory"], "memory.oom_control")
        } else {
            continue;
        };
        for mount in mounts {
            let mount = Path::new(mount);
            files.push(mount.join(path.trim_start_matches('/')).join(name));
            files.push(mount.join(name));
        }
    }
    files
}

fn read_counter(file: &Path) -> Option<u64> {
    let mut text = String::new();
    // A pseudo file of some hundred bytes.
    File::open(file)
        .ok()?
        .take(64 * 1024)
        .read_to_string(&mut text)
        .ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_looked_for_in_both_hierarchies() {
        let of = |text| {
            counter_files(text)
                .iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of("0::/user.slice/a b.scope\n")[..2],
            [
                "/sys/fs/cgroup/user.slice/a b.scope/memory.events",
                "/sys/fs/cgroup/memory.events"
            ]
        );
        assert_eq!(
            of("5:cpu,memory:/x:y\n4:pids:/\nnonsense\n"),
            [
                "/sys/fs/cgroup/memory/x:y/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control"
            ]
        );
    }

    #[test]
    fn a_grown_counter_is_seen_and_a_missing_one_is_no() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        std::fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 9\n").unwrap();
        let watch = OomWatch {
            counter: read_counter(&file).map(|before| Counter {
                before,
                file: file.clone(),
            }),
            log: None,
        };
        assert_eq!(watch.counter.as_ref().map(|c| c.before), Some(2));
        assert!(!watch.counter_has_grown());
        std::fs::write(&file, "oom_kill 3\n").unwrap();
        assert!(watch.counter_has_grown());
        std::fs::remove_file(&file).unwrap();
        assert!(!watch.counter_has_grown());
        assert!(!OomWatch::default().counter_has_grown());
    }

    #[test]
    fn the_kernels_log_is_searched_for_the_very_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        let line = "3,9,8,-;Out of memory: Killed process 123 (python) total-vm:1kB\n";
        std::fs::write(&path, line).unwrap();
        let names = |pid| {
            let log = File::open(&path).ok();
            OomWatch { counter: None, log }.log_names(pid)
        };
        assert!(names(123));
        assert!(!names(12));
        assert!(!names(1234));
        assert!(!OomWatch::default().log_names(123));
    }
}
