//! System calls about processes that std has no name for, behind safe functions: pidfds, start times, signal
//! names, file locks, a socket peer's credentials, and what a daemon does to itself at its start.
//!
//! Knows nothing of farside. Linux only. A process is named by its pid together with its start time
//! ([`start_time`]): a pid alone may be somebody else's by the time it is used.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

mod inotify;
mod loopback;
mod pidfd;

pub use inotify::Deletions;
pub use loopback::tcp_peer_uid;
pub use pidfd::PidFd;

fn no_such_process() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// poll(2). A signal counts as a time-out. `None` waits without a limit.
pub fn poll(entries: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<usize> {
    // Rounded up: waking a little early would make a caller with a deadline spin.
    let millis = limit.map_or(-1, |limit| {
        limit
            .as_micros()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(i32::MAX)
    });
    // SAFETY: pointer and length are those of one slice, exclusively borrowed for the call.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, millis) };
    match ready {
        0.. => Ok(ready as usize),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {
                entries.iter_mut().for_each(|entry| entry.revents = 0);
                Ok(0)
            }
            error => Err(error),
        },
    }
}

/// Whether we may execute this file.
pub fn check_executable(path: &Path) -> io::Result<()> {
    let text = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    // SAFETY: a string that ends in NUL.
    match unsafe { libc::access(text.as_ptr(), libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Then a start is over, and with it most of what only a start does.
const STARTED_AFTER: Duration = Duration::from_secs(2);

/// For a process that stays, when it begins: it needs about half of the code that its start touches, and lets go of it when
/// that is over.
pub async fn settle() {
    tokio::time::sleep(STARTED_AFTER).await;
    let_go_of_code();
}

/// Lets go of the program's code that is in this process's memory; what is used again comes back from the page cache, with
/// no more than a page fault.
fn let_go_of_code() {
    for code in code_mappings() {
        let start = std::ptr::with_exposed_provenance_mut(code.start);
        // SAFETY: a private mapping of a file, of which no page was changed: what is read from it later is the same.
        unsafe { libc::madvise(start, code.len(), libc::MADV_DONTNEED) };
    }
}

/// Addresses of what is mapped of a file, to be run, and never written to: nothing of it is this process's own.
fn code_mappings() -> Vec<std::ops::Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let code = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
        let address = |text| usize::from_str_radix(text, 16).ok();
        is_code.then_some(address(from)?..address(to)?)
    });
    code.collect()
}

/// Lets this thread give way to others where CPU time is short, for work that nobody waits for: it gets about a tenth of
/// what they get. For good; what the system does not grant changes nothing.
pub fn give_way() {
    const NICE: libc::c_int = 10;
    // SAFETY: integers. On Linux a niceness is a thread's, and 0 names the calling one.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// How much may be on its way on a socket before its sender waits. The system doubles the number for its own needs, and
/// caps it at `net.core.wmem_max` (208 KiB unless set otherwise). What it does not grant changes nothing.
pub fn set_send_room(socket: impl AsFd, bytes: libc::c_int) {
    // SAFETY: the option's value is one int, which outlives the call.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        );
    }
}

/// Lets large buffers go back to the system as soon as they are free: without a fixed bound the allocator learns
/// from the first large message to keep all later ones. To be called before there is a second thread.
pub fn keep_memory_small() {
    /// From here on a buffer is a mapping of its own.
    const MAP_FROM_BYTES: libc::c_int = 128 << 10;
    /// So much free memory at the heap's end is given back.
    const TRIM_FROM_BYTES: libc::c_int = 1 << 20;
    #[cfg(target_env = "gnu")]
    // SAFETY: plain numbers to the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_FROM_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives all free memory back to the system, also what lies between used memory: for after work that took much of it.
/// Takes milliseconds, in which other threads may wait for memory.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; no more of the heap's end is kept than that.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// When the process was started, in clock ticks since the machine's start (proc_pid_stat(5), field 22);
/// `None` where there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name in parentheses, may itself hold spaces and parentheses.
    let after_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after_name + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Our parent's process id; 0 or 1 where it is out of our sight or gone.
pub fn parent_pid() -> u32 {
    std::os::unix::process::parent_id()
}

/// Sends a signal to a process: for a child that has not been waited for. For any other use [`PidFd::signal`].
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // 0 would mean our own group.
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0);
    // SAFETY: two integers.
    if unsafe { libc::kill(pid.ok_or_else(no_such_process)?, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether no process has this pid, or only one that has ended. Where there is no descriptor to look closer, one that
/// has not been waited for counts as there.
pub fn is_gone(pid: u32) -> bool {
    match PidFd::open(pid) {
        Ok(process) => process.has_ended(),
        Err(_) => signal(pid, 0).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH)),
    }
}

/// Sends a signal to a process group, by the id of its leader.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    // 0 and 1 would mean our own group and everybody.
    let leader = libc::pid_t::try_from(leader)
        .ok()
        .filter(|&leader| leader > 1)
        .ok_or_else(no_such_process)?;
    // SAFETY: two integers.
    if unsafe { libc::killpg(leader, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The name of a signal on Linux, e.g. `SIGKILL`; `None` for real-time and unknown numbers.
pub fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGCHLD => "SIGCHLD",
        libc::SIGCONT => "SIGCONT",
        libc::SIGSTOP => "SIGSTOP",
        libc::SIGTSTP => "SIGTSTP",
        libc::SIGTTIN => "SIGTTIN",
        libc::SIGTTOU => "SIGTTOU",
        libc::SIGURG => "SIGURG",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGWINCH => "SIGWINCH",
        libc::SIGIO => "SIGIO",
        libc::SIGPWR => "SIGPWR",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// Who is at the other end of a unix socket, as the kernel noted it when the two were connected (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// The credentials of the peer of a unix socket (std's, tokio's, or a bare descriptor).
pub fn peer_credentials(socket: &impl AsFd) -> io::Result<PeerCredentials> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `found` is valid for writes of `size` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &mut size,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PeerCredentials {
        pid: found.pid as u32,
        uid: found.uid,
        gid: found.gid,
    })
}

/// Our own effective user id.
pub fn effective_uid() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

/// An exclusive lock on a file, released when dropped or when the process ends however it ends. The file stays:
/// removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock, creating the file (0600) where needed; `None` where somebody else has it.
    pub fn acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes this process the parent of descendants whose own parent ends (PR_SET_CHILD_SUBREAPER).
pub fn set_subreaper() -> io::Result<()> {
    // SAFETY: integers only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor above `last`.
///
/// # Safety
/// No value in this process may own or borrow a descriptor above `last`: for the first lines of `main`.
pub unsafe fn close_fds_above(last: RawFd) {
    // SAFETY: the caller vouches that nobody uses these descriptors.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            last as libc::c_uint + 1,
            libc::c_uint::MAX,
            0,
        )
    };
    if done != 0 {
        // A kernel before 5.9. Collected first: the listing itself holds a descriptor.
        let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
            .map(|list| {
                list.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
                    .collect()
            })
            .unwrap_or_default();
        for fd in open.into_iter().filter(|&fd| fd > last) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Sets every signal to its default action and blocks none: what a parent ignores or blocks would go down to the
/// engine through every exec (Python installs no KeyboardInterrupt where SIGINT is ignored at its start).
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs none of our code. Fails for SIGKILL, SIGSTOP and libc's own, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals();
}

/// Empties the signal mask. Async-signal-safe: for use between fork and exec.
pub fn unblock_signals() {
    // SAFETY: sigset_t is plain data that sigemptyset sets up; both calls only touch `none`.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Leaves the caller's session, process group and ancestry: returns in a process that is a child of init (or of
/// a subreaper), leads nothing, and has no terminal. The calling process exits with 0, at once and without
/// running destructors.
///
/// # Safety
/// Must be called while the process has one thread: only the calling one lives on in the child.
pub unsafe fn detach() -> io::Result<()> {
    let fork = || {
        // SAFETY: one thread (the caller's word), so the child may do all that the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            // SAFETY: ends this process without running what the child is to run later.
            _ => unsafe { libc::_exit(0) },
        }
    };
    // SAFETY: no arguments.
    if unsafe { libc::getpgrp() == libc::getpid() } {
        // A group's leader (started by hand from a shell) may not start a session.
        fork()?;
    }
    // Before the parent is seen to exit: a kill of its process group must not hit us any more by then.
    // SAFETY: no arguments.
    if unsafe { libc::setsid() } == -1 {
        return Err(io::Error::last_os_error());
    }
    fork()
}

/// Microseconds on one of the system's clocks that only go forward, such as `CLOCK_MONOTONIC`.
pub fn clock_micros(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec of ours that the call fills in.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    debug_assert_eq!(result, 0, "a clock that every Linux has");
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a) S 1 (b");
        std::os::unix::fs::symlink(std::fs::canonicalize("/bin/cat").unwrap(), &odd).unwrap();
        let mut child = Command::new(&odd)
            .arg0("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        assert!(stat.contains("(a) S 1 (b)"), "{stat}");
        let mine = start_time(std::process::id()).unwrap();
        assert!(start_time(child.id()).unwrap() >= mine, "{stat}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_lock_is_held_once_and_free_after_its_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LockFile::acquire(&path).unwrap();
        assert!(first.is_some());
        assert!(LockFile::acquire(&path).unwrap().is_none());
        drop(first);
        assert!(LockFile::acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_peer_is_known_by_its_credentials() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = peer_credentials(&ours).unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), effective_uid()));
    }

    #[test]
    fn code_comes_back_when_it_is_used() {
        // As the kernel counts them page by page; the sums in `status` are behind.
        let resident = || -> usize {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut of_code = false;
            let kilobytes = maps.lines().filter_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                match fields.next()? {
                    "Rss:" if of_code => fields.next()?.parse::<usize>().ok(),
                    range if range.contains('-') => {
                        of_code = fields.next() == Some("r-xp") && line.contains('/');
                        None
                    }
                    _ => None,
                }
            });
            kilobytes.sum()
        };
        for code in code_mappings() {
            for address in code.step_by(4096) {
                let byte = std::ptr::with_exposed_provenance::<u8>(address);
                // SAFETY: mapped to be read.
                unsafe { byte.read_volatile() };
            }
        }
        let before = resident();
        let_go_of_code();
        let after = resident();
        assert!(after < before / 2, "{after} of {before} kB");
        assert_eq!(signal_name(9), Some("SIGKILL"));
    }

    #[test]
    fn signals_have_their_names() {
        assert_eq!(signal_name(9), Some("SIGKILL"));
        assert_eq!(signal_name(0), None);
        assert_eq!(
            signal_group(1, 0).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }
}
