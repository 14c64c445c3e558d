//! `farside stop`: end a session.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Progress, ask, block_on, quiet_hello};
use super::{Exit, Output, find_session};
use crate::launcher::reach::{self, ReachError};
use crate::launcher::read_connection_file;
use crate::link::Frame;
use crate::process::PidFd;
use crate::session::event::Command;
use crate::state_dir::{HostLock, ProcessId, Session, SessionState};

/// How long the processes may take to be gone once the session has ended: the host only closes its files then.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A host that dies while it ends a session is replaced by one that does not know of it; it is told again, but not
/// for ever.
const TRIES_MAX: usize = 5;

/// End a session and its engine. Its records stay (`farside logs`, `farside prune`).
///
/// The engine is asked to end, then made to. Returns when all is over.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside stop train\n  farside stop train --now     # kill the engine at once"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Do not give the running code time to finish
    #[arg(long)]
    pub now: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let name = &session.json.name;
    let facts = session.facts();
    let reason = facts.end_reason.unwrap_or_default();
    match facts.state {
        SessionState::Ended | SessionState::Retired => {
            out.message(&format!("{name} has ended already: {reason}"));
        }
        SessionState::Lost => {
            out.message(&format!("nothing of {name} runs any more: {reason}"));
        }
        SessionState::Starting
        | SessionState::Busy
        | SessionState::Idle
        | SessionState::WaitingInput => {
            let _progress = Progress::new(format!("stopping {name}"));
            if let Some(why) = &session.json.damage {
                kill(&session);
                out.message(&format!("{why}: its processes were killed"));
                return Ok(Exit::Done);
            }
            block_on(stop(&session, args.now, "stopped: by `farside stop`"))?;
        }
    }
    Ok(Exit::Done)
}

/// Ends the processes of a session whose host cannot be asked.
fn kill(session: &Session) {
    let Some(status) = session.status() else {
        return;
    };
    let held = |process: Option<ProcessId>| {
        let process = process?;
        PidFd::open_verified(process.pid, process.start_ticks).ok()
    };
    // Keeper and host replace each other: neither is to hear of the other's end.
    let keeper = held(status.keeper);
    if let Some(keeper) = &keeper {
        let _ = keeper.signal(libc::SIGSTOP);
    }
    for held in [held(status.host), keeper, held(status.engine)]
        .into_iter()
        .flatten()
    {
        // The engine leads a group, and the others have their own.
        let _ = held
            .signal_group(libc::SIGKILL)
            .or_else(|_| held.signal(libc::SIGKILL));
        held.wait_blocking(GONE_TIMEOUT);
    }
    // Where its sockets are, its engine was told.
    let told = read_connection_file(&session.dir.engine().join("connection.json"));
    if let Ok(file) = told
        && let Some(sockets) = Path::new(&file.ip).parent()
        && sockets.ends_with(&session.json.id)
    {
        let _ = std::fs::remove_dir_all(sockets);
    }
}

/// Ends a session that lives, and waits until it is over.
pub(super) async fn stop(session: &Session, now: bool, reason: &str) -> anyhow::Result<()> {
    for _ in 0..TRIES_MAX {
        let mut stream = match reach::open(session, &quiet_hello("stop")).await {
            Ok(stream) => stream,
            Err(ReachError::Ended { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        let command = Command::Stop {
            now,
            reason: reason.to_owned(),
        };
        // The host's death shows itself below, as the end of the stream.
        let _ = ask(&mut stream, session, command).await;
        loop {
            match stream.reader.next().await {
                Ok(Some(Frame::Ended { .. })) => return gone(session).await,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
    gone(session).await
}

/// Waits until host and engine are gone.
async fn gone(session: &Session) -> anyhow::Result<()> {
    let until = Instant::now() + GONE_TIMEOUT;
    loop {
        let facts = session.facts();
        let host_lives = HostLock::is_held(&session.dir);
        if !facts.state.is_live() && !host_lives && facts.engine_pid.is_none() {
            return Ok(());
        }
        if Instant::now() >= until {
            anyhow::bail!(
                "session {} was told to end, but is still there after {} s (host process {:?}, engine process {:?}); \
                 its log is {}",
                session.json.id,
                GONE_TIMEOUT.as_secs(),
                facts.host_pid,
                facts.engine_pid,
                session.dir.host_log().display()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
