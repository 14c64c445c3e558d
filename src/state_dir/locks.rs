//! Locks that the kernel gives back when their holder dies: open file description locks, which can be tested
//! without being taken (a test with `flock` could make the holder-to-be fail).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{SessionDir, StateError};

/// How often a waiting process looks whether the creation lock is free: short beside the few milliseconds that a
/// session's creation takes.
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Held by the one host of a session while it lives. Not inherited by what it execs.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLock {
    /// Takes the session's lock; `None` where another host has it.
    pub fn acquire(dir: &SessionDir) -> Result<Option<Self>, StateError> {
        let path = dir.host_lock();
        let file = open(&path)?;
        let got = try_lock(&file).map_err(StateError::io("lock", &path))?;
        Ok(got.then_some(Self { _file: file }))
    }

    /// Whether a host holds the session's lock. Takes nothing, so it never disturbs.
    pub fn is_held(dir: &SessionDir) -> bool {
        File::open(dir.host_lock()).is_ok_and(|file| is_locked(&file).unwrap_or(false))
    }
}

/// Held while a process looks for the session of its key and creates one if there is none.
#[derive(Debug)]
pub struct CreationGuard {
    _file: File,
}

impl CreationGuard {
    pub(super) fn acquire(path: &Path, timeout: Duration) -> Result<Self, StateError> {
        let file = open(path)?;
        let until = Instant::now() + timeout;
        loop {
            if try_lock(&file).map_err(StateError::io("lock", path))? {
                return Ok(Self { _file: file });
            }
            if Instant::now() >= until {
                return Err(StateError::LockTimeout {
                    path: path.to_owned(),
                    waited_secs: timeout.as_secs(),
                });
            }
            std::thread::sleep(RETRY_EVERY);
        }
    }
}

fn open(path: &Path) -> Result<File, StateError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(StateError::io("open", path))
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    // SAFETY: flock is a plain C struct of integers, for which all zeros is a valid value: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

fn try_lock(file: &File) -> io::Result<bool> {
    let mut lock = whole_file(libc::F_WRLCK);
    // SAFETY: the descriptor is open for the call's duration and `lock` outlives it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &mut lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

fn is_locked(file: &File) -> io::Result<bool> {
    // A read lock as the question: it conflicts with the holder's write lock, and a read-only descriptor may ask.
    let mut lock = whole_file(libc::F_RDLCK);
    // SAFETY: the descriptor is open for the call's duration and `lock` outlives it.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}
