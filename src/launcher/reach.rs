//! Reaching a session's host: connecting to its link, and starting a new host where the old one is gone.

use std::time::Duration;

use tokio::time::Instant;

use crate::keeper;
use crate::link::{
    Frame, Hello, LinkReader, LinkWriter, OLDEST_VERSION, Refusal, VERSION, Welcome,
};
use crate::process::PidFd;
use crate::state_dir::{HostLock, Session};
use crate::unix_stream::{ReadHalf, UnixStream, WriteHalf};

/// How often a host that is about to come up is tried.
const RETRY_EVERY: Duration = Duration::from_millis(2);

/// How long a host may take to come up. It has to read its journal's end first.
const HOST_START_TIMEOUT: Duration = Duration::from_secs(30);

/// A killed host is replaced by its keeper at once; only after this do we take it that there is no keeper.
const KEEPER_GRACE: Duration = Duration::from_millis(400);

/// An open stream to a host.
pub struct Stream {
    /// From the host.
    pub reader: LinkReader<ReadHalf>,
    /// To it.
    pub writer: LinkWriter<WriteHalf>,
    /// Its first word.
    pub welcome: Welcome,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The session is over.
    #[error("session {id} has ended ({reason}); `farside logs {id}` shows its outputs")]
    Ended {
        /// The session.
        id: String,
        /// Why it ended.
        reason: String,
    },
    /// Another launcher has it.
    #[error("session {id} is attached to another frontend")]
    Attached {
        /// The session.
        id: String,
    },
    /// The host speaks another version of the link.
    #[error(
        "the host of session {id} speaks version {host} of the link, and this farside version {ours}; use the farside that started it, or stop the session"
    )]
    Version {
        /// The session.
        id: String,
        /// Its.
        host: u32,
        /// Ours.
        ours: u32,
    },
    /// Where its host is cannot be read.
    #[error("session {id} cannot be reached: {why}; `farside stop {id}` ends what runs of it")]
    Damaged {
        /// The session.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// No host came up.
    #[error("the host of session {id} does not come up; its log is {log}")]
    NoHost {
        /// The session.
        id: String,
        /// Path of host.log.
        log: String,
    },
    /// No keeper could be started.
    #[error("the keeper of session {id} cannot be started: {source}")]
    Keeper {
        /// The session.
        id: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Opens a stream to the session's host, which is started if none runs: for a session whose engine outlived its
/// host and keeper, the new host takes it over.
pub async fn open(session: &Session, hello: &Hello) -> Result<Stream, ReachError> {
    let id = &session.json.id;
    if let Some(why) = &session.json.damage {
        return Err(ReachError::Damaged {
            id: id.clone(),
            why: why.clone(),
        });
    }
    let until = Instant::now() + HOST_START_TIMEOUT;
    // A new session has no keeper yet. Else a keeper, if there is one, replaces a killed host at once; a second
    // keeper would find the first and end.
    let mut start_at = match session.status() {
        None => Instant::now(),
        Some(_) => Instant::now() + KEEPER_GRACE,
    };
    let mut hello = hello.clone();
    loop {
        if let Ok(stream) = UnixStream::connect(&session.dir.link_socket()).await {
            // A host that was stopped (SIGSTOP) says nothing, and is there.
            let shaken = tokio::time::timeout_at(until, shake_hands(stream, &hello)).await;
            match shaken.unwrap_or(None) {
                Some(Ok(stream)) => return Ok(stream),
                // Of another farside: in its words, then.
                Some(Err(Refusal::Version { host }))
                    if host != hello.version && (OLDEST_VERSION..=VERSION).contains(&host) =>
                {
                    hello.version = host;
                    continue;
                }
                Some(Err(refusal)) => return Err(refused(session, refusal)),
                // It died as we came in.
                None => {}
            }
        }
        if let Some(reason) = end_reason(session) {
            return Err(ReachError::Ended {
                id: id.clone(),
                reason,
            });
        }
        let now = Instant::now();
        if now >= until {
            return Err(ReachError::NoHost {
                id: id.clone(),
                log: session.dir.host_log().display().to_string(),
            });
        }
        if now >= start_at {
            start_at = now + KEEPER_GRACE;
            if !HostLock::is_held(&session.dir) {
                hurry_keeper(session);
                start_keeper(session).map_err(|source| ReachError::Keeper {
                    id: id.clone(),
                    source,
                })?;
            }
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Starts keeper and host of a session; returns before they are ready.
pub fn start_keeper(session: &Session) -> std::io::Result<()> {
    let exe = std::env::current_exe()?;
    keeper::start(session.dir.root(), session.dir.sockets(), &exe)
}

/// A keeper whose hosts died again and again waits before the next one. Not while somebody waits for it.
fn hurry_keeper(session: &Session) {
    let Some(keeper) = session.status().and_then(|status| status.keeper) else {
        return;
    };
    if let Ok(process) = PidFd::open_verified(keeper.pid, keeper.start_ticks) {
        // It may end at this moment: the next one is started anyway.
        let _ = process.signal(libc::SIGHUP);
    }
}

fn end_reason(session: &Session) -> Option<String> {
    let status = session.status()?;
    status
        .ended_at
        .map(|_| status.end_reason.unwrap_or_default())
}

async fn shake_hands(stream: UnixStream, hello: &Hello) -> Option<Result<Stream, Refusal>> {
    let (reader, writer) = stream.into_split();
    let (mut reader, mut writer) = (LinkReader::new(reader), LinkWriter::new(writer));
    writer.send(&Frame::Hello(hello.clone())).await.ok()?;
    match reader.next().await {
        Ok(Some(Frame::Welcome(welcome))) => Some(Ok(Stream {
            reader,
            writer,
            welcome,
        })),
        Ok(Some(Frame::Refused(refusal))) => Some(Err(refusal)),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "no welcome from the host");
            None
        }
    }
}

fn refused(session: &Session, refusal: Refusal) -> ReachError {
    let id = session.json.id.clone();
    match refusal {
        Refusal::Attached => ReachError::Attached { id },
        Refusal::Version { host } => ReachError::Version {
            id,
            host,
            ours: VERSION,
        },
        Refusal::Ending | Refusal::Other => {
            let reason = end_reason(session).unwrap_or_else(|| "it is just ending".into());
            ReachError::Ended { id, reason }
        }
    }
}
