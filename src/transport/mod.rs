//! ZMTP over tcp and unix sockets: listening, connecting, the handshake, and then whole messages in and out.
//!
//! Owns sockets and their buffers. Knows nothing of Jupyter: no signatures, no routing by identity, no
//! subscription lists, no envelopes (REQ and REP parts come as they are on the wire, empty delimiter included).
//! Runs on any tokio runtime, also one of a single thread.
//!
//! Invariants: payloads are not copied on their way out, large ones not on their way in; what is buffered for a
//! peer is only what the caller handed over; [`Reader::recv`] may be dropped at any await; what a reader holds
//! ([`Reader::hold`]) is not lost with its process.

mod connection;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use crate::wire::zmtp::{SocketType, ZmtpError};

pub use crate::wire::zmtp::Limits;
pub use connection::{Incoming, Peer, Reader, Writer, handshake, resume};
pub use stream::{Listener, Stream, connect};

/// Why a connection ended, or never came to be.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer went away without a byte: a port probe (VS Code makes one every 200 ms until the kernel is up).
    #[error("the peer closed the connection without a greeting")]
    Probe,
    /// The stream ended in the middle of the handshake or of a message.
    #[error("the peer closed the connection in the middle of {0}")]
    Truncated(&'static str),
    /// The handshake took too long.
    #[error("the peer did not complete the ZMTP handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// Two sockets that have nothing to say to each other.
    #[error("a {} socket cannot talk to the peer's {} socket", .ours.name(), .peer.name())]
    Incompatible {
        /// Our type.
        ours: SocketType,
        /// The peer's.
        peer: SocketType,
    },
    /// Bytes that are not ZMTP, or past a limit.
    #[error(transparent)]
    Zmtp(#[from] ZmtpError),
    /// The operating system said so.
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
}
