//! PURE. ZMTP 3.0, the framing below the Jupyter protocol: bytes in, events out; messages in, bytes out.
//!
//! Owns the greeting, the NULL mechanism's READY, frames, commands and the limits on them. Knows nothing of
//! sockets (that is [`crate::transport`]) and nothing of Jupyter.
//!
//! Invariants: the decoder is total; a length that a peer merely claims never causes an allocation; a payload of
//! [`LARGE_FRAME_BYTES`] or more is never copied once it lies where it was read to.
//!
//! Why not a crate: the one there is aborts on a frame that claims 2^60 bytes, drops messages on PUB, and has
//! no bound in bytes. farside needs all three.
//!
//! Source: RFC 23/ZMTP 3.0 (and 37/ZMTP 3.1 for PING, PONG, SUBSCRIBE, CANCEL), rfc.zeromq.org.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use decode::{Decoder, Event};
pub use encode::{Outgoing, error, greeting, pong, ready, subscription};

/// Length of a greeting.
pub const GREETING_BYTES: usize = 64;

/// A frame from this size on gets a buffer of its own, or stays a slice of the read buffer: below, one copy costs
/// less than a small message that keeps a whole read buffer alive.
pub const LARGE_FRAME_BYTES: usize = 64 * 1024;

/// How much more memory to ask for where `there` bytes of something have come and it claims `missing` more: as much as is
/// there, `least` at least. Where 4 MiB are there it is all: an allocation of that size is address space until it is
/// written, and one that need not be moved can have large pages.
pub fn room_for(there: usize, missing: usize, least: usize) -> usize {
    const ALL_FROM_BYTES: usize = 4 << 20;
    if there < ALL_FROM_BYTES {
        missing.min(there.max(least))
    } else {
        missing
    }
}

/// The longest command accepted. READY holds an identity of at most 255 bytes and a few names; a subscription's
/// topic is a message type.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// The longest identity ZMTP allows.
pub const IDENTITY_BYTES_MAX: usize = 255;

/// What a peer may send. Past a limit the connection ends with an error; nothing is allocated for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one frame.
    pub frame_bytes_max: usize,
    /// Frames of one message.
    pub message_parts_max: usize,
    /// Bytes of all frames of one message together.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    /// Far above what kernels and frontends send (the largest seen in use: outputs and widget buffers of some
    /// hundred MB), low enough that one peer cannot take a machine's memory with a single message.
    fn default() -> Self {
        Self {
            frame_bytes_max: 2 << 30,
            message_parts_max: 16 * 1024,
            message_bytes_max: 2 << 30,
        }
    }
}

/// The ZeroMQ socket types that a kernel's sockets and their clients have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum SocketType {
    Req,
    Rep,
    Dealer,
    Router,
    Pub,
    Sub,
    Xpub,
    Xsub,
}

impl SocketType {
    /// The name in READY.
    pub fn name(self) -> &'static str {
        match self {
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Pub => "PUB",
            Self::Sub => "SUB",
            Self::Xpub => "XPUB",
            Self::Xsub => "XSUB",
        }
    }

    /// The type of that name; `None` for types that no kernel socket talks to (PUSH, PAIR, ...).
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [
            Self::Req,
            Self::Rep,
            Self::Dealer,
            Self::Router,
            Self::Pub,
            Self::Sub,
            Self::Xpub,
            Self::Xsub,
        ]
        .into_iter()
        .find(|t| t.name().as_bytes() == name)
    }

    /// Whether a socket of this type may talk to one of type `peer` (libzmq's own table).
    pub fn accepts(self, peer: Self) -> bool {
        match self {
            Self::Req => matches!(peer, Self::Rep | Self::Router),
            Self::Rep => matches!(peer, Self::Req | Self::Dealer),
            Self::Dealer => matches!(peer, Self::Rep | Self::Dealer | Self::Router),
            Self::Router => matches!(peer, Self::Req | Self::Dealer | Self::Router),
            Self::Pub | Self::Xpub => matches!(peer, Self::Sub | Self::Xsub),
            Self::Sub | Self::Xsub => matches!(peer, Self::Pub | Self::Xpub),
        }
    }
}

/// What a READY command says of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The peer's socket type.
    pub socket_type: SocketType,
    /// Its identity; `None` where it has none.
    pub identity: Option<Bytes>,
}

/// Why a peer's bytes are not ZMTP that farside speaks. Each one ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZmtpError {
    /// Not a ZMTP greeting.
    #[error("the peer does not speak ZMTP: its greeting does not begin with the ZMTP signature")]
    NotZmtp,
    /// An older protocol.
    #[error("the peer speaks ZMTP {0}; at least 3.0 (libzmq 4.0) is needed")]
    OldVersion(u8),
    /// A security mechanism other than NULL.
    #[error("the peer asks for security mechanism {0:?}; Jupyter's sockets use NULL")]
    Mechanism(String),
    /// A reserved bit is set in a frame's flags.
    #[error("frame with flags {0:#04x}: reserved bits are set")]
    Flags(u8),
    /// A command whose bytes do not fit its own lengths.
    #[error("malformed {0} command")]
    MalformedCommand(&'static str),
    /// A command too long.
    #[error("command of {bytes} bytes; at most {COMMAND_BYTES_MAX} are accepted")]
    CommandTooLong {
        /// The length claimed.
        bytes: u64,
    },
    /// Something else where READY was due.
    #[error("the peer sent something else before its READY command")]
    NotReady,
    /// READY without a socket type that a kernel's sockets talk to.
    #[error("the peer's READY names socket type {0:?}, which no Jupyter socket talks to")]
    SocketType(String),
    /// The peer refused us.
    #[error("the peer refused the connection: {0}")]
    Refused(String),
    /// Limit on one frame.
    #[error("frame of {bytes} bytes; the limit is {max}")]
    FrameTooLong {
        /// The length claimed.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// Limit on one message.
    #[error("message of more than {max} bytes")]
    MessageTooLong {
        /// The limit.
        max: usize,
    },
    /// Limit on the frames of a message.
    #[error("message of more than {max} frames")]
    TooManyParts {
        /// The limit.
        max: usize,
    },
}
