//! `farside new`: a session with no frontend.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::client::{Conversation, Heard, Progress, block_on};
use super::stop::stop;
use super::{Exit, Output, UsageError};
use crate::config::{Config, Flags};
use crate::kernelspec::{self, EngineSpec};
use crate::launcher::choice::new_session;
use crate::state_dir::{
    HostLock, LOCK_TIMEOUT, NewSession, Session, SessionFacts, SessionState, Sessions, Status, now,
};
use crate::wire::{Channel, Message};

/// The host writes its status some milliseconds after a change; what is printed should be what is true then.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Start a session with no frontend, and print its id.
///
/// Returns when the engine is ready. It ends by itself when it was idle for long, as any session does: see the
/// settings below and `farside ls`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside new --name train\n  farside new --engine ir --cwd ~/work"
)]
pub struct Args {
    /// Kernelspec of the engine
    #[arg(long, value_name = "NAME", default_value = "python3")]
    pub engine: String,
    /// What to call the session [default: the engine's name and the session's id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The engine's working directory [default: this one]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Print the session as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Settings for this session.
    #[command(flatten)]
    pub settings: Flags,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let settings = Config::load(&args.settings)?;
    for warning in &settings.warnings {
        out.message(&format!("warning: {warning}"));
    }
    let cwd = working_directory(args.cwd.as_deref())?;
    let engine = kernelspec::resolve(&args.engine, None)?;
    let session = create(args, &engine, &cwd, settings.given())?;
    let progress = Progress::new(format!("starting {}", engine.display_name));
    let started = block_on(start(&session));
    drop(progress);
    if let Err(error) = started {
        block_on(async {
            end_unstarted(&session).await;
            Ok(())
        })?;
        return Err(error.context(format!("the engine {} did not start", engine.name)));
    }
    let facts = block_on(async { Ok(settled(&session).await) })?;
    if args.json {
        out.json(&facts)?;
    } else {
        out.line(&facts.id)?;
    }
    Ok(Exit::Done)
}

fn working_directory(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let Some(wanted) = wanted else {
        return Ok(std::env::current_dir()?);
    };
    if !wanted.is_dir() {
        let text = format!("--cwd {}: there is no such folder", wanted.display());
        return Err(UsageError(text).into());
    }
    Ok(std::path::absolute(wanted)?)
}

fn create(
    args: &Args,
    engine: &EngineSpec,
    cwd: &Path,
    settings: Vec<(String, String)>,
) -> anyhow::Result<Session> {
    let sessions = Sessions::open()?;
    let guard = sessions.lock_creation(LOCK_TIMEOUT)?;
    if let Some(name) = &args.name {
        let taken = |session: &Session| session.json.name == *name && session.is_live();
        if let Some(other) = sessions.list()?.into_iter().find(taken) {
            let text = format!(
                "there is a session `{name}` already ({}); give another --name, or use that one",
                other.json.id
            );
            return Err(UsageError(text).into());
        }
    }
    let env = engine.environment(|name| std::env::var(name).ok());
    let new = NewSession {
        name: args.name.clone(),
        settings,
        ..new_session(engine, env, cwd)
    };
    Ok(sessions.create(&guard, new)?)
}

/// Starts keeper and host, and waits until the engine has said what it is.
async fn start(session: &Session) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ready = async {
        let mut conversation = Conversation::open(session, "new", false).await?;
        let request = conversation.message("kernel_info_request", &Message::default(), &json!({}));
        conversation.send(Channel::Shell, request).await;
        loop {
            match conversation.next().await? {
                Heard::Reply(_, message) => return is_ready(&message),
                Heard::Ended(reason) => bail!("its session has ended: {reason}"),
                Heard::Acknowledged(_) | Heard::Iopub(_) => {}
            }
        }
    };
    tokio::select! {
        ready = ready => ready,
        _ = interrupt.recv() => bail!("interrupted; the session was stopped"),
        _ = terminate.recv() => bail!("interrupted; the session was stopped"),
    }
}

fn is_ready(reply: &Message) -> anyhow::Result<()> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Reply {
        status: String,
        evalue: String,
    }
    let reply: Reply = serde_json::from_slice(&reply.content).unwrap_or_default();
    match reply.status.as_str() {
        // Old engines say no status.
        "ok" | "" => Ok(()),
        _ => bail!("{}", reply.evalue),
    }
}

/// Leaves nothing that runs, and says so in the session's record.
async fn end_unstarted(session: &Session) {
    let reason = "stopped: its engine did not start";
    if HostLock::is_held(&session.dir) {
        if let Err(error) = stop(session, true, reason).await {
            tracing::warn!(%error, "a session that did not start could not be ended");
        }
        return;
    }
    // No host came up, so nobody else writes the last word.
    let Ok(Some(lock)) = HostLock::acquire(&session.dir) else {
        return;
    };
    let status = Status {
        state: SessionState::Ended,
        ended_at: Some(now()),
        end_reason: Some(reason.to_owned()),
        host: None,
        ..Status::starting()
    };
    if let Err(error) = session.dir.write_status(&lock, &status) {
        tracing::warn!(%error, "a session that did not start could not be ended");
    }
}

/// What is true of the session once the host knows that its engine is ready and that we have left.
async fn settled(session: &Session) -> SessionFacts {
    let until = Instant::now() + STATUS_TIMEOUT;
    loop {
        let facts = session.facts();
        let is_settled = facts.state != SessionState::Starting && facts.attached == 0;
        if is_settled || Instant::now() >= until {
            return facts;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
