//! A core with scripted frontends and a scripted engine, and verbs to drive them; what a frontend hears is written as
//! lines, for tests that read like a protocol.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use farside::journal::record::{
    Body, ClientId, ExecutionNumber, ExecutionState, Micros, Note, ProcessEnd, Record,
};
use farside::session::clock::Now;
use farside::session::core::{Core, Facts};
use farside::session::event::{
    Answer, Command, Effect, Event, ExecutionSummary, Gap, Notification, PastExecution, Query,
    Selector,
};
use farside::session::outputs::{Compactor, Limits};
use farside::session::state::State;
use farside::session::state::header_id;
use farside::session::view::{Mirror, Replay, Step, View};
use farside::wire::message::HeaderFields;
use farside::wire::{Channel, Message};
use serde_json::{Value, json};

/// `header.session` of all that frontends get.
pub const SESSION_ID: &str = "farside-s1";

/// A second, in the clock of the core.
pub const SECOND: Micros = 1_000_000;

pub fn facts(interrupt_by_message: bool) -> Facts {
    Facts {
        id: "s1".into(),
        name: "notes".into(),
        engine: "python3".into(),
        interrupt_by_message,
        settings: std::collections::BTreeMap::new(),
        boot: "boot1".into(),
        session_id: SESSION_ID.into(),
        version: "0".into(),
        predecessor: None,
        unkept: false,
    }
}

/// A message of a frontend or of the engine.
pub fn message(
    msg_type: &str,
    msg_id: &str,
    session: &str,
    parent: &Bytes,
    content: Value,
) -> Message {
    let header = HeaderFields {
        msg_id,
        msg_type,
        session_id: session,
        username: "u",
        date: 0,
    };
    Message::new(&header, parent, &content)
}

pub fn content(message: &Message) -> Value {
    serde_json::from_slice(&message.content).unwrap()
}

/// What the journal's index would know, from the records.
pub fn past_executions(records: &[Record]) -> BTreeMap<ExecutionNumber, PastExecution> {
    let mut past: BTreeMap<ExecutionNumber, PastExecution> = BTreeMap::new();
    for record in records {
        match &record.body {
            Body::Request {
                execution: n,
                message,
                channel: Channel::Shell,
                ..
            } if *n > 0 => {
                let metadata: Value = serde_json::from_slice(&message.metadata).unwrap();
                let summary = ExecutionSummary {
                    n: *n,
                    msg_id: message.header().unwrap().msg_id.into_owned(),
                    cell_id: metadata["cellId"].as_str().map(str::to_owned),
                    code: content(message)["code"].as_str().unwrap_or("").to_owned(),
                    state: ExecutionState::Queued,
                    started: None,
                    ended: None,
                };
                let first_seq = record.seq;
                past.insert(
                    *n,
                    PastExecution {
                        session: String::new(),
                        summary,
                        first_seq,
                        extent: None,
                        reply_content: None,
                    },
                );
            }
            Body::Reply {
                channel: Channel::Shell,
                execution,
                message,
                ..
            } => {
                if let Some(past) = past.get_mut(execution) {
                    past.reply_content = Some(message.content.clone());
                }
            }
            Body::Note(Note::Execution { n, state, .. }) => {
                if let Some(past) = past.get_mut(n) {
                    past.summary.state = *state;
                    match state {
                        ExecutionState::Running => past.summary.started = Some(record.time),
                        state if state.is_final() => past.summary.ended = Some(record.time),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    past
}

/// The journal's answer.
pub fn answer(records: &[Record], query: &Query) -> Answer {
    let past = past_executions(records);
    match query {
        Query::Execution(target) => {
            let found = match &target.selector {
                _ if target.session.is_some() => None,
                Selector::Latest | Selector::Before => past.values().next_back(),
                Selector::Number(n) => past.get(n),
                Selector::MsgId(id) => past.values().rfind(|past| past.summary.msg_id == *id),
            };
            Answer::Execution(found.cloned().map(Box::new))
        }
        Query::History { limit, .. } => Answer::History {
            session: json!({ "id": "s1" }),
            executions: past
                .into_values()
                .rev()
                .take(*limit)
                .map(|past| past.summary)
                .collect(),
        },
    }
}

/// The state that a new host finds in these records.
pub fn recovered(records: &[Record]) -> State {
    let checkpoint = records
        .iter()
        .rposition(|record| matches!(record.body, Body::Note(Note::Checkpoint { .. })));
    let (mut state, after) = match checkpoint {
        Some(at) => {
            let Body::Note(Note::Checkpoint { state }) = &records[at].body else {
                unreachable!("it was looked for");
            };
            (State::from_checkpoint(state).unwrap(), &records[at + 1..])
        }
        None => (State::default(), records),
    };
    for record in after {
        state.apply(record);
    }
    state
}

/// What a replay sends, as the host's cursor makes it: the input, and the compacted outputs.
pub fn replayed(records: &[Record], replay: &Replay) -> Vec<(String, Message)> {
    if !replay.session.is_empty() {
        // The host reads another journal: here is none.
        let text = format!("outputs of {}:{}", replay.session, replay.n);
        let content = json!({ "name": "stdout", "text": text });
        let replayed = message("stream", "m", "s", &Bytes::from_static(b"{}"), content);
        return vec![("stream".into(), replayed)];
    }
    let mut input = None;
    let mut compactor = Compactor::new(Limits::default(), "");
    for record in records {
        let in_range = (replay.first_seq..replay.until_seq).contains(&record.seq);
        if let Body::Iopub {
            execution, message, ..
        } = &record.body
            && in_range
            && *execution == replay.n
        {
            let msg_type = message.header().unwrap().msg_type.into_owned();
            if msg_type == "execute_input" {
                input = Some((msg_type, message.clone()));
            } else {
                compactor.push_as(&msg_type, message);
            }
        }
    }
    let outputs = compactor.replay().into_iter().map(|output| {
        (
            output.msg_type.to_string(),
            output.into_message(Bytes::new(), Bytes::new()),
        )
    });
    input.into_iter().chain(outputs).collect()
}

/// A client of the link, and what it has heard.
pub struct Frontend {
    pub client: ClientId,
    view: View,
    /// Its attachments that are on, as the launcher keeps account of them.
    mirrors: Vec<Mirror>,
    /// The parents of all its attachments so far.
    pub attached_as: Vec<String>,
    read: usize,
    requests: u64,
    /// All that came: channel and message.
    pub heard: Vec<(Channel, Message)>,
    told: usize,
}

impl Frontend {
    pub fn new(client: ClientId) -> Self {
        Self {
            client,
            view: View::new(client, SESSION_ID.into(), Vec::new()),
            mirrors: Vec::new(),
            attached_as: Vec::new(),
            read: 0,
            requests: 0,
            heard: Vec::new(),
            told: 0,
        }
    }

    /// It begins with what is new.
    pub fn starts_behind(&mut self, records: &[Record]) {
        self.read = records.len();
    }

    /// How many records it has read.
    pub fn place(&self) -> usize {
        self.read
    }

    /// Its link broke, and it is back where it was.
    pub fn comes_back(&mut self) {
        self.view = View::new(self.client, SESSION_ID.into(), self.mirrors.clone());
    }

    fn keep_account(&mut self, record: &Record) {
        match &record.body {
            Body::Note(Note::Attach {
                client,
                parent,
                n,
                session,
                ..
            }) if *client == self.client => {
                self.attached_as.push(parent.clone());
                if session.is_empty() {
                    let (parent, n) = (parent.clone(), *n);
                    self.mirrors.push(Mirror { parent, n });
                }
            }
            Body::Note(Note::AttachEnded { client, msg_id }) if *client == self.client => {
                self.mirrors
                    .retain(|mirror| header_id(&mirror.parent) != *msg_id);
            }
            _ => {}
        }
    }

    /// Reads on in the records, as the host's cursor does for a launcher and its iopub subscribers.
    pub fn read(&mut self, records: &[Record]) {
        for record in &records[self.read..] {
            self.keep_account(record);
            if let Body::Reply {
                client,
                channel,
                message,
                ..
            } = &record.body
            {
                if *client == self.client {
                    self.heard.push((*channel, message.clone()));
                }
                continue;
            }
            let delivered = match &record.body {
                Body::Iopub { message, .. } => Some(message.clone()),
                _ => None,
            };
            let mut iopub = |message| self.heard.push((Channel::Iopub, message));
            match self.view.handle(record) {
                Step::Skip => {}
                Step::Deliver => delivered.into_iter().for_each(iopub),
                Step::DeliverWith(copies) => {
                    delivered.into_iter().for_each(&mut iopub);
                    copies.into_iter().for_each(iopub);
                }
                Step::Replay(replay) => {
                    for (part, (msg_type, made)) in
                        replayed(records, &replay).into_iter().enumerate()
                    {
                        iopub(
                            self.view
                                .made(record, made, &msg_type, &replay.parent, part),
                        );
                    }
                }
            }
        }
        self.read = records.len();
    }
}

/// A message as a line: `iopub m1 stream hello`, where `m1` is the parent.
pub fn line(channel: Channel, message: &Message) -> String {
    let header = message.header().unwrap();
    let parent = message
        .parent()
        .map_or("-".into(), |parent| parent.msg_id.into_owned());
    let content = content(message);
    let gist = match header.msg_type.as_ref() {
        "status" => &content["execution_state"],
        "stream" => &content["text"],
        "error" => &content["ename"],
        "execute_input" => &content["code"],
        "input_request" => &content["prompt"],
        msg_type if msg_type.ends_with("_reply") && content["status"] == "error" => {
            &content["ename"]
        }
        msg_type if msg_type.ends_with("_reply") => &content["status"],
        _ => &Value::Null,
    };
    let gist = match gist {
        Value::Null => content.to_string(),
        Value::String(text) => text.trim_end().to_owned(),
        other => other.to_string(),
    };
    format!("{} {parent} {} {gist}", channel.name(), header.msg_type)
}

/// See the module.
pub struct Bench {
    pub core: Core,
    pub now: Micros,
    /// The journal.
    pub records: Vec<Record>,
    /// What the engine was sent and has not taken.
    pub to_engine: VecDeque<(Channel, Message)>,
    /// What else the core wanted, e.g. `start 1`, `interrupt`, `stop restart`, `end`.
    pub wanted: Vec<String>,
    /// How kernel_info is answered, as the core has said it.
    pub kernel_info: Option<serde_json::Value>,
    /// Answers to commands.
    pub answers: Vec<Value>,
    /// Look-ups are answered by hand.
    pub queries_wait: bool,
    pub queries: Vec<(u64, Query)>,
    frontends: HashMap<ClientId, Frontend>,
    clients: u128,
    engine_messages: u64,
    hosts: u32,
    facts: Facts,
    pub notifications: Vec<Notification>,
    /// The state is compared with the fold over all records, after each event: long sessions do without.
    pub checks_recovery: bool,
    /// How long the machine slept.
    pub slept: Micros,
    /// By how much the wall clock was set forward.
    pub set_forward: i64,
}

impl Bench {
    /// A new session whose engine is being started.
    pub fn new() -> Self {
        Self::with_interrupts(false)
    }

    pub fn with_interrupts(by_message: bool) -> Self {
        Self::with(facts(by_message))
    }

    /// With settings, and a ready engine and one launcher.
    pub fn ready_with(settings: &[(&str, &str)]) -> (Self, ClientId) {
        let settings = settings
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let mut bench = Self::with(Facts {
            settings,
            ..facts(false)
        });
        bench.engine_starts(1);
        let client = bench.attach();
        bench.wanted.clear();
        (bench, client)
    }

    pub fn with(facts: Facts) -> Self {
        let mut bench = Self {
            core: Core::new(facts.clone(), "host1".into(), State::default(), 1),
            now: 1_700_000_000 * SECOND,
            records: Vec::new(),
            to_engine: VecDeque::new(),
            wanted: Vec::new(),
            kernel_info: None,
            answers: Vec::new(),
            queries_wait: false,
            queries: Vec::new(),
            frontends: HashMap::new(),
            clients: 0,
            engine_messages: 0,
            hosts: 1,
            facts,
            notifications: Vec::new(),
            checks_recovery: true,
            slept: 0,
            set_forward: 0,
        };
        let effects = bench.core.open(1, bench.clocks());
        bench.take(effects);
        bench
    }

    /// A session with a ready engine and one launcher.
    pub fn ready() -> (Self, ClientId) {
        let mut bench = Self::new();
        bench.engine_starts(1);
        let client = bench.attach();
        bench.wanted.clear();
        (bench, client)
    }

    pub fn clocks(&self) -> Now {
        Now {
            wall: self.now.saturating_add_signed(self.set_forward),
            awake: self.now - self.slept,
            elapsed: self.now,
        }
    }

    /// Time passes, with ticks as the host gives them.
    pub fn wait(&mut self, seconds: u64) {
        let until = self.now + seconds * SECOND;
        let mut idle_ticks = 0;
        while self.core.state().ended.is_none() {
            let due = self.core.next_deadline(self.clocks());
            let next = due.map_or(until, |due| (self.now + due).min(until));
            // A host would spin.
            idle_ticks = if due == Some(0) { idle_ticks + 1 } else { 0 };
            assert!(idle_ticks < 100, "a tick is wanted again and again");
            self.now = next;
            if due.is_none() || next >= until {
                break;
            }
            self.event(Event::Tick);
        }
        self.now = self.now.max(until);
        self.event(Event::Tick);
    }

    /// The machine sleeps.
    pub fn sleep(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.slept += seconds * SECOND;
    }

    pub fn event(&mut self, event: Event) {
        self.now += 1000;
        let effects = self.core.handle(event, self.clocks());
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        let mut queries = Vec::new();
        for effect in effects {
            match effect {
                Effect::Record(record) => {
                    assert_eq!(record.seq, self.records.len() as u64 + 1, "a hole");
                    self.records.push(record);
                }
                Effect::ToEngine(channel, message) => self.to_engine.push_back((channel, message)),
                Effect::StartEngine { generation } => {
                    self.wanted.push(format!("start {generation}"))
                }
                Effect::InterruptEngine => self.wanted.push("interrupt".into()),
                Effect::StopEngine { now, restart } => {
                    let mut word = "stop".to_owned();
                    word.push_str(if restart { " restart" } else { "" });
                    word.push_str(if now { " now" } else { "" });
                    self.wanted.push(word);
                }
                Effect::Query(id, query) => queries.push((id, query)),
                Effect::Reply { answer, .. } => self.answers.push(answer),
                Effect::RunHook { command, .. } => self.wanted.push(format!("hook {command}")),
                Effect::Notify { notification, .. } => {
                    self.wanted
                        .push(format!("notify {}", notification.event.name()));
                    self.notifications.push(*notification);
                }
                Effect::End => self.wanted.push("end".into()),
                Effect::KernelInfo(content) => self.kernel_info = content,
                Effect::ReplaceHost { program, .. } => {
                    self.wanted.push(format!("replaced by {program}"));
                }
            }
        }
        if self.checks_recovery {
            assert_eq!(recovered(&self.records), *self.core.state());
        }
        self.queries.extend(queries);
        if !self.queries_wait {
            self.answer_queries();
        }
    }

    pub fn answer_queries(&mut self) {
        for (id, query) in std::mem::take(&mut self.queries) {
            let answer = answer(&self.records, &query);
            self.event(Event::Answer { id, answer });
        }
    }

    /// What the core wanted of the host since the last call.
    pub fn wants(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wanted)
    }

    // Frontends.

    pub fn attach(&mut self) -> ClientId {
        self.attach_as("launcher")
    }

    pub fn attach_as(&mut self, kind: &str) -> ClientId {
        self.clients += 1;
        let client = ClientId::from_u128(self.clients);
        let mut frontend = Frontend::new(client);
        frontend.starts_behind(&self.records);
        self.frontends.insert(client, frontend);
        self.event(Event::ClientAttached {
            client,
            kind: kind.into(),
            pid: 7,
        });
        client
    }

    pub fn detach(&mut self, client: ClientId) {
        let why = "it left".into();
        self.event(Event::ClientDetached { client, why });
    }

    /// A fresh request of a client. Its msg_ids are `a1`, `a2`, ... for the first client, then `b1`, ...
    pub fn request(&mut self, client: ClientId, msg_type: &str, content: Value) -> Message {
        let letter = char::from(b'a' - 1 + client.as_u128() as u8);
        let frontend = self.frontends.get_mut(&client).unwrap();
        frontend.requests += 1;
        let msg_id = format!("{letter}{}", frontend.requests);
        let mut request = message(msg_type, &msg_id, "their-session", &Bytes::new(), content);
        request.identities = vec![Bytes::from(format!("socket-{letter}"))];
        request
    }

    pub fn send(&mut self, client: ClientId, channel: Channel, message: &Message) {
        self.event(Event::Request {
            client,
            channel,
            message: message.clone(),
            again: false,
        });
    }

    pub fn send_again(&mut self, client: ClientId, channel: Channel, message: &Message) {
        self.event(Event::Request {
            client,
            channel,
            message: message.clone(),
            again: true,
        });
    }

    pub fn ask(&mut self, client: ClientId, channel: Channel, msg_type: &str) -> Message {
        let request = self.request(client, msg_type, json!({}));
        self.send(client, channel, &request);
        request
    }

    pub fn execute(&mut self, client: ClientId, code: &str) -> Message {
        let request = self.request(client, "execute_request", json!({ "code": code }));
        self.send(client, Channel::Shell, &request);
        request
    }

    pub fn attach_to(&mut self, client: ClientId, msg_id: &str) -> Message {
        let mut request = self.request(client, "execute_request", json!({ "code": "x" }));
        request.metadata = json!({ "farside": { "attach": msg_id } })
            .to_string()
            .into();
        self.send(client, Channel::Shell, &request);
        request
    }

    pub fn shutdown(&mut self, client: ClientId, restart: bool) {
        let request = self.request(client, "shutdown_request", json!({ "restart": restart }));
        self.send(client, Channel::Control, &request);
    }

    /// An input_reply; `to`: the input_request that it answers, where the frontend says so.
    pub fn input(&mut self, client: ClientId, value: &str, to: Option<&Message>) -> Message {
        let mut reply = self.request(client, "input_reply", json!({ "value": value }));
        if let Some(question) = to {
            reply.parent_header = question.header.clone();
        }
        self.send(client, Channel::Stdin, &reply);
        reply
    }

    pub fn command(&mut self, command: Command) -> Value {
        self.event(Event::Command {
            id: 1,
            client: ClientId::nil(),
            command,
        });
        self.answers.pop().expect("each command is answered")
    }

    /// Is answered when the new engine is ready.
    pub fn restart_by_command(&mut self) {
        self.event(Event::Command {
            id: 2,
            client: ClientId::nil(),
            command: Command::Restart,
        });
    }

    /// What a client heard since the last call, as lines.
    pub fn heard(&mut self, client: ClientId) -> Vec<String> {
        self.heard_messages(client)
            .iter()
            .map(|(channel, message)| line(*channel, message))
            .collect()
    }

    pub fn heard_messages(&mut self, client: ClientId) -> Vec<(Channel, Message)> {
        let frontend = self.frontends.get_mut(&client).unwrap();
        frontend.read(&self.records);
        let new = frontend.heard[frontend.told..].to_vec();
        frontend.told = frontend.heard.len();
        new
    }

    /// Forgets what a client has heard up to here.
    pub fn skip(&mut self, client: ClientId) {
        self.heard_messages(client);
    }

    // The engine.

    /// Started, connected, and heard: it has answered what it was asked first.
    pub fn engine_starts(&mut self, generation: u32) {
        self.engine_started(generation);
        self.event(Event::EngineConnected { generation });
        self.answer_probe();
    }

    pub fn engine_started(&mut self, generation: u32) {
        self.event(Event::EngineStarted {
            generation,
            pid: 100 + generation,
            start_time: 5,
        });
    }

    pub fn answer_probe(&mut self) {
        let probe = self.engine_gets("kernel_info_request");
        self.status(&probe, "busy");
        self.engine_replies(
            &probe,
            json!({ "status": "ok", "implementation": "ipython", "banner": "hi" }),
        );
        self.status(&probe, "idle");
    }

    /// The next that the engine was sent.
    pub fn engine_gets(&mut self, msg_type: &str) -> Message {
        let (_, message) = self
            .to_engine
            .pop_front()
            .expect("something for the engine");
        assert_eq!(message.header().unwrap().msg_type, msg_type);
        assert!(message.identities.is_empty());
        message
    }

    pub fn engine_says(
        &mut self,
        channel: Channel,
        request: &Message,
        msg_type: &str,
        content: Value,
    ) {
        self.engine_messages += 1;
        let msg_id = format!("engine-{}", self.engine_messages);
        self.engine_says_as(&msg_id, channel, request, msg_type, content);
    }

    pub fn engine_says_as(
        &mut self,
        msg_id: &str,
        channel: Channel,
        request: &Message,
        msg_type: &str,
        content: Value,
    ) {
        let message = message(msg_type, msg_id, "engine", &request.header, content);
        self.event(Event::EngineMessage {
            channel,
            message,
            heard: 0,
        });
    }

    pub fn iopub(&mut self, request: &Message, msg_type: &str, content: Value) {
        self.engine_says(Channel::Iopub, request, msg_type, content);
    }

    pub fn status(&mut self, request: &Message, state: &str) {
        self.iopub(request, "status", json!({ "execution_state": state }));
    }

    pub fn prints(&mut self, request: &Message, text: &str) {
        self.iopub(request, "stream", json!({ "name": "stdout", "text": text }));
    }

    /// The reply to a shell request.
    pub fn engine_replies(&mut self, request: &Message, content: Value) {
        self.engine_replies_on(Channel::Shell, request, content);
    }

    pub fn engine_replies_on(&mut self, channel: Channel, request: &Message, content: Value) {
        let reply_type = request
            .header()
            .unwrap()
            .msg_type
            .replace("_request", "_reply");
        self.engine_says(channel, request, &reply_type, content);
    }

    /// The engine takes the next execution and begins it.
    pub fn engine_begins(&mut self) -> Message {
        let request = self.engine_gets("execute_request");
        self.status(&request, "busy");
        let code = content(&request)["code"].clone();
        self.iopub(
            &request,
            "execute_input",
            json!({ "code": code, "execution_count": 1 }),
        );
        request
    }

    pub fn engine_ends_ok(&mut self, request: &Message) {
        self.engine_replies(request, json!({ "status": "ok", "execution_count": 1 }));
        self.status(request, "idle");
    }

    pub fn engine_asks(&mut self, request: &Message, prompt: &str) {
        self.engine_says(
            Channel::Stdin,
            request,
            "input_request",
            json!({ "prompt": prompt }),
        );
    }

    /// The engine's process ends.
    pub fn engine_dies(&mut self) {
        let generation = self.core.state().generation;
        self.to_engine.clear();
        self.event(Event::EngineEnded {
            generation,
            end: Some(ProcessEnd {
                exit_code: None,
                signal: Some(9),
                out_of_memory: false,
            }),
            why: "was killed by signal 9 (SIGKILL)".into(),
        });
    }

    // The host.

    /// The host dies, and another one takes the session over; `keep`: how many records reached the journal.
    pub fn host_dies_at(&mut self, keep: usize) {
        self.records.truncate(keep);
        self.hosts += 1;
        let state = recovered(&self.records);
        let next_seq = self.records.len() as u64 + 1;
        let (gap_from, lives) = (state.last_record, state.engine_pid.is_some());
        self.queries.clear();
        self.core = Core::new(
            self.facts.clone(),
            format!("host{}", self.hosts),
            state,
            next_seq,
        );
        self.now += SECOND;
        let effects = self.core.open(self.hosts, self.clocks());
        self.take(effects);
        if lives {
            let why = "the host was killed".into();
            let gap = Some(Gap {
                from: gap_from,
                why,
            });
            self.event(Event::Adopted { gap });
        }
    }

    pub fn host_dies(&mut self) {
        self.host_dies_at(self.records.len());
    }

    /// The adopted engine's sockets are connected.
    pub fn adopted_engine_connects(&mut self) {
        let generation = self.core.state().generation;
        self.event(Event::EngineConnected { generation });
    }
}

/// The msg_id of a message.
pub fn id(message: &Message) -> String {
    message.header().unwrap().msg_id.into_owned()
}
