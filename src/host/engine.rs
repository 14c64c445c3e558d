//! The engine's process and its sockets: starting, connecting, sending, ending.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::driver::Input;
use super::health;
use super::held::{self, Connection, Found, Kept, Stream};
use super::inbox::Inbox;
use super::ingest;
use crate::journal::record::ProcessEnd;
use crate::keeper::{self, Fds, Process, Spawn, ToKeeper};
use crate::session::event::Event;
use crate::state_dir::Session;
use crate::transport::{Incoming, Writer};
use crate::wire::connection_file::{ConnectionFile, Socket, Transport};
use crate::wire::{Channel, Endpoint, Key, Message, frame};

/// How often a socket that is not there yet is tried. An engine takes a few hundred milliseconds to bind, and this
/// is the delay we add to its start.
pub(super) const RETRY_EVERY: Duration = Duration::from_millis(4);

/// An engine that was asked for a sign of life is asked again after this.
const PROBE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// An engine that was taken over, says nothing, and has not answered so many probes either, does not hear us.
const DEAF_PROBES: u32 = 6;

/// From a shutdown_request to SIGTERM: what Jupyter gives a kernel, roughly.
const ORDERLY_END: Duration = Duration::from_secs(3);

/// From SIGTERM to SIGKILL.
const TERM_END: Duration = Duration::from_secs(2);

/// The end of the process is known; so long we wait for its sockets to be read to their end.
const DRAIN: Duration = Duration::from_secs(2);

/// How much of the engine's own log is shown where it did not start.
const LOG_TAIL_BYTES: u64 = 600;

/// Requests that wait for an engine that does not read, or is not there yet. Past it they are not acknowledged, and so
/// their launcher soon takes no more of its frontends ([`REQUESTS_BYTES_MAX`]). They are in the journal all the same.
///
/// [`REQUESTS_BYTES_MAX`]: crate::launcher
pub(super) const WAITING_BYTES_MAX: usize = 8 << 20;

/// Channels that must be up before the engine is used.
pub(super) const CHANNELS: [Channel; 4] = [
    Channel::Shell,
    Channel::Control,
    Channel::Stdin,
    Channel::Iopub,
];

/// What the sockets say.
#[derive(Debug)]
pub(super) enum EngineInput {
    /// A socket is connected.
    Up {
        generation: u32,
        channel: Channel,
        /// Its socket and memory, for the keeper to hold.
        hold: Option<Fds>,
    },
    /// A socket's connection has ended, all that it carried is in the inbox.
    Down { generation: u32, channel: Channel },
    /// A message; not of iopub.
    Message {
        generation: u32,
        channel: Channel,
        message: Message,
        /// Where it ended in its stream.
        heard: u32,
        kept: Option<Kept>,
    },
    /// It took one of the requests that were too many.
    Took,
    /// Time to look after it.
    Timer { generation: u32, timer: Timer },
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    ProbeAgain,
    StartTimeout,
    Terminate,
    Kill,
    Drained,
}

/// Messages on their way to the engine.
struct Outgoing {
    receiver: mpsc::UnboundedReceiver<Message>,
    /// Taken from there, and not all of it is with the operating system: of a connection that breaks the next one
    /// gets it.
    sending: Option<Message>,
    unsent_bytes: Rc<Cell<usize>>,
}

impl Outgoing {
    /// What is to be sent now; `None`: nothing more will be asked.
    async fn next(&mut self) -> Option<&Message> {
        if self.sending.is_none() {
            self.sending = self.receiver.recv().await;
        }
        self.sending.as_ref()
    }

    /// It is with the operating system. Gives how much was not before.
    fn sent(&mut self) -> usize {
        let bytes = self.sending.take().map_or(0, |sent| sent.size_bytes());
        let unsent = self.unsent_bytes.get();
        self.unsent_bytes.set(unsent.saturating_sub(bytes));
        unsent
    }
}

/// Where an engine's sockets are.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    pub generation: u32,
    pub file: ConnectionFile,
    pub key: Key,
    /// Ours, as a DEALER. On stdin an engine asks whoever has the identity that the request on shell had.
    identity: Arc<Mutex<String>>,
}

/// What the engine needs of the host.
pub(super) struct EngineDriver {
    session: Session,
    inbox: Inbox<Input>,
    start_timeout: Duration,
    transport: TransportChoice,
    current: Option<Current>,
    /// Whether the engine has something to do: for those who look after it.
    active: watch::Sender<bool>,
}

/// Which transport an engine is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportChoice {
    /// ipc, and tcp for an engine that ends at once with it.
    Auto,
    /// Unix sockets in our own folder.
    Ipc,
    /// Loopback ports.
    Tcp,
}

struct Current {
    endpoints: Endpoints,
    process: Option<Process>,
    /// The sockets that are up.
    up: Vec<Channel>,
    /// Those that were up once.
    begun: Vec<Channel>,
    /// One of them was up once.
    bound: bool,
    /// All of them were.
    connected: bool,
    /// An earlier host started it.
    adopted: bool,
    /// A connection of that host's was closed, and made anew under the same identity.
    reopened: bool,
    /// Probes that it has not answered, while it said nothing either.
    unanswered: u32,
    /// Makes all connections but iopub's anew.
    renamed: watch::Sender<()>,
    /// It was told to end.
    stopping: bool,
    senders: HashMap<Channel, mpsc::UnboundedSender<Message>>,
    /// Of messages that are not with the operating system yet.
    unsent_bytes: Rc<Cell<usize>>,
    /// Dropping it ends the iopub thread.
    _until: watch::Sender<()>,
    tasks: tokio::task::JoinSet<()>,
    end: Option<(Option<ProcessEnd>, String)>,
    /// Its iopub was read on since this was looked at.
    said_more: bool,
}

impl EngineDriver {
    pub fn new(
        session: Session,
        inbox: Inbox<Input>,
        start_timeout: Duration,
        transport: TransportChoice,
    ) -> Self {
        Self {
            session,
            inbox,
            start_timeout,
            transport,
            current: None,
            active: watch::Sender::new(false),
        }
    }

    /// Whether the engine has something to do from now on. Cheap where nothing has changed.
    pub fn set_active(&self, active: bool) {
        (self.active).send_if_modified(|now| std::mem::replace(now, active) != active);
    }

    /// The living process.
    pub fn process(&self) -> Option<&Process> {
        self.current
            .as_ref()
            .filter(|current| current.end.is_none())?
            .process
            .as_ref()
    }

    /// What the keeper is to start.
    pub fn start(&mut self, generation: u32) -> io::Result<ToKeeper> {
        let transport = match self.transport {
            TransportChoice::Auto | TransportChoice::Ipc => Transport::Ipc,
            TransportChoice::Tcp => Transport::Tcp,
        };
        self.start_with(generation, transport)
    }

    fn start_with(&mut self, generation: u32, transport: Transport) -> io::Result<ToKeeper> {
        let path = self.connection_path();
        let file = connection_file(&self.session, generation, transport)?;
        write_private(&path, &file.to_text())?;
        self.current = None;
        self.timer(generation, Timer::StartTimeout, self.start_timeout);
        let json = &self.session.json;
        let argv = json
            .argv
            .iter()
            .map(|arg| arg.replace("{connection_file}", &path.to_string_lossy()));
        let env = environment(&self.session);
        let spawn = Spawn {
            id: spawn_id(generation),
            argv: argv.map(|arg| OsString::from(arg).into()).collect(),
            env: env
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            cwd: json.cwd.clone().into_os_string().into(),
            log: self.session.dir.engine_log().into_os_string().into(),
            nice: None,
        };
        let endpoints = Endpoints::new(&self.session, generation, file);
        self.connect(endpoints, None, |channel| {
            Stream::new(channel, 0, Found::Nothing)
        });
        Ok(ToKeeper::Spawn(spawn))
    }

    /// Goes on with an engine that an earlier host started, and that `was_ready` or had not come so far; with `streams`
    /// of it, where the keeper held them.
    pub fn adopt(
        &mut self,
        generation: u32,
        process: Process,
        was_ready: bool,
        mut found: impl FnMut(Channel) -> (u32, Found),
    ) -> Result<ToKeeper, String> {
        let path = self.connection_path();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let file = ConnectionFile::parse(&text).map_err(|error| error.to_string())?;
        if !was_ready {
            self.timer(generation, Timer::StartTimeout, self.start_timeout);
        }
        let mut reopened = false;
        self.connect(
            Endpoints::new(&self.session, generation, file),
            Some(process.clone()),
            |channel| {
                let (position, found) = found(channel);
                reopened |= channel != Channel::Iopub && matches!(found, Found::Broken);
                Stream::new(channel, position, found)
            },
        );
        if let Some(current) = &mut self.current {
            current.reopened = reopened;
        }
        Ok(ToKeeper::Watch(process))
    }

    fn connection_path(&self) -> PathBuf {
        self.session.dir.engine().join("connection.json")
    }

    fn connect(
        &mut self,
        endpoints: Endpoints,
        process: Option<Process>,
        mut streams: impl FnMut(Channel) -> Stream,
    ) {
        let (renamed, _) = watch::channel(());
        let (until, receiver) = watch::channel(());
        let (iopub, inbox) = (streams(Channel::Iopub), self.inbox.clone());
        if let Err(error) = ingest::start(endpoints.clone(), iopub, inbox, receiver) {
            tracing::error!(%error, "no thread for the engine's iopub");
        }
        let mut tasks = tokio::task::JoinSet::new();
        let mut senders = HashMap::new();
        let unsent_bytes = Rc::<Cell<usize>>::default();
        for channel in [Channel::Shell, Channel::Control, Channel::Stdin] {
            let (sender, receiver) = mpsc::unbounded_channel();
            senders.insert(channel, sender);
            tasks.spawn_local(run_channel(
                endpoints.clone(),
                streams(channel),
                Outgoing {
                    receiver,
                    sending: None,
                    unsent_bytes: unsent_bytes.clone(),
                },
                self.inbox.clone(),
                renamed.subscribe(),
            ));
        }
        let (inbox, generation) = (self.inbox.clone(), endpoints.generation);
        tasks.spawn_local(health::watch(
            endpoints.file.endpoint(Socket::Heartbeat),
            health::Pace::default(),
            process.is_some(),
            self.active.subscribe(),
            move |responsive| {
                inbox.send_now(Input::Event(Event::Health {
                    generation,
                    responsive,
                }));
            },
        ));
        self.current = Some(Current {
            endpoints,
            // One that is taken over had bound them for the host before.
            bound: process.is_some(),
            adopted: process.is_some(),
            reopened: false,
            unanswered: 0,
            renamed,
            process,
            up: Vec::new(),
            begun: Vec::new(),
            connected: false,
            stopping: false,
            senders,
            unsent_bytes,
            _until: until,
            tasks,
            end: None,
            said_more: false,
        });
    }

    /// The keeper has started it.
    pub fn spawned(&mut self, process: Process) -> Option<Event> {
        let current = self.current.as_mut()?;
        let generation = current.endpoints.generation;
        if process.id != spawn_id(generation) {
            return None;
        }
        let (pid, start_time) = (process.pid, process.start_time);
        current.process = Some(process);
        Some(Event::EngineStarted {
            generation,
            pid,
            start_time,
        })
    }

    /// The keeper could not start it.
    pub fn spawn_failed(&mut self, id: &str, error: &str) -> Option<Event> {
        let generation = self.current.as_ref()?.endpoints.generation;
        if id != spawn_id(generation) {
            return None;
        }
        self.current = None;
        let why = format!(
            "the engine {} cannot be started: {error}",
            self.session.json.engine
        );
        Some(Event::EngineFailed { generation, why })
    }

    /// Something was read of its iopub.
    pub fn said_more(&mut self, generation: u32) {
        if let Some(current) =
            (self.current.as_mut()).filter(|current| current.endpoints.generation == generation)
        {
            current.said_more = true;
        }
    }

    /// Whether this is the process whose sockets we have, living or not: its end is told when they are read.
    pub fn watches(&self, process: &Process) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.process.as_ref() == Some(process))
    }

    /// The keeper says that a process has ended. The engine's end is told to the core when its sockets are read.
    pub fn ended(&mut self, process: &Process, end: Option<ProcessEnd>) -> Option<ToKeeper> {
        let current = self.current.as_mut()?;
        if current.process.as_ref() != Some(process) {
            return None;
        }
        let generation = current.endpoints.generation;
        let was_ipc = current.endpoints.file.transport == Transport::Ipc;
        let may_want_tcp = !current.bound && !current.stopping && was_ipc;
        if may_want_tcp && self.transport == TransportChoice::Auto {
            tracing::info!("the engine ended before it bound an ipc socket: trying it with tcp");
            match self.start_with(generation, Transport::Tcp) {
                Ok(spawn) => return Some(spawn),
                Err(error) => tracing::error!(%error, "the engine cannot be started with tcp"),
            }
        }
        let current = self.current.as_mut()?;
        let mut why = keeper::describe_end(end.as_ref());
        if !current.connected {
            why.push_str(&format!(
                " before it was ready{}",
                log_tail(&self.session.dir.engine_log())
            ));
        }
        current.end = Some((end, why));
        current.said_more = false;
        // Of one that was taken over, what was held is still to be read, though it may have ended long ago.
        let wait = if current.up.is_empty() && !current.adopted {
            Duration::ZERO
        } else {
            DRAIN
        };
        self.timer(generation, Timer::Drained, wait);
        None
    }

    /// Takes in what the sockets and timers say.
    /// `awaited`: it has not answered the last probe; `says_busy`: it has said that it works.
    pub fn input(
        &mut self,
        input: EngineInput,
        awaited: bool,
        says_busy: impl FnOnce() -> bool,
    ) -> EngineOutput {
        let mut output = EngineOutput::default();
        let Some(current) = self.current.as_mut() else {
            return output;
        };
        let now_generation = current.endpoints.generation;
        match input {
            EngineInput::Up {
                generation,
                channel,
                hold,
            } if generation == now_generation => {
                current.bound = true;
                output.keeper = hold.map(|fds| ToKeeper::Hold {
                    stream: keeper::Stream {
                        process: spawn_id(generation),
                        name: channel.name().to_owned(),
                    },
                    fds,
                });
                if !current.up.contains(&channel) {
                    current.up.push(channel);
                }
                if !current.begun.contains(&channel) {
                    current.begun.push(channel);
                }
                if !current.connected && CHANNELS.iter().all(|channel| current.up.contains(channel))
                {
                    current.connected = true;
                    output.event = Some(Event::EngineConnected { generation });
                    self.timer(generation, Timer::ProbeAgain, PROBE_AGAIN_AFTER);
                }
            }
            EngineInput::Down {
                generation,
                channel,
            } if generation == now_generation => {
                current.up.retain(|up| *up != channel);
                // Of one that was taken over, another stream may not even have been begun with.
                let begun = |channel| current.begun.contains(channel);
                let all_begun = !current.adopted || CHANNELS.iter().all(begun);
                if current.up.is_empty() && all_begun && current.end.is_some() {
                    output.event = self.drained();
                }
            }
            EngineInput::Message {
                generation,
                channel,
                message,
                heard,
                kept: _,
            } if generation == now_generation => {
                output.event = Some(Event::EngineMessage {
                    channel,
                    message,
                    heard,
                });
            }
            EngineInput::Timer { generation, timer } if generation == now_generation => {
                self.on_timer(generation, timer, awaited, says_busy, &mut output);
            }
            // The turn's end looks at what waits.
            EngineInput::Took => {}
            // Of an engine before this one.
            EngineInput::Up { .. }
            | EngineInput::Down { .. }
            | EngineInput::Message { .. }
            | EngineInput::Timer { .. } => {}
        }
        output
    }

    fn on_timer(
        &mut self,
        generation: u32,
        timer: Timer,
        awaited: bool,
        says_busy: impl FnOnce() -> bool,
        output: &mut EngineOutput,
    ) {
        let Some(current) = self.current.as_mut() else {
            return;
        };
        match timer {
            Timer::ProbeAgain if awaited => {
                let was_deaf = current.rename_if_deaf(says_busy());
                output.event = Some(match was_deaf {
                    true => Event::EngineWasDeaf { generation },
                    false => Event::EngineConnected { generation },
                });
                self.timer(generation, Timer::ProbeAgain, PROBE_AGAIN_AFTER);
            }
            Timer::ProbeAgain => {}
            Timer::StartTimeout if current.connected || current.end.is_some() => {}
            Timer::StartTimeout => {
                tracing::error!("the engine did not bind its sockets in time");
                output.keeper = self.signal(libc::SIGKILL);
            }
            Timer::Terminate if current.end.is_some() => {}
            Timer::Kill if current.end.is_some() => {}
            Timer::Terminate => {
                output.event = Some(Event::EngineSignalled { signal: "SIGTERM" });
                output.keeper = self.signal(libc::SIGTERM);
            }
            Timer::Kill => {
                output.event = Some(Event::EngineSignalled { signal: "SIGKILL" });
                output.keeper = self.signal(libc::SIGKILL);
            }
            // What it had said is still being read: its disk may be slow.
            Timer::Drained if std::mem::take(&mut current.said_more) => {
                self.timer(generation, Timer::Drained, DRAIN);
            }
            Timer::Drained => output.event = self.drained(),
        }
    }

    /// The engine is gone, and nothing more of it will come.
    fn drained(&mut self) -> Option<Event> {
        let (end, why) = self.current.as_mut()?.end.take()?;
        let current = self.current.take()?;
        Some(Event::EngineEnded {
            generation: current.endpoints.generation,
            end,
            why,
        })
    }

    /// Sends to the engine; nothing where it is gone.
    pub fn send(&self, channel: Channel, message: Message) {
        let bytes = message.size_bytes();
        if let Some(current) = &self.current
            && let Some(sender) = current.senders.get(&channel)
            && sender.send(message).is_ok()
        {
            let unsent = &current.unsent_bytes;
            unsent.set(unsent.get() + bytes);
        }
    }

    /// Of what was sent and is not with the operating system yet. Nothing: another host can go on from here.
    pub fn unsent_bytes(&self) -> usize {
        let current = self.current.as_ref();
        current.map_or(0, |current| current.unsent_bytes.get())
    }

    /// A signal to the engine's process group.
    pub fn signal(&self, signal: i32) -> Option<ToKeeper> {
        let process = self.process()?;
        Some(ToKeeper::Signal {
            pid: process.pid,
            start_time: process.start_time,
            signal,
            group: true,
        })
    }

    /// Asks it to end, and makes it end if it does not.
    pub fn stop(&mut self, now: bool, request: Message) -> Option<ToKeeper> {
        let current = self.current.as_mut()?;
        current.stopping = true;
        let (generation, connected) = (current.endpoints.generation, current.connected);
        if now {
            return self.signal(libc::SIGKILL);
        }
        if !connected {
            // It cannot hear a request yet, and has nothing to save.
            self.timer(generation, Timer::Kill, TERM_END);
            return self.signal(libc::SIGTERM);
        }
        self.send(Channel::Control, request);
        self.timer(generation, Timer::Terminate, ORDERLY_END);
        self.timer(generation, Timer::Kill, ORDERLY_END + TERM_END);
        None
    }

    fn timer(&self, generation: u32, timer: Timer, after: Duration) {
        let inbox = self.inbox.clone();
        let at = Instant::now() + after;
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(at).await;
            inbox.send_now(Input::Engine(EngineInput::Timer { generation, timer }));
        });
    }
}

/// What follows of an [`EngineInput`].
#[derive(Default)]
pub(super) struct EngineOutput {
    pub event: Option<Event>,
    pub keeper: Option<ToKeeper>,
}

impl Current {
    /// A ROUTER takes no second connection of an identity (unless it has ROUTER_HANDOVER) as long as it holds the first
    /// for alive, which it may for as long as a cell runs. Then ours is to be another one. What it asks by the old one
    /// (the input() of a cell that runs) would find nobody: so not before it is plain.
    fn rename_if_deaf(&mut self, says_busy: bool) -> bool {
        let is_quiet = self.end.is_none() && !std::mem::take(&mut self.said_more) && !says_busy;
        self.unanswered = if is_quiet { self.unanswered + 1 } else { 0 };
        if !self.reopened || self.unanswered < DEAF_PROBES {
            return false;
        }
        tracing::warn!("the engine does not hear its new connections; they get another name");
        self.reopened = false;
        self.endpoints.rename();
        self.renamed.send_replace(());
        true
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

impl Endpoints {
    fn new(session: &Session, generation: u32, file: ConnectionFile) -> Self {
        let key = file.key();
        // The same for every host of this session, so that an adopted engine's replies find their way.
        let identity = format!("farside-{}", session.json.id);
        Self {
            generation,
            file,
            key,
            identity: Arc::new(Mutex::new(identity)),
        }
    }

    fn rename(&self) {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        identity.push_str(&format!("-{}", uuid::Uuid::new_v4().simple()));
    }

    /// Of one of the channels.
    pub fn endpoint(&self, channel: Channel) -> Endpoint {
        self.file.endpoint(match channel {
            Channel::Shell => Socket::Shell,
            Channel::Control => Socket::Control,
            Channel::Stdin => Socket::Stdin,
            Channel::Iopub => Socket::Iopub,
        })
    }

    /// Ours, as a DEALER.
    pub fn identity(&self) -> Vec<u8> {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        identity.clone().into_bytes()
    }
}

/// Keeps one of the engine's sockets connected: shell, control or stdin.
async fn run_channel(
    endpoints: Endpoints,
    mut stream: Stream,
    mut outgoing: Outgoing,
    inbox: Inbox<Input>,
    mut renamed: watch::Receiver<()>,
) {
    let generation = endpoints.generation;
    let channel = stream.channel;
    loop {
        if let Some((mut connection, writer)) = stream.connect(&endpoints).await {
            let hold = connection.hold.take();
            inbox.send_now(Input::Engine(EngineInput::Up {
                generation,
                channel,
                hold,
            }));
            tokio::select! {
                // First: nothing more is to be sent there.
                biased;
                _ = renamed.changed() => held::shut_down(connection.reader.socket()),
                () = read_channel(&endpoints, channel, &mut connection, &inbox) => {}
                () = write_channel(&endpoints, writer, &mut outgoing, &inbox) => {}
            }
            stream.ended(&connection.reader);
            inbox.send_now(Input::Engine(EngineInput::Down {
                generation,
                channel,
            }));
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn read_channel(
    endpoints: &Endpoints,
    channel: Channel,
    connection: &mut Connection,
    inbox: &Inbox<Input>,
) {
    let generation = endpoints.generation;
    loop {
        let parts = match connection.reader.recv().await {
            Ok(Some(Incoming::Message(parts))) => parts,
            Ok(Some(Incoming::Subscribe(_) | Incoming::Unsubscribe(_))) => continue,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, ?channel, "the engine's socket broke");
                return;
            }
        };
        if connection.was_heard() {
            continue;
        }
        match frame::decode_trusted(parts, &endpoints.key) {
            Ok(mut message) => {
                message.identities.clear();
                let bytes = message.queue_bytes();
                let input = EngineInput::Message {
                    generation,
                    channel,
                    message,
                    heard: connection.heard_now(),
                    kept: connection.kept(),
                };
                if !inbox.send(Input::Engine(input), bytes).await {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, ?channel, "the engine sent something that is no message; dropped")
            }
        }
    }
}

async fn write_channel(
    endpoints: &Endpoints,
    mut writer: Writer,
    outgoing: &mut Outgoing,
    inbox: &Inbox<Input>,
) {
    while let Some(message) = outgoing.next().await {
        let parts = frame::encode(message, &endpoints.key);
        if let Err(error) = writer.send(&parts).await {
            tracing::warn!(%error, "a request could not be sent to the engine");
            return;
        }
        if outgoing.sent() > WAITING_BYTES_MAX {
            inbox.send_now(Input::Engine(EngineInput::Took));
        }
    }
    // Nothing more will be asked; what the engine says is still read.
    std::future::pending::<()>().await;
}

/// The engine's name with the keeper.
pub(super) fn spawn_id(generation: u32) -> String {
    format!("engine-{generation}")
}

/// The environment of the session's engine, and of the commands that are run for the session.
pub(super) fn environment(session: &Session) -> Vec<(OsString, OsString)> {
    let own = &session.json.env;
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| !is_ours(name))
        .filter(|(name, _)| !own.keys().any(|own| name == own.as_str()))
        .collect();
    env.extend(own.iter().map(|(name, value)| (name.into(), value.into())));
    env
}

/// Variables that are farside's own business and must not reach an engine, in which a farside may be run.
fn is_ours(name: &std::ffi::OsStr) -> bool {
    name == "FARSIDE_SESSION"
}

fn connection_file(
    session: &Session,
    generation: u32,
    transport: Transport,
) -> io::Result<ConnectionFile> {
    let (ip, ports, key_text) = match transport {
        Transport::Ipc => {
            // Sockets of its own for each engine: the one before may still be about to remove its own.
            let prefix = format!("{}{generation}", session.dir.engine_ipc_prefix().display());
            for port in 1..=5 {
                let _ = std::fs::remove_file(format!("{prefix}-{port}"));
            }
            // No key: who can open these sockets can read the key's file as well, and hashing costs both ends.
            (prefix, [1, 2, 3, 4, 5], String::new())
        }
        Transport::Tcp => (
            "127.0.0.1".to_owned(),
            free_ports()?,
            uuid::Uuid::new_v4().to_string(),
        ),
    };
    Ok(ConnectionFile {
        transport,
        ip,
        ports,
        key_text,
        kernel_name: Some(session.json.engine.clone()),
        jupyter_session: None,
        other: serde_json::Map::new(),
    })
}

/// Five loopback ports that are free now. Another process may take one before the engine does; then the engine ends
/// and says so.
fn free_ports() -> io::Result<[u32; 5]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 5];
    for port in &mut ports {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        *port = u32::from(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(ports)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// The last lines of the engine's log, for an engine that did not come up: the reason is usually there.
fn log_tail(path: &Path) -> String {
    use std::io::{Read as _, Seek as _};
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    match read() {
        Ok(text) if !text.is_empty() => {
            format!(". The end of its log ({}):\n{text}\n", path.display())
        }
        Ok(_) | Err(_) => String::new(),
    }
}
