//! What the core remembers, as a fold over the journal's records.
//!
//! [`State::apply`] is the only place that changes it: the living core applies each record as it emits it, and a
//! new host applies the records of a dead one. Both so end with the same state.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::continuity::Said;
use super::event::PASSING_KINDS;
use super::lifetime::Lifetime;
use super::subshells::Subshells;
use crate::journal::record::{
    Body, ClientId, ExecutionNumber, ExecutionState, Micros, Note, Record,
};
use crate::wire::message::ExecuteRequest;
use crate::wire::{Channel, Header, Message};

/// How many ended executions' msg_ids are remembered, so that late output (of threads) still finds its number.
const RECENT_EXECUTIONS_MAX: usize = 4096;

/// How many unanswered requests are remembered. Past it the oldest is forgotten and its reply will be dropped: a
/// frontend that sends so many requests which the engine never answers has long given up on them.
const PENDING_MAX: usize = 16_384;

/// How many requests are remembered to know one that is sent again after a lost link. A launcher sends again only
/// what was not acknowledged, and has fewer of them (launcher/mod.rs, `REQUEST_BYTES_MIN`).
pub(crate) const SEEN_MAX: usize = 2048;

/// How many open `busy`s beside those of executions are known: one for each of the engine's threads, and one for each
/// attachment. Past it a death could leave one of them shown as busy.
const BUSY_MAX: usize = 256;

/// How much of an execution's code is remembered, to show it.
const CODE_CHARS_MAX: usize = 100;

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Number of the last execution.
    pub last_n: ExecutionNumber,
    /// Number of the last one that a person asked for; 0: none was.
    #[serde(default)]
    pub last_by_person: ExecutionNumber,
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
    by_msg_id: HashMap<String, Vec<ExecutionNumber>>,
    /// Requests other than executions that wait for a reply, those of one name in the order they came in.
    pub pending: BTreeMap<RequestName, Vec<Asked>>,
    pending_order: VecDeque<RequestName>,
    /// Fingerprints of the last requests. Not stable over Rust's releases: after an update one could be handled
    /// twice, if a host died within milliseconds of getting it.
    seen: VecDeque<u64>,
    /// The `busy`s that no `idle` has followed yet, but for those of executions.
    pub busy: Vec<OpenBusy>,
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
    /// A person was told what became of the session before this one.
    #[serde(default)]
    pub predecessor_told: bool,
    /// Messages of output so far, and their bytes.
    #[serde(default)]
    pub outputs: u64,
    /// See `outputs`.
    #[serde(default)]
    pub output_bytes: u64,
    /// The engine was told to end, and another one is to come.
    #[serde(default)]
    pub restarting: bool,
    /// Where the last message of each of the engine's streams ended in it, by channel: [`Record::heard`].
    #[serde(default)]
    pub heard: BTreeMap<Channel, u32>,
    /// How far its iopub is in the journal.
    #[serde(default)]
    pub said: Said,
    /// How the last engine ended, where it has.
    #[serde(default)]
    pub engine_end: Option<String>,
    /// The engine's subshells.
    #[serde(default)]
    pub subshells: Subshells,
    /// When it is to end by itself, and whether it has begun to.
    #[serde(default)]
    pub lifetime: Lifetime,
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
        Header::read(header.as_bytes())
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
    /// What frontends were told of the engine's work on it.
    pub told: Told,
    /// An `error` output was seen.
    pub failed: bool,
    /// Somebody interrupted the engine while it ran.
    pub interrupted: bool,
    /// A person asked for it, not a frontend by itself: it is neither silent nor kept out of the history.
    #[serde(default)]
    pub by_person: bool,
    /// The beginning of its code.
    #[serde(default)]
    pub code: String,
}

/// A `busy` that no `idle` has followed yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenBusy {
    /// Who heard it; `None`: everybody, for the engine said it.
    pub client: Option<ClientId>,
    /// Its parent_header, JSON text.
    pub parent: String,
}

/// How far the statuses of an execution have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Told {
    Nothing,
    Busy,
    Idle,
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
    /// The msg_ids under which it was sent to frontends.
    pub msg_ids: Vec<String>,
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
        if record.heard != 0
            && let Some(channel) = record.body.channel()
        {
            self.heard.insert(channel, record.heard);
        }
        match &record.body {
            Body::Request {
                channel,
                client,
                execution,
                message,
            } => self.apply_request(record, *channel, *client, *execution, message),
            Body::Reply {
                channel,
                client,
                execution,
                message,
            } => self.apply_reply(*client, *channel, *execution, message),
            Body::Iopub {
                client,
                execution,
                message,
            } => self.apply_output(record.time, *client, *execution, message),
            Body::Note(note) => self.apply_note(record.time, note),
        }
    }

    /// The execution that a message of the engine with this parent_header belongs to, live or recently ended. Where
    /// several have one msg_id (two clients of one jupyter_client manager), the engine works them off in order.
    pub fn execution_of(&self, parent: &Header<'_>, channel: Channel) -> Option<ExecutionNumber> {
        if parent.msg_type != "execute_request" {
            return None;
        }
        let candidates = self.by_msg_id.get(parent.msg_id.as_ref())?;
        let awaits = |n: &&ExecutionNumber| {
            self.live.get(n).is_some_and(|execution| match channel {
                Channel::Shell | Channel::Control => execution.reply.is_none(),
                Channel::Iopub | Channel::Stdin => execution.told != Told::Idle,
            })
        };
        candidates
            .iter()
            .find(awaits)
            .or(candidates.last())
            .copied()
    }

    /// The last execution of a msg_id, live or recently ended.
    pub fn execution_of_id(&self, msg_id: &str) -> Option<ExecutionNumber> {
        self.by_msg_id.get(msg_id)?.last().copied()
    }

    /// The request of this name, of those that wait the longest-waiting one, that a reply on `channel` answers.
    pub fn pending_of(&self, name: &RequestName, channel: Channel) -> Option<&Asked> {
        let asked = self.pending.get(name)?;
        asked
            .iter()
            .find(|asked| asked.channel == channel)
            .or(asked.first())
    }

    /// Whether this request waits for its reply.
    pub fn is_pending(&self, asked: &Asked) -> bool {
        self.pending
            .get(&RequestName::of_text(&asked.header))
            .is_some_and(|pending| pending.contains(asked))
    }

    /// Whether this request waits for an execution that it is attached to.
    pub fn is_attached(&self, asked: &Asked) -> bool {
        let mut attached = self.attachments.iter();
        attached.any(|attachment| attachment.asked == *asked)
    }

    /// Whether this request was here already: the same from the same socket.
    pub fn has_seen(&self, asked: &Asked) -> bool {
        self.seen.contains(&asked.fingerprint())
    }

    /// The first execution that the engine works on.
    pub fn running(&self) -> Option<(ExecutionNumber, &Execution)> {
        self.live
            .iter()
            .find(|(_, execution)| execution.is_running())
            .map(|(n, execution)| (*n, execution))
    }

    /// The first of those that a person asked for ([`ExecuteRequest::is_by_person`]). Of what a frontend runs by itself nobody sees the output.
    pub fn running_for_person(&self) -> Option<(ExecutionNumber, &Execution)> {
        self.live
            .iter()
            .find(|(_, execution)| execution.by_person && execution.is_running())
            .map(|(n, execution)| (*n, execution))
    }

    /// Whether somebody is attached who stays, and not only a command that is over in a moment.
    pub fn has_frontend(&self) -> bool {
        self.clients
            .values()
            .any(|client| !PASSING_KINDS.contains(&client.kind.as_str()))
    }

    /// The state that a checkpoint says; `None` where it is not one of ours.
    pub fn from_checkpoint(checkpoint: &serde_json::Value) -> Option<Self> {
        let mut state: Self = serde_json::from_value(checkpoint.clone()).ok()?;
        for (msg_id, n) in &state.recent {
            state.by_msg_id.entry(msg_id.clone()).or_default().push(*n);
        }
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
        let msg_id = header.msg_id.clone().into_owned();
        let asked = Asked::new(client, channel, message);
        self.saw(&asked);
        self.subshells
            .apply_request(&asked, &header, &message.content);
        if channel == Channel::Stdin {
            if header.msg_type == "input_reply" {
                self.input = None;
                self.lifetime.not_idle(record.time);
            }
            return;
        }
        let (by_person, code) = code_of(&message.content);
        if by_person && header.msg_type == "execute_request" {
            self.lifetime.not_idle(record.time);
        }
        if n == 0 {
            // What is no request (comm_msg) gets no reply.
            if header.msg_type.ends_with("_request") {
                self.push_pending(RequestName::of(&header), asked);
            }
            return;
        }
        self.last_n = self.last_n.max(n);
        if by_person {
            self.last_by_person = n;
        }
        self.last_activity = record.time;
        self.recent.push_back((msg_id.clone(), n));
        self.by_msg_id.entry(msg_id.clone()).or_default().push(n);
        while self.recent.len() > RECENT_EXECUTIONS_MAX
            && let Some((msg_id, oldest)) = self.recent.front().cloned()
            && !self.live.contains_key(&oldest)
        {
            self.recent.pop_front();
            if let Some(numbers) = self.by_msg_id.get_mut(&msg_id) {
                numbers.retain(|n| *n != oldest);
                if numbers.is_empty() {
                    self.by_msg_id.remove(&msg_id);
                }
            }
        }
        let execution = Execution {
            msg_id,
            asked,
            state: ExecutionState::Queued,
            first_seq: record.seq,
            started: None,
            reply: None,
            told: Told::Nothing,
            failed: false,
            interrupted: false,
            by_person,
            code,
        };
        self.live.insert(n, execution);
    }

    fn push_pending(&mut self, name: RequestName, asked: Asked) {
        self.pending_order.push_back(name.clone());
        self.pending.entry(name).or_default().push(asked);
        while self.pending_order.len() > PENDING_MAX
            && let Some(oldest) = self.pending_order.front().cloned()
        {
            self.take_pending(&oldest, |_| true);
        }
    }

    /// Takes the first pending request of this name that is the wanted one.
    fn take_pending(&mut self, name: &RequestName, wanted: impl Fn(&Asked) -> bool) -> bool {
        let Some(pending) = self.pending.get_mut(name) else {
            return false;
        };
        let Some(at) = pending.iter().position(wanted) else {
            return false;
        };
        pending.remove(at);
        if pending.is_empty() {
            self.pending.remove(name);
        }
        if let Some(at) = self.pending_order.iter().position(|other| other == name) {
            self.pending_order.remove(at);
        }
        true
    }

    fn saw(&mut self, asked: &Asked) {
        self.seen.push_back(asked.fingerprint());
        if self.seen.len() > SEEN_MAX {
            self.seen.pop_front();
        }
    }

    fn apply_question(&mut self, n: ExecutionNumber, message: &Message) {
        let Ok(header) = message.header() else { return };
        let msg_id = header.msg_id.into_owned();
        let content = text(&message.content);
        match &mut self.input {
            // The same question, sent to one more frontend.
            Some(input) if input.n == n && input.content == content => input.msg_ids.push(msg_id),
            input => {
                *input = Some(PendingInput {
                    n,
                    content,
                    msg_ids: vec![msg_id],
                });
            }
        }
    }

    fn apply_reply(
        &mut self,
        client: ClientId,
        channel: Channel,
        n: ExecutionNumber,
        message: &Message,
    ) {
        if channel == Channel::Stdin {
            self.apply_question(n, message);
            return;
        }
        match self.live.get_mut(&n) {
            Some(execution) => {
                let content = text(&message.content);
                if let Some(count) = execution_count(content.as_bytes()) {
                    self.execution_count = count;
                }
                execution.reply = Some(content);
            }
            None if n == 0 => {
                let Some(parent) = message.parent() else {
                    return;
                };
                let name = RequestName::of(&parent);
                let asked = Asked {
                    header: text(&message.parent_header),
                    ..Asked::new(client, channel, message)
                };
                self.subshells
                    .apply_reply(&asked, &parent, &message.content);
                let is_it = |other: &Asked| {
                    other.client == client
                        && other.channel == channel
                        && other.identities == asked.identities
                };
                if !self.take_pending(&name, is_it) {
                    self.saw(&asked);
                }
            }
            None => {}
        }
    }

    fn apply_output(
        &mut self,
        time: Micros,
        client: Option<ClientId>,
        n: ExecutionNumber,
        message: &Message,
    ) {
        let Ok(header) = message.header() else { return };
        if let (None, Some(pid)) = (client, self.engine_pid) {
            self.said.take(&header.msg_id, pid, time);
        }
        match header.msg_type.as_ref() {
            "status" => match (self.live.get_mut(&n), is_idle(&message.content)) {
                (Some(execution), idle) => {
                    if idle {
                        execution.told = Told::Idle;
                    } else if execution.told == Told::Nothing {
                        execution.told = Told::Busy;
                    }
                    self.last_activity = time;
                }
                (None, idle) => self.apply_status(client, n, idle, message),
            },
            "error" => {
                if let Some(execution) = self.live.get_mut(&n) {
                    execution.failed = true;
                }
                self.count_output(client, message);
            }
            "execute_input" => {
                if self.live.contains_key(&n)
                    && let Some(count) = execution_count(&message.content)
                {
                    self.execution_count = count;
                }
            }
            _ => self.count_output(client, message),
        }
    }

    fn count_output(&mut self, client: Option<ClientId>, message: &Message) {
        if client.is_none() {
            self.outputs += 1;
            self.output_bytes += message.size_bytes() as u64;
        }
    }

    /// Of something else than a live execution.
    fn apply_status(
        &mut self,
        client: Option<ClientId>,
        n: ExecutionNumber,
        idle: bool,
        message: &Message,
    ) {
        let Some(parent) = message.parent() else {
            return;
        };
        if n == 0 && !idle && self.execution_of(&parent, Channel::Iopub).is_some() {
            // A reminder that an execution runs: its own idle is everybody's.
            return;
        }
        let name = RequestName::of(&parent);
        self.busy
            .retain(|busy| busy.client != client || RequestName::of_text(&busy.parent) != name);
        if !idle && self.busy.len() < BUSY_MAX {
            let parent = text(&message.parent_header);
            self.busy.push(OpenBusy { client, parent });
        }
    }

    fn apply_note(&mut self, time: Micros, note: &Note) {
        let clock = matches!(note, Note::Clock { .. }).then(|| self.lifetime.clock.clone());
        self.lifetime.apply(time, note);
        if let Some(before) = clock.flatten() {
            self.tell_times_anew(&before);
        }
        match note {
            Note::EngineStarted {
                generation,
                pid,
                start_time,
            } => {
                self.generation = *generation;
                self.engine_start_time = *start_time;
                self.engine_pid = Some(*pid);
                self.heard.clear();
                self.subshells.apply_engine_gone();
                self.info = None;
                self.restarting = false;
            }
            Note::EngineReady { info, .. } => self.info = Some(info.clone()),
            Note::EngineEnded { why, .. } => {
                self.engine_end = Some(why.clone());
                self.engine_pid = None;
                self.subshells.apply_engine_gone();
                self.input = None;
            }
            Note::ClientAttached { client, kind, pid } => {
                self.lifetime.not_idle(time);
                self.clients.insert(
                    *client,
                    Client {
                        kind: kind.clone(),
                        pid: *pid,
                    },
                );
            }
            Note::ClientDetached { client, .. } => {
                self.lifetime.not_idle(time);
                self.clients.remove(client);
                self.attachments
                    .retain(|attachment| attachment.asked.client != *client);
            }
            Note::Interrupted => {
                for execution in self.live.values_mut() {
                    execution.interrupted |= execution.state != ExecutionState::Queued;
                }
            }
            Note::Gap { from, until, .. } => self.said.told(*from, *until),
            Note::Restarting => self.restarting = true,
            Note::Execution { n, state, .. } => self.apply_execution_state(time, *n, *state),
            Note::Attach {
                client,
                parent,
                n,
                session,
                ..
            } => {
                if !session.is_empty() {
                    // It ends in the very turn it begins in; no execution of ours has to do with it.
                    return;
                }
                let msg_id = header_id(parent);
                // Two sockets of a client may use one msg_id.
                let asked = self.pending.get(&RequestName::of_text(parent));
                let asked = asked.into_iter().flatten().find(|asked| {
                    asked.client == *client && asked.header == *parent && !self.is_attached(asked)
                });
                if let Some(asked) = asked.cloned() {
                    self.attachments.push(Attachment {
                        msg_id,
                        asked,
                        n: *n,
                    });
                }
            }
            Note::AttachEnded { client, msg_id } => self.attachments.retain(|attachment| {
                attachment.msg_id != *msg_id || attachment.asked.client != *client
            }),
            Note::PredecessorTold { .. } => self.predecessor_told = true,
            Note::SubshellDeleted {
                subshell_id,
                msg_id,
            } => {
                self.subshells.apply_deleted(subshell_id);
                if let Some(pid) = self.engine_pid {
                    self.said.take(msg_id, pid, time);
                }
            }
            Note::SessionEnded { reason } => self.ended = Some(reason.clone()),
            Note::SessionStarted { .. } => self.lifetime.begin(time),
            Note::HostStarted { .. }
            | Note::Checkpoint { .. }
            | Note::Clock { .. }
            | Note::Set { .. }
            | Note::Extended { .. }
            | Note::Notice { .. }
            | Note::Ending { .. }
            | Note::EndStep { .. }
            | Note::Usage { .. }
            | Note::Health { .. }
            | Note::NotifyOf { .. }
            | Note::Compacted { .. }
            | Note::Unknown => {}
        }
    }

    /// The wall clock was set: what goes on still began as long ago as it did.
    fn tell_times_anew(&mut self, before: &Clock) {
        let Some(now) = &self.lifetime.clock else {
            return;
        };
        let tell = |time: &mut Micros| *time = before.told_by(now, *time);
        self.live
            .values_mut()
            .filter_map(|execution| execution.started.as_mut())
            .for_each(tell);
        (self.lifetime.unresponsive_since.iter_mut()).for_each(tell);
        tell(&mut self.last_activity);
    }

    fn apply_execution_state(&mut self, time: Micros, n: ExecutionNumber, state: ExecutionState) {
        let by_person = self
            .live
            .get(&n)
            .is_none_or(|execution| execution.by_person);
        if by_person {
            self.lifetime.not_idle(time);
        }
        if state.is_final() {
            self.live.remove(&n);
            if self.input.as_ref().is_some_and(|input| input.n == n) {
                self.input = None;
            }
        } else if let Some(execution) = self.live.get_mut(&n) {
            execution.state = state;
            if state != ExecutionState::Queued && execution.started.is_none() {
                execution.started = Some(time);
            }
        }
        self.last_activity = time;
    }
}

impl Execution {
    fn is_running(&self) -> bool {
        self.state != ExecutionState::Queued && self.told != Told::Idle
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

    /// Whether the request is of this type.
    pub fn is_of_type(&self, msg_type: &str) -> bool {
        Header::read(self.header.as_bytes()).is_ok_and(|header| header.msg_type == msg_type)
    }

    /// Tells this request from others: of which socket it came, its type and its msg_id.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.client, self.channel, &self.identities).hash(&mut hasher);
        RequestName::of_text(&self.header).hash(&mut hasher);
        hasher.finish()
    }
}

/// Whether a person asked for it, and its first line that says something: not more of it than a table has room for. A
/// content that was too large for recovery, or is no good, counts as a person's.
fn code_of(content: &[u8]) -> (bool, String) {
    let Some(request) = ExecuteRequest::read(content) else {
        return (true, String::new());
    };
    let line = request.code.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().trim();
    let beginning = line.chars().take(CODE_CHARS_MAX).collect();
    (request.is_by_person(), beginning)
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
    Header::read(header.as_bytes())
        .map(|header| header.msg_id.into_owned())
        .unwrap_or_default()
}

fn execution_count(content: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Count {
        execution_count: Option<i64>,
    }
    serde_json::from_slice::<Count>(content)
        .ok()?
        .execution_count
}
