//! Which session a launcher belongs to (design: "who comes back to which session").

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::reach::{self, ReachError, Stream};
use crate::config::{Config, ConfigError, Flags};
use crate::kernelspec::{self, EngineSpec, SpecError};
use crate::link::Hello;
use crate::state_dir::{CreationGuard, NewSession, Session, Sessions, StateError, notebook_key};

/// How long a launcher waits for others that are creating their session.
const CHOICE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it looks whether it is its turn.
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a launcher knows of the session it wants. What may be wrong with it is looked at each time one is chosen.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name given by `--session` or FARSIDE_SESSION, else the connection file's `jupyter_session`.
    pub name: Option<String>,
    /// The launcher's connection file.
    pub connection_file: PathBuf,
    /// The engine's kernelspec.
    pub engine: String,
    /// The same as `farside install` found it.
    pub engine_spec: Option<PathBuf>,
    /// The launcher's working directory.
    pub cwd: PathBuf,
    /// Settings for a session that it starts.
    pub settings: Flags,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ChoiceError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Engine(#[from] SpecError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Reach(#[from] ReachError),
}

/// A session with a stream to its host, or why there is none.
pub type Chosen = Result<(Session, Stream), ChoiceError>;

/// Finds the living session that waits for this launcher, or starts a new one; and claims it. Of launchers that race
/// for one session its host takes one, and the others look on. Settings and an engine that cannot be used keep nobody
/// from a session that lives. `known`: the `header.session` that the launcher's frontends have seen, which a new
/// session then goes on with.
pub async fn choose(wanted: &Wanted, hello: &Hello, known: Option<String>) -> Chosen {
    let sessions = Sessions::open()?;
    let engine = kernelspec::resolve(&wanted.engine, wanted.engine_spec.as_deref());
    let name = (engine.as_ref())
        .map_or(&wanted.engine, |engine| &engine.name)
        .clone();
    let key = (wanted.name.as_deref()).map(|name| notebook_key(name, &wanted.cwd));
    let (mut tried, mut ended) = (HashSet::new(), Vec::new());
    let candidates = || -> Result<(Vec<Session>, Vec<Session>), StateError> {
        let all = match &key {
            Some(key) => sessions.of_key(key, &name)?,
            None => with_connection_file(&sessions, &wanted.connection_file, &name)?,
        };
        Ok(all.into_iter().partition(Session::is_live))
    };
    loop {
        for session in candidates()?.0 {
            if !tried.insert(session.json.id.clone()) {
                continue;
            }
            match reach::open(&session, hello).await {
                Ok(stream) => return Ok((session, stream)),
                // It ends just now, or somebody has it.
                Err(error) => {
                    tracing::info!(%error, "not this session");
                    ended.extend(matches!(error, ReachError::Ended { .. }).then_some(session));
                }
            }
        }
        // A host may take its time to answer, so nobody is kept waiting until here.
        let guard = lock_creation(&sessions).await?;
        let (live, over) = candidates()?;
        if live.iter().any(|session| !tried.contains(&session.json.id)) {
            continue;
        }
        let engine = match engine {
            Ok(ref engine) => engine,
            Err(error) => return Err(error.into()),
        };
        let new = NewSession {
            key: key.clone(),
            settings: Config::load(&wanted.settings)?.given(),
            predecessor: (ended.last().or(Sessions::predecessor(&over)))
                .map(|session: &Session| session.json.id.clone()),
            header_session: known.clone(),
            ..new_session(
                engine,
                engine.environment_under_frontend(|name| std::env::var(name).ok()),
                &wanted.cwd,
            )
        };
        let session = sessions.create(&guard, new)?;
        drop(guard);
        match reach::open(&session, hello).await {
            Ok(stream) => return Ok((session, stream)),
            // Another launcher, which wants the same, was quicker.
            Err(ReachError::Attached { id }) => drop(tried.insert(id)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`Sessions::lock_creation`]; what else the launcher does goes on meanwhile.
async fn lock_creation(sessions: &Sessions) -> Result<CreationGuard, StateError> {
    let until = Instant::now() + CHOICE_TIMEOUT;
    loop {
        match sessions.lock_creation(Duration::ZERO) {
            Err(StateError::LockTimeout { path, .. }) if Instant::now() >= until => {
                let waited_secs = CHOICE_TIMEOUT.as_secs();
                return Err(StateError::LockTimeout { path, waited_secs });
            }
            Err(StateError::LockTimeout { .. }) => tokio::time::sleep(LOCK_AGAIN_AFTER).await,
            locked => return locked,
        }
    }
}

/// A new session with this engine: no name, no key, no settings. `env`: what the engine's spec adds to the
/// environment.
pub fn new_session(engine: &EngineSpec, env: Vec<(String, String)>, cwd: &Path) -> NewSession {
    NewSession {
        name: None,
        engine: engine.name.clone(),
        argv: engine.argv.clone(),
        env,
        interrupt_by_message: engine.interrupt_mode == crate::kernelspec::InterruptMode::Message,
        cwd: cwd.to_owned(),
        key: None,
        settings: Vec::new(),
        predecessor: None,
        header_session: None,
    }
}

fn with_connection_file(
    sessions: &Sessions,
    file: &Path,
    engine: &str,
) -> Result<Vec<Session>, StateError> {
    let file = file.to_string_lossy();
    let is_its = |session: &Session| {
        session.json.engine == engine
            && session.json.key.is_none()
            && session
                .status()
                .and_then(|status| status.connection_file)
                .is_some_and(|its| its == file)
    };
    Ok(sessions.list()?.into_iter().filter(is_its).collect())
}
