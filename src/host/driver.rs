//! The host's loop: takes in what happens, lets the core decide, and carries its effects out in order.
//!
//! Each turn takes all that has come, appends the records of all of it in one write, shows them to the readers, and
//! only then sends to the engine and to clients.

mod attachments;
mod folders;
mod replacement;
mod showing;
mod takeover;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::attachments::Attached;
use self::folders::Accepting;
use self::replacement::Replacement;
use self::showing::{Named, Shape};
use super::acks::Acks;
use super::alarm::Alarm;
use super::clients::{Opening, StreamId};
use super::clocks;
use super::compaction::{self, Compaction};
use super::digest::Digester;
use super::elsewhere;
use super::engine::{EngineDriver, EngineInput, TransportChoice, WAITING_BYTES_MAX};
use super::ground::Ground;
use super::held::Kept;
use super::hook::Hooks;
use super::inbox::{self, Inbox, Queued};
use super::log::{Appended, Log, is_large};
use super::lookup::Lookups;
use super::notify::Notifier;
use super::status_file::StatusFile;
use super::usage::Sampler;
use crate::config::Durability;
use crate::journal::record::ClientId;
use crate::journal::{Writer, WriterOptions};
use crate::keeper::{Client as Keeper, FromKeeper, HostArgs, Process, ToKeeper};
use crate::link::Frame;
use crate::process;
use crate::session::core::{Core, Facts};
use crate::session::event::{Command, Effect, Event};
use crate::session::state::State;
use crate::session::turn::{Todo, Turn};
use crate::state_dir::{HostLock, Session, now};
use crate::wire::message::HeaderFields;
use crate::wire::{Channel, Message};

/// How many inputs one turn takes: enough to write a flood in few writes, few enough to answer in between.
const TURN_INPUTS_MAX: usize = 512;

/// And how many bytes, about. Readers get their turn behind it: it must be less than what stays in memory
/// (`TAIL_BYTES_MAX`, log.rs), or a flood would send all of them to the files. But where CPU time is short they get as
/// much of this thread as turns do, and the engine's own queue must not overrun meanwhile: so it is not far less.
const TURN_BYTES_MAX: usize = 3 << 20;

/// The longest wait for a deadline. The system's timers stand still while the machine sleeps, and a lifetime does not:
/// after waking up it is looked at within this.
const TICK_EVERY: Duration = Duration::from_secs(30);

/// A tick comes a little after its deadline rather than a little before, when it would be too early.
const TICK_LATE: Duration = Duration::from_millis(1);

/// How often a host that is to be replaced looks whether it can go.
const LEAVE_LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the clients' last frames may take when the session has ended.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What comes into the driver's inbox.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    Iopub {
        generation: u32,
        /// Each with its end in the stream.
        messages: Vec<(Message, u32)>,
        kept: Option<Kept>,
    },
    Engine(EngineInput),
    Open(Opening),
    Closed {
        client: ClientId,
        stream: StreamId,
    },
    Request {
        client: ClientId,
        stream: StreamId,
        number: u64,
        channel: Channel,
        message: Message,
        again: bool,
    },
    Command {
        client: ClientId,
        stream: StreamId,
        id: u64,
        command: Command,
    },
    /// A client that had left for a moment should be back.
    Expected {
        client: ClientId,
    },
    /// The process that a client lives for is gone.
    Orphaned {
        client: ClientId,
    },
    /// Something in the session's folders was deleted.
    Deleted,
}

struct Driver {
    session: Session,
    status_file: StatusFile,
    core: Core,
    log: Log,
    lookups: Lookups,
    compaction: Compaction,
    durability: Durability,
    /// That of the last append.
    segment: Option<u32>,
    digester: Digester,
    keeper: Keeper,
    engine: EngineDriver,
    hooks: Hooks,
    notifier: Notifier,
    usage: Sampler,
    keeper_process: Option<Named>,
    inbox: Inbox<Input>,
    clients: HashMap<ClientId, Attached>,
    streams: HashMap<StreamId, mpsc::UnboundedSender<Frame>>,
    next_stream: StreamId,
    turn: Turn,
    acks: Acks,
    /// What was read from the engine for this turn.
    kept: Vec<Kept>,
    /// Streams that wait for the answer to their command.
    commands: HashMap<u64, (StreamId, u64)>,
    next_command: u64,
    status_due: Option<Instant>,
    /// When a change is to be there that people look at.
    show_due: Option<Instant>,
    /// What status.json says of the session, and since when.
    shown: (Shape, Instant),
    /// This very process.
    process: Named,
    connection_file: Option<String>,
    accepting: Accepting,
    /// The session's folder was deleted: it ends when the last client has left.
    homeless: bool,
    /// Another program is to go on with the session.
    replacement: Replacement,
    over: bool,
}

/// How a host has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// With its session.
    Ended,
    /// For the next one.
    Replaced,
}

/// Runs the session until it ends, or another host is to go on with it.
pub(super) async fn run(
    session: Session,
    lock: HostLock,
    args: HostArgs,
) -> Result<Over, Box<dyn std::error::Error>> {
    let settings = crate::config::Flags::from_pairs(&session.json.settings);
    let loaded = crate::config::Config::load_for_host(&settings)?;
    for warning in &loaded.warnings {
        tracing::warn!("settings: {warning}");
    }
    let config = loaded.config.clone();
    session.dir.ensure_sockets_dir()?;
    let options = WriterOptions {
        segment_bytes: compaction::segment_bytes(config.journal_bytes_max),
        sync: match config.durability {
            Durability::Process => false,
            Durability::Power => true,
        },
    };
    let (writer, recovered) = Writer::open(&session.dir.journal(), options)?;
    if options.sync
        && let Err(error) = session.dir.sync()
    {
        tracing::warn!(%error, "the session's folder may not outlive a power cut");
    }
    let mut state = recovered
        .checkpoint
        .as_ref()
        .and_then(State::from_checkpoint)
        .unwrap_or_default();
    for record in &recovered.after {
        state.apply(&record.record);
    }
    let (inbox, mut receiver) = Inbox::new();
    let keeper = Keeper::new(args)?;
    let transport = match config.engine_transport {
        crate::config::EngineTransport::Auto => TransportChoice::Auto,
        crate::config::EngineTransport::Ipc => TransportChoice::Ipc,
        crate::config::EngineTransport::Tcp => TransportChoice::Tcp,
    };
    let facts = Facts {
        id: session.json.id.clone(),
        name: session.json.name.clone(),
        engine: session.json.engine.clone(),
        interrupt_by_message: session.json.interrupt_by_message,
        session_id: session.json.header_session(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        predecessor: elsewhere::predecessor(&session),
        settings: loaded
            .values
            .into_iter()
            .map(|value| (value.key.to_owned(), value.value))
            .collect(),
        boot: clocks::boot_id(),
        unkept: recovered.unkept_since.is_some(),
    };
    let nonce = format!("{}-{}", facts.session_id, uuid::Uuid::new_v4().simple());
    let journal_dir = session.dir.journal();
    let known = state.lifetime.used.cpu;
    let usage = Sampler::start(inbox.clone(), session.dir.root(), state.generation, known);
    let log = Log::new(
        writer,
        &journal_dir,
        recovered.next_seq - 1,
        recovered.unkept_since,
    );
    let first_live = state
        .live
        .values()
        .map(|execution| execution.first_seq)
        .min();
    let first_live = first_live.unwrap_or(recovered.next_seq);
    let lookups = Lookups::start(&session, inbox.clone(), log.last_seq())?;
    let replacer = lookups.replacer(log.tail());
    let digester = Digester::start(&session.json.id, log.tail(), first_live)?;
    let bound = config.journal_bytes_max;
    let mut driver = Driver {
        core: Core::new(facts, nonce, state, recovered.next_seq),
        compaction: Compaction::start(bound, log.tail(), digester.digests(), replacer)?,
        digester,
        durability: config.durability,
        segment: log.segment(),
        log,
        lookups,
        engine: EngineDriver::new(
            session.clone(),
            inbox.clone(),
            config.engine_start_timeout,
            transport,
        ),
        hooks: Hooks::default(),
        notifier: Notifier::new(),
        usage,
        keeper_process: None,
        keeper,
        status_file: StatusFile::start(session.clone(), lock)?,
        session,
        inbox,
        clients: HashMap::new(),
        streams: HashMap::new(),
        next_stream: 0,
        turn: Turn::default(),
        acks: Acks::default(),
        kept: Vec::new(),
        commands: HashMap::new(),
        next_command: 0,
        status_due: None,
        show_due: None,
        shown: (Shape::default(), Instant::now()),
        process: Named::new(std::process::id()),
        connection_file: None,
        accepting: Accepting {
            socket: None,
            task: tokio::task::spawn_local(async {}),
        },
        homeless: false,
        replacement: Replacement::None,
        over: false,
    };
    // As late as can be: until then the keeper reads them.
    let held = match driver.core.state().engine_pid {
        Some(_) => driver.keeper.take_held().await,
        None => Vec::new(),
    };
    driver.open(&held)?;
    driver.accept()?;
    let ground = Ground::watch(&driver.session.dir, driver.inbox.clone());
    let result = driver.turns(&mut receiver).await;
    drop(ground);
    if let Replacement::Next { .. } = driver.replacement {
        driver.leave();
        return result.map(|()| Over::Replaced);
    }
    let notifier = driver.close().await;
    drop(receiver);
    notifier.finish().await;
    result.map(|()| Over::Ended)
}

impl Driver {
    async fn turns(
        &mut self,
        receiver: &mut mpsc::UnboundedReceiver<Queued<Input>>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut inputs = Vec::with_capacity(TURN_INPUTS_MAX);
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let (mut status, mut tick) = (Alarm::new(), Alarm::new());
        let mut tick_at = Instant::now() + TICK_EVERY;
        while !self.over {
            // What may be over in a moment (`SHOW_BUSY_AFTER`) is not written meanwhile either: it would be to do twice.
            status.set(self.show_due.or(self.status_due));
            tick_at = tick_at.min(Instant::now() + self.tick_in());
            tick.set(Some(tick_at));
            // An engine that floods always has something for us: what comes seldom is looked at before.
            tokio::select! {
                biased;
                message = self.keeper.recv() => self.on_keeper(message),
                _ = terminate.recv() => self.end("stopped: the host got SIGTERM"),
                () = status.rings() => self.write_status(),
                () = inbox::receive_some(receiver, &mut inputs, TURN_INPUTS_MAX, TURN_BYTES_MAX) => {}
                () = tick.rings() => {}
            }
            if tick_at <= Instant::now() {
                self.event(Event::Tick);
                tick_at = Instant::now() + self.tick_in();
            }
            let mut shares = Vec::with_capacity(inputs.len());
            for queued in inputs.drain(..) {
                let (item, share) = queued.into_parts();
                shares.push(share);
                self.input(item);
            }
            self.end_if_homeless();
            self.append_large().await;
            self.commit();
            // Only now is it where a host that comes after us finds it.
            self.kept.drain(..).for_each(Kept::consume);
            if self.may_leave() {
                return Ok(());
            }
            self.show_status();
            // Only now is there room for more: what was taken in is written.
            drop(shares);
            // Links and sockets share this thread, and a queue that is never empty would keep it from them.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// How long to wait for the next tick.
    fn tick_in(&self) -> Duration {
        if let Replacement::Next { .. } = self.replacement {
            return LEAVE_LOOK_EVERY;
        }
        let due = self.core.next_deadline(clocks::now());
        due.map_or(TICK_EVERY, |due| {
            (Duration::from_micros(due) + TICK_LATE).min(TICK_EVERY)
        })
    }

    fn event(&mut self, event: Event) {
        let effects = self.core.handle(event, clocks::now());
        self.turn.take(effects);
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if matches!(event, Event::Usage(_)) {
                    self.show_figures();
                }
                self.event(event);
            }
            Input::Iopub {
                generation,
                messages,
                kept,
            } => {
                self.kept.extend(kept);
                self.engine.said_more(generation);
                if generation == self.core.state().generation {
                    // They came together.
                    let now = clocks::now();
                    for (message, heard) in messages {
                        let event = Event::EngineMessage {
                            channel: Channel::Iopub,
                            message,
                            heard,
                        };
                        let effects = self.core.handle(event, now);
                        self.turn.take(effects);
                    }
                }
            }
            Input::Engine(input) => {
                if let EngineInput::Message { kept, .. } = &input {
                    self.kept.extend(kept.clone());
                }
                let core = &self.core;
                let output =
                    (self.engine).input(input, core.awaits_engine(), || core.engine_says_busy());
                if let Some(message) = output.keeper {
                    self.tell_keeper(message);
                }
                if let Some(event) = output.event {
                    self.event(event);
                }
            }
            Input::Open(opening) => self.on_open(opening),
            Input::Closed { client, stream } => self.on_closed(client, stream),
            Input::Request {
                client,
                stream,
                number,
                channel,
                message,
                again,
            } => {
                if self.core.state().ended.is_some() {
                    // Not taken, and so not acknowledged: a launcher may have another session for it.
                    return;
                }
                self.acks.taken(stream, number, message.size_bytes());
                self.event(Event::Request {
                    client,
                    channel,
                    message,
                    again,
                });
            }
            Input::Command {
                client,
                stream,
                id,
                command,
            } => {
                self.next_command += 1;
                self.commands.insert(self.next_command, (stream, id));
                self.event(Event::Command {
                    id: self.next_command,
                    client,
                    command,
                });
            }
            Input::Expected { client } => {
                if self
                    .clients
                    .get(&client)
                    .is_some_and(|attached| attached.main.is_none())
                {
                    self.detach(client, "its link broke and did not come back");
                }
            }
            Input::Deleted => self.on_deleted(),
            Input::Orphaned { client } => {
                if self.clients.contains_key(&client) {
                    self.detach(client, "the process it lived for is gone");
                }
            }
        }
    }

    /// Writes what this turn brought, and then does the rest of it.
    fn commit(&mut self) {
        while let Some(todo) = self.turn.next() {
            match todo {
                Todo::Append(records) => {
                    let appended = self.log.append(records);
                    self.appended(appended);
                    self.checkpoint_if_wanted();
                }
                Todo::Do(effect) => self.carry_out(effect),
            }
        }
        // What is not kept may have to be sent again; but not when this session is over: in another one it would run twice.
        let is_over = self.core.state().ended.is_some();
        if is_over || !self.log.is_failing() {
            let waiting = match is_over {
                true => 0,
                false => self.core.waiting_bytes() + self.engine.unsent_bytes(),
            };
            for (stream, number) in self.acks.due(waiting.saturating_sub(WAITING_BYTES_MAX)) {
                self.tell(stream, Frame::Ack { number });
            }
        }
    }

    /// Writes what takes long, on another thread: this turn's records up to the last large one; all of them, in one go,
    /// where the disk is waited for. [`Driver::commit`] does the rest.
    async fn append_large(&mut self) {
        if self.durability == Durability::Power {
            let records = std::mem::take(self.turn.records());
            if !records.is_empty() {
                let appended = self.log.append_apart(records).await;
                self.appended(appended);
                self.checkpoint_if_wanted();
            }
            return;
        }
        let mut any = false;
        loop {
            let records = self.turn.records();
            let Some(at) = records.iter().position(|record| is_large(record)) else {
                break;
            };
            let behind = records.split_off(at + 1);
            let large = records.pop();
            let before = std::mem::replace(records, behind);
            if !before.is_empty() {
                let appended = self.log.append(before);
                self.appended(appended);
            }
            if let Some(large) = large {
                let appended = self.log.append_apart(vec![large]).await;
                self.appended(appended);
                any = true;
            }
        }
        if any {
            self.checkpoint_if_wanted();
        }
    }

    /// What it adds to the turn's records stands behind them.
    fn appended(&mut self, appended: Appended) {
        let segment = self.log.segment();
        if segment != self.segment {
            self.segment = segment;
            self.compaction.look();
        }
        self.lookups.catch_up(self.log.last_seq());
        self.digester.appended(self.log.shown_bytes());
        self.show_figures();
        match appended {
            Appended::Kept | Appended::StillFailing => {}
            Appended::Failed(why) => {
                let for_good = self.homeless;
                self.event(Event::JournalFailed { for_good, why });
            }
            Appended::Healed(from) => self.event(Event::JournalHealed { from }),
        }
    }

    fn checkpoint_if_wanted(&mut self) {
        if self.log.wants_checkpoint() {
            let effects = self.core.checkpoint(clocks::now());
            self.turn.take(effects);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => self.turn.records().push(Arc::new(record)),
            Effect::ToEngine(channel, message) => self.engine.send(channel, message),
            Effect::StartEngine { generation } => match self.engine.start(generation) {
                Ok(spawn) => self.tell_keeper(spawn),
                Err(error) => {
                    let why = format!("the engine cannot be started: {error}");
                    self.event(Event::EngineFailed { generation, why });
                }
            },
            Effect::InterruptEngine => {
                if let Some(signal) = self.engine.signal(libc::SIGINT) {
                    self.tell_keeper(signal);
                }
            }
            Effect::StopEngine {
                now: at_once,
                restart,
            } => {
                let request = self.shutdown_request(restart);
                if let Some(signal) = self.engine.stop(at_once, request) {
                    self.tell_keeper(signal);
                }
            }
            Effect::Query(id, query) => {
                let session = serde_json::to_value(self.session.facts()).unwrap_or_default();
                self.lookups.ask(id, query, session);
            }
            Effect::Reply { id, answer, .. } => self.answer(id, answer),
            Effect::RunHook {
                command,
                timeout,
                reason,
            } => {
                let engine = self.core.state().engine_pid;
                let inbox = self.inbox.clone();
                self.hooks
                    .start(&self.session, command, timeout, reason, engine, inbox);
            }
            Effect::ReplaceHost { id, program, .. } => self.replace_by(id, &program),
            Effect::Notify { to, notification } => {
                self.notifier.send(&self.session, to, &notification);
            }
            Effect::KernelInfo(content) => self.tell_kernel_info(&content),
            Effect::End => self.over = true,
        }
    }

    fn shutdown_request(&self, restart: bool) -> Message {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type: "shutdown_request",
            session_id: "farside",
            username: "farside",
            date: now(),
        };
        Message::new(
            &header,
            &bytes::Bytes::new(),
            &json!({ "restart": restart }),
        )
    }

    fn answer(&mut self, id: u64, answer: serde_json::Value) {
        if let Some((stream, id)) = self.commands.remove(&id) {
            self.tell(stream, Frame::Answer { id, answer });
        }
    }

    fn tell(&mut self, stream: StreamId, frame: Frame) {
        if let Some(side) = self.streams.get(&stream) {
            let _ = side.send(frame);
        }
    }

    fn tell_keeper(&mut self, message: ToKeeper) {
        if let Err(error) = self.keeper.send(message) {
            tracing::error!(%error, "the keeper cannot be asked");
            let generation = self.core.state().generation + 1;
            let why = format!("the engine cannot be started: {error}");
            self.event(Event::EngineFailed { generation, why });
        }
    }

    fn on_keeper(&mut self, message: FromKeeper) {
        match message {
            FromKeeper::Hello(hello) => {
                self.keeper_process = Some(Named::new(hello.keeper_pid));
                for process in &hello.alive {
                    self.end_if_stray(process);
                }
                for ended in hello.ended {
                    self.on_keeper(FromKeeper::Ended(ended));
                }
            }
            FromKeeper::Spawned(process) => {
                if let Some(event) = self.engine.spawned(process) {
                    self.event(event);
                }
            }
            FromKeeper::SpawnFailed { id, error } => {
                if let Some(event) = self.engine.spawn_failed(&id, &error) {
                    self.event(event);
                }
            }
            FromKeeper::Ended(ended) => {
                self.tell_keeper(ToKeeper::Ack {
                    pid: ended.process.pid,
                    start_time: ended.process.start_time,
                });
                end_group_of(&ended.process);
                let is_watched = self.engine.watches(&ended.process);
                if let Some(usage) = is_watched.then(|| self.usage.last_look()).flatten() {
                    self.event(Event::Usage(usage));
                }
                let why = crate::keeper::describe_end(ended.end.as_ref());
                tracing::info!(process = ended.process.id, pid = ended.process.pid, "{why}");
                if let Some(message) = self.engine.ended(&ended.process, ended.end.clone()) {
                    self.tell_keeper(message);
                } else if !is_watched && self.is_our_engine(&ended.process) {
                    // It ended while no host was there.
                    let generation = self.core.state().generation;
                    self.event(Event::EngineEnded {
                        generation,
                        end: ended.end,
                        why,
                    });
                }
            }
            FromKeeper::Refused { about, error } => {
                tracing::warn!(about, error, "the keeper refused");
                if let Replacement::Asked(id) = self.replacement {
                    self.replacement = Replacement::None;
                    let error = format!("its keeper refuses {about}: {error}");
                    self.answer(id, json!({ "ok": false, "error": error }));
                }
            }
            // The answer to what this host asks before its first turn: it came too late.
            FromKeeper::Held { .. } => {}
            FromKeeper::HostProgram { .. } => {
                if let Replacement::Asked(id) = self.replacement {
                    self.replacement = Replacement::Next {
                        asked: self.commands.get(&id).map(|(stream, _)| *stream),
                        at_last: Instant::now() + GOODBYE_TIMEOUT,
                    };
                    self.answer(id, json!({ "ok": true }));
                }
            }
            FromKeeper::Terminate => self.end("stopped: the system asked for it (SIGTERM)"),
            FromKeeper::Unknown => {}
        }
    }

    fn end(&mut self, reason: &str) {
        let command = Command::Stop {
            now: false,
            reason: reason.to_owned(),
        };
        self.event(Event::Command {
            id: 0,
            client: ClientId::nil(),
            command,
        });
    }

    /// The session has ended: the index is brought up to date, the last word is written, and all hear of it. What
    /// is left is to tell people, when nobody waits for this process any more.
    async fn close(mut self) -> Notifier {
        self.commit();
        self.hooks.finish();
        self.compaction.finish();
        self.lookups.finish();
        self.digester.finish();
        self.write_status();
        let _lock = self.status_file.finish();
        let reason = self.core.state().ended.clone().unwrap_or_default();
        for side in self.streams.values() {
            let _ = side.send(Frame::Ended {
                reason: reason.clone(),
            });
        }
        let streams = std::mem::take(&mut self.streams);
        let gone = async {
            for side in streams.into_values() {
                side.closed().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, gone).await;
        // Who came too late sees at once that nobody is here.
        self.accepting.task.abort();
        let _ = std::fs::remove_dir_all(self.session.dir.sockets());
        self.tell_keeper(ToKeeper::Bye);
        self.keeper.flush().await;
        self.notifier
    }
}

/// What it started in its own process group has nothing to live for; as a kernel's manager would. As long as there is
/// something in the group Linux gives its number to nobody else: if somebody has it, there is nothing.
fn end_group_of(ended: &Process) {
    if process::start_time(ended.pid).is_none_or(|time| time == ended.start_time) {
        let _ = process::signal_group(ended.pid, libc::SIGKILL);
    }
}
