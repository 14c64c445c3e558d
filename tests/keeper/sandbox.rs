//! A session's folders, the hosts that come up in it, and the end of everything started in it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farside::keeper::{self, Ended, FromKeeper, Hello, Process, Spawn, ToKeeper};
use farside::process;

use crate::roles::{Order, Report, TEST_SOCKET};

/// For what takes milliseconds on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Sandbox {
    pub dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Sandbox {
    pub fn new() -> Self {
        process::set_subreaper().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["session", "run", "cwd"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let listener = UnixListener::bind(dir.path().join("run").join(TEST_SOCKET)).unwrap();
        Self { dir, listener }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self) {
        self.start_exe(&std::env::current_exe().unwrap());
    }

    pub fn start_exe(&self, exe: &Path) {
        keeper::start(&self.path("session"), &self.path("run"), exe).unwrap();
    }

    /// The next host that comes up, with the Hello it got from its keeper.
    pub fn host(&self) -> Host {
        self.host_within(LIMIT)
            .unwrap_or_else(|| panic!("no host came up\n{}", self.log()))
    }

    pub fn host_within(&self, limit: Duration) -> Option<Host> {
        let mut entry = [libc::pollfd {
            fd: self.listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }];
        if process::poll(&mut entry, Some(limit)).unwrap() == 0 {
            return None;
        }
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut host = Host {
            pid: 0,
            hello: Hello {
                keeper_pid: 0,
                version: String::new(),
                alive: vec![],
                ended: vec![],
            },
            orders: stream.try_clone().unwrap(),
            reports: BufReader::new(stream),
        };
        let Report::Started { pid } = host.report() else {
            panic!("a host's first report")
        };
        host.pid = pid;
        host.hello = host.next_hello();
        Some(host)
    }

    /// A request for this program as an engine.
    pub fn engine(&self, id: &str, args: &[&str]) -> Spawn {
        let exe = std::env::current_exe().unwrap();
        let mut argv = vec![exe.into(), "engine".into()];
        argv.extend(args.iter().map(|&arg| arg.into()));
        Spawn {
            id: id.to_owned(),
            argv,
            env: vec![(
                "FARSIDE_TEST_PID".into(),
                std::process::id().to_string().into(),
            )],
            cwd: self.path("cwd").into(),
            log: self.path("session/engine.log").into(),
            nice: None,
        }
    }

    /// host.log, for the message of a failure.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("session/host.log")).unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Keepers start hosts as long as there are keepers, so once is not enough.
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            reap();
            let left = descendants();
            if left.is_empty() {
                return;
            }
            for pid in left {
                // Descendants of ours, not waited for: their pids are theirs.
                let _ = process::signal(pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        eprintln!("processes are left: {:?}", descendants());
    }
}

/// A host, seen from the test. It is killed by its pid, not by dropping this.
pub struct Host {
    pub pid: u32,
    pub hello: Hello,
    orders: UnixStream,
    reports: BufReader<UnixStream>,
}

impl Host {
    pub fn order(&mut self, order: &Order) {
        let line = serde_json::to_string(order).unwrap() + "\n";
        self.orders.write_all(line.as_bytes()).unwrap();
    }

    pub fn send(&mut self, message: ToKeeper) {
        self.order(&Order::Send(message));
    }

    pub fn report(&mut self) -> Report {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("a report in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Takes all reports up to the host's end, so that it never waits for this test.
    pub fn end(&mut self) {
        std::io::copy(&mut self.reports, &mut std::io::sink()).expect("the host's end in time");
    }

    pub fn recv(&mut self) -> FromKeeper {
        match self.report() {
            Report::Received(message) => message,
            other => panic!("{other:?}"),
        }
    }

    pub fn next_hello(&mut self) -> Hello {
        match self.recv() {
            FromKeeper::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    pub fn spawn(&mut self, request: Spawn) -> Process {
        self.send(ToKeeper::Spawn(request));
        match self.recv() {
            FromKeeper::Spawned(process) => process,
            other => panic!("{other:?}"),
        }
    }

    pub fn spawn_error(&mut self, request: Spawn) -> String {
        let asked = request.id.clone();
        self.send(ToKeeper::Spawn(request));
        match self.recv() {
            FromKeeper::SpawnFailed { id, error } if id == asked => error,
            other => panic!("{other:?}"),
        }
    }

    pub fn ended(&mut self, process: &Process) -> Ended {
        match self.recv() {
            FromKeeper::Ended(end) if end.process == *process => end,
            other => panic!("{other:?}"),
        }
    }

    pub fn signal(&mut self, process: &Process, signal: i32, group: bool) {
        self.send(ToKeeper::Signal {
            pid: process.pid,
            start_time: process.start_time,
            signal,
            group,
        });
    }

    /// Waits until the keeper has dealt with all that was sent: it answers in order.
    pub fn settle(&mut self) {
        self.send(ToKeeper::Unknown);
        match self.recv() {
            FromKeeper::Refused { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    pub fn ack(&mut self, process: &Process) {
        self.send(ToKeeper::Ack {
            pid: process.pid,
            start_time: process.start_time,
        });
    }
}

pub fn kill(pid: u32) {
    process::signal(pid, libc::SIGKILL).unwrap();
}

/// Asks again and again, for what no event tells.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < limit, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// State and parent of a process (proc_pid_stat(5)).
pub fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Our children, their children and so on; zombies count.
pub fn descendants() -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, state(pid)?.1)))
        .collect();
    let mut found = vec![std::process::id()];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(
            parents
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    found.split_off(1)
}

/// Waits for children that have ended, those that came to us as orphans included.
pub fn reap() -> Vec<(u32, i32)> {
    let mut reaped = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: the pointer is valid for a write.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return reaped;
        }
        reaped.push((pid as u32, status));
    }
}
