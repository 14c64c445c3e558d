//! Random sessions: frontends, an engine like ipykernel, deaths of engine and host, a journal that fails. What must hold
//! is checked at every step and when all has come to rest.
//!
//! A failure prints its seed: `FARSIDE_SEED=17 cargo test --test core simulation -- --nocapture` runs that one alone and
//! prints what happened. `FARSIDE_SEEDS=100000` runs more of them (`make simulate`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use farside::journal::record::{Body, ClientId, Note, Record};
use farside::session::core::Core;
use farside::session::event::{Command, Effect, Event, Query};
use farside::session::outputs::{Limits, compact};
use farside::session::state::{State, is_idle};
use farside::wire::{Channel, Message};
use serde_json::json;

use crate::bench::{Frontend, answer, content, facts, id, line, message, recovered};

/// Enough for every pair of things to meet somewhere, in a few seconds.
const SEEDS: u64 = 3000;

const STEPS_MAX: usize = 250;

/// Far more than any session needs to come to rest.
const REST_STEPS_MAX: usize = 20_000;

#[test]
fn random_sessions() {
    if let Ok(seed) = std::env::var("FARSIDE_SEED") {
        let seed = seed.parse().expect("FARSIDE_SEED is a number");
        Simulation::new(seed, true).run();
        return;
    }
    let seeds = std::env::var("FARSIDE_SEEDS").map_or(SEEDS, |seeds| {
        seeds.parse().expect("FARSIDE_SEEDS is a number")
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..seeds).step_by(threads as usize) {
                    let run = AssertUnwindSafe(|| Simulation::new(seed, false).run());
                    if let Err(panic) = catch_unwind(run) {
                        eprintln!("the seed was {seed}: FARSIDE_SEED={seed} runs it again");
                        resume_unwind(panic);
                    }
                }
            });
        }
    });
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.below(of.len())])
    }
}

/// The process of an engine.
struct Engine {
    generation: u32,
    connected: bool,
    /// Its PUB socket knows of the subscriber.
    subscribed: bool,
    shell: VecDeque<Message>,
    control: VecDeque<Message>,
    stdin: VecDeque<Message>,
    /// What it has sent, on each socket in order.
    sent: HashMap<Channel, VecDeque<Message>>,
    running: Option<Message>,
    asks: bool,
    interrupted: bool,
    stopping: bool,
    dead: bool,
}

struct Client {
    frontend: Frontend,
    attached: bool,
    number: u64,
    /// The last request: its acknowledgement can be lost with the host.
    last: Option<(Channel, Message)>,
    answered_questions: HashSet<String>,
}

struct Asked {
    client: ClientId,
    channel: Channel,
    request: Message,
}

struct Simulation {
    rng: Rng,
    loud: bool,
    now: u64,
    core: Core,
    by_message: bool,
    hosts: u32,
    /// What readers saw, without holes.
    published: Vec<Record>,
    /// What the journal has.
    persisted: Vec<Record>,
    failing: bool,
    failure_was_told: bool,
    /// Headers of the requests in the journal.
    recorded: HashSet<Bytes>,
    engine: Option<Engine>,
    to_spawn: Option<u32>,
    queries: Vec<(u64, Query)>,
    clients: Vec<Client>,
    asked: Vec<Asked>,
    asked_twice: HashSet<Bytes>,
    engine_messages: u64,
    over: bool,
    engine_died: bool,
    host_died: bool,
    calm: bool,
}

impl Simulation {
    fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng(seed);
        let by_message = rng.one_in(2);
        Self {
            rng,
            loud,
            now: 1_700_000_000_000_000,
            core: Core::new(facts(by_message), "host1".into(), State::default(), 1),
            by_message,
            hosts: 1,
            published: Vec::new(),
            persisted: Vec::new(),
            failing: false,
            failure_was_told: false,
            recorded: HashSet::new(),
            engine: None,
            to_spawn: None,
            queries: Vec::new(),
            clients: Vec::new(),
            asked: Vec::new(),
            asked_twice: HashSet::new(),
            engine_messages: 0,
            over: false,
            engine_died: false,
            host_died: false,
            calm: false,
        }
    }

    fn run(&mut self) {
        let effects = self.core.open(1, self.now);
        self.carry_out(effects);
        // Most of what goes wrong needs few steps; some of it needs many.
        let max = if self.rng.one_in(5) {
            STEPS_MAX
        } else {
            STEPS_MAX / 3
        };
        let steps = 20 + self.rng.below(max);
        for _ in 0..steps {
            if self.over {
                break;
            }
            self.step();
        }
        self.calm = true;
        self.come_to_rest();
        self.check_replies();
        self.check_statuses();
        self.check_attachments();
        self.check_ids();
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.loud {
            println!("{}", what());
        }
    }

    // The host.

    fn event(&mut self, event: Event) {
        if self.over {
            return;
        }
        self.now += 1000;
        self.say(|| format!("-- {}", gist(&event)));
        let effects = self.core.handle(event, self.now);
        if !self.calm && !self.failing && !self.failure_was_told && self.rng.one_in(300) {
            self.host_dies_within(effects);
        } else {
            self.carry_out(effects);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let (records, after): (Vec<_>, Vec<_>) =
            (effects.into_iter()).partition(|effect| matches!(effect, Effect::Record(_)));
        let any = !records.is_empty();
        for effect in records {
            let Effect::Record(record) = effect else {
                continue;
            };
            self.append(record);
        }
        for effect in after {
            self.do_effect(effect);
        }
        if any && self.failing && !self.failure_was_told {
            self.failure_was_told = true;
            let why = "no space".into();
            self.event(Event::JournalFailed { why });
        } else if any && !self.failing && self.failure_was_told {
            self.failure_was_told = false;
            self.event(Event::JournalHealed { from: self.now });
        }
    }

    fn append(&mut self, record: Record) {
        assert_eq!(record.seq, self.published.len() as u64 + 1, "a hole");
        if self.loud {
            println!("{} {}", record.seq, describe(&record));
        }
        if let Body::Request { message, .. } = &record.body {
            self.recorded.insert(message.header.clone());
        }
        if !self.failing {
            self.persisted.push(record.clone());
        }
        self.published.push(record);
    }

    fn do_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) => unreachable!("records come first"),
            Effect::ToEngine(channel, message) => {
                let farsides = matches!(
                    message.header().unwrap().msg_type.as_ref(),
                    "kernel_info_request" | "interrupt_request"
                );
                assert!(
                    farsides || self.recorded.contains(&message.header),
                    "to the engine before it is in the journal"
                );
                let Some(engine) = &mut self.engine else {
                    return;
                };
                assert!(engine.connected, "sent to an engine without sockets");
                match channel {
                    Channel::Shell => engine.shell.push_back(message),
                    Channel::Control => engine.control.push_back(message),
                    Channel::Stdin => engine.stdin.push_back(message),
                    Channel::Iopub => panic!("nobody writes to iopub"),
                }
            }
            Effect::StartEngine { generation } => {
                assert!(
                    self.engine.is_none() && self.to_spawn.is_none(),
                    "two engines"
                );
                self.to_spawn = Some(generation);
            }
            Effect::InterruptEngine => {
                if let Some(engine) = &mut self.engine {
                    engine.interrupted = true;
                }
            }
            Effect::StopEngine { .. } => match &mut self.engine {
                Some(engine) => engine.stopping = true,
                None => panic!("no engine to stop: the session would wait for ever"),
            },
            Effect::Query(id, query) => self.queries.push((id, query)),
            Effect::Reply { .. } => {}
            Effect::End => {
                self.over = true;
                assert!(matches!(
                    self.published.last().unwrap().body,
                    Body::Note(Note::SessionEnded { .. })
                ));
            }
        }
    }

    /// The host is killed while it carries these out.
    fn host_dies_within(&mut self, effects: Vec<Effect>) {
        let records = (effects.iter())
            .filter(|effect| matches!(effect, Effect::Record(_)))
            .count();
        let keep = self.rng.below(records + 1);
        let after = if keep == records {
            self.rng.below(effects.len() - records + 1)
        } else {
            0
        };
        let (records, rest): (Vec<_>, Vec<_>) =
            (effects.into_iter()).partition(|effect| matches!(effect, Effect::Record(_)));
        for effect in records.into_iter().take(keep) {
            let Effect::Record(record) = effect else {
                continue;
            };
            self.append(record);
        }
        for effect in rest.into_iter().take(after) {
            self.do_effect(effect);
        }
        self.replace_host();
    }

    fn host_dies(&mut self) {
        assert_eq!(recovered(&self.persisted), *self.core.state());
        self.replace_host();
    }

    fn replace_host(&mut self) {
        self.say(|| "-- the host dies".into());
        self.host_died = true;
        self.hosts += 1;
        self.queries.clear();
        self.to_spawn = None;
        // What was on its way is lost, and so is what the engine sends while nobody is there.
        if let Some(engine) = &mut self.engine {
            engine.connected = false;
            engine.subscribed = false;
            engine.sent.clear();
            for _ in 0..self.rng.below(6) {
                self.engine_works();
            }
            if self.rng.one_in(6) {
                self.engine_dies();
            }
            if let Some(engine) = &mut self.engine {
                engine.sent.clear();
            }
        }
        let state = recovered(&self.persisted);
        if state.ended.is_some() {
            self.over = true;
            return;
        }
        let lives = (self.engine.as_ref())
            .is_some_and(|engine| !engine.dead && engine.generation == state.generation);
        if !lives || state.engine_pid.is_none() {
            // One that no record tells of is the keeper's to end.
            self.engine = None;
        }
        let (generation, pid, gap_from) = (state.generation, state.engine_pid, state.last_record);
        let known = state.clients.clone();
        self.core = Core::new(
            facts(self.by_message),
            format!("host{}", self.hosts),
            state,
            self.published.len() as u64 + 1,
        );
        self.now += 1_000_000;
        let effects = self.core.open(self.hosts, self.now);
        self.carry_out(effects);
        if pid.is_some() {
            if self.engine.is_some() {
                let why = "the host was killed".into();
                self.event(Event::Adopted { gap_from, why });
            } else {
                self.engine_died = true;
                self.event(Event::EngineEnded {
                    generation,
                    end: None,
                    why: "ended while nobody watched it".into(),
                });
            }
        }
        for at in 0..self.clients.len() {
            let client = self.clients[at].frontend.client;
            match (self.clients[at].attached, known.contains_key(&client)) {
                (true, false) => self.attached(client),
                (false, true) => self.detached(client),
                (true, true) | (false, false) => {}
            }
            if let Some((channel, message)) = self.clients[at].last.clone()
                && self.clients[at].attached
            {
                self.event(Event::Request {
                    client,
                    channel,
                    message,
                    again: true,
                });
            }
        }
    }

    // The engine.

    fn engine_sends(
        &mut self,
        channel: Channel,
        parent: &Bytes,
        msg_type: &str,
        body: serde_json::Value,
    ) {
        self.engine_messages += 1;
        let msg_id = format!("engine-{}", self.engine_messages);
        let message = message(msg_type, &msg_id, "engine", parent, body);
        let Some(engine) = &mut self.engine else {
            return;
        };
        // Nobody listens: it is lost.
        let heard = match channel {
            Channel::Iopub => engine.subscribed,
            Channel::Shell | Channel::Control | Channel::Stdin => engine.connected,
        };
        if heard {
            engine.sent.entry(channel).or_default().push_back(message);
        }
    }

    fn engine_status(&mut self, request: &Message, state: &str) {
        let body = json!({ "execution_state": state });
        self.engine_sends(Channel::Iopub, &request.header, "status", body);
    }

    fn engine_answers(&mut self, channel: Channel, request: &Message, body: serde_json::Value) {
        let reply = (request.header().unwrap().msg_type).replace("_request", "_reply");
        self.engine_sends(channel, &request.header, &reply, body);
    }

    /// One thing that ipykernel might do.
    fn engine_works(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        if engine.dead {
            return;
        }
        if let Some(request) = engine.control.pop_front() {
            self.engine_status(&request, "busy");
            if request.header().unwrap().msg_type == "interrupt_request"
                && let Some(engine) = &mut self.engine
            {
                engine.interrupted = true;
            }
            self.engine_answers(Channel::Control, &request, json!({ "status": "ok" }));
            self.engine_status(&request, "idle");
            return;
        }
        match engine.running.clone() {
            Some(request) => self.engine_runs(&request),
            None => {
                if let Some(request) = engine.shell.pop_front() {
                    self.engine_takes(request);
                }
            }
        }
        let subshell = |request: &Message| request.header().unwrap().subshell_id.is_some();
        if let Some(engine) = &mut self.engine
            && let Some(at) = engine.shell.iter().position(subshell)
            && let Some(request) = engine.shell.remove(at)
        {
            self.engine_takes(request);
        }
    }

    fn engine_takes(&mut self, request: Message) {
        let msg_type = request.header().unwrap().msg_type.into_owned();
        self.engine_status(&request, "busy");
        match msg_type.as_str() {
            "execute_request" => {
                let body = json!({ "code": content(&request)["code"], "execution_count": 1 });
                self.engine_sends(Channel::Iopub, &request.header, "execute_input", body);
                if let Some(engine) = &mut self.engine {
                    engine.interrupted = false;
                    engine.running = Some(request);
                }
                return;
            }
            "comm_msg" => {}
            "kernel_info_request" => {
                let body = json!({ "status": "ok", "implementation": "ipython", "banner": "" });
                self.engine_answers(Channel::Shell, &request, body);
            }
            _ => self.engine_answers(Channel::Shell, &request, json!({ "status": "ok" })),
        }
        self.engine_status(&request, "idle");
    }

    fn engine_runs(&mut self, request: &Message) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        if engine.interrupted {
            engine.interrupted = false;
            self.engine_finishes(request, true);
            return;
        }
        if engine.asks {
            if engine.stdin.pop_front().is_some() {
                engine.asks = false;
            }
            return;
        }
        let choice = if self.calm { 9 } else { self.rng.below(12) };
        match choice {
            0..=3 => {
                let text = *self.rng.pick(&["a", "b\n", "50%\r", "x\n\u{8}y"]).unwrap();
                let name = if self.rng.one_in(3) {
                    "stderr"
                } else {
                    "stdout"
                };
                let body = json!({ "name": name, "text": text });
                self.engine_sends(Channel::Iopub, &request.header, "stream", body);
            }
            4 => {
                let number = self.rng.below(3);
                let body = json!({ "data": { "text/plain": number.to_string() }, "metadata": {},
                    "transient": { "display_id": format!("d{number}") } });
                let msg_type = *self
                    .rng
                    .pick(&["display_data", "update_display_data"])
                    .unwrap();
                self.engine_sends(Channel::Iopub, &request.header, msg_type, body);
            }
            5 => {
                let body = json!({ "wait": self.rng.one_in(2) });
                self.engine_sends(Channel::Iopub, &request.header, "clear_output", body);
            }
            // Which of two with one msg_id asks, nobody can tell.
            6 if !self.asked_twice.contains(&request.header) => {
                if let Some(engine) = &mut self.engine {
                    engine.asks = true;
                }
                let body = json!({ "prompt": "?", "password": false });
                self.engine_sends(Channel::Stdin, &request.header, "input_request", body);
            }
            7 => self.engine_finishes(request, true),
            _ => self.engine_finishes(request, false),
        }
    }

    fn engine_finishes(&mut self, request: &Message, error: bool) {
        let ok = json!({ "status": "ok", "execution_count": 1 });
        let failed = json!({ "status": "error", "ename": "E", "evalue": "", "traceback": [] });
        if error {
            self.engine_sends(Channel::Iopub, &request.header, "error", failed.clone());
        }
        self.engine_answers(Channel::Shell, request, if error { failed } else { ok });
        self.engine_status(request, "idle");
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.running = None;
        engine.asks = false;
        engine.stdin.clear();
        if error {
            let is_execution =
                |request: &Message| request.header().unwrap().msg_type == "execute_request";
            let (aborted, others) = engine.shell.drain(..).partition(is_execution);
            engine.shell = others;
            let aborted: VecDeque<Message> = aborted;
            for request in aborted {
                self.engine_status(&request, "busy");
                self.engine_answers(Channel::Shell, &request, json!({ "status": "aborted" }));
                self.engine_status(&request, "idle");
            }
        }
    }

    /// The process ends; of what it had sent, some has left it.
    fn engine_dies(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.dead = true;
        self.engine_died = true;
        let channels = [
            Channel::Shell,
            Channel::Control,
            Channel::Stdin,
            Channel::Iopub,
        ];
        for channel in channels {
            if let Some(sent) = engine.sent.get_mut(&channel) {
                let keep = self.rng.below(sent.len() + 1);
                sent.truncate(keep);
            }
        }
    }

    /// Hands something of the engine's to the host. `false`: there is nothing.
    fn deliver(&mut self) -> bool {
        let Some(engine) = &mut self.engine else {
            return false;
        };
        let channels = [
            Channel::Shell,
            Channel::Control,
            Channel::Stdin,
            Channel::Iopub,
        ];
        let full: Vec<Channel> = (channels.into_iter())
            .filter(|channel| {
                engine
                    .sent
                    .get(channel)
                    .is_some_and(|sent| !sent.is_empty())
            })
            .collect();
        if let Some(channel) = self.rng.pick(&full).copied() {
            let message = engine
                .sent
                .get_mut(&channel)
                .and_then(VecDeque::pop_front)
                .unwrap();
            self.event(Event::EngineMessage { channel, message });
            return true;
        }
        if !engine.dead {
            return false;
        }
        let generation = engine.generation;
        self.engine = None;
        self.event(Event::EngineEnded {
            generation,
            end: None,
            why: "was killed".into(),
        });
        true
    }

    /// Its next step into life. `false`: it is in it.
    fn engine_grows(&mut self) -> bool {
        if let Some(generation) = self.to_spawn.take() {
            if !self.calm && self.rng.one_in(12) {
                let why = "the engine cannot be started: no such file".into();
                self.event(Event::EngineFailed { generation, why });
                return true;
            }
            self.engine = Some(Engine {
                generation,
                connected: false,
                subscribed: false,
                shell: VecDeque::new(),
                control: VecDeque::new(),
                stdin: VecDeque::new(),
                sent: HashMap::new(),
                running: None,
                asks: false,
                interrupted: false,
                stopping: false,
                dead: false,
            });
            self.event(Event::EngineStarted {
                generation,
                pid: 100 + generation,
                start_time: 1,
            });
            return true;
        }
        let Some(engine) = &mut self.engine else {
            return false;
        };
        if engine.dead {
            return false;
        }
        let generation = engine.generation;
        if !engine.connected {
            engine.connected = true;
            self.event(Event::EngineConnected { generation });
            return true;
        }
        if !engine.subscribed {
            engine.subscribed = true;
            return true;
        }
        if engine.stopping {
            self.engine_dies();
            return true;
        }
        false
    }

    /// The host's timer: the engine has not been heard yet.
    fn engine_is_asked_again(&mut self) -> bool {
        let Some(engine) = &self.engine else {
            return false;
        };
        if engine.dead || !engine.connected || !self.core.awaits_engine() {
            return false;
        }
        let generation = engine.generation;
        self.event(Event::EngineConnected { generation });
        true
    }

    // The frontends.

    fn attach(&mut self) {
        let client = ClientId::from_u128(self.clients.len() as u128 + 1);
        let mut frontend = Frontend::new(client);
        frontend.starts_behind(&self.published);
        self.clients.push(Client {
            frontend,
            attached: true,
            number: 0,
            last: None,
            answered_questions: HashSet::new(),
        });
        self.attached(client);
    }

    fn attached(&mut self, client: ClientId) {
        self.event(Event::ClientAttached {
            client,
            kind: "launcher".into(),
            pid: 1,
        });
    }

    fn detached(&mut self, client: ClientId) {
        let why = "it left".into();
        self.event(Event::ClientDetached { client, why });
    }

    fn a_client(&mut self) -> Option<usize> {
        let attached: Vec<usize> = (self.clients.iter().enumerate())
            .filter(|(_, client)| client.attached)
            .map(|(at, _)| at)
            .collect();
        self.rng.pick(&attached).copied()
    }

    fn send(&mut self, at: usize, channel: Channel, request: Message) {
        let client = self.clients[at].frontend.client;
        self.clients[at].last = Some((channel, request.clone()));
        if request.header().unwrap().msg_type.ends_with("_request") {
            self.asked.push(Asked {
                client,
                channel,
                request: request.clone(),
            });
        }
        self.event(Event::Request {
            client,
            channel,
            message: request,
            again: false,
        });
        if self.rng.one_in(2) {
            // Acknowledged.
            self.clients[at].last = None;
        }
    }

    fn request(&mut self, at: usize, msg_type: &str, body: serde_json::Value) -> Message {
        let client = &mut self.clients[at];
        client.number += 1;
        let msg_id = format!("c{at}-{}", client.number);
        let mut request = message(msg_type, &msg_id, "theirs", &Bytes::new(), body);
        request.identities = vec![Bytes::from(format!("socket {at}"))];
        request
    }

    fn asks_something(&mut self) {
        let Some(at) = self.a_client() else { return };
        let code = format!("{}", self.rng.below(1000));
        match self.rng.below(40) {
            0..=13 => {
                let mut request = self.request(at, "execute_request", json!({ "code": code }));
                if self.rng.one_in(2) {
                    let cell = self.rng.below(3).to_string();
                    request.metadata = json!({ "cellId": cell }).to_string().into();
                }
                self.send(at, Channel::Shell, request.clone());
                if self.rng.one_in(10) {
                    // jupyter_client's clients of one manager count from the same number.
                    request.identities = vec![Bytes::from_static(b"another socket")];
                    self.asked_twice.insert(request.header.clone());
                    self.send(at, Channel::Shell, request);
                }
            }
            14..=16 => {
                let channel = *self.rng.pick(&[Channel::Shell, Channel::Control]).unwrap();
                let request = self.request(at, "kernel_info_request", json!({}));
                self.send(at, channel, request);
            }
            17..=18 => {
                let request = self.request(at, "complete_request", json!({}));
                self.send(at, Channel::Shell, request.clone());
                let mut same = request;
                same.identities = vec![Bytes::from_static(b"another socket")];
                self.send(at, Channel::Shell, same);
            }
            19 => {
                let mut request = self.request(at, "comm_info_request", json!({}));
                let header = String::from_utf8(request.header.to_vec()).unwrap();
                request.header = header.replacen('{', "{\"subshell_id\":\"s\",", 1).into();
                self.send(at, Channel::Shell, request);
            }
            20 => {
                let request = self.request(at, "comm_msg", json!({}));
                self.send(at, Channel::Shell, request);
            }
            21 => {
                let request = self.request(at, "debug_request", json!({}));
                self.send(at, Channel::Control, request);
            }
            22..=27 => {
                let ids: Vec<String> = (self.asked.iter())
                    .map(|asked| id(&asked.request))
                    .collect();
                let wanted = self
                    .rng
                    .pick(&ids)
                    .cloned()
                    .unwrap_or_else(|| "none".into());
                let mut request = self.request(at, "execute_request", json!({ "code": "x" }));
                let metadata = json!({ "farside": { "attach": wanted } });
                request.metadata = metadata.to_string().into();
                self.send(at, Channel::Shell, request);
            }
            28..=33 => {
                let n = self.rng.below(6);
                let attach = format!("%farside attach {n}");
                let magics = [
                    "%farside attach",
                    "%farside status",
                    "%farside history",
                    "%farside x",
                    &attach,
                ];
                let code = *self.rng.pick(&magics).unwrap();
                let request = self.request(at, "execute_request", json!({ "code": code }));
                self.send(at, Channel::Shell, request);
            }
            34 => {
                let request = self.request(at, "farside_list_request", json!({}));
                self.send(at, Channel::Shell, request);
            }
            35..=36 => {
                let request = self.request(at, "interrupt_request", json!({}));
                self.send(at, Channel::Control, request);
            }
            37 => {
                let restart = !self.rng.one_in(8);
                let request = self.request(at, "shutdown_request", json!({ "restart": restart }));
                self.send(at, Channel::Control, request);
            }
            38 => {
                let client = self.clients[at].frontend.client;
                let command = match self.rng.below(12) {
                    0 => Command::Stop {
                        now: self.rng.one_in(2),
                        reason: "stopped".into(),
                    },
                    1..=3 => Command::Restart,
                    _ => Command::Interrupt,
                };
                self.event(Event::Command {
                    id: 1,
                    client,
                    command,
                });
            }
            _ => self.answers_a_question(at),
        }
    }

    fn answers_a_question(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.frontend.read(&self.published);
        let questions: Vec<Message> = (client.frontend.heard.iter())
            .filter(|(channel, _)| *channel == Channel::Stdin)
            .map(|(_, message)| message.clone())
            .filter(|message| !client.answered_questions.contains(&id(message)))
            .collect();
        let Some(question) = self.rng.pick(&questions).cloned() else {
            return;
        };
        self.clients[at].answered_questions.insert(id(&question));
        let mut reply = self.request(at, "input_reply", json!({ "value": "v" }));
        if self.rng.one_in(2) {
            reply.parent_header = question.header;
        }
        self.send(at, Channel::Stdin, reply);
    }

    // Time.

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=27 => self.engine_works(),
            28..=59 => {
                self.deliver();
            }
            60..=66 => {
                if !self.engine_grows() {
                    self.engine_is_asked_again();
                }
            }
            67..=86 => self.asks_something(),
            87..=89 => self.answer_query(),
            90 | 91 => {
                if self.clients.iter().filter(|client| client.attached).count() < 3 {
                    self.attach();
                }
            }
            92 => {
                if let Some(at) = self.a_client()
                    && self.rng.one_in(2)
                {
                    self.clients[at].attached = false;
                    self.detached(self.clients[at].frontend.client);
                }
            }
            93..=95 => {
                if let Some(at) = self.a_client() {
                    self.answers_a_question(at);
                }
            }
            96 => {
                if self.rng.one_in(3) {
                    self.engine_dies();
                }
            }
            97 => {
                if !self.failing && !self.failure_was_told && self.rng.one_in(2) {
                    self.host_dies();
                }
            }
            98 => {
                if self.failing {
                    self.failing = false;
                } else {
                    self.failing = self.rng.one_in(4);
                }
            }
            _ => {
                if !self.failing && !self.failure_was_told {
                    self.now += 1000;
                    let effects = self.core.checkpoint(self.now);
                    self.carry_out(effects);
                }
            }
        }
    }

    fn answer_query(&mut self) {
        if self.queries.is_empty() {
            return;
        }
        let at = self.rng.below(self.queries.len());
        let (query, what) = self.queries.remove(at);
        let answer = answer(&self.published, &what);
        self.event(Event::Answer { id: query, answer });
    }

    fn come_to_rest(&mut self) {
        self.say(|| "-- from here on to rest".into());
        self.failing = false;
        if self.clients.iter().all(|client| !client.attached) {
            self.attach();
        }
        for _ in 0..REST_STEPS_MAX {
            if self.over {
                return;
            }
            let works = self.engine.as_ref().is_some_and(|engine| {
                let waits = engine.asks && engine.stdin.is_empty() && !engine.interrupted;
                !engine.dead
                    && (engine.running.is_some() && !waits
                        || engine.running.is_none() && !engine.shell.is_empty()
                        || !engine.control.is_empty())
            });
            if self.deliver() {
                continue;
            }
            if !self.queries.is_empty() {
                self.answer_query();
            } else if works {
                self.engine_works();
            } else if self.engine_grows() {
                // One step at a time.
            } else if self.engine.as_ref().is_some_and(|engine| engine.asks) {
                self.answers_the_engine();
            } else if self.engine_is_asked_again() {
                // What follows of it comes next.
            } else {
                self.check_rest();
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Somebody answers what the engine waits for; where the question was lost with a host, somebody interrupts.
    fn answers_the_engine(&mut self) {
        let Some(at) = self.a_client() else { return };
        if self.core.state().input.is_some() {
            let reply = self.request(at, "input_reply", json!({ "value": "v" }));
            self.send(at, Channel::Stdin, reply);
        } else {
            assert!(
                self.host_died,
                "the engine waits for input, and nobody knows"
            );
            let request = self.request(at, "interrupt_request", json!({}));
            self.send(at, Channel::Control, request);
        }
    }

    // What must hold.

    fn check_rest(&self) {
        let state = self.core.state();
        assert!(state.live.is_empty(), "open: {:?}", state.live);
        assert!(state.pending.is_empty(), "open: {:?}", state.pending);
        assert!(
            state.attachments.is_empty(),
            "open: {:?}",
            state.attachments
        );
        assert_eq!(state.input, None);
        assert_eq!(self.core.session_state(), "idle");
        if !self.failure_was_told {
            assert_eq!(recovered(&self.persisted), *state);
        }
        let checkpoint = serde_json::to_value(state).unwrap();
        assert_eq!(State::from_checkpoint(&checkpoint).as_ref(), Some(state));
    }

    fn check_replies(&self) {
        let mut replies: HashMap<(ClientId, Channel, Bytes, String), usize> = HashMap::new();
        for record in &self.published {
            if let Body::Reply {
                channel: channel @ (Channel::Shell | Channel::Control),
                client,
                message,
                ..
            } = &record.body
            {
                let socket = message.identities[0].clone();
                let parent = message.parent().unwrap();
                let name = format!("{} {}", parent.msg_type, parent.msg_id);
                *replies
                    .entry((*client, *channel, socket, name))
                    .or_default() += 1;
            }
        }
        let ended = self.core.state().ended.is_some() || self.over;
        for Asked {
            client,
            channel,
            request,
        } in &self.asked
        {
            let header = request.header().unwrap();
            let name = format!("{} {}", header.msg_type, header.msg_id);
            let key = (*client, *channel, request.identities[0].clone(), name);
            let count = replies.remove(&key).unwrap_or(0);
            let attached = (self.clients.iter())
                .any(|other| other.frontend.client == *client && other.attached);
            // One that left did not send again what was lost with the host.
            let lost = !attached && self.host_died;
            assert!(
                count == 1 || count == 0 && (ended || lost),
                "{count} replies to {key:?}"
            );
        }
        assert!(replies.is_empty(), "replies to nothing: {replies:?}");
    }

    /// Busy and idle of each parent, as each client's subscribers see them.
    fn check_statuses(&self) {
        if self.over {
            return;
        }
        let statuses: Vec<(Option<ClientId>, String, bool)> = (self.published.iter())
            .filter_map(|record| match &record.body {
                Body::Iopub {
                    client, message, ..
                } if message.header().unwrap().msg_type == "status" => {
                    let parent = message.parent().unwrap().msg_id.into_owned();
                    Some((*client, parent, !is_idle(&message.content)))
                }
                _ => None,
            })
            .collect();
        for client in &self.clients {
            let mut busy: HashMap<&str, bool> = HashMap::new();
            let mut last = None;
            let own = Some(client.frontend.client);
            for (_, parent, is_busy) in
                (statuses.iter()).filter(|(to, ..)| to.is_none() || *to == own)
            {
                let was_busy = busy.insert(parent, *is_busy);
                assert!(
                    *is_busy || was_busy == Some(true) || self.host_died,
                    "idle of {parent} without busy before it",
                );
                last = Some(*is_busy);
            }
            let open: Vec<_> = busy.iter().filter(|(_, busy)| **busy).collect();
            assert!(open.is_empty(), "busy for ever: {open:?}");
            assert_ne!(last, Some(true), "the last word is busy");
        }
    }

    /// An attached cell shows what the original's would.
    fn check_attachments(&mut self) {
        for at in 0..self.clients.len() {
            let client = &mut self.clients[at];
            client.frontend.read(&self.published);
            let client = &self.clients[at];
            let own = client.frontend.client;
            for (index, record) in self.published.iter().enumerate() {
                let Body::Note(Note::Attach {
                    client, parent, n, ..
                }) = &record.body
                else {
                    continue;
                };
                if *client != own {
                    continue;
                }
                let parent_id =
                    serde_json::from_str::<serde_json::Value>(parent).unwrap()["msg_id"]
                        .as_str()
                        .unwrap()
                        .to_owned();
                let is_end = |record: &Record| {
                    matches!(&record.body, Body::Note(Note::AttachEnded { client, msg_id })
                        if *client == own && *msg_id == parent_id)
                };
                let Some(length) = self.published[index..].iter().position(is_end) else {
                    assert!(self.over, "an attachment without end");
                    continue;
                };
                self.check_attachment(&self.clients[at], *n, &parent_id, index + length);
            }
        }
    }

    fn check_attachment(&self, client: &Client, n: u64, parent: &str, end: usize) {
        let is_output = |message: &&Message| message.header().unwrap().msg_type != "status";
        let original = (self.published[..end].iter()).filter_map(|record| match &record.body {
            Body::Iopub {
                client: None,
                execution,
                message,
            } if *execution == n => Some(message),
            _ => None,
        });
        let original: Vec<&Message> = original.filter(is_output).collect();
        let shown = (client.frontend.heard.iter())
            .filter(|(channel, message)| {
                *channel == Channel::Iopub
                    && message
                        .parent()
                        .is_some_and(|header| header.msg_id == parent)
            })
            .map(|(_, message)| message);
        let shown: Vec<&Message> = shown.filter(is_output).collect();
        let cell = |messages: &[&Message]| -> Vec<(String, Bytes)> {
            compact(messages.iter().copied(), Limits::default(), "")
                .into_iter()
                .map(|output| (output.msg_type.to_string(), output.content))
                .collect()
        };
        assert_eq!(cell(&shown), cell(&original), "{parent} attached to {n}");
        let is_ambiguous = |record: &Record| {
            matches!(&record.body, Body::Request { execution, message, .. }
                if *execution == n && self.asked_twice.contains(&message.header))
        };
        if self.published.iter().any(is_ambiguous) {
            // Where the first one's idle was lost, the input of the second of this msg_id counts as its own.
            return;
        }
        let inputs = |messages: &[&Message]| {
            (messages.iter())
                .filter(|message| message.header().unwrap().msg_type == "execute_input")
                .map(|message| message.content.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(inputs(&shown), inputs(&original));
    }

    /// No frontend gets two messages of one id, and all carry the one session.
    fn check_ids(&self) {
        for client in &self.clients {
            let mut ids = HashSet::new();
            for (channel, message) in &client.frontend.heard {
                assert!(
                    ids.insert(id(message)),
                    "twice: {}",
                    line(*channel, message)
                );
                assert_eq!(
                    message.header().unwrap().session_id,
                    crate::bench::SESSION_ID
                );
            }
        }
    }
}

fn gist(event: &Event) -> String {
    match event {
        Event::Request {
            channel,
            message,
            again,
            ..
        } => {
            let header = message.header().unwrap();
            let again = if *again { " again" } else { "" };
            format!(
                "{} {} {}{again}",
                channel.name(),
                header.msg_type,
                header.msg_id
            )
        }
        Event::EngineMessage { channel, message } => format!("engine: {}", line(*channel, message)),
        other => format!("{other:?}"),
    }
}

fn describe(record: &Record) -> String {
    match &record.body {
        Body::Request {
            message, execution, ..
        } => format!("request {execution} {}", id(message)),
        Body::Reply {
            channel, message, ..
        } => format!("reply {}", line(*channel, message)),
        Body::Iopub {
            client,
            execution,
            message,
        } => {
            let to = client.map_or("all".into(), |client| client.as_u128().to_string());
            format!(
                "iopub to {to} of {execution}: {}",
                line(Channel::Iopub, message)
            )
        }
        Body::Note(Note::Checkpoint { .. }) => "checkpoint".into(),
        Body::Note(note) => format!("{note:?}"),
    }
}
