//! A real ipykernel for the commands that talk to a host. FARSIDE_TEST_PYTHON names a Python that has one; without it
//! the tests say so and pass.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sandbox::{Ran, Sandbox};

/// Far beyond what anything here takes, also on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox whose PATH has a Python with ipykernel. Nothing that was started in it outlives it.
pub struct Real {
    sandbox: Sandbox,
    python: PathBuf,
}

/// A sandbox, or `None` (and a word why) where there is no Python to test with.
pub fn real() -> Option<Real> {
    let Some(python) = std::env::var_os("FARSIDE_TEST_PYTHON") else {
        println!("skipped: FARSIDE_TEST_PYTHON names no Python with ipykernel");
        return None;
    };
    Some(Real {
        sandbox: Sandbox::new(),
        python: PathBuf::from(python),
    })
}

impl Deref for Real {
    type Target = Sandbox;
    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Real {
    pub fn python(&self) -> &Path {
        &self.python
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let bin = self.python.parent().unwrap();
        let mut command = self.sandbox.command(args);
        command.env(
            "PATH",
            format!(
                "{}:{}:/usr/bin:/bin",
                self.path("bin").display(),
                bin.display()
            ),
        );
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "")
    }

    /// The command with this on its stdin.
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads no stdin may have closed it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        self.ran(child.wait_with_output().unwrap())
    }

    /// stdout of a command that must do what it is told.
    pub fn done(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.all());
        ran.stdout
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.done(args)).unwrap()
    }

    /// In the background.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    /// Waits until `ls` shows the session so.
    pub fn wait_for(
        &self,
        id: &str,
        what: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let all = self.json(&["ls", "--all", "--json"]);
            let its = all
                .as_array()
                .unwrap()
                .iter()
                .find(|session| session["id"] == id);
            match its {
                Some(session) if what(session) => return session.clone(),
                found => assert!(Instant::now() < until, "{found:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes with the sandbox's HOME.
    fn processes(&self) -> Vec<u32> {
        let home = format!("HOME={}", self.path("home").display());
        let is_ours = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == home.as_bytes())
        };
        let pids = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(is_ours).collect()
    }

    /// Waits until nothing that was started here runs any more.
    pub fn wait_for_silence(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(
                Instant::now() < until,
                "still there: {:?}",
                self.processes()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // Keepers start hosts anew: until there is none left.
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in &left {
                signal(*pid, libc::SIGSTOP);
            }
            for pid in left {
                signal(pid, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A command in the background. Killed when it is dropped.
pub struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    /// The next line of stdout.
    pub fn line(&mut self) -> String {
        self.lines.next().expect("a line of stdout").unwrap()
    }

    pub fn signal(&self, number: i32) {
        signal(self.child.id(), number);
    }

    /// The rest of stdout, stderr, and the exit code.
    pub fn end(mut self) -> Ran {
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        let stderr = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        let code = self.child.wait().unwrap().code().expect("an exit code");
        let stdout = rest.iter().map(|line| format!("{line}\n")).collect();
        Ran {
            stdout,
            stderr,
            code,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, number: i32) {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(pid as i32, number) };
}

/// The parent of a process: a host's is its keeper.
pub fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    after_name
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

pub fn pid(session: &serde_json::Value, which: &str) -> u32 {
    session[which].as_u64().expect("a process") as u32
}
