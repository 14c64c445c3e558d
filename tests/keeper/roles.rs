//! What this program is when it is not the test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use farside::keeper::{Client, FromKeeper, HostArgs, ToKeeper};
use farside::process::PidFd;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A line from the test to a host.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Pass this on.
    Send(ToKeeper),
    /// Exit with this code.
    Exit(u8),
}

/// A line from a host to the test.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The first one.
    Started { pid: u32 },
    /// From the keeper.
    Received(FromKeeper),
    /// The order to send could not be carried out.
    NotSent(String),
}

/// While this file is in the session's folder, a host fails at once.
pub const FAIL: &str = "fail";

/// The socket in the runtime folder on which the test awaits hosts.
pub const TEST_SOCKET: &str = "test.sock";

/// The host's role: relays. Where the test is gone, it ends the session.
pub fn host(args: &[OsString]) -> ExitCode {
    let args = match HostArgs::take(args) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if args.dirs.session_dir.join(FAIL).exists() {
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(relay(args))
}

async fn relay(args: HostArgs) -> ExitCode {
    let path = args.dirs.runtime_dir.join(TEST_SOCKET);
    let mut client = Client::new(args).expect("the keeper's socket");
    let Ok(test) = UnixStream::connect(path).await else {
        return bye(client).await;
    };
    let (orders, mut reports) = test.into_split();
    let mut orders = BufReader::new(orders).lines();
    let mut pending = Some(Report::Started {
        pid: std::process::id(),
    });
    loop {
        if let Some(report) = pending.take() {
            let line = serde_json::to_string(&report).expect("a report is JSON") + "\n";
            if reports.write_all(line.as_bytes()).await.is_err() {
                return bye(client).await;
            }
        }
        tokio::select! {
            message = client.recv() => pending = Some(Report::Received(message)),
            line = orders.next_line() => {
                let Ok(Some(line)) = line else { return bye(client).await };
                match serde_json::from_str(&line).expect("an order") {
                    Order::Send(message) => {
                        pending = client.send(message).err().map(|e| Report::NotSent(e.to_string()));
                    }
                    Order::Exit(code) => {
                        client.flush().await;
                        return ExitCode::from(code);
                    }
                }
            }
        }
    }
}

async fn bye(mut client: Client) -> ExitCode {
    client.send(ToKeeper::Bye).expect("a short message");
    client.flush().await;
    ExitCode::SUCCESS
}

/// What an engine sees of its surroundings.
#[derive(Debug, Serialize, Deserialize)]
pub struct Surroundings {
    pub process_group: i32,
    pub session: i32,
    pub cwd: String,
    pub env: BTreeMap<String, String>,
    /// Number and target of each open descriptor.
    pub fds: BTreeMap<i32, String>,
    /// The `Sig...` lines of /proc/self/status.
    pub signals: BTreeMap<String, String>,
    pub nice: i32,
}

/// The engine's role.
pub fn engine(args: &[OsString]) -> ExitCode {
    let arg = |at: usize| {
        args.get(at)
            .and_then(|arg| arg.to_str())
            .expect("an argument")
    };
    match arg(0) {
        "wait" => wait(),
        "report" => {
            std::fs::write(arg(1), serde_json::to_vec(&surroundings()).expect("JSON"))
                .expect("report");
            println!("reported");
            ExitCode::SUCCESS
        }
        // Leaves an orphan, whose pid is in the file.
        "with-orphan" => {
            let exe = std::env::current_exe().expect("our path");
            let middle = Command::new(exe)
                .args(["engine", "middle", arg(1)])
                .status();
            assert!(middle.expect("start").success());
            wait()
        }
        "middle" => {
            let exe = std::env::current_exe().expect("our path");
            let mut orphan = Command::new(exe);
            let orphan = orphan.args(["engine", "wait"]).stdin(Stdio::null()).spawn();
            let path = Path::new(arg(1));
            let temporary = path.with_extension("tmp");
            std::fs::write(&temporary, orphan.expect("start").id().to_string()).expect("pid");
            std::fs::rename(temporary, path).expect("pid");
            ExitCode::SUCCESS
        }
        other => panic!("no such engine: {other}"),
    }
}

/// Until killed, or the test is gone.
fn wait() -> ExitCode {
    let test = std::env::var("FARSIDE_TEST_PID").expect("the test's pid");
    if let Ok(test) = PidFd::open(test.parse().expect("a pid")) {
        test.wait_blocking(Duration::from_secs(600));
    }
    ExitCode::FAILURE
}

fn surroundings() -> Surroundings {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let signals = status.lines().filter(|line| line.starts_with("Sig"));
    // SAFETY: integers only.
    let (process_group, session, nice) = unsafe {
        (
            libc::getpgrp(),
            libc::getsid(0),
            libc::getpriority(libc::PRIO_PROCESS, 0),
        )
    };
    Surroundings {
        process_group,
        session,
        nice,
        cwd: std::env::current_dir().expect("cwd").display().to_string(),
        env: std::env::vars().collect(),
        fds: fds("self"),
        signals: signals
            .filter_map(|line| line.split_once(":\t"))
            .map(|(name, mask)| (name.to_owned(), mask.to_owned()))
            .collect(),
    }
}

/// The open descriptors of a process, but for the one that lists them.
pub fn fds(pid: &str) -> BTreeMap<i32, String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process runs")
        .filter_map(|entry| {
            let entry = entry.expect("an entry");
            let target = std::fs::read_link(entry.path()).ok()?.display().to_string();
            let number = entry.file_name().to_str()?.parse().ok()?;
            (!target.ends_with("/fd")).then_some((number, target))
        })
        .collect()
}
