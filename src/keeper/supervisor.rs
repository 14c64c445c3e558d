//! The keeper's state and its loop.
//!
//! Every wake-up goes over everything there is (socket, signals, children, pidfds, the host): there are few of
//! each, and no event can be lost by being handled in the wrong order. The one order that matters: what a host
//! said before its death is heard before its death is.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::args::SessionDirs;
use super::backoff::Backoff;
use super::held::HeldStreams;
use super::protocol::{Ended, FromKeeper, Hello, Process, Spawn, ToKeeper, Usage};
use super::signals::{Signals, wait_for_child};
use super::socket::{self, Datagram, MESSAGE_BYTES_MAX, Received};
use super::watched::{WaitFor, Watched};
use super::{EXIT_OTHER_HOST, EXIT_REPLACED, log, spawn};
use crate::journal::record::ProcessEnd;
use crate::process::{self, PidFd};

/// Processes at one time. A session has one engine; its restarts overlap by one.
const PROCESSES_MAX: usize = 64;

/// Ends kept for a host that does not acknowledge; the oldest goes first.
const ENDS_MAX: usize = 64;

/// A process's id in bytes: with the limits above a `Hello` stays far below its own limit.
const ID_BYTES_MAX: usize = 256;

/// An error's text; enough for the longest path.
const ERROR_CHARS_MAX: usize = 8 * 1024;

/// With no engine to look after, so many hosts in a row that died soon are enough.
const FAILURES_MAX: usize = 5;

/// So many hosts in a row of a program that was asked for have died soon: it is not tried again.
const PROGRAM_FAILURES_MAX: usize = 4;

/// How long the end waits for what it has killed; a process in an uninterruptible system call can take longer.
const KILL_WAIT_MAX: Duration = Duration::from_secs(5);

/// See the module.
pub struct Supervisor {
    dirs: SessionDirs,
    signals: Signals,
    host: Host,
    link: Option<Link>,
    processes: Vec<Watched>,
    ended: VecDeque<Ended>,
    held: HeldStreams,
    /// What hosts are started from, where it is not our own program.
    program: Option<PathBuf>,
    backoff: Backoff,
    /// The host has said Bye.
    bye: bool,
    /// A SIGTERM that no host has been told of.
    terminate: bool,
    buffer: Vec<u8>,
}

enum Host {
    Child {
        pid: u32,
        since: Instant,
    },
    /// Not our child: its own keeper was killed, and we came in its place.
    Adopted {
        pidfd: PidFd,
        since: Instant,
    },
    Dead {
        next_at: Instant,
    },
    /// No engine, and no host that lives: the end.
    GivenUp,
}

/// The socket to the host, with what it has not taken yet. While that is not empty nothing is read, so a host
/// that only asks and never listens cannot make it grow.
struct Link {
    socket: OwnedFd,
    outbox: VecDeque<Datagram>,
}

impl Supervisor {
    /// Needs the keeper's lock to be held.
    pub fn new(dirs: SessionDirs) -> io::Result<Self> {
        process::set_subreaper()?;
        Ok(Self {
            dirs,
            signals: Signals::block()?,
            host: Host::Dead {
                next_at: Instant::now(),
            },
            link: None,
            processes: Vec::new(),
            ended: VecDeque::new(),
            held: HeldStreams::default(),
            program: None,
            backoff: Backoff::default(),
            bye: false,
            terminate: false,
            buffer: vec![0; MESSAGE_BYTES_MAX],
        })
    }

    /// Keeps a host that runs already. Where it has died meanwhile, [`Self::run`] starts a new one.
    pub fn take_over(&mut self, pid: u32, start_time: u64, socket: OwnedFd) {
        log(format_args!(
            "in place of a keeper that died, for host {pid}"
        ));
        self.connect(socket);
        match PidFd::open_verified(pid, start_time) {
            Ok(pidfd) => {
                let since = Instant::now();
                self.host = Host::Adopted { pidfd, since };
            }
            Err(error) => {
                log(format_args!("host {pid}: {error}"));
                self.host_ended();
            }
        }
    }

    /// Starts a host now.
    pub fn start_host(&mut self) {
        let started = socket::pair().and_then(|(ours, theirs)| {
            let pid = spawn::spawn_host(&self.dirs, self.program.as_deref(), theirs)?;
            Ok((pid, ours))
        });
        match started {
            Ok((pid, ours)) => {
                log(format_args!("host {pid} started"));
                let since = Instant::now();
                self.host = Host::Child { pid, since };
                self.connect(ours);
            }
            Err(error) => {
                log(format_args!("the host cannot be started: {error}"));
                self.schedule_host(Duration::ZERO);
            }
        }
    }

    /// Until the session has ended, or there is no use in going on.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.read_requests();
            self.read_signals()?;
            self.reap_children();
            self.look_at_pidfds();
            self.held.read();
            match &self.host {
                Host::Adopted { pidfd, .. } if pidfd.has_ended() => self.host_ended(),
                Host::Dead { next_at } if *next_at <= Instant::now() && !self.bye => {
                    self.start_host()
                }
                Host::Dead { .. } if self.bye => break,
                Host::GivenUp => break,
                Host::Child { .. } | Host::Adopted { .. } | Host::Dead { .. } => self.wait()?,
            }
        }
        self.end_processes();
        log(format_args!("done"));
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut entries = Vec::with_capacity(4);
        let mut add = |fd: i32, events| {
            entries.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
        };
        let mut deadline: Option<Instant> = None;
        let mut until = |at: Instant| deadline = Some(deadline.map_or(at, |other| other.min(at)));
        add(self.signals.as_fd().as_raw_fd(), libc::POLLIN);
        if let Some(link) = &self.link {
            let events = if link.outbox.is_empty() {
                libc::POLLIN
            } else {
                libc::POLLOUT
            };
            add(link.socket.as_raw_fd(), events);
        }
        match &self.host {
            Host::Adopted { pidfd, .. } => add(pidfd.as_fd().as_raw_fd(), libc::POLLIN),
            Host::Dead { next_at } => until(*next_at),
            Host::Child { .. } | Host::GivenUp => {}
        }
        for fd in self.held.to_poll() {
            add(fd, libc::POLLIN);
        }
        for watched in &self.processes {
            match watched.wait_for() {
                WaitFor::Child => {}
                WaitFor::Fd(fd) => add(fd.as_raw_fd(), libc::POLLIN),
                WaitFor::Time(time) => until(Instant::now() + time),
            }
        }
        let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        process::poll(&mut entries, limit).map(drop)
    }

    // ---- The host's requests

    fn connect(&mut self, socket: OwnedFd) {
        self.link = Some(Link {
            socket,
            outbox: VecDeque::new(),
        });
        let hello = Hello {
            keeper_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            alive: self.processes.iter().map(|w| w.process.clone()).collect(),
            ended: self.ended.iter().cloned().collect(),
        };
        self.tell(&FromKeeper::Hello(hello));
        if std::mem::take(&mut self.terminate) {
            self.tell(&FromKeeper::Terminate);
        }
    }

    fn tell(&mut self, message: &FromKeeper) {
        let Some(link) = &mut self.link else { return };
        match socket::encode(message) {
            Ok(datagram) => link.outbox.push_back(datagram),
            Err(error) => log(format_args!("a message to the host was dropped: {error}")),
        }
        self.flush();
    }

    fn flush(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some(datagram) = link.outbox.front() {
            match socket::send(&link.socket, datagram) {
                Ok(()) => drop(link.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The host is going. What it said before can still be read.
                Err(_) => link.outbox.clear(),
            }
        }
    }

    fn read_requests(&mut self) {
        self.flush();
        while let Some(link) = self.link.as_ref().filter(|link| link.outbox.is_empty()) {
            match socket::receive(&link.socket, &mut self.buffer) {
                Ok(Received::Message(request)) => self.handle(request),
                Ok(Received::Garbage(what)) => {
                    log(format_args!("from the host: {what}"));
                    self.refuse("a message", &what);
                }
                Ok(Received::Closed) => self.link = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log(format_args!("the socket to the host: {error}"));
                    self.link = None;
                }
            }
        }
    }

    fn handle(&mut self, request: ToKeeper) {
        match request {
            ToKeeper::Spawn(request) => self.spawn(request),
            ToKeeper::Signal {
                pid,
                start_time,
                signal,
                group,
            } => {
                if let Err(error) = self.signal(pid, start_time, signal, group) {
                    self.refuse(&format!("signal {signal} to process {pid}"), &error);
                }
            }
            ToKeeper::Watch(process) => self.watch(process),
            ToKeeper::Ack { pid, start_time } => {
                self.ended
                    .retain(|end| (end.process.pid, end.process.start_time) != (pid, start_time));
            }
            ToKeeper::Hold { stream, fds } => {
                let about = format!("to hold the stream {}", stream.name);
                if let Err(error) = self.held.hold(stream, &fds) {
                    self.refuse(&about, &error);
                }
            }
            ToKeeper::TakeHeld => {
                // What comes up to this moment is taken along.
                self.held.read();
                let (streams, fds) = self.held.give();
                self.tell(&FromKeeper::Held { streams, fds });
            }
            ToKeeper::HostProgram { program } => {
                match process::check_executable(program.as_path()) {
                    Ok(()) => {
                        log(format_args!(
                            "the next host is {}",
                            program.as_path().display()
                        ));
                        self.program = Some(program.as_path().to_owned());
                        self.tell(&FromKeeper::HostProgram { program });
                    }
                    Err(error) => {
                        let about = format!("to start hosts from {}", program.as_path().display());
                        self.refuse(&about, &error.to_string());
                    }
                }
            }
            ToKeeper::Bye => self.bye = true,
            ToKeeper::Unknown => self.refuse(
                "a request of a kind this keeper does not know",
                "its farside is older than the host's; it is replaced when the session ends",
            ),
        }
    }

    fn refuse(&mut self, about: &str, error: &str) {
        self.tell(&FromKeeper::Refused {
            about: about.to_owned(),
            error: error.to_owned(),
        });
    }

    fn spawn(&mut self, request: Spawn) {
        let started = match self.check_room(&request.id) {
            Ok(()) => spawn::spawn(&request),
            Err(error) => Err(error),
        };
        let mut id = request.id;
        match started {
            Ok(pid) => {
                // Our child, so it is there at least as a zombie until we wait for it.
                let start_time = process::start_time(pid).unwrap_or_default();
                log(format_args!("{id} started as process {pid}"));
                let process = Process {
                    id,
                    pid,
                    start_time,
                };
                self.processes.push(Watched::child(process.clone()));
                self.tell(&FromKeeper::Spawned(process));
            }
            Err(error) => {
                // Both may quote what the host sent, at any length.
                id = id.chars().take(ID_BYTES_MAX).collect();
                let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
                log(format_args!("{id} could not be started: {error}"));
                self.tell(&FromKeeper::SpawnFailed { id, error });
            }
        }
    }

    fn check_room(&self, id: &str) -> Result<(), String> {
        if id.len() > ID_BYTES_MAX {
            return Err(format!("the id is longer than {ID_BYTES_MAX} bytes"));
        }
        if self.processes.len() >= PROCESSES_MAX {
            return Err(format!(
                "{PROCESSES_MAX} processes run already: end one first"
            ));
        }
        Ok(())
    }

    fn watch(&mut self, process: Process) {
        let same =
            |other: &Process| (other.pid, other.start_time) == (process.pid, process.start_time);
        if self.processes.iter().any(|watched| same(&watched.process)) {
            return;
        }
        if let Some(end) = self.ended.iter().find(|end| same(&end.process)).cloned() {
            return self.tell(&FromKeeper::Ended(end));
        }
        if let Err(error) = self.check_room(&process.id) {
            return self.refuse(&format!("to watch process {}", process.pid), &error);
        }
        match Watched::adopted(process.clone()) {
            Ok(watched) => {
                log(format_args!(
                    "{} watched as process {}",
                    process.id, process.pid
                ));
                self.processes.push(watched);
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.process_ended(process, None, None);
            }
            Err(error) => {
                self.refuse(
                    &format!("to watch process {}", process.pid),
                    &error.to_string(),
                );
            }
        }
    }

    fn signal(
        &mut self,
        pid: u32,
        start_time: u64,
        signal: i32,
        group: bool,
    ) -> Result<(), String> {
        let watched = self
            .processes
            .iter_mut()
            .find(|watched| (watched.process.pid, watched.process.start_time) == (pid, start_time))
            .ok_or("the keeper knows no such process: it has ended, or was never watched")?;
        watched
            .signal(signal, group)
            .map_err(|error| error.to_string())
    }

    // ---- Ends

    fn read_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            // SIGHUP is also how one who waits for a host says so: it is started now, however often it has died.
            if signal == libc::SIGHUP
                && let Host::Dead { next_at } = &mut self.host
            {
                *next_at = Instant::now();
            }
            // SIGHUP and SIGINT come from a terminal or a careless kill: the session outlives both. SIGCHLD only
            // wakes us.
            if signal == libc::SIGTERM {
                log(format_args!("SIGTERM, passed on to the host"));
                if self.link.is_some() {
                    self.tell(&FromKeeper::Terminate);
                } else {
                    self.terminate = true;
                }
            }
        }
        Ok(())
    }

    fn reap_children(&mut self) {
        while let Some((pid, status, usage)) = wait_for_child() {
            if let Some(at) = self
                .processes
                .iter()
                .position(|watched| watched.is_child() && watched.process.pid == pid)
            {
                let mut watched = self.processes.swap_remove(at);
                let end = watched.end(status);
                self.process_ended(watched.process, Some(end), Some(usage));
            } else if matches!(self.host, Host::Child { pid: host, .. } if host == pid) {
                log(format_args!("host {pid} ended: {status}"));
                let other = status.code() == Some(i32::from(EXIT_OTHER_HOST));
                if status.code() == Some(i32::from(EXIT_REPLACED)) {
                    // On purpose: the next one is not to wait.
                    self.backoff = Backoff::default();
                }
                self.host_ended();
                if other && self.processes.is_empty() {
                    self.host = Host::GivenUp;
                }
            }
            // Else an orphan of an engine or host, which came to us as the subreaper.
        }
    }

    fn look_at_pidfds(&mut self) {
        let now = Instant::now();
        let mut at = 0;
        while let Some(watched) = self.processes.get_mut(at) {
            match watched.ended_unparented(now) {
                None => at += 1,
                Some(end) => {
                    let process = self.processes.swap_remove(at).process;
                    self.process_ended(process, end, None);
                }
            }
        }
    }

    fn process_ended(&mut self, process: Process, end: Option<ProcessEnd>, usage: Option<Usage>) {
        let why = super::describe_end(end.as_ref());
        log(format_args!(
            "{} (process {}) {why}",
            process.id, process.pid
        ));
        let ended = Ended {
            process,
            end,
            usage,
        };
        if self.ended.len() >= ENDS_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended.clone());
        self.tell(&FromKeeper::Ended(ended));
    }

    fn host_ended(&mut self) {
        // What it said last: a Bye, or a process that its successor must find.
        if let Some(link) = &mut self.link {
            link.outbox.clear();
        }
        self.read_requests();
        self.link = None;
        self.held.take_back();
        let lived = match &self.host {
            Host::Child { since, .. } | Host::Adopted { since, .. } => since.elapsed(),
            Host::Dead { .. } | Host::GivenUp => Duration::ZERO,
        };
        self.schedule_host(lived);
    }

    fn schedule_host(&mut self, lived: Duration) {
        let delay = self.backoff.died_after(lived);
        let failures = self.backoff.failures();
        if failures >= PROGRAM_FAILURES_MAX
            && let Some(program) = self.program.take()
        {
            log(format_args!(
                "hosts of {} die at once: back to our own program",
                program.display()
            ));
        }
        let gone = self.dirs.is_session_gone();
        self.host = if failures >= FAILURES_MAX && self.processes.is_empty() && !self.bye {
            log(format_args!(
                "{failures} hosts in a row died at once, and there is no engine: giving up"
            ));
            Host::GivenUp
        } else if gone {
            log(format_args!("the session's folder was deleted: it is over"));
            Host::GivenUp
        } else {
            Host::Dead {
                next_at: Instant::now() + delay,
            }
        };
    }

    /// The session is over: nothing of it stays.
    fn end_processes(&mut self) {
        for watched in &mut self.processes {
            log(format_args!(
                "{} is killed, the session is over",
                watched.process.id
            ));
            // Gone already is as good.
            let _ = watched.signal(libc::SIGKILL, true);
            let _ = watched.signal(libc::SIGKILL, false);
        }
        let until = Instant::now() + KILL_WAIT_MAX;
        loop {
            self.reap_children();
            self.look_at_pidfds();
            if self.processes.is_empty() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
