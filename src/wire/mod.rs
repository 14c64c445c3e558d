//! PURE. The Jupyter messaging protocol: frames, signatures, messages, connection files, and ZMTP, the
//! framing below them. Knows nothing of sockets, files, clocks or of what a session is.

pub mod connection_file;
pub mod frame;
pub mod message;
mod plain;
pub mod signature;
pub mod zmtp;

pub use connection_file::{ConnectionFile, Endpoint, Socket};
pub use frame::WireError;
pub use message::{Channel, Header, HeaderFields, Message, with_session_id};
pub use signature::{Key, ReplayGuard};
