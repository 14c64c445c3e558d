//! What is known of a session: its two JSON files, and the object of the contract that is derived from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::{HOST_START_GRACE_MICROS, HostLock, ProcessId, Session, StateError, secure};
use crate::journal::record::Micros;

/// Version of `session.json`. A newer farside reads every older one; fields may be added without a new number.
pub(super) const SESSION_FORMAT: u32 = 1;

/// `session.json`: written once by whoever creates the session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionJson {
    /// Version of this file's format.
    pub format: u32,
    /// Eight of [a-z0-9].
    pub id: String,
    /// For people; unique among live sessions.
    pub name: String,
    /// Kernelspec name of the engine.
    pub engine: String,
    /// The engine's command line, `{connection_file}` still in it.
    pub argv: Vec<String>,
    /// What is added to the environment of the engine.
    pub env: BTreeMap<String, String>,
    /// Whether the engine wants an interrupt_request rather than SIGINT.
    #[serde(default)]
    pub interrupt_by_message: bool,
    /// Working directory of the engine.
    pub cwd: PathBuf,
    /// What brings a frontend back to this session.
    pub key: Option<String>,
    /// Settings that it was created with, by flags or environment: every later host has them too.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The ended session that it comes after: of the same notebook, or of the same launcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<String>,
    /// `session` in the headers of all that frontends get, where it came to frontends that had one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_session: Option<String>,
    /// When it was created.
    #[serde(with = "iso::micros")]
    pub created: Micros,
    /// Folder of its sockets: recorded, since another process may have another environment.
    pub sockets: PathBuf,
    /// farside's version.
    pub version: String,
    /// Why the file could not be read; all else is then a guess. Never in the file itself.
    #[serde(skip)]
    pub damage: Option<String>,
}

impl SessionJson {
    /// The one `session` in the headers of all that frontends get: as constant as the id it is made of, and in the form
    /// that jupyter_client gives its own.
    pub fn header_session(&self) -> String {
        if let Some(known) = &self.header_session {
            return known.clone();
        }
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(format!("{} {}", self.id, self.created));
        let hex: String = digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}-{}", &hex[..8], &hex[8..])
    }

    pub(super) fn read(path: &Path) -> Result<Self, StateError> {
        let text = fs::read(path).map_err(StateError::io("read", path))?;
        serde_json::from_slice(&text)
            .map_err(|e| StateError::io("read", path)(std::io::Error::other(e)))
    }

    /// What can be said of a session whose file is damaged: it is listed, and can be pruned.
    pub(super) fn unreadable(id: &str, root: &Path, why: &str) -> Self {
        let created = fs::metadata(root)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_micros() as Micros);
        Self {
            format: SESSION_FORMAT,
            id: id.to_owned(),
            name: format!("damaged-{id}"),
            engine: String::new(),
            argv: Vec::new(),
            env: BTreeMap::new(),
            interrupt_by_message: false,
            cwd: PathBuf::new(),
            key: None,
            settings: BTreeMap::new(),
            predecessor: None,
            header_session: None,
            created,
            sockets: PathBuf::new(),
            version: String::new(),
            damage: Some(why.to_owned()),
        }
    }
}

/// The state of a session, as the contract names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SessionState {
    Starting,
    Busy,
    Idle,
    WaitingInput,
    Retired,
    Ended,
    Lost,
}

impl SessionState {
    /// Of a session that ended for this reason: it retired, or somebody ended it.
    pub fn of_end(reason: &str) -> Self {
        let retired = ["idle", "lifetime", "budget"];
        if retired.iter().any(|word| reason.starts_with(word)) {
            Self::Retired
        } else {
            Self::Ended
        }
    }

    /// The name in `--json` and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::WaitingInput => "waiting_input",
            Self::Retired => "retired",
            Self::Ended => "ended",
            Self::Lost => "lost",
        }
    }

    /// Whether something runs for the session.
    pub fn is_live(self) -> bool {
        match self {
            Self::Starting | Self::Busy | Self::Idle | Self::WaitingInput => true,
            Self::Retired | Self::Ended | Self::Lost => false,
        }
    }
}

/// `status.json`: what changes, rewritten by the host. Unknown fields of a newer farside are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// As the host sees it; `retired` or `ended` is its last word.
    pub state: SessionState,
    /// Frontends and CLI clients on the link.
    pub attached: u32,
    /// Executions so far.
    pub executions: u64,
    /// The last request of a person, or output of an execution.
    #[serde(with = "iso::option", default)]
    pub last_activity: Option<Micros>,
    /// When it retires if nothing more happens.
    #[serde(with = "iso::option", default)]
    pub ends_at: Option<Micros>,
    /// When it ended.
    #[serde(with = "iso::option", default)]
    pub ended_at: Option<Micros>,
    /// Begins with a word of the contract: `idle`, `lifetime`, `stopped` ...
    #[serde(default)]
    pub end_reason: Option<String>,
    /// The host that wrote this.
    #[serde(default)]
    pub host: Option<ProcessId>,
    /// Its keeper: while that lives, a host that was killed comes up again.
    #[serde(default)]
    pub keeper: Option<ProcessId>,
    /// The engine of the moment.
    #[serde(default)]
    pub engine: Option<ProcessId>,
    /// Since when an execution runs.
    #[serde(with = "iso::option", default)]
    pub busy_since: Option<Micros>,
    /// The number of the running execution.
    #[serde(default)]
    pub running: Option<u64>,
    /// Which end that is: `idle`, `lifetime` or `budget`.
    #[serde(default)]
    pub ends_by: Option<String>,
    /// The beginning of the running execution's code.
    #[serde(default)]
    pub code: Option<String>,
    /// Messages of output, and their bytes, since the session began.
    #[serde(default)]
    pub outputs: u64,
    /// See `outputs`.
    #[serde(default)]
    pub output_bytes: u64,
    /// CPU time of engine and descendants, in seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// What is left of it, where there is a budget.
    #[serde(default)]
    pub cpu_seconds_left: Option<f64>,
    /// Memory of engine and descendants, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// The most that was seen of it.
    #[serde(default)]
    pub memory_peak_bytes: u64,
    /// GPU memory of engine and descendants, where the machine tells.
    #[serde(default)]
    pub gpu_memory_bytes: Option<u64>,
    /// Since when the engine's heartbeat does not answer.
    #[serde(with = "iso::option", default)]
    pub unresponsive_since: Option<Micros>,
    /// Since when the journal cannot be written, and so nothing is kept.
    #[serde(with = "iso::option", default)]
    pub unkept_since: Option<Micros>,
    /// How the last engine ended, where it has.
    #[serde(default)]
    pub engine_end: Option<String>,
    /// The connection file of the last launcher: a launcher that is started again with the same one comes back to
    /// this session, also where there is no key.
    #[serde(default)]
    pub connection_file: Option<String>,
}

impl Status {
    /// The status of a host that has just taken the session over.
    pub fn starting() -> Self {
        Self {
            state: SessionState::Starting,
            attached: 0,
            executions: 0,
            last_activity: None,
            ends_at: None,
            ended_at: None,
            end_reason: None,
            host: ProcessId::of(std::process::id()),
            keeper: None,
            engine: None,
            busy_since: None,
            running: None,
            ends_by: None,
            code: None,
            outputs: 0,
            output_bytes: 0,
            cpu_seconds: 0.0,
            cpu_seconds_left: None,
            memory_bytes: 0,
            memory_peak_bytes: 0,
            gpu_memory_bytes: None,
            unresponsive_since: None,
            unkept_since: None,
            engine_end: None,
            connection_file: None,
        }
    }

    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), StateError> {
        let aside = path.with_extension("json.new");
        let text = serde_json::to_vec(self).expect("plain strings and numbers");
        match secure::write_private(&aside, &text) {
            Ok(()) => fs::rename(&aside, path).map_err(StateError::io("replace", path)),
            // What people look at on a full disk must not be what was so before it was full.
            Err(full) if is_full(&full) => {
                let _ = fs::remove_file(&aside);
                let in_place = secure::overwrite_within(path, text);
                in_place.map_err(|_| StateError::io("write", &aside)(full))
            }
            Err(error) => Err(StateError::io("write", &aside)(error)),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// A session as `--json` shows it: exactly these names, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SessionFacts {
    pub id: String,
    pub name: String,
    pub engine: String,
    pub state: SessionState,
    pub attached: u32,
    pub executions: u64,
    #[serde(with = "iso::micros")]
    pub created: Micros,
    #[serde(with = "iso::option")]
    pub last_activity: Option<Micros>,
    #[serde(with = "iso::option")]
    pub ends_at: Option<Micros>,
    pub end_reason: Option<String>,
    pub host_pid: Option<u32>,
    pub engine_pid: Option<u32>,
    pub key: Option<String>,
}

/// What is true of a session now, from its files and from who lives.
pub(super) fn derive(session: &Session, now: Micros) -> SessionFacts {
    derive_with(session, HostLock::is_held(&session.dir), now)
}

/// The same, taking it that there is no host.
pub(super) fn derive_without_host(session: &Session, now: Micros) -> SessionFacts {
    derive_with(session, false, now)
}

fn derive_with(session: &Session, host_lives: bool, now: Micros) -> SessionFacts {
    let status = session.status();
    let engine = status
        .as_ref()
        .and_then(|s| s.engine)
        .filter(|engine| engine.is_alive());
    let json = &session.json;
    let is_kept = || {
        let keeper = status.as_ref().and_then(|status| status.keeper);
        keeper.is_some_and(ProcessId::is_alive)
    };
    let state = match &status {
        Some(status) if !status.state.is_live() => status.state,
        Some(status) if host_lives || engine.is_some() || is_kept() => status.state,
        None if host_lives => SessionState::Starting,
        None if json.damage.is_none()
            && now < json.created.saturating_add(HOST_START_GRACE_MICROS) =>
        {
            SessionState::Starting
        }
        Some(_) | None => SessionState::Lost,
    };
    let live = state.is_live();
    let status = status.unwrap_or_else(Status::starting);
    let lost_reason = || match &json.damage {
        Some(why) => format!("host_lost: {why}"),
        None => "host_lost: neither its host nor its engine runs any more".to_owned(),
    };
    SessionFacts {
        id: json.id.clone(),
        name: json.name.clone(),
        engine: json.engine.clone(),
        state,
        attached: if live { status.attached } else { 0 },
        executions: status.executions,
        created: json.created,
        last_activity: status.last_activity,
        ends_at: status.ends_at.filter(|_| live),
        end_reason: status
            .end_reason
            .or_else(|| (state == SessionState::Lost).then(lost_reason)),
        host_pid: status.host.filter(|_| host_lives).map(|host| host.pid),
        engine_pid: engine.map(|engine| engine.pid),
        key: json.key.clone(),
    }
}

/// Times in JSON: ISO 8601, UTC, microseconds.
pub mod iso {
    use jiff::Timestamp;

    use crate::journal::record::Micros;

    /// `2026-01-31T12:00:00.000000Z`. A time out of range is shown as the last one that is in range.
    pub fn format(time: Micros) -> String {
        let time = i64::try_from(time)
            .ok()
            .and_then(|t| Timestamp::from_microsecond(t).ok());
        format!("{:.6}", time.unwrap_or(Timestamp::MAX))
    }

    /// Any ISO 8601 time with an offset; times before 1970 count as 1970.
    pub fn parse(text: &str) -> Result<Micros, jiff::Error> {
        let time: Timestamp = text.parse()?;
        Ok(Micros::try_from(time.as_microsecond()).unwrap_or(0))
    }

    /// serde for a time.
    pub mod micros {
        use serde::{Deserialize as _, Deserializer, Serializer};

        use super::Micros;

        /// As ISO 8601.
        pub fn serialize<S: Serializer>(time: &Micros, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_str(&super::format(*time))
        }
        /// From ISO 8601.
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Micros, D::Error> {
            super::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
        }
    }

    /// serde for a time or null.
    pub mod option {
        use serde::{Deserialize as _, Deserializer, Serializer};

        use super::Micros;

        /// As ISO 8601 or null.
        pub fn serialize<S: Serializer>(time: &Option<Micros>, to: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => to.serialize_some(&super::format(*time)),
                None => to.serialize_none(),
            }
        }
        /// From ISO 8601 or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Micros>, D::Error> {
            Option::<String>::deserialize(from)?
                .map(|text| super::parse(&text).map_err(serde::de::Error::custom))
                .transpose()
        }
    }
}
