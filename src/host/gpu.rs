//! GPU memory of processes, asked of `nvidia-smi` where there is one. Where there is none, or it fails, nothing is
//! said and nothing is known.
//!
//! In a container with a process namespace of its own nvidia-smi tells of the machine's process ids, which are not
//! ours; then nothing is known either.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// It wakes the driver up, which can take a second of CPU where nothing else keeps it awake.
const EVERY: Duration = Duration::from_secs(30);

/// After a failure, or where there is none: a machine gets no GPU all of a sudden.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// It usually takes a tenth of a second; with a broken driver it may hang.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A line for each process on each GPU.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// From the MiB that it prints.
const UNIT_BYTES: u64 = 1 << 20;

/// What is known, and when to ask again.
#[derive(Debug)]
pub(super) struct Gpu {
    path: OsString,
    /// By process id; `None`: nobody can tell.
    memory: Rc<RefCell<State>>,
}

#[derive(Debug)]
enum State {
    /// Nothing known; not to be asked before.
    Unknown(Option<Instant>),
    /// It is being asked; what was known before.
    Asked(Option<HashMap<u32, u64>>),
    Known(HashMap<u32, u64>, Instant),
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new(std::env::var_os("PATH").unwrap_or_default())
    }
}

impl Gpu {
    /// Looks for nvidia-smi in these folders.
    pub fn new(path: OsString) -> Self {
        Self {
            path,
            memory: Rc::new(RefCell::new(State::Unknown(None))),
        }
    }

    /// GPU memory of these processes as last seen. Asks anew in the background where it is time to.
    pub fn memory_of(&self, pids: &HashSet<u32>) -> Option<u64> {
        let state = &mut *self.memory.borrow_mut();
        let known = match state {
            State::Unknown(_) | State::Asked(None) => None,
            State::Asked(Some(memory)) | State::Known(memory, _) => Some(&*memory),
        };
        let bytes = known.map(|memory| {
            (memory.iter().filter(|(pid, _)| pids.contains(pid)))
                .map(|(_, bytes)| bytes)
                .sum()
        });
        let now = Instant::now();
        let known = match state {
            State::Unknown(until) if until.is_none_or(|until| now >= until) => None,
            State::Known(memory, until) if now >= *until => Some(std::mem::take(memory)),
            State::Unknown(_) | State::Asked(_) | State::Known(..) => return bytes,
        };
        *state = State::Asked(known);
        let (path, memory) = (self.path.clone(), self.memory.clone());
        tokio::task::spawn_local(async move {
            let found = tokio::task::spawn_blocking(move || query(&path, TIME_LIMIT)).await;
            *memory.borrow_mut() = match found {
                Ok(Ok(found)) => State::Known(found, Instant::now() + EVERY),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "GPU memory is not known");
                    State::Unknown(Some(Instant::now() + AGAIN_AFTER))
                }
                Err(_) => State::Unknown(Some(Instant::now() + AGAIN_AFTER)),
            };
        });
        bytes
    }
}

/// Why nothing is known.
#[derive(Debug)]
enum Failure {
    NotThere,
    Io(io::Error),
    TooLong,
    Status(std::process::ExitStatus),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => write!(f, "there is no nvidia-smi on PATH"),
            Self::Io(error) => write!(f, "nvidia-smi cannot be run: {error}"),
            Self::TooLong => write!(f, "nvidia-smi took too long"),
            Self::Status(status) => write!(f, "nvidia-smi failed: {status}"),
        }
    }
}

/// Bytes of GPU memory of each process that uses any. Blocks, but not longer than `limit`.
fn query(path: &OsStr, limit: Duration) -> Result<HashMap<u32, u64>, Failure> {
    let program = find(path).ok_or(Failure::NotThere)?;
    let mut child = Command::new(program)
        .args([
            "--query-compute-apps=pid,used_memory",
            "--format=csv,noheader,nounits",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Failure::Io)?;
    let read = read_to_end(&mut child, Instant::now() + limit);
    if read.is_err() {
        // Gone already is as good.
        let _ = child.kill();
    }
    // It has closed its output, or was killed.
    let status = child.wait().map_err(Failure::Io)?;
    let text = read?;
    if !status.success() {
        return Err(Failure::Status(status));
    }
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn find(path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("nvidia-smi"))
        .find(|file| {
            (file.metadata())
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

fn read_to_end(child: &mut Child, until: Instant) -> Result<Vec<u8>, Failure> {
    let Some(output) = child.stdout.take() else {
        return Ok(Vec::new());
    };
    let fd = output.as_raw_fd();
    let mut output = output.take(OUTPUT_BYTES_MAX);
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::TooLong);
        }
        let mut entries = [libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        }];
        if crate::process::poll(&mut entries, Some(left)).map_err(Failure::Io)? == 0 {
            continue;
        }
        match output.read(&mut buffer).map_err(Failure::Io)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Lines of `pid, MiB`. A driver that does not know says `[N/A]`.
fn parse(text: &str) -> HashMap<u32, u64> {
    let mut memory: HashMap<u32, u64> = HashMap::new();
    for line in text.lines() {
        let Some((pid, used)) = line.split_once(',') else {
            continue;
        };
        if let (Ok(pid), Ok(used)) = (pid.trim().parse(), used.trim().parse::<u64>()) {
            let bytes = memory.entry(pid).or_default();
            *bytes = bytes.saturating_add(used.saturating_mul(UNIT_BYTES));
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nvidia-smi");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    #[test]
    fn a_process_on_two_gpus_has_the_sum_of_both() {
        let found = parse("12, 100\n13, 7\n12, 23\n14, [N/A]\nNo running processes found\n, \n");
        assert_eq!(found, HashMap::from([(12, 123 << 20), (13, 7 << 20)]));
    }

    #[test]
    fn it_is_asked_for_compute_apps() {
        let dir = fake(
            "[ \"$*\" = '--query-compute-apps=pid,used_memory --format=csv,noheader,nounits' ] && echo 5, 6",
        );
        let found = query(dir.path().as_os_str(), TIME_LIMIT).unwrap();
        assert_eq!(found, HashMap::from([(5, 6 << 20)]));
    }

    #[test]
    fn what_is_missing_fails_or_hangs_is_an_error() {
        let nowhere = tempfile::tempdir().unwrap();
        let ask = |dir: &tempfile::TempDir, limit| query(dir.path().as_os_str(), limit);
        assert!(matches!(ask(&nowhere, TIME_LIMIT), Err(Failure::NotThere)));
        let failing = fake("echo 5, 6; exit 9");
        assert!(matches!(ask(&failing, TIME_LIMIT), Err(Failure::Status(_))));
        let hanging = fake("echo 5, 6; exec sleep 1000");
        let limit = Duration::from_millis(200);
        assert!(matches!(ask(&hanging, limit), Err(Failure::TooLong)));
    }

    #[test]
    fn it_is_asked_in_the_background_and_not_again_soon() {
        let dir = fake("echo x >> \"$(dirname \"$0\")/asked\"; echo 5, 6; echo 7, 8");
        let asked =
            || std::fs::read_to_string(dir.path().join("asked")).map_or(0, |t| t.lines().count());
        let runtime = (tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build())
        .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let gpu = Gpu::new(dir.path().as_os_str().to_owned());
            let pids = HashSet::from([5, 99]);
            assert_eq!(gpu.memory_of(&pids), None);
            let known = async {
                while gpu.memory_of(&pids).is_none() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), known)
                .await
                .unwrap();
            assert_eq!(gpu.memory_of(&pids), Some(6 << 20));
            assert_eq!(gpu.memory_of(&HashSet::new()), Some(0));
            assert_eq!(asked(), 1);
        });
    }
}
