//! PURE. What a journal record is. Its encoding is in [`super::codec`].
//!
//! Records are numbered by `seq` from 1 in a session. A hole is a record that was not kept (the disk was full, say);
//! no other ever gets its number. A record's `seq` is also the number its
//! message has on the link, so a reader that comes back names the last one it saw.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::wire::{Channel, Message};

/// Microseconds since the Unix epoch, wall time.
pub type Micros = u64;

/// A launcher or CLI process on the link. Lives as long as that process, over reconnects.
pub type ClientId = Uuid;

/// The number of an execution in its session, from 1. 0 in a record: belongs to no execution.
pub type ExecutionNumber = u64;

/// Where a record lies: its frame begins at `offset` of segment number `segment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Of the record's first byte in the file.
    pub offset: u64,
    /// Bytes of frame, head and payload together.
    pub length: u64,
}

/// Where the records of an execution lie that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first record.
    pub first: Position,
    /// Number of its last one.
    pub last_seq: u64,
}

/// One numbered entry of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// From 1, ascending.
    pub seq: u64,
    /// When it was written.
    pub time: Micros,
    /// Of a message of the engine: where it ended in the stream that it came on, the low 32 bits; 0 where that is not
    /// known. So a host that comes after a killed one tells what of the stream is in the journal.
    pub heard: u32,
    /// What happened.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A frontend's request (or input_reply). Its identities are those of the frontend's socket.
    Request {
        /// shell, control or stdin.
        channel: Channel,
        /// Who asked.
        client: ClientId,
        /// The execution this request *is*, else 0.
        execution: ExecutionNumber,
        /// The request.
        message: Message,
    },
    /// A reply, or an input_request, to the one frontend whose identities the message carries.
    Reply {
        /// shell, control or stdin.
        channel: Channel,
        /// To whom.
        client: ClientId,
        /// The execution that was answered, else 0.
        execution: ExecutionNumber,
        /// The reply.
        message: Message,
    },
    /// A broadcast of the engine (`client` is `None`: everybody gets it) or of farside to one client.
    Iopub {
        /// `Some`: for the subscribers of this client only.
        client: Option<ClientId>,
        /// The execution that it is an output or status of, else 0.
        execution: ExecutionNumber,
        /// The message; its identities are the topic.
        message: Message,
    },
    /// Everything that is not a Jupyter message.
    Note(Note),
}

impl Body {
    /// The channel that its message came or went on; `None`: it is a note.
    pub fn channel(&self) -> Option<Channel> {
        match self {
            Self::Request { channel, .. } | Self::Reply { channel, .. } => Some(*channel),
            Self::Iopub { .. } => Some(Channel::Iopub),
            Self::Note(_) => None,
        }
    }
}

/// The state of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ExecutionState {
    Queued,
    Running,
    WaitingInput,
    Ok,
    Error,
    Aborted,
    Interrupted,
    Lost,
}

impl ExecutionState {
    /// Whether nothing more can come of it.
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::WaitingInput => false,
            Self::Ok | Self::Error | Self::Aborted | Self::Interrupted | Self::Lost => true,
        }
    }

    /// The name in `--json`, tables and the index.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::WaitingInput => "waiting_input",
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Aborted => "aborted",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
        }
    }
}

/// Why and how a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    /// Exit code, where it exited by itself.
    pub exit_code: Option<i32>,
    /// Signal number, where one killed it.
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer is known to have done it.
    #[serde(default)]
    pub out_of_memory: bool,
}

/// Events of a session that are not Jupyter messages. Stored as JSON (`{"note": "...", ...}`) so that an older
/// farside reads what a newer one wrote: unknown kinds become [`Note::Unknown`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The first record of every session.
    SessionStarted {
        /// Session id.
        id: String,
        /// Its name.
        name: String,
        /// Kernelspec name of the engine.
        engine: String,
    },
    /// A host took the session over.
    HostStarted {
        /// Its process id.
        pid: u32,
        /// farside's version.
        version: String,
    },
    /// An engine process was started. `generation` counts from 1 and grows with each restart.
    EngineStarted {
        /// Which engine of this session.
        generation: u32,
        /// Its process id.
        pid: u32,
        /// When that process began, in clock ticks since boot: with the pid, what names it for good.
        #[serde(default)]
        start_time: u64,
    },
    /// The engine answered kernel_info for the first time: it is ready.
    EngineReady {
        /// Which engine of this session.
        generation: u32,
        /// Its kernel_info_reply's content, as it said it.
        info: serde_json::Value,
    },
    /// The engine process ended.
    EngineEnded {
        /// Which engine of this session.
        generation: u32,
        /// `None`: nobody saw how.
        end: Option<ProcessEnd>,
        /// In words: "killed by signal 9 (SIGKILL)".
        why: String,
    },
    /// Output may be missing here: the engine's iopub was not read from `from` to `until`, or records were lost.
    Gap {
        /// Start of the time not covered.
        from: Micros,
        /// End of it.
        until: Micros,
        /// What caused it, in words.
        why: String,
        /// A line in the running execution's output says so.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        said: bool,
    },
    /// A launcher or CLI client attached.
    ClientAttached {
        /// Which.
        client: ClientId,
        /// `launcher` or the CLI command's name.
        kind: String,
        /// Process id.
        pid: u32,
    },
    /// It left.
    ClientDetached {
        /// Which.
        client: ClientId,
        /// Why, in words.
        why: String,
    },
    /// An execution changed its state.
    Execution {
        /// Which.
        n: ExecutionNumber,
        /// Its execute_request's msg_id.
        msg_id: String,
        /// The state from now on.
        state: ExecutionState,
        /// Why, where that is not plain from the outputs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody interrupted what runs.
    Interrupted,
    /// A new engine was asked for in the place of the one that runs. A host that comes after this one goes on with it.
    Restarting,
    /// From here on `client` gets the outputs of execution `n` with `parent` as their parent_header: first those
    /// already in the journal, compacted, then each new one.
    Attach {
        /// Who.
        client: ClientId,
        /// The attaching request's header, JSON text.
        parent: String,
        /// The execution attached to.
        n: ExecutionNumber,
        /// The seq of that execution's request: where a reader begins to look for its outputs.
        #[serde(default)]
        first_seq: u64,
        /// The session whose execution it is: the id of one that has ended. Empty: this one.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        session: String,
        /// Of an execution that was over: where its records are, so that a reader need not search for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        extent: Option<Extent>,
    },
    /// That attachment is over.
    AttachEnded {
        /// Who.
        client: ClientId,
        /// The msg_id of the attaching request.
        msg_id: String,
    },
    /// The core's state at this place, so that recovery need not read older records.
    Checkpoint {
        /// As the session core wrote it.
        state: serde_json::Value,
    },
    /// What the clocks showed when this was written (its own time is the wall clock's). There is one whenever a host
    /// starts and whenever the clocks have moved against one another: the wall clock was set, or the machine slept. So
    /// every record's time can be told in each of them.
    Clock {
        /// Microseconds that the machine was awake since it booted (CLOCK_MONOTONIC).
        awake: Micros,
        /// Microseconds since it booted (CLOCK_BOOTTIME).
        elapsed: Micros,
        /// Which boot (`/proc/sys/kernel/random/boot_id`).
        #[serde(default)]
        boot: String,
    },
    /// A setting was changed, for this session only.
    Set {
        /// Its key.
        key: String,
        /// Its value from now on.
        value: String,
    },
    /// The session's end was moved.
    Extended {
        /// By so many seconds.
        seconds: u64,
    },
    /// People were told that the session will end.
    Notice {
        /// Why it would: `idle`, `lifetime` or `budget`.
        kind: String,
        /// The deadline, on the clock that counts for this kind.
        deadline: Micros,
        /// How long before it, in seconds: one of the setting `notices`.
        before: u64,
        /// What was said.
        text: String,
        /// Whether something ran, in whose output it was said; else it is said with the next execution.
        said: bool,
    },
    /// The session begins to end. A host that comes after this one goes on with it.
    Ending {
        /// As in [`Note::SessionEnded`].
        reason: String,
        /// Whether what runs is given time to finish, and the hooks are run.
        retire: bool,
    },
    /// A step on the way to the end was taken.
    EndStep {
        /// `interrupt`, `before_retire_code`, `before_retire`, `shutdown_request`, `SIGTERM` or `SIGKILL`.
        step: String,
        /// What came of it, where that is known: a command's exit code and output, a limit that was passed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        outcome: String,
    },
    /// What the engine and all that it started have used, in all its lives in this session.
    Usage {
        /// Microseconds of CPU time of the engines that have ended.
        before: Micros,
        /// Of the one that lives.
        cpu: Micros,
        /// The most memory that was seen in use at one time, bytes.
        peak_bytes: u64,
    },
    /// The engine's heartbeat stopped answering, or answers again.
    Health {
        /// Whether it answers.
        responsive: bool,
    },
    /// Whether the end of this execution is to be told of, whatever the settings say.
    NotifyOf {
        /// The execution, which may be yet to come.
        n: ExecutionNumber,
        /// Whether.
        on: bool,
    },
    /// Records were taken out to save room (`journal_bytes_max`): outputs of execution `n`, or old checkpoints and what belongs to
    /// no execution (`n` 0).
    /// They had the numbers from this record's own to `until`. What they showed, the execution's records that stayed show.
    Compacted {
        /// Whose.
        n: ExecutionNumber,
        /// Number of the last of them.
        until: u64,
        /// By how many outputs the execution had more than what stayed. Said once for each time it was compacted.
        #[serde(default)]
        outputs: i64,
        /// By how many bytes.
        #[serde(default)]
        bytes: i64,
    },
    /// A person was told what became of the session before this one.
    PredecessorTold {
        /// That session's id.
        session: String,
    },
    /// A subshell of the engine's that nobody was there for any more was deleted.
    SubshellDeleted {
        /// Its id.
        subshell_id: String,
        /// Of the engine's reply.
        msg_id: String,
    },
    /// The session is over. Nothing follows.
    SessionEnded {
        /// Begins with a word of the contract: `stopped`, `shutdown`, `idle`, ...
        reason: String,
    },
    /// A kind this version does not know.
    #[serde(other)]
    Unknown,
}
