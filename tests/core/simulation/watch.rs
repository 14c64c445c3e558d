//! What must hold at every step of a simulated session: on each record as it is written, on each message as a frontend
//! reads it, and at the end of each turn.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use farside::journal::record::{Body, ClientId, ExecutionState, Note, Record};
use farside::session::event::Effect;
use farside::session::state::{State, Told, header_id, is_idle};
use farside::wire::{Channel, Message};
use serde_json::Value;

use super::Simulation;
use crate::bench::line;

/// What was seen of the records so far.
#[derive(Default)]
pub(super) struct Watch {
    /// Client, channel, the frontend's socket, type and id of the request.
    asked: HashSet<(ClientId, Channel, Bytes, String)>,
    asked_by: HashSet<(ClientId, String)>,
    replied: HashSet<(ClientId, Channel, Bytes, String)>,
    /// Who has left and not come back.
    away: HashSet<ClientId>,
    /// For each client's subscribers (nil: for who comes new): whether the parent is busy.
    busy: HashMap<ClientId, HashMap<String, bool>>,
    /// Requests that were attached to something.
    attached_as: HashSet<String>,
    /// The execution that runs, by the records.
    running: Option<u64>,
    /// For each client: what ran when something else's idle was said to it, if that was the last status.
    other_idle: HashMap<ClientId, Option<u64>>,
    /// How this host has said that kernel_info is answered.
    kernel_info: Option<Value>,
    /// The fold of the records that were kept.
    folded: State,
    /// The first record of those that the journal did not take.
    not_kept: Option<usize>,
    turns: u64,
}

impl Watch {
    pub(super) fn asked(&mut self, client: ClientId, channel: Channel, request: &Message) {
        let header = request.header().expect("our own");
        self.asked_by.insert((client, header.msg_id.into_owned()));
        self.asked.insert(named(client, channel, request));
    }

    pub(super) fn has_reply(&self, client: ClientId, channel: Channel, request: &Message) -> bool {
        self.replied.contains(&named(client, channel, request))
    }

    pub(super) fn host_changed(&mut self) {
        self.not_kept = None;
        self.kernel_info = None;
    }
}

impl Simulation {
    /// Takes the next record, before it is written.
    pub(super) fn watch(&mut self, record: &Record) {
        self.watch_kept(record);
        match &record.body {
            Body::Reply {
                channel,
                client,
                message,
                ..
            } => self.watch_reply(*channel, *client, message),
            Body::Iopub {
                client, message, ..
            } => self.watch_iopub(*client, message),
            Body::Note(Note::ClientAttached { client, .. }) => {
                self.watch.away.remove(client);
                let known = self.watch.busy.get(&ClientId::nil()).cloned();
                (self.watch.busy.entry(*client)).or_insert_with(|| known.unwrap_or_default());
            }
            Body::Note(Note::ClientDetached { client, .. }) => {
                self.watch.away.insert(*client);
            }
            Body::Note(Note::Attach { parent, .. }) => {
                self.watch.attached_as.insert(header_id(parent));
            }
            Body::Note(Note::Execution { n, state, .. }) => {
                if state.is_final() {
                    self.watch.running.take_if(|running| running == n);
                } else if *state != ExecutionState::Queued {
                    self.watch.running = Some(*n);
                }
            }
            Body::Request { .. } | Body::Note(_) => {}
        }
    }

    fn watch_kept(&mut self, record: &Record) {
        if self.failing {
            self.watch.not_kept.get_or_insert(self.published.len());
            return;
        }
        match &record.body {
            Body::Note(Note::Checkpoint { state }) => {
                self.watch.folded = State::from_checkpoint(state).expect("our own");
            }
            _ => self.watch.folded.apply(record),
        }
    }

    /// One reply for each request, and none for what was not asked.
    fn watch_reply(&mut self, channel: Channel, client: ClientId, message: &Message) {
        if channel == Channel::Stdin {
            // Who asked for the execution may come back and answer; who was attached to it is not any more.
            let parent = message.parent().expect("a question has a parent").msg_id;
            let own = !self.watch.attached_as.contains(parent.as_ref());
            let gone = self.watch.away.contains(&client);
            assert!(
                own || !gone,
                "a question to one that left: {}",
                line(channel, message)
            );
            return;
        }
        // The hook's code was asked for by nobody.
        if client.is_nil() {
            return;
        }
        let parent = message.parent().expect("a reply has a parent");
        let name = format!("{} {}", parent.msg_type, parent.msg_id);
        let socket = message.identities[0].clone();
        let was_asked =
            (self.watch.asked).contains(&(client, channel, socket.clone(), name.clone()));
        assert!(was_asked, "a reply to nothing: {}", line(channel, message));
        let first = (self.watch.replied).insert((client, channel, socket, name));
        assert!(first, "a second reply: {}", line(channel, message));
    }

    /// Busy and idle are well nested for each parent; who left gets no more than the ends of what it asked for.
    fn watch_iopub(&mut self, client: Option<ClientId>, message: &Message) {
        let is_status = message.header().unwrap().msg_type == "status";
        let parent = message.parent().map(|parent| parent.msg_id.into_owned());
        let parent = parent.unwrap_or_default();
        if let Some(client) = client {
            // (What runs is busy, also for one who comes back.)
            let live = &self.watch.folded.live;
            let runs = is_status && live.values().any(|execution| execution.msg_id == parent);
            let gone = self.watch.away.contains(&client);
            let text = || line(Channel::Iopub, message);
            assert!(
                !gone
                    || runs
                    // (Then what is folded lags.)
                    || self.failing
                    || self.failure_was_told
                    || self.watch.asked_by.contains(&(client, parent.clone())),
                "to one that left: {}",
                text()
            );
        }
        if !is_status {
            return;
        }
        let busy = !is_idle(&message.content);
        let to: Vec<ClientId> = match client {
            Some(client) => vec![client],
            None => {
                self.watch.busy.entry(ClientId::nil()).or_default();
                self.watch.busy.keys().copied().collect()
            }
        };
        for to in to {
            let seen = self.watch.busy.entry(to).or_default();
            let before = seen.insert(parent.clone(), busy);
            // What a host took along when it was killed nobody knows.
            assert!(
                busy || before == Some(true) || self.host_died,
                "idle of {parent} without busy before it"
            );
            let its_own = |n: &u64| {
                let execution = self.watch.folded.live.get(n);
                execution.is_some_and(|execution| execution.msg_id == parent)
            };
            let running = self.watch.running.filter(|n| !busy && !its_own(n));
            self.watch.other_idle.insert(to, running);
        }
    }

    /// kernel_info is answered in the words that were told before, or in the same breath.
    pub(super) fn check_kernel_info(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::KernelInfo(content) = effect {
                assert_ne!(*content, self.watch.kernel_info, "told twice");
                self.watch.kernel_info.clone_from(content);
            }
        }
        for effect in effects {
            let Effect::Record(record) = effect else {
                continue;
            };
            let Body::Reply { message, .. } = &record.body else {
                continue;
            };
            if message.header().unwrap().msg_type != "kernel_info_reply" {
                continue;
            }
            let content: Value = serde_json::from_slice(&message.content).unwrap();
            assert!(
                content["status"] != "ok" || Some(&content) == self.watch.kernel_info.as_ref(),
                "an answer that was not told of: {content}"
            );
        }
    }

    /// At the end of a turn.
    pub(super) fn check_turn(&mut self) {
        self.watch.turns += 1;
        if self.over {
            return;
        }
        let state = self.core.state();
        for attachment in &state.attachments {
            let client = attachment.asked.client;
            assert!(
                state.clients.contains_key(&client),
                "attached after it left: {client}"
            );
        }
        // (A session that begins to end says idle to who ended it.)
        let ends = state.lifetime.ending.is_some();
        let busy = state
            .running()
            .filter(|(_, execution)| execution.told != Told::Idle);
        let running = busy.map(|(n, _)| n).filter(|_| !ends);
        for client in &self.clients {
            let ran = self.watch.other_idle.get(&client.frontend.client).copied();
            assert!(
                !client.attached || running.is_none() || ran.flatten() != running,
                "the end of something else shows a busy engine as idle"
            );
        }
        self.check_journal();
        for at in 0..self.clients.len() {
            if self.clients[at].linked && self.rng.one_in(3) {
                self.frontend_reads(at);
            }
        }
    }

    /// What the core remembers is what the records say; what was not kept was said to be so.
    fn check_journal(&mut self) {
        if let Some(first) = self.watch.not_kept {
            let says_so = |record: &Record| {
                matches!(&record.body, Body::Iopub { client: None, message, .. }
                    if String::from_utf8_lossy(&message.content).contains("journal cannot be written"))
            };
            assert!(
                self.published[first..].iter().any(says_so),
                "what is not kept is not said to be so"
            );
        }
        if self.failing || self.failure_was_told {
            return;
        }
        self.watch.not_kept = None;
        if self.watch.turns.is_multiple_of(8) {
            assert_eq!(self.watch.folded, *self.core.state());
        }
    }

    /// A frontend reads on. What it gets are the records for it, each once and in order, and between them only what is
    /// made for its attachments; and each attached cell shows what the journal has of the original so far.
    pub(super) fn frontend_reads(&mut self, at: usize) {
        let frontend = &mut self.clients[at].frontend;
        let (from, told) = (frontend.place(), frontend.heard.len());
        frontend.read(&self.published);
        let frontend = &self.clients[at].frontend;
        let mut due = self.published[from..]
            .iter()
            .filter_map(|record| for_client(record, frontend.client))
            .peekable();
        let mut made_for = HashSet::new();
        for (channel, message) in &frontend.heard[told..] {
            let is_next = |next: &(Channel, &Message)| next.0 == *channel && next.1 == message;
            if due.next_if(is_next).is_some() {
                continue;
            }
            let parent = String::from_utf8_lossy(&message.parent_header);
            let made = frontend.attached_as.iter().find(|known| **known == parent);
            let made = made.unwrap_or_else(|| {
                panic!(
                    "{} is in no record, or out of order",
                    line(*channel, message)
                )
            });
            made_for.insert(made.clone());
        }
        assert_eq!(due.next(), None, "a record did not reach its frontend");
        if self.over {
            return;
        }
        let place = frontend.place();
        for parent in made_for {
            self.check_attached_so_far(at, &parent, place);
        }
    }

    fn check_attached_so_far(&self, at: usize, parent: &str, place: usize) {
        let client = &self.clients[at];
        let own = client.frontend.client;
        let attachments: Vec<(usize, u64)> = (self.published[..place].iter().enumerate())
            .filter_map(|(index, record)| match &record.body {
                Body::Note(Note::Attach {
                    client,
                    parent: other,
                    n,
                    ..
                }) if *client == own && other == parent => Some((index, *n)),
                _ => None,
            })
            .collect();
        // One that was asked for once more after the host had died replays it all once more.
        let [(index, n)] = attachments[..] else {
            return;
        };
        let parent = header_id(parent);
        let is_end = |record: &Record| {
            matches!(&record.body, Body::Note(Note::AttachEnded { client, msg_id })
                if *client == own && *msg_id == parent)
        };
        let end = self.published[index..place].iter().position(is_end);
        self.check_attachment(client, n, &parent, end.map_or(place, |end| index + end));
    }
}

fn named(
    client: ClientId,
    channel: Channel,
    request: &Message,
) -> (ClientId, Channel, Bytes, String) {
    let header = request.header().expect("our own");
    let name = format!("{} {}", header.msg_type, header.msg_id);
    (client, channel, request.identities[0].clone(), name)
}

/// What stands in a record for the subscribers and sockets of this client.
fn for_client(record: &Record, own: ClientId) -> Option<(Channel, &Message)> {
    match &record.body {
        Body::Reply {
            channel,
            client,
            message,
            ..
        } => (*client == own).then_some((*channel, message)),
        Body::Iopub {
            client, message, ..
        } => (client.is_none() || *client == Some(own)).then_some((Channel::Iopub, message)),
        Body::Request { .. } | Body::Note(_) => None,
    }
}
