//! Runs a person's shell command with a time limit and bounded memory: hooks, and `notify` where it is a command.
//!
//! Blocks, so it is for a thread of its own; what is to cut it short from outside holds the [`Stopper`].
//! Invariant: when [`run`] returns, the shell has been reaped. Where it was made to end, so has been its whole process
//! group; what a command that ended by itself has left in the background lives on.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::duration::format_duration;
use crate::process::{self, PidFd};

/// Of a command's output the beginning and the end are kept, so much of each: enough to see what went wrong, and small
/// as a record of the journal.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// See [`HEAD_BYTES_MAX`].
const TAIL_BYTES_MAX: usize = 32 << 10;

/// How long a command has after SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// A killed process that is still there then hangs in the kernel (a dead file server); nobody can wait for it.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// More than a pipe holds: what is read after the shell's end, in case something in the background writes on and on.
const LEFT_OVER_BYTES_MAX: usize = 2 << 20;

/// A command to run.
#[derive(Debug, Clone)]
pub struct ShellCommand {
    /// For `/bin/sh -c`.
    pub command: String,
    /// Where.
    pub cwd: PathBuf,
    /// All of its environment.
    pub env: Vec<(OsString, OsString)>,
    /// What it can read; without it /dev/null.
    pub stdin: Option<Vec<u8>>,
    /// How long it may take.
    pub limit: Duration,
}

/// How it ended, as a text: `exit code 0, 1.2 s: <output>`.
#[derive(Debug)]
pub struct Ended {
    /// The last step.
    pub how: How,
    /// From its start.
    pub took: Duration,
    /// stdout and stderr as they came, without what was too much, trimmed.
    pub output: String,
}

/// What a command came to.
#[derive(Debug)]
pub enum How {
    /// It ended by itself.
    Exited(ExitStatus),
    /// It was stopped at its limit.
    TimedOut(Duration),
    /// It was stopped by the [`Stopper`].
    Stopped,
    /// It never ran.
    CannotRun(String),
}

impl Ended {
    /// Exit code 0.
    pub fn is_success(&self) -> bool {
        matches!(&self.how, How::Exited(status) if status.success())
    }

    fn cannot_run(why: String) -> Self {
        Self {
            how: How::CannotRun(why),
            took: Duration::ZERO,
            output: String::new(),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Exited(status) => {
                match (status.code(), status.signal()) {
                    (Some(code), _) => write!(f, "exit code {code}")?,
                    (None, Some(signal)) => match process::signal_name(signal) {
                        Some(name) => write!(f, "killed by {name}")?,
                        None => write!(f, "killed by signal {signal}")?,
                    },
                    (None, None) => write!(f, "{status}")?,
                }
                write!(f, ", {:.1} s", self.took.as_secs_f64())?;
            }
            How::TimedOut(limit) => {
                write!(f, "stopped after its {} limit", format_duration(*limit))?;
            }
            How::Stopped => write!(
                f,
                "stopped after {:.1} s, since the session is over",
                self.took.as_secs_f64()
            )?,
            How::CannotRun(why) => write!(f, "cannot be run: {why}")?,
        }
        if self.output.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.output)
        }
    }
}

/// Dropped, it kills the commands that run with its [`StopSignal`].
#[derive(Debug)]
pub struct Stopper(#[allow(dead_code)] PipeWriter);

/// What a command's thread looks at.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<PipeReader>);

/// Both ends.
pub fn stopper() -> io::Result<(Stopper, StopSignal)> {
    let (reader, writer) = io::pipe()?;
    Ok((Stopper(writer), StopSignal(Arc::new(reader))))
}

/// Runs it and waits for its end.
pub fn run(command: &ShellCommand, stop: &StopSignal) -> Ended {
    if !command.cwd.is_dir() {
        // Looked at first: the exec's own "No such file or directory" would not say of what.
        let why = format!("the folder {} is not there", command.cwd.display());
        return Ended::cannot_run(why);
    }
    let begun = Instant::now();
    let started = start(command).and_then(|(mut child, output)| match PidFd::open(child.id()) {
        Ok(pidfd) => Ok((child, pidfd, output)),
        Err(error) => {
            // It cannot be watched, so it must not be there.
            let _ = process::signal_group(child.id(), libc::SIGKILL);
            let _ = child.wait();
            Err(error)
        }
    });
    let (child, pidfd, output) = match started {
        Ok(started) => started,
        Err(error) => return Ended::cannot_run(error.to_string()),
    };
    let mut running = Running {
        child,
        pidfd,
        output: Some(output),
        kept: Kept::default(),
    };
    let how = running.follow(begun + command.limit, command.limit, stop);
    Ended {
        how,
        took: begun.elapsed(),
        output: running.kept.text(),
    }
}

fn start(command: &ShellCommand) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(&command.command)
        .env_clear()
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&command.cwd)
        .process_group(0)
        .stdin(match &command.stdin {
            Some(bytes) => Stdio::from(in_memory(bytes)?),
            None => Stdio::null(),
        })
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // SAFETY: one system call with three integers; touches no memory of ours.
    unsafe {
        shell.pre_exec(|| {
            // Ours are close-on-exec already; what a library has opened without it must not get out either. At the
            // exec, not now: std tells its parent of a failed exec through one of them.
            libc::syscall(
                libc::SYS_close_range,
                3 as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    // The writing ends go with `shell`, at the end of this function: the child's copies are then the last ones.
    Ok((shell.spawn()?, reader))
}

/// A file that is nowhere, from which a child reads these bytes: unlike a pipe it never makes anybody wait.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: a constant, zero terminated name.
    let fd = unsafe { libc::memfd_create(c"stdin".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

struct Running {
    child: Child,
    pidfd: PidFd,
    /// Until its end.
    output: Option<PipeReader>,
    kept: Kept,
}

/// What a wait ended with.
enum Woken {
    /// The shell has ended (and, where asked for, nobody has its output open any more).
    Over,
    /// The time is up.
    Late,
    /// The [`Stopper`] was dropped.
    Stopped,
}

impl Running {
    /// Until its end, by itself or by force. The shell is reaped last, so that its pid names its group until then.
    fn follow(&mut self, until: Instant, limit: Duration, stop: &StopSignal) -> How {
        let pid = self.pidfd.pid();
        let how = match self.wait(until, Some(stop), false) {
            Woken::Over => None,
            Woken::Late => {
                let _ = process::signal_group(pid, libc::SIGTERM);
                // The shell may be gone at once, and what it had started be about to tidy up.
                self.wait(Instant::now() + TERM_GRACE, Some(stop), true);
                Some(How::TimedOut(limit))
            }
            Woken::Stopped => Some(How::Stopped),
        };
        if how.is_some() {
            let _ = process::signal_group(pid, libc::SIGKILL);
            if !self.pidfd.wait_blocking(KILL_TIMEOUT) {
                tracing::warn!(pid, "a shell command cannot be killed");
                return how.unwrap_or(How::Stopped);
            }
        }
        self.read_left_over();
        match (how, self.child.wait()) {
            (Some(how), _) => how,
            (None, Ok(status)) => How::Exited(status),
            (None, Err(error)) => How::CannotRun(format!("its end cannot be learnt: {error}")),
        }
    }

    /// Reads its output meanwhile. `to_the_last`: the shell's own end is not enough.
    fn wait(&mut self, until: Instant, stop: Option<&StopSignal>, to_the_last: bool) -> Woken {
        let entry = |fd: Option<i32>| libc::pollfd {
            // poll(2) passes over negative ones.
            fd: fd.unwrap_or(-1),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut has_ended = false;
        loop {
            if has_ended && (!to_the_last || self.output.is_none()) {
                return Woken::Over;
            }
            let mut entries = [
                entry(self.output.as_ref().map(|output| output.as_raw_fd())),
                entry((!has_ended).then(|| self.pidfd.as_fd().as_raw_fd())),
                entry(stop.map(|stop| stop.0.as_raw_fd())),
            ];
            let left = until.saturating_duration_since(Instant::now());
            // An error (no memory) is as good as a time-out: looked at again, up to the limit.
            let _ = process::poll(&mut entries, Some(left));
            if entries[0].revents != 0 {
                self.read();
            }
            has_ended |= entries[1].revents != 0;
            if entries[2].revents != 0 {
                return Woken::Stopped;
            }
            if Instant::now() >= until && !has_ended {
                return Woken::Late;
            }
            if Instant::now() >= until && to_the_last {
                return Woken::Over;
            }
        }
    }

    /// One read of what is there, with no wait; the number of bytes.
    fn read(&mut self) -> usize {
        let mut buffer = [0; 16 << 10];
        match self.output.as_mut().map(|output| output.read(&mut buffer)) {
            Some(Ok(length)) if length > 0 => {
                self.kept.push(&buffer[..length]);
                length
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => 0,
            Some(Ok(_) | Err(_)) | None => {
                self.output = None;
                0
            }
        }
    }

    /// What the shell and its children wrote before its end lies in the pipe.
    fn read_left_over(&mut self) {
        let mut length = 0;
        while length < LEFT_OVER_BYTES_MAX
            && let Some(output) = &self.output
        {
            let mut entry = [libc::pollfd {
                fd: output.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }];
            match process::poll(&mut entry, Some(Duration::ZERO)) {
                Ok(1..) => length += self.read(),
                Ok(0) | Err(_) => break,
            }
        }
    }
}

/// The beginning and the end of what was written.
#[derive(Debug, Default)]
struct Kept {
    head: Vec<u8>,
    tail: Vec<u8>,
    left_out: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES_MAX - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        // Cut back only when it has grown to twice its length, so that not each read moves all of it.
        if self.tail.len() > 2 * TAIL_BYTES_MAX {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let too_much = self.tail.len().saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..too_much);
        self.left_out += too_much as u64;
    }

    fn text(&mut self) -> String {
        self.cut();
        let (head, tail) = (
            String::from_utf8_lossy(&self.head),
            String::from_utf8_lossy(&self.tail),
        );
        let text = match self.left_out {
            0 => {
                // In one piece: the cut between the two may lie within a character.
                let whole = [&self.head[..], &self.tail[..]].concat();
                String::from_utf8_lossy(&whole).into_owned()
            }
            bytes => format!("{head}\n[{bytes} bytes left out]\n{tail}"),
        };
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str, limit: Duration) -> ShellCommand {
        ShellCommand {
            command: text.to_owned(),
            cwd: "/".into(),
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            stdin: None,
            limit,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    fn ran(command: &ShellCommand) -> Ended {
        let (_stopper, stop) = stopper().unwrap();
        run(command, &stop)
    }

    /// Waits until a process that is not our child is gone.
    fn wait_gone(pid: u32) {
        if let Ok(pidfd) = PidFd::open(pid) {
            assert!(pidfd.wait_blocking(LONG), "{pid} is still there");
        }
    }

    #[test]
    fn output_and_exit_code_are_told() {
        let ended = ran(&command("echo out; echo err >&2; exit 3", LONG));
        assert_eq!(ended.output, "out\nerr");
        assert!(!ended.is_success());
        let text = ended.to_string();
        assert!(text.starts_with("exit code 3, "), "{text}");
        assert!(text.ends_with(" s: out\nerr"), "{text}");
        let quiet = ran(&command("true", LONG));
        assert!(quiet.is_success() && quiet.to_string().ends_with(" s"));
        let killed = ran(&command("kill -9 $$", LONG)).to_string();
        assert!(killed.starts_with("killed by SIGKILL, "), "{killed}");
    }

    #[test]
    fn it_gets_its_own_environment_folder_input_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut given = command(
            "pwd; echo $SHELL_TEST; wc -c; cut -d' ' -f5 /proc/$$/stat; echo $$",
            LONG,
        );
        given.cwd = dir.path().canonicalize().unwrap();
        given.env.push(("SHELL_TEST".into(), "1".into()));
        given.stdin = Some(vec![b'x'; 300_000]);
        let output = ran(&given).output;
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[..3], [given.cwd.to_str().unwrap(), "1", "300000"]);
        assert_eq!(lines[3], lines[4], "the shell leads its process group");
        given.stdin = None;
        given.command = "wc -c".into();
        assert_eq!(ran(&given).output, "0");
    }

    #[test]
    fn it_inherits_no_descriptor() {
        let file = File::open("/dev/null").unwrap();
        // SAFETY: an open descriptor of ours, and an integer.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
        assert_eq!(done, 0);
        // The listing itself has one.
        let output = ran(&command("ls /proc/self/fd | wc -l", LONG)).output;
        assert_eq!(output, "4");
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        let mut given = command("true", LONG);
        given.cwd = "/no/such/folder".into();
        let text = ran(&given).to_string();
        assert_eq!(
            text,
            "cannot be run: the folder /no/such/folder is not there"
        );
        let text = ran(&command("a\0b", LONG)).to_string();
        assert!(text.starts_with("cannot be run: "), "{text}");
        let text = ran(&command("no-such-command-here", LONG)).to_string();
        assert!(text.starts_with("exit code 127, "), "{text}");
    }

    #[test]
    fn a_long_output_keeps_its_beginning_and_its_end() {
        let given = command(
            "echo first; yes 0123456789 | head -c 5500000; echo last",
            LONG,
        );
        let output = ran(&given).output;
        assert!(output.starts_with("first\n0123456789\n"));
        assert!(output.ends_with("\nlast"));
        let left_out = 5_500_011 - HEAD_BYTES_MAX - TAIL_BYTES_MAX;
        assert!(output.contains(&format!("\n[{left_out} bytes left out]\n")));
        assert!(output.len() < HEAD_BYTES_MAX + TAIL_BYTES_MAX + 100);
    }

    #[test]
    fn at_its_limit_all_of_it_ends_and_may_tidy_up_before() {
        let limit = Duration::from_secs(1);
        let given = command(
            "sh -c 'trap \"echo tidied; exit\" TERM; echo $$; sleep 100 & wait'",
            limit,
        );
        let ended = ran(&given);
        let text = ended.to_string();
        assert!(text.starts_with("stopped after its 1s limit: "), "{text}");
        assert!(text.ends_with("\ntidied"), "{text}");
        wait_gone(ended.output.lines().next().unwrap().parse().unwrap());
    }

    #[test]
    fn who_ignores_sigterm_is_killed_with_its_children() {
        let limit = Duration::from_secs(1);
        let given = command("trap '' TERM; sleep 100 & echo $!; wait; sleep 100", limit);
        let ended = ran(&given);
        assert!(ended.took >= limit + TERM_GRACE, "{:?}", ended.took);
        assert!(matches!(ended.how, How::TimedOut(_)), "{ended}");
        wait_gone(ended.output.parse().unwrap());
    }

    #[test]
    fn the_stopper_ends_it_at_once() {
        let (stopper, stop) = stopper().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let mut given = command("trap '' TERM; echo ready > \"$READY\"; sleep 100", LONG);
        let ready = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
        given.env.push(("READY".into(), ready.into()));
        let thread = std::thread::spawn(move || run(&given, &stop));
        io::BufRead::read_line(&mut io::BufReader::new(reader), &mut String::new()).unwrap();
        let begun = Instant::now();
        drop(stopper);
        let ended = thread.join().unwrap();
        assert!(matches!(ended.how, How::Stopped), "{ended}");
        assert!(
            begun.elapsed() < TERM_GRACE,
            "no grace: the session is over"
        );
    }

    #[test]
    fn what_goes_on_in_the_background_is_not_waited_for() {
        let ended = ran(&command("sleep 100 & echo $!", LONG));
        assert!(ended.is_success() && ended.took < LONG, "{ended}");
        let pid: u32 = ended.output.parse().unwrap();
        let left = PidFd::open(pid).unwrap();
        assert!(!left.has_ended(), "it was left on purpose");
        left.signal(libc::SIGKILL).unwrap();
        wait_gone(pid);
    }

    #[test]
    fn no_zombie_is_left() {
        let ended = ran(&command("echo $$", LONG));
        let pid: u32 = ended.output.parse().unwrap();
        assert_eq!(process::start_time(pid), None);
    }
}
