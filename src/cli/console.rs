//! `farside console`: jupyter console on a session.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{block_on, require_live};
use super::connect::serve;
use super::{Exit, Output, find_session};
use crate::process::PidFd;
use crate::session::event::CONSOLE_KIND;

/// Open jupyter console on a session; leaving it leaves the session running.
///
/// `exit` and Ctrl-D leave; `farside stop` ends the session. Needs `jupyter` with jupyter-console on PATH. Ends with the console's exit code.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    require_live(&session)?;
    let Some(jupyter) = on_path("jupyter") else {
        bail!(
            "there is no `jupyter` on PATH; install it (`pip install jupyter-console`), or connect another client with \
             `farside connect {}`",
            args.session
        );
    };
    let mut console: Option<Child> = None;
    block_on(async {
        // Ctrl-C is for the console alone.
        let mut ignored = signal(SignalKind::interrupt())?;
        serve(&session, CONSOLE_KIND, |path| {
            let child = Command::new(&jupyter)
                .args(["console", "--existing"])
                .arg(path)
                .spawn()?;
            let process = PidFd::open(child.id())?;
            console = Some(child);
            Ok(async move {
                loop {
                    tokio::select! {
                        _ = process.wait() => return,
                        _ = ignored.recv() => {}
                    }
                }
            })
        })
        .await
    })
    .with_context(|| format!("no console on session {}", session.json.name))?;
    let Some(mut console) = console else {
        bail!("{} was not started", jupyter.display());
    };
    if !session.is_live() {
        out.message(&format!("session {} has ended", session.json.name));
    }
    if console.try_wait()?.is_none() {
        // The session has ended, or we were told to: there is nothing left that it could show.
        let _ = crate::process::signal(console.id(), libc::SIGTERM);
    }
    Ok(exit_of(console.wait()?))
}

/// As a shell has it: the code, or 128 and the signal.
fn exit_of(status: ExitStatus) -> Exit {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(Exit::Failed, Exit::Of)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let is_executable = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(is_executable)
}
