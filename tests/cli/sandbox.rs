//! A home of its own for each test, and sessions written by hand, so that ids and times are fixed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use farside::journal::record::{Body, ExecutionState, Micros, Note, Record};
use farside::journal::writer::{Writer, WriterOptions};
use farside::state_dir::{
    HostLock, Session, SessionState, Sessions, Status, ensure_private_dir, iso, now,
};
use farside::wire::{Channel, Message};
use serde_json::{Value, json};

/// 2026-01-31T12:00:00Z
pub const NOON: Micros = 1_769_860_800_000_000;
pub const SECOND: Micros = 1_000_000;
pub const HOUR: Micros = 3_600 * SECOND;

pub struct Sandbox {
    dir: tempfile::TempDir,
}

/// What a command did.
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Ran {
    /// All of it, for a snapshot.
    pub fn all(&self) -> String {
        format!(
            "exit {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl Sandbox {
    pub fn new() -> Self {
        let sandbox = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for folder in ["home", "run", "bin"] {
            ensure_private_dir(&sandbox.path(folder)).unwrap();
        }
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with these arguments, and nothing of the tester's environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farside"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("FARSIDE_STATE_DIR", self.path("state"))
            .env("FARSIDE_SYSTEM_CONFIG", self.path("system.toml"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("PATH", self.path("bin"))
            .env("COLUMNS", "100")
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.ran(self.command(args).output().unwrap())
    }

    /// With the sandbox's own folder out of the texts.
    pub fn ran(&self, output: Output) -> Ran {
        let folder = self.dir.path().to_str().unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(folder, "[SANDBOX]")
        };
        Ran {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code().unwrap(),
        }
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{}", ran.all());
        serde_json::from_str(&ran.stdout).unwrap()
    }

    pub fn sessions(&self) -> Sessions {
        Sessions::open_at(&self.path("state"), &self.path("run/farside")).unwrap()
    }

    /// A session with this id, as its creator would have left it.
    pub fn session(&self, id: &str, name: &str, key: Option<&str>, created: Micros) -> Session {
        let root = self.path("state").join(id);
        ensure_private_dir(&self.path("state")).unwrap();
        ensure_private_dir(&root).unwrap();
        let sockets = self.path("run/farside").join(id);
        ensure_private_dir(&sockets).unwrap();
        let json = json!({
            "format": 1, "id": id, "name": name, "engine": "python3", "argv": ["/python"], "env": {}, "cwd": "/",
            "key": key, "created": iso::format(created), "sockets": sockets, "version": "0.1.0",
        });
        fs::write(root.join("session.json"), json.to_string()).unwrap();
        Session::open(&root).unwrap()
    }

    /// A session that is over.
    pub fn ended(&self, id: &str, name: &str, ended: Micros, reason: &str) -> Session {
        let session = self.session(id, name, None, ended - HOUR);
        let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
        let status = Status {
            state: SessionState::Ended,
            executions: 3,
            last_activity: Some(ended),
            ended_at: Some(ended),
            end_reason: Some(reason.to_owned()),
            host: None,
            ..Status::starting()
        };
        session.dir.write_status(&lock, &status).unwrap();
        session
    }

    /// A session that has a host (this process) as long as the lock is kept.
    pub fn live(&self, id: &str, name: &str, status: Status) -> (Session, HostLock) {
        let session = self.session(id, name, Some("/home/me/train.ipynb"), now() - 3 * HOUR);
        let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
        session.dir.write_status(&lock, &status).unwrap();
        (session, lock)
    }

    pub fn program(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A `python3` on PATH that knows itself, and has no ipykernel.
    pub fn python(&self) -> PathBuf {
        let prefix = self.path("env");
        let answer = json!({
            "executable": self.path("bin/python3"), "prefix": prefix, "base_prefix": prefix,
            "version": [3, 11], "user_base": null, "ipykernel": null,
        });
        self.program("bin/python3", &format!("#!/bin/sh\necho '{answer}'\n"))
    }
}

/// Writes a journal record by record.
pub struct Journal {
    writer: Writer,
    time: Micros,
}

impl Journal {
    /// Records a second apart, from noon on.
    pub fn of(session: &Session) -> Self {
        Self::at(session, NOON)
    }

    pub fn at(session: &Session, time: Micros) -> Self {
        let (writer, _) = Writer::open(&session.dir.journal(), WriterOptions::default()).unwrap();
        Self { writer, time }
    }

    pub fn append(&mut self, body: Body) -> &mut Self {
        let record = Record {
            seq: self.writer.next_seq(),
            time: self.time,
            heard: 0,
            body,
        };
        self.writer.append(&[record]).unwrap();
        self.time += SECOND;
        self
    }

    /// The execute_request of an execution, and that it runs.
    pub fn begin(&mut self, n: u64, code: &str) -> &mut Self {
        let message = message("execute_request", &format!("m{n}"), json!({ "code": code }));
        let client = uuid::Uuid::nil();
        self.append(Body::Request {
            channel: Channel::Shell,
            client,
            execution: n,
            message,
        });
        self.state(n, ExecutionState::Running)
    }

    pub fn print(&mut self, n: u64, text: &str) -> &mut Self {
        let message = message("stream", "o", json!({ "name": "stdout", "text": text }));
        self.append(Body::Iopub {
            client: None,
            execution: n,
            message,
        })
    }

    pub fn state(&mut self, n: u64, state: ExecutionState) -> &mut Self {
        self.append(Body::Note(Note::Execution {
            n,
            msg_id: format!("m{n}"),
            state,
            reason: None,
        }))
    }
}

fn message(msg_type: &str, msg_id: &str, content: Value) -> Message {
    Message {
        header: json!({ "msg_id": msg_id, "msg_type": msg_type, "session": "s" })
            .to_string()
            .into(),
        parent_header: "{}".into(),
        metadata: json!({ "cellId": "c" }).to_string().into(),
        content: content.to_string().into(),
        ..Message::default()
    }
}

/// The names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
