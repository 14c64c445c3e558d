//! What the core remembers, as a fold over the journal's records.
//!
//! [`State::apply`] is the only place that changes it: the living core applies each record as it emits it, and a
//! new host applies the records of a dead one. Both so end with the same state.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::journal::record::{
    Body, ClientId, ExecutionNumber, ExecutionState, Micros, Note, Record,
};
use crate::wire::{Channel, Header, Message};

/// How many ended executions' msg_ids are remembered, so that late output (of threads) still finds its number.
const RECENT_EXECUTIONS_MAX: usize = 4096;

/// How many unanswered requests are remembered. Past it the oldest is forgotten and its reply will be dropped: a
/// frontend that sends so many requests which the engine never answers has long given up on them.
const PENDING_MAX: usize = 16_384;

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Number of the last execution.
    pub last_n: ExecutionNumber,
    /// Number of the last engine; 0: none was started yet.
    pub generation: u32,
    /// Its process id, while it lives.
    pub engine_pid: Option<u32>,
    /// When that process began, in clock ticks since boot.
    pub engine_start_time: u64,
    /// Its kernel_info_reply content.
    pub info: Option<serde_json::Value>,
    /// The engine's last execution_count.
    pub execution_count: i64,
    /// Executions that are not over, by number.
    pub live: BTreeMap<ExecutionNumber, Execution>,
    /// Their and the last ended ones' msg_ids.
    recent: VecDeque<(String, ExecutionNumber)>,
    #[serde(skip)]
    by_msg_id: HashMap<String, ExecutionNumber>,
    /// Requests other than executions that wait for a reply.
    pub pending: BTreeMap<RequestName, Asked>,
    pending_order: VecDeque<RequestName>,
    /// Who gets whose outputs.
    pub attachments: Vec<Attachment>,
    /// The engine waits for an input_reply.
    pub input: Option<PendingInput>,
    /// Who is attached.
    pub clients: BTreeMap<ClientId, Client>,
    /// When a person last asked for something, or the engine last worked.
    pub last_activity: Micros,
    /// Time of the last record.
    pub last_record: Micros,
    /// Set once: why the session ended.
    pub ended: Option<String>,
}

/// What tells requests apart: the msg_id alone does not, for jupyter_client's Session objects count from 0 each, so
/// that a manager's shutdown_request and its client's kernel_info_request can have the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestName(String);

impl RequestName {
    /// Of a request's header, or of the parent_header of what answers it.
    pub fn of(header: &Header<'_>) -> Self {
        Self(format!("{} {}", header.msg_type, header.msg_id))
    }

    /// Of a header's JSON text.
    pub fn of_text(header: &str) -> Self {
        serde_json::from_str::<Header<'_>>(header)
            .map_or_else(|_| Self(String::new()), |header| Self::of(&header))
    }
}

/// A request that waits for its reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Who.
    pub client: ClientId,
    /// On which of its sockets.
    pub channel: Channel,
    /// Of that socket.
    pub identities: Vec<Vec<u8>>,
    /// The request's header, JSON text: the parent of what answers it.
    pub header: String,
}

/// An execution that is not over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Of its execute_request.
    pub msg_id: String,
    /// Who asked, and the request's header.
    pub asked: Asked,
    /// queued, running or waiting_input.
    pub state: ExecutionState,
    /// Where its request is in the journal.
    pub first_seq: u64,
    /// When it began to run.
    pub started: Option<Micros>,
    /// Content of the engine's reply, JSON text.
    pub reply: Option<String>,
    /// The engine said idle for it.
    pub idle: bool,
    /// An `error` output was seen.
    pub failed: bool,
    /// Somebody interrupted the engine while it ran.
    pub interrupted: bool,
}

/// One request that gets an execution's outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// msg_id of the attaching request.
    pub msg_id: String,
    /// Who asked, and the attaching request's header.
    pub asked: Asked,
    /// The execution.
    pub n: ExecutionNumber,
}

/// The engine's open question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingInput {
    /// The execution that asks; 0 if unknown.
    pub n: ExecutionNumber,
    /// Content of the input_request, JSON text.
    pub content: String,
}

/// Somebody on the link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// `launcher` or the CLI command.
    pub kind: String,
    /// Process id.
    pub pid: u32,
}

impl State {
    /// Folds one record in.
    pub fn apply(&mut self, record: &Record) {
        self.last_record = record.time;
        match &record.body {
            Body::Request {
                channel,
                client,
                execution,
                message,
            } => self.apply_request(record, *channel, *client, *execution, message),
            Body::Reply {
                channel,
                execution,
                message,
                ..
            } => self.apply_reply(*channel, *execution, message),
            Body::Iopub {
                client: None,
                execution,
                message,
            } if *execution != 0 => self.apply_output(record.time, *execution, message),
            Body::Iopub { .. } => {}
            Body::Note(note) => self.apply_note(record.time, note),
        }
    }

    /// The execution that this header began, live or recently ended.
    pub fn execution_of(&self, request: &Header<'_>) -> Option<ExecutionNumber> {
        if request.msg_type != "execute_request" {
            return None;
        }
        self.execution_of_id(&request.msg_id)
    }

    /// The execution of a msg_id, live or recently ended.
    pub fn execution_of_id(&self, msg_id: &str) -> Option<ExecutionNumber> {
        self.by_msg_id.get(msg_id).copied()
    }

    /// The first execution that the engine works on.
    pub fn running(&self) -> Option<(ExecutionNumber, &Execution)> {
        self.live
            .iter()
            .find(|(_, execution)| execution.state != ExecutionState::Queued)
            .map(|(n, execution)| (*n, execution))
    }

    /// Whether a launcher is attached.
    pub fn has_launcher(&self) -> bool {
        self.clients
            .values()
            .any(|client| client.kind == "launcher")
    }

    /// The state that a checkpoint says; `None` where it is not one of ours.
    pub fn from_checkpoint(checkpoint: &serde_json::Value) -> Option<Self> {
        let mut state: Self = serde_json::from_value(checkpoint.clone()).ok()?;
        state.by_msg_id = state.recent.iter().cloned().collect();
        Some(state)
    }

    fn apply_request(
        &mut self,
        record: &Record,
        channel: Channel,
        client: ClientId,
        n: ExecutionNumber,
        message: &Message,
    ) {
        let Ok(header) = message.header() else { return };
        let (msg_id, is_input) = (
            header.msg_id.clone().into_owned(),
            header.msg_type == "input_reply",
        );
        if channel == Channel::Stdin {
            if is_input {
                self.input = None;
            }
            return;
        }
        let asked = Asked::new(client, channel, message);
        if n == 0 {
            let name = RequestName::of(&header);
            self.pending_order.push_back(name.clone());
            self.pending.insert(name, asked);
            while self.pending_order.len() > PENDING_MAX {
                if let Some(oldest) = self.pending_order.pop_front() {
                    self.pending.remove(&oldest);
                }
            }
            return;
        }
        self.last_n = self.last_n.max(n);
        self.last_activity = record.time;
        self.recent.push_back((msg_id.clone(), n));
        self.by_msg_id.insert(msg_id.clone(), n);
        while self.recent.len() > RECENT_EXECUTIONS_MAX {
            if let Some((oldest, _)) = self.recent.pop_front() {
                self.by_msg_id.remove(&oldest);
            }
        }
        let execution = Execution {
            msg_id,
            asked,
            state: ExecutionState::Queued,
            first_seq: record.seq,
            started: None,
            reply: None,
            idle: false,
            failed: false,
            interrupted: false,
        };
        self.live.insert(n, execution);
    }

    fn apply_reply(&mut self, channel: Channel, n: ExecutionNumber, message: &Message) {
        if channel == Channel::Stdin {
            let content = text(&message.content);
            self.input = Some(PendingInput { n, content });
            return;
        }
        match self.live.get_mut(&n) {
            Some(execution) => {
                let content = text(&message.content);
                if let Some(count) = execution_count(&content) {
                    self.execution_count = count;
                }
                execution.reply = Some(content);
            }
            None => {
                if let Some(parent) = message.parent()
                    && let name = RequestName::of(&parent)
                    && self.pending.remove(&name).is_some()
                {
                    self.pending_order.retain(|other| *other != name);
                }
            }
        }
    }

    fn apply_output(&mut self, time: Micros, n: ExecutionNumber, message: &Message) {
        let Ok(header) = message.header() else { return };
        match header.msg_type.as_ref() {
            "status" => {
                let idle = is_idle(&message.content);
                if let Some(execution) = self.live.get_mut(&n) {
                    execution.idle |= idle;
                    self.last_activity = time;
                }
            }
            "error" => {
                if let Some(execution) = self.live.get_mut(&n) {
                    execution.failed = true;
                }
            }
            _ => {}
        }
    }

    fn apply_note(&mut self, time: Micros, note: &Note) {
        match note {
            Note::EngineStarted {
                generation,
                pid,
                start_time,
            } => {
                self.generation = *generation;
                self.engine_start_time = *start_time;
                self.engine_pid = Some(*pid);
            }
            Note::EngineReady { info, .. } => self.info = Some(info.clone()),
            Note::EngineEnded { .. } => {
                self.engine_pid = None;
                self.input = None;
            }
            Note::ClientAttached { client, kind, pid } => {
                self.clients.insert(
                    *client,
                    Client {
                        kind: kind.clone(),
                        pid: *pid,
                    },
                );
            }
            Note::ClientDetached { client, .. } => {
                self.clients.remove(client);
                self.attachments
                    .retain(|attachment| attachment.asked.client != *client);
            }
            Note::Interrupted => {
                for execution in self.live.values_mut() {
                    execution.interrupted |= execution.state != ExecutionState::Queued;
                }
            }
            Note::Execution { n, state, .. } => self.apply_execution_state(time, *n, *state),
            Note::Attach { parent, n, .. } => {
                let msg_id = header_id(parent);
                if let Some(asked) = self.pending.get(&RequestName::of_text(parent)).cloned() {
                    self.attachments.push(Attachment {
                        msg_id,
                        asked,
                        n: *n,
                    });
                }
            }
            Note::AttachEnded { msg_id, .. } => self
                .attachments
                .retain(|attachment| attachment.msg_id != *msg_id),
            Note::SessionEnded { reason } => self.ended = Some(reason.clone()),
            Note::SessionStarted { .. }
            | Note::HostStarted { .. }
            | Note::Gap { .. }
            | Note::Checkpoint { .. }
            | Note::Unknown => {}
        }
    }

    fn apply_execution_state(&mut self, time: Micros, n: ExecutionNumber, state: ExecutionState) {
        if state.is_final() {
            self.live.remove(&n);
            if self.input.as_ref().is_some_and(|input| input.n == n) {
                self.input = None;
            }
        } else if let Some(execution) = self.live.get_mut(&n) {
            execution.state = state;
            if state == ExecutionState::Running && execution.started.is_none() {
                execution.started = Some(time);
            }
        }
        self.last_activity = time;
    }
}

impl Asked {
    /// The way back to the sender of `message`.
    pub fn new(client: ClientId, channel: Channel, message: &Message) -> Self {
        Self {
            client,
            channel,
            identities: message
                .identities
                .iter()
                .map(|identity| identity.to_vec())
                .collect(),
            header: text(&message.header),
        }
    }
}

/// Whether a status message says idle.
pub fn is_idle(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Status<'a> {
        #[serde(borrow)]
        execution_state: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Status<'_>>(content)
        .is_ok_and(|status| status.execution_state == "idle")
}

/// JSON of a message as text; what is not UTF-8 is not JSON, and was refused at the edge.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The msg_id within a header's JSON text.
pub fn header_id(header: &str) -> String {
    serde_json::from_str::<crate::wire::Header<'_>>(header)
        .map(|header| header.msg_id.into_owned())
        .unwrap_or_default()
}

fn execution_count(reply_content: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Count {
        execution_count: Option<i64>,
    }
    serde_json::from_str::<Count>(reply_content)
        .ok()?
        .execution_count
}
