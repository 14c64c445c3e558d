//! A Jupyter message as it travels: raw bytes in the order of the wire, parsed only where farside acts on it.
//!
//! Source: Jupyter messaging protocol 5.4, "The wire protocol" and "General message format".

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

/// The sockets of a kernel that carry messages (the heartbeat carries none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Channel {
    Shell = 1,
    Control = 2,
    Stdin = 3,
    Iopub = 4,
}

impl Channel {
    /// The channel of a number that [`Channel`]`as u8` gave.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Shell),
            2 => Some(Self::Control),
            3 => Some(Self::Stdin),
            4 => Some(Self::Iopub),
            _ => None,
        }
    }

    /// The name of the channel in connection files and in Jupyter Server's websocket protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
            Self::Iopub => "iopub",
        }
    }
}

/// One message without its delimiter and signature. The four dictionaries are JSON text, byte for byte as they
/// came; cloning shares the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Routing identities (ROUTER) or the topic (iopub), before `<IDS|MSG>`.
    pub identities: Vec<Bytes>,
    /// Header, JSON object.
    pub header: Bytes,
    /// Header of the message that caused this one, or `{}`.
    pub parent_header: Bytes,
    /// Metadata, JSON object.
    pub metadata: Bytes,
    /// Content, JSON object.
    pub content: Bytes,
    /// Binary buffers (widgets, comms).
    pub buffers: Vec<Bytes>,
}

/// What farside reads of a header. Unknown fields are ignored here and kept in the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Header<'a> {
    /// Unique id of the message.
    #[serde(borrow)]
    pub msg_id: Cow<'a, str>,
    /// E.g. `execute_request`.
    #[serde(borrow)]
    pub msg_type: Cow<'a, str>,
    /// The `session` field: the id of the process that sent it, called `session_id` here since `session` is
    /// farside's own word.
    #[serde(borrow, rename = "session", default)]
    pub session_id: Cow<'a, str>,
    /// JEP 91: the subshell a shell request is for.
    #[serde(borrow, default)]
    pub subshell_id: Option<Cow<'a, str>>,
}

impl Message {
    /// Parses what farside needs of the header.
    pub fn header(&self) -> Result<Header<'_>, serde_json::Error> {
        serde_json::from_slice(&self.header)
    }

    /// The parent's header; `None` where the message has no (readable) parent.
    pub fn parent(&self) -> Option<Header<'_>> {
        serde_json::from_slice(&self.parent_header).ok()
    }

    /// Bytes of all parts together: what the message costs in a queue.
    pub fn size_bytes(&self) -> usize {
        self.parts().map(Bytes::len).sum()
    }

    /// All parts in wire order: identities, header, parent_header, metadata, content, buffers.
    pub fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.identities
            .iter()
            .chain([
                &self.header,
                &self.parent_header,
                &self.metadata,
                &self.content,
            ])
            .chain(&self.buffers)
    }
}
