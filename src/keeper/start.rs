//! How a keeper comes to be: started by a launcher or the CLI, or by a host that lost its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::args::{KEEPER_LOCK, KeeperArgs, RUNNING_HOST, SessionDirs, take_stdin};
use super::supervisor::Supervisor;
use super::{KEEPER_COMMAND, SELF_EXE, STRIPPED_VARIABLES, socket};
use crate::process::{self, LockFile};

/// A log above this is put aside (as `host.log.old`) before the next keeper starts.
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How long a keeper that takes over waits for the lock: a killed one's lock can live on for a moment in a child
/// that it was just about to start.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Starts a keeper for a session, and with it the session's host. Returns once it is detached from this process,
/// before it is ready: wait for the host's socket. Where the session has a keeper already, nothing happens.
///
/// `exe` is the farside binary ([`super::SELF_EXE`] for ourselves). May be called from any process, with threads
/// or a runtime; blocks for some milliseconds.
///
/// # Errors
/// Where host.log cannot be written or the program not be started.
pub fn start(session_dir: &Path, runtime_dir: &Path, exe: &Path) -> io::Result<()> {
    let dirs = SessionDirs {
        session_dir: std::path::absolute(session_dir)?,
        runtime_dir: std::path::absolute(runtime_dir)?,
    };
    let log = open_log(&dirs.session_dir)?;
    let mut command = Command::new(exe);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    run_to_detachment(
        command
            .arg0("farside")
            .arg(KEEPER_COMMAND)
            .args(dirs.to_args()),
    )
}

/// Starts a keeper for this process, a host whose keeper was killed. Returns the socket to it.
pub(super) fn replace(dirs: &SessionDirs) -> io::Result<OwnedFd> {
    let pid = std::process::id();
    let start_time = process::start_time(pid)
        .ok_or_else(|| io::Error::other("/proc does not know this process: is it mounted?"))?;
    let (ours, theirs) = socket::pair()?;
    let mut command = Command::new(SELF_EXE);
    command.stdin(theirs).stdout(open_log(&dirs.session_dir)?);
    command
        .arg0("farside")
        .arg(KEEPER_COMMAND)
        .args(dirs.to_args());
    run_to_detachment(command.arg(RUNNING_HOST).arg(format!("{pid}:{start_time}")))?;
    Ok(ours)
}

fn run_to_detachment(command: &mut Command) -> io::Result<()> {
    for name in STRIPPED_VARIABLES {
        command.env_remove(name);
    }
    let status = command.status().map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start the keeper: {error}"))
    })?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the keeper did not start ({status}): see host.log in the session's folder"
    )))
}

fn open_log(session_dir: &Path) -> io::Result<File> {
    let path = session_dir.join("host.log");
    if std::fs::metadata(&path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        // Whoever still has it open goes on writing to the old one.
        std::fs::rename(&path, session_dir.join("host.log.old"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Turns this process, which has one thread and nothing open, into a keeper; returns at the keeper's end.
pub(super) fn become_keeper(args: KeeperArgs) -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "a keeper cannot be made of a process with {threads} threads: call keeper::main first"
        )));
    }
    // SAFETY: first thing in `main`, one thread (checked above): nothing here owns a descriptor above 2.
    unsafe { process::close_fds_above(2) };
    process::reset_signals();
    let link = match args.running_host {
        Some(_) => Some(take_stdin()?),
        None => None,
    };
    // SAFETY: one thread.
    unsafe { process::detach()? };
    let wait = match args.running_host {
        Some(_) => LOCK_WAIT_MAX,
        None => Duration::ZERO,
    };
    let Some(_lock) = acquire(&args.dirs.session_dir.join(KEEPER_LOCK), wait)? else {
        return Ok(());
    };
    let mut supervisor = Supervisor::new(args.dirs)?;
    match (args.running_host, link) {
        (Some((pid, start_time)), Some(link)) => supervisor.take_over(pid, start_time, link),
        _ => supervisor.start_host(),
    }
    supervisor.run()
}

fn acquire(path: &Path, wait: Duration) -> io::Result<Option<LockFile>> {
    let until = Instant::now() + wait;
    loop {
        match LockFile::acquire(path)? {
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            other => return Ok(other),
        }
    }
}
