//! The session's state machine: events in, effects out, no waiting, no clock, no randomness.
//!
//! Owns: who asked what, executions and their states, the kernel_info cache, attachments, the busy/idle truth,
//! magics, the engine's lifecycle. Refuses to know: sockets, files, tasks.
//!
//! Invariants: every message to a frontend is an [`Effect::Record`] first (append before publish); each request
//! that expects a reply gets exactly one, and is in the journal as pending until then, so that the next host knows of
//! it; all durable state changes through [`State::apply`], on records; nothing follows the session's end.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde_json::{Value, json};

use super::adoption::Adoption;
use super::clock::{Clock, Now};
use super::continuity::Continuity;
use super::event::{Effect, Event};
use super::ids::Ids;
use super::retirement::Retiring;
use super::state::{Asked, State, Told};
use super::subshells::Presence;
use super::waiting::{Outbox, Unstarted};
use crate::journal::record::{
    Body, ClientId, ExecutionNumber, ExecutionState, Micros, Note, Record,
};
use crate::settings::Config;
use crate::wire::message::HeaderFields;
use crate::wire::{Channel, Message};

/// What never changes in a session.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Session id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Kernelspec name of the engine.
    pub engine: String,
    /// How the engine wants to be interrupted: `interrupt_request`, or else SIGINT.
    pub interrupt_by_message: bool,
    /// The one `header.session` of all that frontends get.
    pub session_id: String,
    /// farside's version.
    pub version: String,
    /// The session before this one, where a person should hear what became of it.
    pub predecessor: Option<Predecessor>,
    /// Settings that differ from their defaults, by key.
    pub settings: BTreeMap<String, String>,
    /// Which boot of the machine this is.
    pub boot: String,
    /// The host before this one could not keep what it took in at last: the journal could not be written.
    pub unkept: bool,
}

/// A session that has ended, in the eyes of the one that came after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// Its id.
    pub id: String,
    /// Whether it was of the same notebook; else only the same frontend had it.
    pub of_notebook: bool,
    /// How many executions it had: the number of the last one.
    pub executions: ExecutionNumber,
    /// When it ended; of a lost one, when it was last heard of.
    pub ended_at: Micros,
    /// Whether nobody saw its end.
    pub lost: bool,
    /// Why it ended.
    pub reason: String,
}

/// Where the engine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Engine {
    /// None was started, or it could not be; requests start one.
    Absent {
        /// Why, where one should be there.
        why: Option<String>,
    },
    /// Its process or its sockets are not there yet; what is for it waits in the outbox.
    Starting,
    /// Its sockets are connected, but whether its iopub is heard is not known yet: it was asked something.
    Probing,
    /// It gets what is sent.
    Connected,
    /// It was told to end.
    Stopping(Then),
}

/// What comes after the engine has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Then {
    /// A new one.
    Restart,
    /// The end of the session, for this reason.
    End(String),
}

/// Whom a look-up was for.
#[derive(Debug)]
pub(super) enum Lookup {
    /// Attach this request.
    Attach(Asked),
    /// Print the executions for this magic.
    History(Asked),
    /// Answer this farside_list_request.
    List(Asked),
}

impl Lookup {
    pub(super) fn asked(&self) -> &Asked {
        let (Self::Attach(asked) | Self::History(asked) | Self::List(asked)) = self;
        asked
    }
}

/// How often a journal that cannot be written is tried.
const JOURNAL_RETRY: Micros = 1_000_000;

/// What a reader must know is remembered, to be said again should it not have been kept: while the journal cannot be
/// written, and until it is known whether it can.
const VITAL_KEPT: Micros = 10_000_000;

/// But not more of it.
const VITAL_MAX: usize = 4096;

/// A client whose host died sends again what was not acknowledged within this, with time to spare.
const COME_BACK: Micros = 30_000_000;

/// See the module.
#[derive(Debug)]
pub struct Core {
    pub(super) facts: Facts,
    pub(super) state: State,
    pub(super) engine: Engine,
    /// Wall time of the event that is handled.
    pub(super) now: Micros,
    /// And the other clocks.
    pub(super) clocks: Now,
    /// What the last host knew of them.
    pub(super) clock_before: Option<Clock>,
    /// The settings that hold.
    pub(super) limits: Config,
    /// The steps of the end, once it has begun.
    pub(super) retiring: Option<Retiring>,
    /// As last sampled; the journal has coarser figures.
    pub(super) cpu_now: Micros,
    pub(super) memory_bytes: u64,
    pub(super) gpu_memory_bytes: Option<u64>,
    pub(super) ids: Ids,
    next_seq: u64,
    effects: Vec<Effect>,
    pub(super) unstarted: Unstarted,
    pub(super) outbox: Outbox,
    /// Our own requests to the engine: what belongs to them goes to no frontend.
    pub(super) probes: HashSet<String>,
    /// The engine whose kernel_info the driver knows.
    pub(super) told_kernel_info: Option<u32>,
    /// Executions that were live at an adoption: the probe's end is theirs.
    pub(super) adopted: Option<Adoption>,
    /// Whether all that the engine says arrives.
    pub(super) continuity: Continuity,
    /// Whether those who use the engine's subshells are there.
    pub(super) presence: Presence,
    pub(super) lookups: HashMap<u64, Lookup>,
    /// Commands to restart, which are answered when the new engine is there.
    pub(super) restarts: Vec<(u64, ClientId)>,
    /// Commands that are answered when what they interrupted is over.
    pub(super) interrupts: Vec<(u64, ClientId, ExecutionNumber)>,
    next_lookup: u64,
    /// When to ask an engine that has replied and not said idle, on the awake clock.
    pub(super) idle_due: Option<Micros>,
    /// The journal cannot be written; when to try again, on the awake clock.
    pub(super) journal_retry: Option<Micros>,
    /// See [`Self::note_vital`]: the last ones, and when they were noted.
    vital: VecDeque<(Micros, Note)>,
    /// Of this host, by the clock that stands still while the machine sleeps.
    opened_at: Micros,
}

impl Core {
    /// A core that goes on from `state` (the default one: a new session). `next_seq`: of its first record;
    /// `nonce`: unique to this host.
    pub fn new(facts: Facts, nonce: String, state: State, next_seq: u64) -> Self {
        let engine = match state.generation {
            0 => Engine::Absent { why: None },
            _ if state.engine_pid.is_some() => Engine::Starting,
            _ if state.restarting => Engine::Absent { why: None },
            _ => Engine::Absent {
                why: Some("the engine had ended".into()),
            },
        };
        Self {
            limits: Self::merged(&facts, &state),
            continuity: Continuity::after(&state.said, state.last_record),
            facts,
            state,
            engine,
            now: 0,
            clocks: Now::from(0),
            clock_before: None,
            retiring: None,
            cpu_now: 0,
            memory_bytes: 0,
            gpu_memory_bytes: None,
            ids: Ids::new(nonce),
            next_seq,
            effects: Vec::new(),
            unstarted: Unstarted::default(),
            outbox: Outbox::default(),
            probes: HashSet::new(),
            told_kernel_info: None,
            adopted: None,
            presence: Presence::default(),
            lookups: HashMap::new(),
            restarts: Vec::new(),
            interrupts: Vec::new(),
            next_lookup: 0,
            idle_due: None,
            journal_retry: None,
            vital: VecDeque::new(),
            opened_at: 0,
        }
    }

    /// Takes one event in; the effects are to be carried out in order.
    pub fn handle(&mut self, event: Event, now: impl Into<Now>) -> Vec<Effect> {
        self.set_clocks(now.into());
        if self.state.ended.is_some() {
            self.after_the_end(event);
            return std::mem::take(&mut self.effects);
        }
        self.compare_clocks(self.clocks);
        match event {
            Event::ClientAttached { client, kind, pid } => {
                self.note(Note::ClientAttached { client, kind, pid });
                self.look_for_users();
            }
            Event::ClientDetached { client, why } => {
                if self.state.clients.contains_key(&client) {
                    self.end_attachments_of(client);
                    self.note(Note::ClientDetached { client, why });
                    self.frontends_left(client);
                }
            }
            Event::Frontends { client, identities } => self.on_frontends(client, identities),
            Event::Request {
                client,
                channel,
                message,
                again,
            } => {
                let header = message.header.clone();
                if again && self.state.has_seen(&Asked::new(client, channel, &message)) {
                    tracing::debug!("a request that was here before; ignored");
                } else if again && self.may_have_been_taken() {
                    self.refuse_unkept(client, channel, message);
                } else {
                    self.on_request(client, channel, message);
                }
                self.heard_from(&header);
            }
            Event::EngineStarted {
                generation,
                pid,
                start_time,
            } => {
                self.note(Note::EngineStarted {
                    generation,
                    pid,
                    start_time,
                });
            }
            Event::EngineConnected { generation } => self.on_engine_connected(generation),
            Event::EngineWasDeaf { generation } => {
                if generation == self.state.generation && self.adopted.is_some() {
                    self.probe();
                }
            }
            Event::EngineMessage {
                channel,
                message,
                heard,
            } => self.on_engine_message(channel, message, heard),
            Event::EngineEnded {
                generation,
                end,
                why,
            } => self.on_engine_ended(generation, end, why),
            Event::EngineFailed { generation, why } => self.on_engine_failed(generation, why),
            Event::Adopted { gap } => self.on_adopted(gap),
            Event::Answer { id, answer } => self.on_answer(id, answer),
            Event::Command {
                id,
                client,
                command,
            } => self.on_command(id, client, command),
            Event::Tick => self.on_tick(self.clocks),
            Event::Usage(usage) => self.on_usage(usage),
            Event::Health {
                generation,
                responsive,
            } => {
                if generation == self.state.generation {
                    self.on_health(responsive);
                }
            }
            Event::HookEnded { outcome } => self.on_hook_ended(&outcome),
            Event::EngineSignalled { signal } => self.on_engine_signalled(signal),
            Event::JournalFailed { for_good, why } => self.on_journal_failed(&why, for_good),
            Event::JournalHealed { from } => {
                self.journal_retry = None;
                let why = "the journal could not be written".into();
                self.note(Note::Gap {
                    from,
                    until: self.now,
                    why,
                    said: false,
                });
                self.note_vital_again(from);
                // A host that comes after us must not go on from what the journal had before.
                self.note_checkpoint();
            }
        }
        self.tell_of_losses(false);
        self.go_on_retiring();
        self.tell_kernel_info();
        std::mem::take(&mut self.effects)
    }

    /// Nothing follows the session's end, but who asks on the command line gets an answer.
    fn after_the_end(&mut self, event: Event) {
        if let Event::Command { id, client, .. } = event {
            let answer = json!({ "ok": false, "error": "the session has ended" });
            self.effect(Effect::Reply { id, client, answer });
        }
    }

    /// The first records of a host: of a session that begins here, and of every host.
    pub fn open(&mut self, pid: u32, now: impl Into<Now>) -> Vec<Effect> {
        self.set_clocks(now.into());
        self.opened_at = self.clocks.awake;
        if self.next_seq == 1 {
            let Facts {
                id, name, engine, ..
            } = self.facts.clone();
            self.note(Note::SessionStarted { id, name, engine });
        }
        let version = self.facts.version.clone();
        self.note(Note::HostStarted { pid, version });
        self.clock_before = self.state.lifetime.clock.clone();
        self.compare_clocks(self.clocks);
        self.take_over();
        self.resume_ending();
        self.resume_restart();
        self.look_for_users();
        if self.state.generation == 0 {
            self.start_engine();
        }
        self.tell_kernel_info();
        std::mem::take(&mut self.effects)
    }

    /// The state as a record that recovery can begin at.
    pub fn checkpoint(&mut self, now: impl Into<Now>) -> Vec<Effect> {
        self.set_clocks(now.into());
        if self.state.ended.is_none() {
            self.note_checkpoint();
        }
        std::mem::take(&mut self.effects)
    }

    fn set_clocks(&mut self, now: Now) {
        self.clocks = now;
        self.now = now.wall;
    }

    fn note_checkpoint(&mut self) {
        // Serializing our own maps of strings and numbers cannot fail.
        let mut state = serde_json::to_value(&self.state).unwrap_or(Value::Null);
        // It is a record itself.
        state["last_record"] = self.now.into();
        self.note(Note::Checkpoint { state });
    }

    /// What the records say.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The session's state, in the contract's words.
    pub fn session_state(&self) -> &'static str {
        if self.state.ended.is_some() {
            return "ended";
        }
        if self
            .state
            .live
            .values()
            .any(|execution| execution.state == ExecutionState::WaitingInput)
        {
            return "waiting_input";
        }
        if !self.state.live.is_empty() {
            return "busy";
        }
        match self.engine {
            Engine::Starting if self.state.info.is_none() => "starting",
            Engine::Absent { why: None } => "starting",
            _ => "idle",
        }
    }

    /// Whether the engine was asked for a sign of life and none came yet; `EngineConnected` is to be said again after
    /// a while, for the first answer may have come before our subscription. Or it was not asked yet: an engine that
    /// binds its sockets within a millisecond is connected before its keeper's word that it was started has come.
    pub fn awaits_engine(&self) -> bool {
        matches!(self.engine, Engine::Starting | Engine::Probing) || self.adopted.is_some()
    }

    /// Whether the engine has said that it works on something, and not that it is done.
    pub fn engine_says_busy(&self) -> bool {
        (self.state.live.values()).any(|execution| execution.told == Told::Busy)
            || self.state.busy.iter().any(|busy| busy.client.is_none())
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Numbers a record, folds it into the state and hands it to the driver.
    pub(super) fn emit(&mut self, body: Body) {
        self.emit_heard(0, body);
    }

    /// The same of a message of the engine, which ended there in its stream.
    pub(super) fn emit_heard(&mut self, heard: u32, body: Body) {
        let record = Record {
            seq: self.next_seq,
            time: self.now,
            heard,
            body,
        };
        self.next_seq += 1;
        self.state.apply(&record);
        self.effects.push(Effect::Record(record));
    }

    pub(super) fn note(&mut self, note: Note) {
        self.emit(Body::Note(note));
    }

    /// Whether somebody ends the session, so that whoever comes now is for the next one.
    pub fn is_being_stopped(&self) -> bool {
        let ending = self.state.lifetime.ending.as_ref();
        ending.is_some_and(|ending| !ending.retire)
    }

    /// Of requests that wait for an engine to be there.
    pub fn waiting_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(super) fn execution_state(
        &mut self,
        n: ExecutionNumber,
        state: ExecutionState,
        reason: Option<String>,
    ) {
        self.unstarted.remove(n);
        let msg_id = self
            .state
            .live
            .get(&n)
            .map(|execution| execution.msg_id.clone())
            .unwrap_or_default();
        let end = Note::Execution {
            n,
            msg_id,
            state,
            reason,
        };
        if state.is_final() {
            self.note_vital(end);
        } else {
            self.note(end);
        }
    }

    /// A note that a reader of the journal must find there: that an execution is over, that something is missing.
    pub(super) fn note_vital(&mut self, note: Note) {
        let old = self.now.saturating_sub(VITAL_KEPT);
        let may_go = |at: Micros| self.journal_retry.is_none() && at < old;
        while self.vital.len() >= VITAL_MAX || self.vital.front().is_some_and(|(at, _)| may_go(*at))
        {
            self.vital.pop_front();
        }
        self.vital.push_back((self.now, note.clone()));
        self.note(note);
    }

    /// And once more, should that not be kept either: a disk that has some room is soon full again.
    fn note_vital_again(&mut self, since: Micros) {
        for (at, note) in std::mem::take(&mut self.vital) {
            if at >= since {
                self.note_vital(note);
            }
        }
    }

    /// Whether a request that comes again may have been taken by a host that could not keep it: then nobody knows what
    /// became of it, and it must not run twice.
    fn may_have_been_taken(&self) -> bool {
        let until = self.opened_at.saturating_add(COME_BACK);
        self.facts.unkept && self.clocks.awake < until
    }

    fn refuse_unkept(&mut self, client: ClientId, channel: Channel, message: Message) {
        let is_request = |header: crate::wire::Header<'_>| {
            header.msg_type.ends_with("_request") && header.msg_type != "kernel_info_request"
        };
        if !message.header().is_ok_and(is_request) {
            self.on_request(client, channel, message);
            return;
        }
        let asked = self.wait(client, channel, message);
        let why = "the journal could not be written, and the process that kept this session was replaced meanwhile: \
                   whether this was begun is not known. Look, and run it again if it was not";
        self.refuse_with(&asked, "HostReplaced", why);
    }

    /// A message of our own.
    pub(super) fn message(&mut self, msg_type: &str, parent: &str, content: &Value) -> Message {
        let msg_id = self.ids.fresh();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type,
            session_id: &self.facts.session_id,
            username: "farside",
            date: self.now,
        };
        Message::new(
            &header,
            &bytes::Bytes::copy_from_slice(parent.as_bytes()),
            content,
        )
    }

    /// Asks the engine something. What it says to that, nobody is to hear. Gives the request's msg_id.
    pub(super) fn ask_for_nobody(
        &mut self,
        channel: Channel,
        msg_type: &str,
        content: &Value,
    ) -> String {
        let request = self.message(msg_type, "{}", content);
        let header = request.header().expect("of our own making");
        let msg_id = header.msg_id.into_owned();
        self.probes.insert(msg_id.clone());
        self.ask_engine(channel, request);
        msg_id
    }

    /// Publishes a message of our own; to all, or to one client's subscribers.
    pub(super) fn publish(
        &mut self,
        client: Option<ClientId>,
        execution: ExecutionNumber,
        msg_type: &str,
        parent: &str,
        content: &Value,
    ) {
        let message = self.message(msg_type, parent, content);
        self.emit(Body::Iopub {
            client,
            execution,
            message,
        });
    }

    pub(super) fn status(&mut self, asked: &Asked, execution_state: &str) {
        let content = json!({ "execution_state": execution_state });
        self.publish(Some(asked.client), 0, "status", &asked.header, &content);
    }

    /// Sends a reply of our own to who asked.
    pub(super) fn reply(
        &mut self,
        asked: &Asked,
        execution: ExecutionNumber,
        msg_type: &str,
        content: &Value,
    ) {
        let mut message = self.message(msg_type, &asked.header, content);
        message.identities = asked
            .identities
            .iter()
            .map(|identity| identity.clone().into())
            .collect();
        self.emit(Body::Reply {
            channel: asked.channel,
            client: asked.client,
            execution,
            message,
        });
    }

    /// The end of an answer given by farside: idle for the request, and, where the engine works, the running
    /// execution's busy after it. Frontends keep one status for the whole kernel: without the second one the idle
    /// of a `%farside status` would show a busy engine as idle.
    pub(super) fn answered(&mut self, asked: &Asked) {
        self.status(asked, "idle");
        self.still_busy(Some(asked.client));
    }

    /// Tells a client, or all, that the engine works, if it does.
    pub(super) fn still_busy(&mut self, client: Option<ClientId>) {
        if let Some((_, execution)) = self.state.running()
            && execution.told != Told::Idle
        {
            let header = execution.asked.header.clone();
            self.publish(
                client,
                0,
                "status",
                &header,
                &json!({ "execution_state": "busy" }),
            );
        }
    }

    pub(super) fn lookup(&mut self, lookup: Lookup, query: super::event::Query) {
        self.next_lookup += 1;
        self.lookups.insert(self.next_lookup, lookup);
        let id = self.next_lookup;
        self.effect(Effect::Query(id, query));
    }

    /// Until it can be written again, nobody who comes later knows that something is missing; so one does not wait for
    /// the next thing that happens by itself.
    pub(super) fn retry_journal(&mut self) {
        if self.journal_retry.is_none_or(|at| at > self.clocks.awake) {
            return;
        }
        self.journal_retry = Some(self.clocks.awake.saturating_add(JOURNAL_RETRY));
        // Small, and true whenever it is said.
        self.note_clock();
    }

    fn on_journal_failed(&mut self, why: &str, for_good: bool) {
        if self.journal_retry.is_some() {
            return;
        }
        let until = match for_good {
            true => {
                "any more, and with the last frontend that leaves the session ends, with all its variables: save what you need"
            }
            false => "until there is room again",
        };
        self.journal_retry = Some(self.clocks.awake.saturating_add(JOURNAL_RETRY));
        let text = format!(
            "[farside] the journal cannot be written: {why}. Output goes on to attached frontends, but is not kept \
             {until}.\n"
        );
        let parent = self
            .state
            .running()
            .map(|(n, execution)| (n, execution.asked.header.clone()));
        let (n, header) = parent.unwrap_or((0, "{}".into()));
        self.publish(
            None,
            n,
            "stream",
            &header,
            &json!({ "name": "stderr", "text": text }),
        );
    }
}
