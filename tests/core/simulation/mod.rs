//! Random sessions: frontends whose links break and come back, an engine like ipykernel that floods at times, deaths of
//! engine and host, a journal that fails. What must hold is checked at every step ([`watch`]) and when all has come to
//! rest ([`checks`]). The host's turns are the driver's own ([`farside::session::turn`]): several events may make up one,
//! and the host may die anywhere in it.
//!
//! A failure prints its seed: `FARSIDE_SEED=17 cargo test --test core simulation -- --nocapture` runs that one alone and
//! prints what happened. `FARSIDE_SEEDS=100000` runs more of them (`make simulate`).

mod checks;
mod engine;
mod frontends;
mod host;
mod subshells;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use farside::journal::record::{Body, ClientId, Note, Record};
use farside::session::clock::Now;
use farside::session::core::{Core, Facts};
use farside::session::event::{Command, Event, Query, Usage};
use farside::session::state::State;
use farside::session::turn::Turn;
use farside::wire::{Channel, Message};
use serde_json::json;

use crate::bench::{Frontend, answer, facts, id, line};
use watch::Watch;

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

/// Of a session that may retire within the simulated time, or may not; with hooks or without.
fn random_facts(rng: &mut Rng) -> Facts {
    let by_message = rng.one_in(2);
    let mut settings = BTreeMap::from([("subshell_timeout".to_owned(), "10m".to_owned())]);
    for (key, value) in [
        ("idle_timeout", "30m"),
        ("max_lifetime", "2h"),
        ("cpu_budget", "2m"),
        ("before_retire_code", "hook()"),
        ("before_retire", "hook"),
        ("notify", "tell"),
    ] {
        if rng.one_in(3) {
            settings.insert(key.to_owned(), value.to_owned());
        }
    }
    Facts {
        settings,
        ..facts(by_message)
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
    subshells: BTreeSet<String>,
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
    /// Its link is whole.
    linked: bool,
    number: u64,
    /// Requests whose acknowledgement has not come (it can be lost with link or host): they are sent again.
    unacknowledged: Vec<(Channel, Message)>,
    answered_questions: HashSet<String>,
    /// It is of a farside that tells of its frontends' sockets; and whether its one is connected, as it told.
    tells: bool,
    connected: bool,
    /// When that was so last.
    last_there: u64,
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
    facts: Facts,
    turn: Turn,
    /// More is to come before the turn is carried out; or it is being carried out.
    holds: bool,
    /// What is told of a healed journal is not all written yet.
    healing: bool,
    /// The engine has ended in this turn.
    engine_ended: bool,
    watch: Watch,
    hosts: u32,
    /// What readers saw, without holes.
    published: Vec<Record>,
    /// What the journal has.
    persisted: Vec<Record>,
    failing: bool,
    failure_was_told: bool,
    /// The requests in the journal: header and identities.
    recorded: HashSet<(Bytes, Vec<Bytes>)>,
    /// The msg_ids of those: what may go to the engine.
    sendable: HashSet<String>,
    engine: Option<Engine>,
    to_spawn: Option<u32>,
    queries: Vec<(u64, Query)>,
    clients: Vec<Client>,
    asked: Vec<Asked>,
    asked_twice: HashSet<Bytes>,
    engine_messages: u64,
    /// Subshells that frontends know of, and which of them have used each.
    subshells: BTreeMap<String, BTreeSet<usize>>,
    /// Those that farside has deleted, as its host knows.
    deleted_subshells: BTreeSet<String>,
    /// By the core, though the reply may not be in the journal yet: msg_id and type of the request.
    answered: BTreeSet<(String, String)>,
    over: bool,
    engine_died: bool,
    host_died: bool,
    hook_runs: bool,
    /// Time passes quickly: it is about the session's end.
    hasty: bool,
    /// It is about subshells.
    beside: bool,
    calm: bool,
}

impl Simulation {
    fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng(seed);
        let mut facts = random_facts(&mut rng);
        let hasty = rng.one_in(4);
        let beside = rng.one_in(8);
        if beside {
            subshells::stays_for_them(&mut facts);
        }
        Self {
            rng,
            loud,
            now: 1_700_000_000_000_000,
            core: Core::new(facts.clone(), "host1".into(), State::default(), 1),
            facts,
            turn: Turn::default(),
            holds: false,
            healing: false,
            engine_ended: false,
            watch: Watch::default(),
            hosts: 1,
            published: Vec::new(),
            persisted: Vec::new(),
            failing: false,
            failure_was_told: false,
            recorded: HashSet::new(),
            sendable: HashSet::new(),
            engine: None,
            to_spawn: None,
            queries: Vec::new(),
            clients: Vec::new(),
            asked: Vec::new(),
            asked_twice: HashSet::new(),
            engine_messages: 0,
            subshells: BTreeMap::new(),
            deleted_subshells: BTreeSet::new(),
            answered: BTreeSet::new(),
            over: false,
            engine_died: false,
            host_died: false,
            hook_runs: false,
            hasty,
            beside,
            calm: false,
        }
    }

    fn run(&mut self) {
        let effects = self.core.open(1, self.now);
        self.check_kernel_info(&effects);
        self.turn.take(effects);
        self.commit();
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
        self.commit();
        self.come_to_rest();
        self.check_replies();
        self.check_statuses();
        self.check_attachments();
        self.check_ids();
        self.check_subshells();
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.loud {
            println!("{}", what());
        }
    }

    fn step(&mut self) {
        if self.hasty && self.rng.one_in(15) {
            self.time_passes();
            return;
        }
        if self.beside && self.rng.one_in(2) {
            self.something_about_subshells();
            return;
        }
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
            92 if self.rng.one_in(2) => self.comes_or_goes(),
            92 => self.socket_comes_or_goes(),
            93 if self.rng.one_in(6) => self.engine_floods(),
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
                if self.host_may_die() && self.rng.one_in(2) {
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
                self.commit();
                if !self.failing && !self.failure_was_told && !self.over {
                    self.now += 1000;
                    let effects = self.core.checkpoint(self.now);
                    self.turn.take(effects);
                    self.commit();
                }
            }
        }
    }

    /// What has to do with the session's end.
    fn time_passes(&mut self) {
        let generation = self.core.state().generation;
        match self.rng.below(8) {
            0..=2 => {
                let minutes = self.rng.below(60) as u64;
                self.now += minutes * 60_000_000;
                self.event(Event::Tick);
            }
            3 | 4 => {
                if !self.end_goes_on() {
                    self.tick_when_due();
                }
            }
            5 => {
                let cpu = self.core.cpu() + self.rng.below(20_000_000) as u64;
                let memory_bytes = self.rng.below(1 << 30) as u64;
                self.event(Event::Usage(Usage {
                    generation,
                    cpu,
                    memory_bytes,
                    ..Usage::default()
                }));
            }
            6 => {
                let responsive = self.rng.one_in(2);
                self.event(Event::Health {
                    generation,
                    responsive,
                });
            }
            _ => {
                let client = self.clients.first().map(|client| client.frontend.client);
                if let Some(client) = client {
                    let command = Command::Extend { seconds: 600 };
                    self.event(Event::Command {
                        id: 1,
                        client,
                        command,
                    });
                }
            }
        }
    }

    fn tick_when_due(&mut self) {
        if let Some(due) = self.core.next_deadline(Now::from(self.now)) {
            self.now += due;
            self.event(Event::Tick);
        }
    }

    /// A session that has begun to end goes on with it. `false`: there is nothing to be done for that.
    fn end_goes_on(&mut self) -> bool {
        if std::mem::take(&mut self.hook_runs) {
            let outcome = "exit code 0".into();
            self.event(Event::HookEnded { outcome });
            return true;
        }
        let ends = self.core.state().lifetime.ending.is_some();
        let waits = ends && self.core.next_deadline(Now::from(self.now)).is_some();
        if waits {
            self.tick_when_due();
        }
        waits
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
        for at in 0..self.clients.len() {
            if self.clients[at].attached && !self.clients[at].linked {
                self.link_returns(at);
            }
        }
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
            } else if self.engine_is_asked_again() || self.end_goes_on() {
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
        Event::EngineMessage {
            channel, message, ..
        } => format!("engine: {}", line(*channel, message)),
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
