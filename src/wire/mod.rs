//! PURE. The Jupyter messaging protocol: frames, signatures, messages, connection files, and ZMTP, the
//! framing below them. Knows nothing of sockets, files, clocks or of what a session is.

pub mod message;

pub use message::{Channel, Header, Message};
