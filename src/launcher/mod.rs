//! The launcher: the process that a frontend starts as its kernel, and that lives exactly as long as the frontend
//! wants it to.
//!
//! Owns: the five sockets of the connection file (`frontends`, `subscriber`), signatures, the choice of the session
//! ([`choice`]), the link to its host (`host_link`, [`reach`]), the rule when leaving means detaching ([`leaving`]),
//! what comes after a session that retired (`succession`), what is said where there is none (`unable`), and early answers
//! to kernel_info (`kernel_info`). Refuses to
//! know what a message means, but for shutdown, interrupt and kernel_info requests.

mod ahead;
pub mod choice;
mod frontends;
mod host_link;
mod kernel_info;
pub mod leaving;
mod presence;
pub mod reach;
mod subscriber;
mod succession;
mod unable;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};

use self::choice::{ChoiceError, Chosen, Wanted, choose};
use self::frontends::{Peers, Sockets};
use self::host_link::{Outgoing, Share};
use self::kernel_info::KernelInfo;
use self::leaving::{Frontend, Meaning};
use self::succession::Served;
use crate::journal::record::ClientId;
use crate::link::{Hello, VERSION};
use crate::session::state::SEEN_MAX;
use crate::state_dir::Session;
use crate::wire::connection_file::{ConnectionFile, ConnectionFileError, Endpoint};
use crate::wire::message::HeaderFields;
use crate::wire::signature::ReplayGuard;
use crate::wire::{Channel, Key, Message};

/// Requests of one channel that the host has not acknowledged: past it frontends' sockets of that channel are not read
/// on. (Of each by itself: an interrupt gets through where shell requests wait for an engine that does not read.)
const REQUESTS_BYTES_MAX: usize = 8 << 20;

/// A small one counts as so much: what a launcher may send again after a lost link, the host must know again.
const REQUEST_BYTES_MIN: usize = 16 << 10;

// Shell and control of a notebook and of a console.
const _: () = assert!(2 * 2 * REQUESTS_BYTES_MAX / REQUEST_BYTES_MIN <= SEEN_MAX);

/// The semaphore counts in these, for its permits are 32 bit numbers.
const UNIT_BYTES: usize = 1024;

const UNITS_MAX: usize = REQUESTS_BYTES_MAX / UNIT_BYTES;

/// A launcher that was told to end does so within this, whatever the host does: a Jupyter Server sends SIGTERM after
/// 2.5 s.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(1700);

/// After its last message a launcher stays this long, for the sockets to carry it.
const LINGER: Duration = Duration::from_millis(50);

/// Why a launcher did not come up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LaunchError {
    #[error("cannot read the connection file {path}: {source}")]
    ReadConnectionFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is no connection file: {source}")]
    ConnectionFile {
        path: PathBuf,
        source: ConnectionFileError,
    },
    #[error("cannot bind {socket} at {endpoint}: {source}")]
    Bind {
        socket: &'static str,
        endpoint: Endpoint,
        source: std::io::Error,
    },
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A defect: it is in the log.
    #[error("the launcher itself failed: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// What the parts of a launcher share.
pub(crate) struct Shared {
    /// `None`: there has been no session yet.
    served: watch::Sender<Option<Served>>,
    /// To subscribers, while there is no session.
    own_words: broadcast::Sender<Message>,
    hello: Hello,
    /// `header.session` of the session that is served, or was, or will be.
    session_id: RefCell<String>,
    key: Key,
    peers: RefCell<Peers>,
    seen: RefCell<ReplayGuard>,
    refused: Cell<u64>,
    requests: mpsc::UnboundedSender<Outgoing>,
    room: HashMap<Channel, Arc<Semaphore>>,
    kernel_info: KernelInfo,
    frontend: Option<Frontend>,
    leaving: Notify,
    stage: Cell<Stage>,
}

/// How far a launcher is with leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Serving.
    Serving,
    /// There is no session, for it has retired or there could be none. The next request gets one.
    Dormant,
    /// The frontend leaves, and has its answer; the session, if there is one, lives on.
    Detaching,
    /// A shutdown or restart was asked of the host; its answer ends the launcher.
    Ending { restart: bool },
}

/// Serves the connection file of a frontend that started us as its kernel.
pub async fn launch(file: ConnectionFile, wanted: Wanted) -> Result<(), LaunchError> {
    let frontend = Frontend::of_parent(&wanted.connection_file);
    let sockets = Sockets::bind(&file).await?;
    let hello = Hello {
        parent_pid: Some(frontend.pid()),
        claim: true,
        connection_file: Some(wanted.connection_file.to_string_lossy().into_owned()),
        ..hello("launcher")
    };
    let chosen = choose(&wanted, &hello, None).await;
    tokio::task::spawn_local(crate::process::settle());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let until = async move {
        interrupt.recv().await;
    };
    serve(
        sockets,
        file.key(),
        chosen,
        hello,
        Some((frontend, wanted)),
        until,
    )
    .await
}

/// Serves free loopback ports on a session that others may have too (`farside connect` and `farside console`), until
/// the session ends, a signal says to leave, or the future that `ready` gives is done. `ready` gets the connection
/// file's contents as soon as clients can connect.
pub async fn connect<F: Future<Output = ()>>(
    session: Session,
    kind: &str,
    ready: impl FnOnce(&ConnectionFile) -> std::io::Result<F>,
) -> Result<(), LaunchError> {
    let hello = hello(kind);
    let stream = reach::open(&session, &hello)
        .await
        .map_err(ChoiceError::from)?;
    let (sockets, file) = Sockets::bind_free().await?;
    let until = ready(&file)?;
    serve(
        sockets,
        file.key(),
        Ok((session, stream)),
        hello,
        None,
        until,
    )
    .await
}

/// A client's first word, for replies only and without a claim.
pub fn hello(kind: &str) -> Hello {
    Hello {
        version: VERSION,
        client: ClientId::new_v4(),
        kind: kind.to_owned(),
        pid: std::process::id(),
        parent_pid: None,
        claim: false,
        connection_file: None,
        replies: true,
        iopub: false,
        resume: None,
    }
}

async fn serve(
    sockets: Sockets,
    key: Key,
    chosen: Chosen,
    hello: Hello,
    started_by: Option<(Frontend, Wanted)>,
    until: impl Future<Output = ()>,
) -> Result<(), LaunchError> {
    let (requests, receiver) = mpsc::unbounded_channel();
    let (frontend, wanted) = started_by.unzip();
    let shared = Rc::new(Shared {
        served: watch::Sender::default(),
        own_words: broadcast::Sender::new(unable::WORDS_MAX),
        session_id: RefCell::new(uuid::Uuid::new_v4().to_string()),
        hello,
        key,
        peers: RefCell::default(),
        seen: RefCell::default(),
        refused: Cell::new(0),
        requests,
        room: [Channel::Shell, Channel::Control, Channel::Stdin]
            .map(|channel| (channel, Arc::new(Semaphore::new(UNITS_MAX))))
            .into(),
        kernel_info: KernelInfo::default(),
        frontend,
        leaving: Notify::new(),
        stage: Cell::new(Stage::Serving),
    });
    // Tasks of their own: what wakes the future that a runtime was given costs a look at the sockets each time, and
    // another one at all that it waits for.
    let running = succession::serve(shared.clone(), chosen, receiver, wanted);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_local(running);
    tasks.spawn_local(sockets.serve(shared.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let frontend_gone = async {
        match &shared.frontend {
            Some(frontend) => frontend.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Some(ended) = tasks.join_next() => ended?,
        () = shared.leaving.notified() => {
            let last_words = async {
                tokio::select! {
                    Some(ended) = tasks.join_next() => ended,
                    () = shared.answered() => Ok(()),
                }
            };
            if let Ok(ended) = tokio::time::timeout(LEAVE_TIMEOUT, last_words).await {
                ended?;
            }
        }
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
        () = until => {}
        () = frontend_gone => {}
    }
    // What is written goes out; a frontend that has gone is not waited for.
    tokio::time::sleep(LINGER).await;
    Ok(())
}

impl Shared {
    /// Takes shutdown and interrupt requests in hand. `true`: the host is not to see this one.
    fn on_leaving(&self, channel: Channel, message: &Message) -> bool {
        let Ok(header) = message.header() else {
            return false;
        };
        let Some(frontend) = &self.frontend else {
            // `exit` in a jupyter console sends this also to a kernel that is not its own. Whoever looked in by
            // `farside connect` leaves; `farside stop` and `%farside retire` are what ends a session.
            let leaves = header.msg_type == "shutdown_request" && !wants_restart(message);
            if leaves {
                self.answer_shutdown(channel, message);
            }
            return leaves;
        };
        if self.stage.get() == Stage::Dormant {
            return self.answers_asleep(channel, message);
        }
        match header.msg_type.as_ref() {
            "shutdown_request" if wants_restart(message) => {
                self.stage.set(Stage::Ending { restart: true });
                self.leaving.notify_one();
                false
            }
            "shutdown_request" => match frontend.meaning() {
                Meaning::Meant => {
                    self.stage.set(Stage::Ending { restart: false });
                    self.leaving.notify_one();
                    false
                }
                Meaning::Leaving => {
                    tracing::info!("the server is leaving: the session goes on without it");
                    self.answer_shutdown(channel, message);
                    self.stage.set(Stage::Detaching);
                    self.leaving.notify_one();
                    true
                }
            },
            "interrupt_request"
                if frontend.meaning() == Meaning::Leaving || frontend.came_before_us(message) =>
            {
                let content = json!({ "status": "ok" });
                self.answer(channel, message, "interrupt_reply", content.to_string());
                true
            }
            _ => false,
        }
    }

    /// Nothing is shut down.
    fn answer_shutdown(&self, channel: Channel, request: &Message) {
        let content = json!({ "status": "ok", "restart": false });
        self.answer(channel, request, "shutdown_reply", content.to_string());
    }

    /// A reply of the launcher's own; its content is JSON.
    fn answer(
        &self,
        channel: Channel,
        request: &Message,
        msg_type: &str,
        content: impl Into<Bytes>,
    ) {
        let reply = self.own_reply(request, msg_type, content);
        self.peers.borrow_mut().deliver(channel, reply);
    }

    fn own_reply(&self, request: &Message, msg_type: &str, content: impl Into<Bytes>) -> Message {
        let mut reply = self.own_message(&request.header, msg_type, content);
        reply.identities.clone_from(&request.identities);
        reply
    }

    fn own_message(&self, parent: &Bytes, msg_type: &str, content: impl Into<Bytes>) -> Message {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type,
            session_id: &self.session_id.borrow(),
            username: "farside",
            date: crate::state_dir::now(),
        };
        Message::with_content(&header, parent, content.into())
    }

    fn on_reply(&self, channel: Channel, message: Message) {
        if self.kernel_info.was_answered(channel, &message) {
            return;
        }
        let is_restarted = self.stage.get() == Stage::Ending { restart: true }
            && message
                .header()
                .is_ok_and(|header| header.msg_type == "shutdown_reply");
        self.peers.borrow_mut().deliver(channel, message);
        if is_restarted {
            self.stage.set(Stage::Detaching);
            self.leaving.notify_one();
        }
    }

    /// Waits until nothing more is to be said to the frontend.
    async fn answered(&self) {
        while self.stage.get() != Stage::Detaching {
            self.leaving.notified().await;
        }
        tokio::time::sleep(LINGER).await;
    }

    /// Takes a request in for the host, when there is room for it; gives it its answer before where that is known.
    async fn admit(&self, channel: Channel, message: Message) {
        let underway = match self.kernel_info.answer(channel, &message) {
            Some(content) => {
                self.answer(channel, &message, "kernel_info_reply", content);
                None
            }
            None => Some(self.kernel_info.underway()),
        };
        // At most UNITS_MAX, so it fits.
        let bytes = message.queue_bytes().max(REQUEST_BYTES_MIN);
        let units = bytes.div_ceil(UNIT_BYTES).min(UNITS_MAX) as u32;
        let room = self.room[&channel].clone();
        // The semaphore is never closed.
        let Ok(room) = room.acquire_many_owned(units).await else {
            return;
        };
        let share = Share {
            _room: room,
            _underway: underway,
        };
        let _ = self.requests.send(Outgoing {
            channel,
            message,
            share,
        });
    }
}

fn wants_restart(message: &Message) -> bool {
    #[derive(Deserialize)]
    struct Shutdown {
        #[serde(default)]
        restart: bool,
    }
    serde_json::from_slice::<Shutdown>(&message.content).is_ok_and(|shutdown| shutdown.restart)
}

/// Reads a connection file.
pub fn read_connection_file(path: &std::path::Path) -> Result<ConnectionFile, LaunchError> {
    let text = std::fs::read_to_string(path).map_err(|source| LaunchError::ReadConnectionFile {
        path: path.to_owned(),
        source,
    })?;
    ConnectionFile::parse(&text).map_err(|source| LaunchError::ConnectionFile {
        path: path.to_owned(),
        source,
    })
}
