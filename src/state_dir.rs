//! Where farside keeps things on disk: the state folder, one folder a session, the folder of the sockets, and the
//! locks that say who lives.
//!
//! Owns: paths and their permissions, the session's static facts (`session.json`), its small status
//! (`status.json`), how a session is found, named and created, and what "alive" means.
//! Refuses to know: the journal's format, the link's protocol, what a host does.
//! Invariants: every folder is 0700 from its first moment and ours, or nothing is read from it; a session's folder
//! appears whole or not at all (written aside, then renamed); `session.json` is never changed afterwards;
//! `status.json` is only written by the holder of `host.lock`.

mod error;
mod facts;
mod locks;
mod names;
mod past;
mod process;
mod retention;
mod secure;
fn write_aside(aside: &Path, json: &SessionJson) -> Result<(), StateError> {
    ensure_private_dir(aside)?;
    for folder in ["journal", "engine"] {
        ensure_private_dir(&aside.join(folder))?;
    }
    let file = aside.join("session.json");
    let text = serde_json::to_vec_pretty(json).expect("plain strings and numbers");
    secure::write_private(&file, &text).map_err(StateError::io("write", &file))
}

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::journal::record::Micros;

pub use error::StateError;
pub use facts::{SessionFacts, SessionJson, SessionState, Status, iso};
pub use locks::{CreationGuard, HostLock};
pub use names::{ID_CHARS, NAME_BYTES_MAX, check_name, is_id, notebook_key};
use names::{id_from, name_from_key, unique_name};
pub use past::Past;
pub use process::ProcessId;
pub use retention::{Age, Pruned, Retention};
use secure::check_is_for_us;
pub use secure::{check_private_dir, ensure_private_dir};

/// A unix socket's path has at most this many bytes (`sun_path` is 108 with its final zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What a session adds to the folder of the sockets, at most: `/<id>/link.sock`.
const SOCKET_NAME_BYTES_MAX: usize = 1 + ID_CHARS + 1 + "link.sock".len();
/// Creating a session takes milliseconds; who waits longer than this waits for a process that hangs.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The file whose lock whoever creates a session holds; a folder that has it is farside's.
const CREATION_LOCK: &str = "create.lock";
/// How long a session that was created but never had a host counts as starting rather than lost.
const HOST_START_GRACE_MICROS: Micros = 30_000_000;

/// All sessions of this user: the state folder.
#[derive(Clone, Debug)]
pub struct Sessions {
    state: PathBuf,
    /// Folders for sockets in order of preference; the first usable one is taken when a session is created.
    runtime: Vec<RuntimeChoice>,
}

#[derive(Clone, Debug)]
struct RuntimeChoice {
    /// This folder must exist and be ours (`$XDG_RUNTIME_DIR`); `None`: no such condition (the temporary directory).
    base: Option<PathBuf>,
    dir: PathBuf,
}

/// What a new session is.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Wanted name; checked, and refused where it cannot be one. `None`: made up from key or id.
    pub name: Option<String>,
    /// Kernelspec name of the engine.
    pub engine: String,
    /// The engine's command line, `{connection_file}` still in it.
    pub argv: Vec<String>,
    /// What the kernelspec adds to the environment, templates already expanded.
    pub env: Vec<(String, String)>,
    /// Whether the engine is interrupted by message rather than by SIGINT.
    pub interrupt_by_message: bool,
    /// Working directory of the engine.
    pub cwd: PathBuf,
    /// What brings a frontend back to it (the notebook's path), if anything does.
    pub key: Option<String>,
    /// Settings that its creator was given ([`crate::config::Loaded::given`]).
    pub settings: Vec<(String, String)>,
    /// The ended session that it comes after ([`Sessions::predecessor`]).
    pub predecessor: Option<String>,
    /// The `header.session` of its frontends' messages, where they know one already. `None`: made of the id.
    pub header_session: Option<String>,
}

/// One session on disk: its static facts and its folders.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where its files are.
    pub dir: SessionDir,
    /// Written once, at creation.
    pub json: SessionJson,
}

/// The paths of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDir {
    root: PathBuf,
    sockets: PathBuf,
}

impl Sessions {
    /// The folders that the environment names. Creates nothing; refuses a state folder that others could write.
    pub fn open() -> Result<Self, StateError> {
        let var = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let state = match (var("FARSIDE_STATE_DIR"), var("XDG_STATE_HOME"), var("HOME")) {
            (Some(dir), _, _) => dir,
            (None, Some(base), _) if base.is_absolute() => base.join("farside"),
            (None, _, Some(home)) => home.join(".local/state/farside"),
            (None, _, None) => return Err(StateError::NoHome),
        };
        let state = std::path::absolute(&state).map_err(StateError::io("find", &state))?;
        let own = format!("farside-{}", crate::process::effective_uid());
        let mut runtime = Vec::new();
        if let Some(base) = var("XDG_RUNTIME_DIR").filter(|p| p.is_absolute()) {
            runtime.push(RuntimeChoice {
                dir: base.join("farside"),
                base: Some(base),
            });
        }
        runtime.push(RuntimeChoice {
            base: None,
            dir: std::env::temp_dir().join(&own),
        });
        runtime.push(RuntimeChoice {
            base: None,
            dir: Path::new("/tmp").join(&own),
        });
        Self::with(state, runtime)
    }

    /// The given folders, whatever the environment says (tests).
    pub fn open_at(state: &Path, runtime: &Path) -> Result<Self, StateError> {
        Self::with(
            state.to_owned(),
            vec![RuntimeChoice {
                base: None,
                dir: runtime.to_owned(),
            }],
        )
    }

    fn with(state: PathBuf, runtime: Vec<RuntimeChoice>) -> Result<Self, StateError> {
        check_is_for_us(&state, CREATION_LOCK)?;
        match check_private_dir(&state) {
            Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            }
            other => other?,
        }
        Ok(Self { state, runtime })
    }

    /// The state folder. It may not exist yet.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Every session, oldest first. One whose `session.json` cannot be read is in it too, with what can be known.
    pub fn list(&self) -> Result<Vec<Session>, StateError> {
        let entries = match fs::read_dir(&self.state) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io("read", &self.state)(e)),
        };
        let mut sessions: Vec<Session> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_id(name))
            .filter_map(|id| self.get(&id))
            .collect();
        sessions.sort_by(|a, b| (a.json.created, &a.json.id).cmp(&(b.json.created, &b.json.id)));
        Ok(sessions)
    }

    /// The session with exactly this id.
    pub fn get(&self, id: &str) -> Option<Session> {
        let root = self.state.join(id);
        if !is_id(id) || !root.is_dir() {
            return None;
        }
        let json = SessionJson::read(&root.join("session.json"))
            .unwrap_or_else(|why| SessionJson::unreadable(id, &root, &why.to_string()));
        let dir = SessionDir {
            root,
            sockets: json.sockets.clone(),
        };
        Some(Session { dir, json })
    }

    /// The session that a person means: an id, a name (a live session's before an ended one's), or the unique
    /// beginning of an id.
    pub fn find(&self, selector: &str) -> Result<Session, StateError> {
        if let Some(session) = self.get(selector) {
            return Ok(session);
        }
        let all = self.list()?;
        let describe = |s: &Session| {
            format!(
                "{} ({}, {})",
                s.json.id,
                s.json.name,
                s.facts().state.name()
            )
        };
        let named: Vec<&Session> = all.iter().filter(|s| s.json.name == selector).collect();
        let live: Vec<&Session> = named.iter().copied().filter(|s| s.is_live()).collect();
        let by_prefix = || {
            all.iter()
                .filter(|s| !selector.is_empty() && s.json.id.starts_with(selector))
                .collect()
        };
        let candidates: Vec<&Session> = match (live.as_slice(), named.as_slice()) {
            ([], []) => by_prefix(),
            ([], _) => named,
            _ => live,
        };
        match candidates.as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let mut known: Vec<&Session> = all.iter().filter(|s| s.is_live()).collect();
                if known.is_empty() {
                    known = all.iter().collect();
                }
                // The latest few: an error is no listing.
                let known = known
                    .iter()
                    .rev()
                    .take(5)
                    .map(|s| format!("{} ({})", s.json.id, s.json.name))
                    .collect();
                Err(StateError::NotFound {
                    selector: selector.to_owned(),
                    known,
                })
            }
            several => Err(StateError::Ambiguous {
                selector: selector.to_owned(),
                candidates: several.iter().map(|s| describe(s)).collect(),
            }),
        }
    }

    /// Waits until no other process is creating or looking for a session to take over.
    pub fn lock_creation(&self, timeout: Duration) -> Result<CreationGuard, StateError> {
        ensure_private_dir(&self.state)?;
        CreationGuard::acquire(&self.state.join(CREATION_LOCK), timeout)
    }

    /// A new session's folder, with a fresh id and a name that no live session has. The guard keeps names unique.
    pub fn create(&self, _guard: &CreationGuard, new: NewSession) -> Result<Session, StateError> {
        if let Some(name) = &new.name {
            check_name(name)?;
        }
        let id = loop {
            let id = id_from(uuid::Uuid::new_v4().as_u128());
            if is_id(&id) && !self.state.join(&id).exists() {
                break id;
            }
        };
        let wanted = match (&new.name, &new.key) {
            (Some(name), _) => name.clone(),
            (None, key) => key
                .as_deref()
                .and_then(name_from_key)
                .unwrap_or_else(|| format!("{}-{id}", new.engine)),
        };
        let taken: Vec<String> = self
            .list()?
            .into_iter()
            .filter(Session::is_live)
            .map(|session| session.json.name)
            .collect();
        let json = SessionJson {
            format: facts::SESSION_FORMAT,
            name: unique_name(wanted, &taken),
            engine: new.engine,
            argv: new.argv,
            env: new.env.into_iter().collect(),
            interrupt_by_message: new.interrupt_by_message,
            cwd: new.cwd,
            key: new.key,
            settings: new.settings.into_iter().collect(),
            predecessor: new.predecessor,
            header_session: new.header_session,
            created: now(),
            sockets: self.runtime_dir()?.join(&id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            id,
            damage: None,
        };
        self.write_session(json)
    }

    /// Removes all that is kept of a session, if it is over. `false`: it lives, and nothing was done. Both locks are
    /// held meanwhile, so that no host can take it up again.
    pub fn remove_ended(&self, session: &Session) -> Result<bool, StateError> {
        self.remove_within(session, LOCK_TIMEOUT)
    }

    fn remove_within(&self, session: &Session, timeout: Duration) -> Result<bool, StateError> {
        let guard = self.lock_creation(timeout)?;
        if !session.dir.root.is_dir() {
            // Somebody else was faster.
            return Ok(false);
        }
        let Some(_lock) = HostLock::acquire(&session.dir)? else {
            return Ok(false);
        };
        // Our own lock would make it look alive; so ask for what remains: the last word, and the engine.
        if facts::derive_without_host(session, now()).state.is_live() {
            return Ok(false);
        }
        let dir = &session.dir;
        if dir.sockets.file_name() == dir.root.file_name() && dir.sockets.is_dir() {
            fs::remove_dir_all(&dir.sockets).map_err(StateError::io("remove", &dir.sockets))?;
        }
        // Out of the listing in one step, so that no half removed session is ever shown.
        let doomed = self.state.join(format!(".gone-{}", session.json.id));
        fs::rename(&dir.root, &doomed).map_err(StateError::io("move aside", &dir.root))?;
        // Gigabytes take their time; nobody has to wait for that.
        drop(guard);
        match fs::remove_dir_all(&doomed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StateError::io("remove", &doomed)(error))
            }
            Ok(()) | Err(_) => Ok(true),
        }
    }

    fn write_session(&self, json: SessionJson) -> Result<Session, StateError> {
        ensure_private_dir(&self.state)?;
        let aside = self.state.join(format!(".new-{}", json.id));
        let root = self.state.join(&json.id);
        let written = write_aside(&aside, &json)
            .and_then(|()| fs::rename(&aside, &root).map_err(StateError::io("create", &root)));
        if written.is_err() {
            // Nobody would find it, nor ever remove it. (The disk is full, most likely.)
            let _ = fs::remove_dir_all(&aside);
        }
        written?;
        let session = Session {
            dir: SessionDir {
                root,
                sockets: json.sockets.clone(),
            },
            json,
        };
        session.dir.ensure_sockets_dir()?;
        Ok(session)
    }

    /// The folder of all sessions' sockets: the first choice that is ours and short enough, created if need be.
    fn runtime_dir(&self) -> Result<PathBuf, StateError> {
        let mut refused = None;
        for choice in &self.runtime {
            let base_is_ours = choice.base.as_deref().is_none_or(secure::is_own_dir);
            let len = choice.dir.as_os_str().len();
            if !base_is_ours || len + SOCKET_NAME_BYTES_MAX > SOCKET_PATH_BYTES_MAX {
                continue;
            }
            match ensure_private_dir(&choice.dir) {
                Ok(()) => return Ok(choice.dir.clone()),
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        let tried = self
            .runtime
            .iter()
            .map(|choice| choice.dir.clone())
            .collect();
        Err(refused.unwrap_or(StateError::NoSocketFolder { tried }))
    }
}

impl Session {
    /// The session's folder and facts from its path alone (the host, which is told its folder).
    pub fn open(root: &Path) -> Result<Self, StateError> {
        check_private_dir(root)?;
        let json = SessionJson::read(&root.join("session.json"))?;
        Ok(Self {
            dir: SessionDir {
                root: root.to_owned(),
                sockets: json.sockets.clone(),
            },
            json,
        })
    }

    /// What is true of it now.
    pub fn facts(&self) -> SessionFacts {
        facts::derive(self, now())
    }

    /// Whether a host or an engine runs for it, or is about to.
    pub fn is_live(&self) -> bool {
        self.facts().state.is_live()
    }

    /// What the host last wrote; `None` before its first word. A damaged file counts as none.
    pub fn status(&self) -> Option<Status> {
        Status::read(&self.dir.status_json())
    }
}

impl SessionDir {
    /// The session's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Has the operating system write to the disk what the journal's records would be of no use without: what session
    /// they are of, and that its folder is there. (The journal itself is synced by who writes it.)
    pub fn sync(&self) -> std::io::Result<()> {
        fs::File::open(self.session_json())?.sync_all()?;
        let folders = [Some(self.root.as_path()), self.root.parent()];
        for folder in folders.into_iter().flatten() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
    /// Static facts, written at creation.
    pub fn session_json(&self) -> PathBuf {
        self.root.join("session.json")
    }
    /// Dynamic facts, see [`Status`].
    pub fn status_json(&self) -> PathBuf {
        self.root.join("status.json")
    }
    /// Locked by the living host, see [`HostLock`].
    pub fn host_lock(&self) -> PathBuf {
        self.root.join("host.lock")
    }
    /// Folder of the journal's segments and index.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }
    /// The host's and keeper's own log.
    pub fn host_log(&self) -> PathBuf {
        self.root.join("host.log")
    }
    /// The engine's stdout and stderr.
    pub fn engine_log(&self) -> PathBuf {
        self.root.join("engine.log")
    }
    /// Folder of the engine's connection file.
    pub fn engine(&self) -> PathBuf {
        self.root.join("engine")
    }
    /// Folder of this session's sockets.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }
    /// The socket of the link.
    pub fn link_socket(&self) -> PathBuf {
        self.sockets.join("link.sock")
    }
    /// `ip` of the engine's connection file for the ipc transport: its sockets are `<this>-1` and so on.
    pub fn engine_ipc_prefix(&self) -> PathBuf {
        self.sockets.join("e")
    }
    /// Creates the folder of the sockets where it is missing: a runtime directory is cleaned at a user's logout.
    pub fn ensure_sockets_dir(&self) -> Result<(), StateError> {
        if let Some(all) = self.sockets.parent() {
            ensure_private_dir(all)?;
        }
        ensure_private_dir(&self.sockets)
    }

    /// Replaces `status.json` in one step, so that a reader sees the old or the new one. Only the holder of the
    /// host's lock may call it.
    pub fn write_status(&self, _holder: &HostLock, status: &Status) -> Result<(), StateError> {
        status.write(&self.status_json())
    }
}

/// Now, as records have it.
pub fn now() -> Micros {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as Micros)
}
