//! The link: the byte stream between a host and a launcher or CLI command (docs/protocol.md).
//!
//! Owns the frames, their encoding, and reading and writing them. Refuses to know what the stream is: today a unix
//! socket, and anything else that carries bytes in order.
//!
//! A client opens a stream with [`Hello`] and says which records it wants. Each record from the host carries its
//! journal number, so that a client whose stream broke opens a new one from the last place it saw; each request to
//! the host carries the client's own number and is acknowledged once it is in the journal, so that the client knows
//! what to send again.

mod frame;
mod stream;

use serde::{Deserialize, Serialize};

use crate::journal::record::ClientId;
use crate::session::view::Mirror;

pub use frame::{Frame, LinkError};
pub use stream::{LinkReader, LinkWriter};

/// The newest version of the link that this farside speaks.
pub const VERSION: u32 = 3;

/// The oldest one. A client says hello in its newest version; a host that does not speak that one answers with its own
/// newest ([`Refusal::Version`]), and the client says hello again in that one, if it speaks it. So whichever is newer
/// speaks the other one's version. `tests/golden/link-v*` has what each version looks like.
pub const OLDEST_VERSION: u32 = 1;

/// The first version with [`Frame::Frontends`]. A host that speaks an older one would end the stream.
pub const FRONTENDS_VERSION: u32 = 2;

/// The first version with [`Frame::KernelInfo`].
pub const KERNEL_INFO_VERSION: u32 = 3;

/// The first frame of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The one that the client speaks on this stream.
    pub version: u32,
    /// Who. The streams of one launcher carry the same id.
    pub client: ClientId,
    /// `launcher`, `iopub`, or the name of a CLI command.
    pub kind: String,
    /// The client's process.
    pub pid: u32,
    /// The process it lives for (its frontend): with it gone the client counts as gone.
    #[serde(default)]
    pub parent_pid: Option<u32>,
    /// Take the session as its one launcher. Refused where there is one already.
    #[serde(default)]
    pub claim: bool,
    /// The connection file of a launcher, by which a session without a key is found again after a restart.
    #[serde(default)]
    pub connection_file: Option<String>,
    /// Send the replies to this client's requests.
    #[serde(default)]
    pub replies: bool,
    /// Send iopub as this client sees it.
    #[serde(default)]
    pub iopub: bool,
    /// Go on behind this place; without it the stream begins with what is new.
    #[serde(default)]
    pub resume: Option<Resume>,
}

/// Where a client had come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Number of the last record seen.
    pub seq: u64,
    /// And which of the messages that the host made of it: 0 the record itself, from 1 copies and replays.
    pub part: u32,
    /// The attachments that were on there.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
}

/// The host's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The client's: it is spoken on this stream.
    pub version: u32,
    /// The session's id.
    pub session: String,
    /// Its name.
    pub name: String,
    /// The one `header.session` of what frontends get.
    pub session_id: String,
    /// The stream begins behind this record.
    pub seq: u64,
    /// The host's farside version.
    pub farside: String,
}

/// Why a host did not take a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "refused")]
pub enum Refusal {
    /// There is a launcher already.
    Attached,
    /// The session has ended or is just about to.
    Ending,
    /// The versions do not fit.
    Version {
        /// What the host speaks.
        host: u32,
    },
    /// Anything else, in words.
    #[serde(other)]
    Other,
}
