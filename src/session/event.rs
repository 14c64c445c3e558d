//! What goes into the session core and what comes out of it.

use bytes::Bytes;
use serde::Serialize;

use crate::journal::record::{
    ClientId, ExecutionNumber, ExecutionState, Extent, Micros, ProcessEnd, Record,
};
use crate::wire::{Channel, Message};

/// Something that happened outside of the core.
#[derive(Debug)]
pub enum Event {
    /// A launcher or CLI client opened its link.
    ClientAttached {
        /// Which.
        client: ClientId,
        /// `launcher` or the CLI command.
        kind: String,
        /// Its process id.
        pid: u32,
    },
    /// It left, or was found gone.
    ClientDetached {
        /// Which.
        client: ClientId,
        /// In words.
        why: String,
    },
    /// A launcher says which sockets of frontends are connected to it. Of a client that never does nothing is known.
    Frontends {
        /// Which launcher.
        client: ClientId,
        /// The identity of each socket.
        identities: Vec<Vec<u8>>,
    },
    /// A verified message of a frontend.
    Request {
        /// Who.
        client: ClientId,
        /// Where it came in.
        channel: Channel,
        /// The message, with the frontend socket's identities.
        message: Message,
        /// It is sent again after a lost link, and may have been here before.
        again: bool,
    },
    /// The engine process runs (its sockets may not be there yet).
    EngineStarted {
        /// Which engine of the session.
        generation: u32,
        /// Its process id.
        pid: u32,
        /// When that process began, in clock ticks since boot.
        start_time: u64,
    },
    /// All of the engine's sockets are connected and its iopub is read.
    EngineConnected {
        /// Which engine of the session.
        generation: u32,
    },
    /// What the engine was asked since it was taken over did not reach it; what it is asked from now on does.
    EngineWasDeaf {
        /// Which engine of the session.
        generation: u32,
    },
    /// A message of the engine; identities of shell, control and stdin are already taken off.
    EngineMessage {
        /// Where it came from.
        channel: Channel,
        /// As it came.
        message: Message,
        /// Where it ended in its stream ([`Record::heard`]).
        heard: u32,
    },
    /// The engine process is gone, and all that it had sent has been handled.
    EngineEnded {
        /// Which engine of the session.
        generation: u32,
        /// How, where somebody saw it.
        end: Option<ProcessEnd>,
        /// In words: "exited with code 3".
        why: String,
    },
    /// No engine could be started.
    EngineFailed {
        /// Which engine of the session.
        generation: u32,
        /// What failed and what to do.
        why: String,
    },
    /// A new host took over a session whose engine lives.
    Adopted {
        /// What the engine said meanwhile is lost; `None`: nothing is.
        gap: Option<Gap>,
    },
    /// The journal's answer to [`Effect::Query`].
    Answer {
        /// Of the query.
        id: u64,
        /// What was found.
        answer: Answer,
    },
    /// A CLI command.
    Command {
        /// For the answer.
        id: u64,
        /// Who.
        client: ClientId,
        /// What.
        command: Command,
    },
    /// Time has passed: [`super::core::Core::next_deadline`] has come.
    Tick,
    /// What the engine and all that it started have used by now.
    Usage(Usage),
    /// The engine's heartbeat stopped answering, or answers again.
    Health {
        /// Which engine of the session.
        generation: u32,
        /// Whether it answers.
        responsive: bool,
    },
    /// The command of [`Effect::RunHook`] is over.
    HookEnded {
        /// How, and its output: one text.
        outcome: String,
    },
    /// The engine did not end by itself and is made to.
    EngineSignalled {
        /// `SIGTERM` or `SIGKILL`.
        signal: &'static str,
    },
    /// Appending to the journal failed; what came since is sent but not kept.
    JournalFailed {
        /// Nothing will be kept any more.
        for_good: bool,
        /// The system's words.
        why: String,
    },
    /// Appending works again.
    JournalHealed {
        /// When the first record was lost.
        from: Micros,
    },
}

/// A time in which nobody heard the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// When the last record before it was written.
    pub from: Micros,
    /// Why nobody read meanwhile.
    pub why: String,
}

/// What the driver has to do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Append, then deliver to the readers.
    Record(Record),
    /// Send to the engine, after the records before it are in the journal.
    ToEngine(Channel, Message),
    /// Start an engine.
    StartEngine {
        /// Its number.
        generation: u32,
    },
    /// SIGINT to the engine's process group.
    InterruptEngine,
    /// End the engine process: shutdown_request, then SIGTERM, then SIGKILL; `EngineEnded` follows.
    StopEngine {
        /// No orderly shutdown_request first.
        now: bool,
        /// Whether a new one follows (told to the engine).
        restart: bool,
    },
    /// Run this shell command in the session's working directory, but not longer than this; [`Event::HookEnded`]
    /// follows.
    RunHook {
        /// The command.
        command: String,
        /// Its time limit.
        timeout: std::time::Duration,
        /// Why the session ends.
        reason: String,
    },
    /// Tell the person (`notify`).
    Notify {
        /// Shell command or URL.
        to: String,
        /// What.
        notification: Box<Notification>,
    },
    /// Look something up in the journal.
    Query(u64, Query),
    /// Answer to a CLI command: `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.
    Reply {
        /// Of the command.
        id: u64,
        /// Who asked.
        client: ClientId,
        /// JSON.
        answer: serde_json::Value,
    },
    /// Make room for a host of this program, and answer the command.
    ReplaceHost {
        /// Of the command.
        id: u64,
        /// Who asked.
        client: ClientId,
        /// The program's path.
        program: String,
    },
    /// How a kernel_info_request is answered from now on, for those who may answer it themselves; `None`: by this core
    /// alone, for the answer is to wait, or is an error.
    KernelInfo(Option<serde_json::Value>),
    /// The session is over and its last record is written: end the host.
    End,
}

/// What an engine and all that it started use. Sampled now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of this engine.
    pub generation: u32,
    /// Microseconds of CPU time, of descendants that have ended too. Never less than it was.
    pub cpu: Micros,
    /// Bytes of memory in use now.
    pub memory_bytes: u64,
    /// Bytes of GPU memory in use at the last look; `None` where there is no such GPU, or nobody can tell.
    pub gpu_memory_bytes: Option<u64>,
}

/// What [`Effect::Notify`] tells of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notification {
    /// What happened.
    pub event: NotifyOn,
    /// In words, a line or two.
    pub text: String,
    /// When, microseconds since 1970.
    pub time: Micros,
    /// Session id.
    pub session: String,
    /// Its name.
    pub name: String,
    /// Kernelspec name of its engine.
    pub engine: String,
    /// The execution, where it is about one.
    pub execution: Option<ExecutionNumber>,
    /// Its state.
    pub state: Option<ExecutionState>,
    /// How long it ran, in seconds.
    pub seconds: Option<f64>,
    /// The beginning of its code.
    pub code: Option<String>,
    /// The session's end reason, or what kind of end is near.
    pub reason: Option<String>,
}

/// What there is to tell a person of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum NotifyOn {
    ExecutionFinished,
    ExecutionFailed,
    WaitingInput,
    Notice,
    Ended,
    EngineDied,
    Unresponsive,
}

impl NotifyOn {
    /// Its name in JSON and in the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExecutionFinished => "execution_finished",
            Self::ExecutionFailed => "execution_failed",
            Self::WaitingInput => "waiting_input",
            Self::Notice => "notice",
            Self::Ended => "ended",
            Self::EngineDied => "engine_died",
            Self::Unresponsive => "unresponsive",
        }
    }
}

/// A look-up in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// One execution and its reply.
    Execution(Target),
    /// The last `limit` executions, newest first.
    History {
        /// Of this session where it is `None`.
        session: Option<String>,
        /// At most so many.
        limit: usize,
    },
}

/// An execution as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its session: an id, the beginning of one, or a name. `None`: this session, and where nothing is found in it
    /// by msg_id (or there is nothing in it at all), those before it.
    pub session: Option<String>,
    /// Which of its executions.
    pub selector: Selector,
}

impl From<Selector> for Target {
    fn from(selector: Selector) -> Self {
        Self {
            session: None,
            selector,
        }
    }
}

/// Which of a session's executions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The last one.
    Latest,
    /// The last one of the session before; where there is none, the last one of this session.
    Before,
    /// By number.
    Number(ExecutionNumber),
    /// By its request's msg_id.
    MsgId(String),
}

/// An answer to a [`Query`].
#[derive(Debug)]
pub enum Answer {
    /// To [`Query::Execution`].
    Execution(Option<Box<PastExecution>>),
    /// To [`Query::History`].
    History {
        /// The session as `farside ls --json` shows it.
        session: serde_json::Value,
        /// Newest first.
        executions: Vec<ExecutionSummary>,
    },
    /// There is no such execution, or none that can be shown here: why, and what to do.
    NotThere(String),
    /// The journal could not be read.
    Failed(String),
}

/// An execution as the journal has it.
#[derive(Debug, Clone)]
pub struct PastExecution {
    /// The ended session that it is of; empty: this one.
    pub session: String,
    /// Number, code, state, times.
    pub summary: ExecutionSummary,
    /// Where its first record is.
    pub first_seq: u64,
    /// Where its records are, if it is over.
    pub extent: Option<Extent>,
    /// The engine's execute_reply content, JSON.
    pub reply_content: Option<Bytes>,
}

/// What lists show of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionSummary {
    /// From 1.
    pub n: ExecutionNumber,
    /// Of its execute_request.
    pub msg_id: String,
    /// `metadata.cellId`, where a notebook sent one.
    pub cell_id: Option<String>,
    /// The code.
    pub code: String,
    /// Its state.
    pub state: ExecutionState,
    /// When it began to run.
    pub started: Option<Micros>,
    /// When it was over.
    pub ended: Option<Micros>,
}

/// The kind of client that `farside console` is.
pub const CONSOLE_KIND: &str = "console";

/// The kind of client that `farside exec --detach` is: it asks, and watches nothing.
pub const SUBMIT_KIND: &str = "submit";

/// The kinds of clients that a command of the CLI is which stays for no longer than what it asked for.
pub const PASSING_KINDS: [&str; 7] = [
    "exec",
    "extend",
    "interrupt",
    "new",
    "restart",
    "stop",
    SUBMIT_KIND,
];

/// What the CLI asks of a session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// End the session.
    Stop {
        /// Without waiting for the engine's orderly end.
        now: bool,
        /// Begins with `stopped` or `shutdown`.
        reason: String,
    },
    /// A new engine in the same session.
    Restart,
    /// Interrupt the engine.
    Interrupt,
    /// Move the session's end.
    Extend {
        /// By so many seconds from now.
        seconds: u64,
    },
    /// Let another farside keep the session.
    UpgradeHost {
        /// Its program.
        program: String,
    },
}
