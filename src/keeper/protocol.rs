//! What keeper and host say to each other. One JSON object a datagram ([`super::socket`]).
//!
//! The two may be of different versions (a keeper outlives an upgrade of the file on disk): unknown kinds of
//! messages become `Unknown`, unknown fields are ignored, a new field needs a default.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::journal::record::ProcessEnd;
use crate::process::signal_name;

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToKeeper {
    /// Start a process. Answered by [`FromKeeper::Spawned`] or [`FromKeeper::SpawnFailed`].
    Spawn(Spawn),
    /// Send a signal to a process that the keeper knows. Answered only where it fails, by
    /// [`FromKeeper::Refused`].
    Signal {
        /// Which.
        pid: u32,
        /// Which, see [`crate::process::start_time`].
        start_time: u64,
        /// Signal number.
        signal: i32,
        /// To its whole process group, which it leads.
        group: bool,
    },
    /// Tell the end of a process that the keeper did not start. Where it has ended already,
    /// [`FromKeeper::Ended`] comes at once. Asking again does nothing.
    Watch(Process),
    /// The end of this process has been noted for good: it need not be told again.
    Ack {
        /// Which.
        pid: u32,
        /// Which.
        start_time: u64,
    },
    /// Hold one of the engine's streams: when the host dies, read on, and give it to the next one. It takes the place
    /// of the one of the same name.
    Hold {
        /// Which stream.
        stream: Stream,
        /// The socket, and the memory of the [`crate::spool::Spool`] that it is read into.
        #[serde(skip)]
        fds: Fds,
    },
    /// Give the streams that are held to this host. Answered by [`FromKeeper::Held`].
    TakeHeld,
    /// Start this program as the session's next hosts, instead of the keeper's own. Answered by
    /// [`FromKeeper::HostProgram`].
    HostProgram {
        /// Its path.
        program: Text,
    },
    /// The session is over: when the host ends, kill what is left of the processes and end too.
    Bye,
    /// A kind this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the keeper says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FromKeeper {
    /// The first message of every keeper to every host.
    Hello(Hello),
    /// The process runs (its exec succeeded).
    Spawned(Process),
    /// It could not be started.
    SpawnFailed {
        /// As in [`Spawn::id`].
        id: String,
        /// What failed, e.g. "No such file or directory: /x/python".
        error: String,
    },
    /// A process ended. Told again in each [`Hello`] until its `Ack`.
    Ended(Ended),
    /// The streams that are held. The keeper leaves them alone as long as this host lives.
    Held {
        /// Which.
        streams: Vec<Stream>,
        /// Two of each, as in [`ToKeeper::Hold`].
        #[serde(skip)]
        fds: Fds,
    },
    /// The next host will be this program.
    HostProgram {
        /// Its path.
        program: Text,
    },
    /// A request could not be fulfilled.
    Refused {
        /// Which, in words.
        about: String,
        /// Why.
        error: String,
    },
    /// The keeper was asked to end (SIGTERM: the machine or the login goes down). The host decides.
    Terminate,
    /// A kind this version does not know.
    #[serde(other)]
    Unknown,
}

/// A process to be started, in a session and process group of its own, with stdin from /dev/null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The host's own name for it, e.g. `engine-3`; told in every message about it.
    pub id: String,
    /// Program and arguments. A program without `/` is looked for in `env`'s PATH.
    pub argv: Vec<Text>,
    /// The complete environment. [`STRIPPED_VARIABLES`] are left out in any case.
    pub env: Vec<(Text, Text)>,
    /// Working directory.
    pub cwd: Text,
    /// The file that stdout and stderr are appended to; created with 0600.
    pub log: Text,
    /// Niceness to add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
}

/// Variables by which a frontend tells its kernel about itself. An engine must not see them: ipykernel ends
/// itself when its JPY_PARENT_PID goes away, and the name would be stale after the first frontend.
pub const STRIPPED_VARIABLES: [&str; 3] =
    ["JPY_PARENT_PID", "JPY_INTERRUPT_EVENT", "JPY_SESSION_NAME"];

/// A stream of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// The process at its other end, as in [`Spawn::id`].
    pub process: String,
    /// Its name among those of the process.
    pub name: String,
}

/// Descriptors that travel with a message.
#[derive(Clone, Debug, Default)]
pub struct Fds(Arc<[OwnedFd]>);

impl Fds {
    /// These.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into())
    }

    /// All of them.
    pub fn as_slice(&self) -> &[OwnedFd] {
        &self.0
    }
}

impl PartialEq for Fds {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.is_empty() && other.0.is_empty())
    }
}

/// A message between keeper and host, with its descriptors.
pub trait Carries {
    /// Those that it has.
    fn fds(&self) -> Fds;
    /// Gives it those that came with it.
    fn set_fds(&mut self, fds: Fds);
}

impl Carries for ToKeeper {
    fn fds(&self) -> Fds {
        match self {
            Self::Hold { fds, .. } => fds.clone(),
            Self::Spawn(_)
            | Self::Signal { .. }
            | Self::Watch(_)
            | Self::Ack { .. }
            | Self::TakeHeld
            | Self::HostProgram { .. }
            | Self::Bye
            | Self::Unknown => Fds::default(),
        }
    }

    fn set_fds(&mut self, came: Fds) {
        if let Self::Hold { fds, .. } = self {
            *fds = came;
        }
    }
}

impl Carries for FromKeeper {
    fn fds(&self) -> Fds {
        match self {
            Self::Held { fds, .. } => fds.clone(),
            Self::Hello(_)
            | Self::Spawned(_)
            | Self::SpawnFailed { .. }
            | Self::Ended(_)
            | Self::HostProgram { .. }
            | Self::Refused { .. }
            | Self::Terminate
            | Self::Unknown => Fds::default(),
        }
    }

    fn set_fds(&mut self, came: Fds) {
        if let Self::Held { fds, .. } = self {
            *fds = came;
        }
    }
}

/// A process the keeper watches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// As in [`Spawn::id`].
    pub id: String,
    /// Process id.
    pub pid: u32,
    /// Start time, see [`crate::process::start_time`].
    pub start_time: u64,
}

/// What a new host of a keeper, or a host with a new keeper, finds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The keeper's process id.
    pub keeper_pid: u32,
    /// The keeper's version.
    pub version: String,
    /// Processes that run, as far as this keeper knows.
    #[serde(default)]
    pub alive: Vec<Process>,
    /// Ends that no host has acknowledged, oldest first.
    #[serde(default)]
    pub ended: Vec<Ended>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    #[serde(flatten)]
    pub process: Process,
    /// `None`: it was not the keeper's child, and the system does not tell.
    pub end: Option<ProcessEnd>,
    /// What it used, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Resources a process used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode, microseconds.
    pub user_micros: u64,
    /// Processor time in the kernel, microseconds.
    pub system_micros: u64,
    /// Most memory it had resident at one time, bytes.
    pub max_resident_bytes: u64,
}

/// How a process ended, in words that complete "the engine ...": "was killed by signal 9 (SIGKILL)".
pub fn describe_end(end: Option<&ProcessEnd>) -> String {
    const UNSEEN: &str = "ended, nobody saw how";
    let Some(end) = end else {
        return UNSEEN.to_owned();
    };
    if end.out_of_memory {
        return "was killed by the system's out-of-memory killer (SIGKILL)".to_owned();
    }
    match (end.signal, end.exit_code) {
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("was killed by signal {signal} ({name})"),
            None => format!("was killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => UNSEEN.to_owned(),
    }
}

/// A string of the operating system in JSON: text where it is UTF-8, else a list of bytes. So a path or
/// variable in any encoding reaches the engine unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "TextOrBytes", into = "TextOrBytes")]
pub struct Text(OsString);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<TextOrBytes> for Text {
    fn from(value: TextOrBytes) -> Self {
        match value {
            TextOrBytes::Text(text) => Self(text.into()),
            TextOrBytes::Bytes(bytes) => Self(OsString::from_vec(bytes)),
        }
    }
}

impl From<Text> for TextOrBytes {
    fn from(value: Text) -> Self {
        match value.0.into_string() {
            Ok(text) => Self::Text(text),
            Err(other) => Self::Bytes(other.into_vec()),
        }
    }
}

impl Text {
    /// As the operating system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

macro_rules! text_from {
    ($($source:ty),*) => {$(
        impl From<$source> for Text {
            fn from(value: $source) -> Self {
                Self(value.into())
            }
        }
    )*};
}
text_from!(&str, String, &OsStr, OsString, &Path, PathBuf);

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<M: Serialize + serde::de::DeserializeOwned>(message: &M) -> M {
        serde_json::from_slice(&serde_json::to_vec(message).unwrap()).unwrap()
    }

    #[test]
    fn messages_survive_the_trip_and_bytes_that_are_not_utf8_too() {
        let odd = OsString::from_vec(vec![b'a', 0xff, b'b']);
        let spawn = ToKeeper::Spawn(Spawn {
            id: "engine-1".into(),
            argv: vec!["python".into(), odd.clone().into()],
            env: vec![("A".into(), odd.into())],
            cwd: "/".into(),
            log: "/dev/null".into(),
            nice: Some(3),
        });
        assert_eq!(round_trip(&spawn), spawn);
        assert_eq!(round_trip(&ToKeeper::Bye), ToKeeper::Bye);
        let ended = FromKeeper::Ended(Ended {
            process: Process {
                id: "e".into(),
                pid: 7,
                start_time: 8,
            },
            end: Some(ProcessEnd {
                exit_code: None,
                signal: Some(9),
                out_of_memory: true,
            }),
            usage: Some(Usage {
                user_micros: 1,
                system_micros: 2,
                max_resident_bytes: 3,
            }),
        });
        assert_eq!(round_trip(&ended), ended);
    }

    #[test]
    fn a_newer_peers_kinds_and_fields_are_no_error() {
        let unknown = r#"{"kind":"freeze","pid":3}"#;
        assert_eq!(
            serde_json::from_str::<ToKeeper>(unknown).unwrap(),
            ToKeeper::Unknown
        );
        assert_eq!(
            serde_json::from_str::<FromKeeper>(unknown).unwrap(),
            FromKeeper::Unknown
        );
        assert_eq!(
            serde_json::from_str::<ToKeeper>(r#"{"kind":"ack","pid":3,"start_time":4,"x":[]}"#)
                .unwrap(),
            ToKeeper::Ack {
                pid: 3,
                start_time: 4
            }
        );
        let hello = r#"{"kind":"hello","keeper_pid":1,"version":"9",
            "ended":[{"id":"e","pid":1,"start_time":2,"end":null,"x":1}]}"#;
        let FromKeeper::Hello(hello) = serde_json::from_str(hello).unwrap() else {
            panic!("a hello")
        };
        assert_eq!(hello.ended[0].process.pid, 1);
    }

    #[test]
    fn ends_in_words() {
        let words = |exit_code, signal, out_of_memory| {
            describe_end(Some(&ProcessEnd {
                exit_code,
                signal,
                out_of_memory,
            }))
        };
        assert_eq!(words(Some(3), None, false), "exited with code 3");
        assert_eq!(
            words(None, Some(11), false),
            "was killed by signal 11 (SIGSEGV)"
        );
        assert_eq!(words(None, Some(40), false), "was killed by signal 40");
        assert_eq!(
            words(None, Some(9), true),
            "was killed by the system's out-of-memory killer (SIGKILL)"
        );
        assert_eq!(describe_end(None), "ended, nobody saw how");
    }
}
