//! The frames of the link and their encoding: `length u64 | kind u8 | part u32 | body`, little-endian; `length`
//! counts what follows it. A record's body is as in the journal; all other bodies are JSON.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Hello, Refusal, Welcome};
use crate::journal::codec;
use crate::journal::record::Record;
use crate::session::event::Command;

/// Bytes before a body.
pub(super) const HEAD_BYTES: usize = 8 + 1 + 4;

/// The kind of [`Frame::Record`].
const RECORD_KIND: u8 = 4;

/// The largest frame that is read. A record can be as large as an engine's largest message; past this the stream
/// is taken for broken.
const FRAME_BYTES_MAX: u64 = 16 << 30;

/// What the two ends of a link say.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Client: who, and what it wants.
    Hello(Hello),
    /// Host: welcome.
    Welcome(Welcome),
    /// Host: no, and the stream ends.
    Refused(Refusal),
    /// Host to client: a record, or a message that the host made of it (`part` from 1). Client to host: a request,
    /// its `seq` the client's own number.
    Record {
        /// See [`super::Resume::part`]. Of a request: 1 where it is sent again on a new stream.
        part: u32,
        /// The record.
        record: Record,
    },
    /// Host: the client's requests up to this number are in the journal.
    Ack {
        /// The client's number.
        number: u64,
    },
    /// Client: a command.
    Command {
        /// For the answer.
        id: u64,
        /// What to do.
        command: Command,
    },
    /// Host: the answer to a command.
    Answer {
        /// Of the command.
        id: u64,
        /// `{"ok": true}` or `{"ok": false, "error": "..."}`.
        answer: Value,
    },
    /// Client, from [`super::FRONTENDS_VERSION`] on: the sockets of frontends that are connected to it, all of them;
    /// whenever that has changed, and on a new stream.
    Frontends {
        /// The identity of each.
        identities: Vec<Vec<u8>>,
    },
    /// Host, from [`super::KERNEL_INFO_VERSION`] on, to clients that want replies: how it answers a kernel_info_request
    /// now; on a new stream, and whenever that has changed.
    KernelInfo {
        /// The reply's content; `None`: not at once, or not like this.
        content: Option<Value>,
    },
    /// Host: the session has ended; the stream ends.
    Ended {
        /// Why.
        reason: String,
    },
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The system's.
    #[error("the link broke: {0}")]
    Io(#[from] std::io::Error),
    /// A frame that is none.
    #[error("the other end of the link does not speak this protocol: {0}")]
    Malformed(String),
    /// The end in the middle of a frame.
    #[error("the link broke in the middle of a frame")]
    Torn,
}

#[derive(Serialize, Deserialize)]
struct CommandBody {
    id: u64,
    #[serde(flatten)]
    command: Command,
}

#[derive(Serialize, Deserialize)]
struct AnswerBody {
    id: u64,
    answer: Value,
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Refused(_) => 3,
            Self::Record { .. } => RECORD_KIND,
            Self::Ack { .. } => 5,
            Self::Command { .. } => 6,
            Self::Answer { .. } => 7,
            Self::Ended { .. } => 8,
            Self::Frontends { .. } => 9,
            Self::KernelInfo { .. } => 10,
        }
    }

    /// Hands the encoded frame over in pieces; payloads are shared, not copied.
    pub(super) fn encode(&self, push: impl FnMut(Bytes)) {
        let body = match self {
            Self::Record { part, record } => return encode_record(*part, record, push),
            Self::Hello(hello) => json(hello),
            Self::Welcome(welcome) => json(welcome),
            Self::Refused(refusal) => json(refusal),
            Self::Ack { number } => json(number),
            Self::Command { id, command } => json(&CommandBody {
                id: *id,
                command: command.clone(),
            }),
            Self::Answer { id, answer } => json(&AnswerBody {
                id: *id,
                answer: answer.clone(),
            }),
            Self::Ended { reason } => json(reason),
            Self::Frontends { identities } => json(identities),
            Self::KernelInfo { content } => json(content),
        };
        push_frame(self.kind(), 0, vec![body], push);
    }

    /// How many bytes the frame at the beginning of `bytes` has in all; `None` where that is not known yet.
    pub(super) fn size(bytes: &[u8]) -> Result<Option<u64>, LinkError> {
        let Some(length) = bytes.first_chunk::<8>() else {
            return Ok(None);
        };
        let length = u64::from_le_bytes(*length);
        if !(5..=FRAME_BYTES_MAX).contains(&length) {
            return Err(LinkError::Malformed(format!("a frame of {length} bytes")));
        }
        Ok(Some(length + 8))
    }

    /// Where the four dictionaries of the message lie in the frame that begins with `bytes`: they follow one another.
    /// `None`: not enough of it has come to tell, or it is no frame with a message.
    pub fn dictionaries(bytes: &[u8]) -> Option<Range<u64>> {
        if bytes.get(8) != Some(&RECORD_KIND) {
            return None;
        }
        let body = bytes.get(HEAD_BYTES..)?;
        let range = codec::Head::decode(body).ok()?.dictionaries(body)?;
        let head = HEAD_BYTES as u64;
        Some(range.start.checked_add(head)?..range.end.checked_add(head)?)
    }

    /// Decodes one whole frame of [`Frame::size`] bytes.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, LinkError> {
        bytes.advance(8);
        let (kind, part) = (bytes.get_u8(), bytes.get_u32_le());
        Ok(match kind {
            1 => Self::Hello(parse(&bytes)?),
            2 => Self::Welcome(parse(&bytes)?),
            3 => Self::Refused(parse(&bytes)?),
            RECORD_KIND => {
                let record = codec::decode(bytes)
                    .map_err(|error| LinkError::Malformed(error.to_string()))?;
                Self::Record { part, record }
            }
            5 => Self::Ack {
                number: parse(&bytes)?,
            },
            6 => {
                let CommandBody { id, command } = parse(&bytes)?;
                Self::Command { id, command }
            }
            7 => {
                let AnswerBody { id, answer } = parse(&bytes)?;
                Self::Answer { id, answer }
            }
            8 => Self::Ended {
                reason: parse(&bytes)?,
            },
            9 => Self::Frontends {
                identities: parse(&bytes)?,
            },
            10 => Self::KernelInfo {
                content: parse(&bytes)?,
            },
            unknown => {
                return Err(LinkError::Malformed(format!(
                    "a frame of the unknown kind {unknown}"
                )));
            }
        })
    }
}

fn encode_record(part: u32, record: &Record, push: impl FnMut(Bytes)) {
    push_frame(RECORD_KIND, part, codec::encode(record), push);
}

/// The host's hot path: as [`Frame::encode`] of a [`Frame::Record`], without a frame or pieces of its own. Writes what
/// comes before the payload behind `out`, and gives the payload.
pub(super) fn write_record_head<'a>(
    part: u32,
    record: &'a Record,
    out: &mut Vec<u8>,
) -> codec::Payload<'a> {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.push(RECORD_KIND);
    out.extend_from_slice(&part.to_le_bytes());
    let payload = codec::write_head(record, out);
    let length = out.len() - start - 8 + payload.size_bytes();
    out[start..start + 8].copy_from_slice(&(length as u64).to_le_bytes());
    payload
}

fn push_frame(kind: u8, part: u32, body: Vec<Bytes>, mut push: impl FnMut(Bytes)) {
    let body_bytes: usize = body.iter().map(Bytes::len).sum();
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    head.extend_from_slice(&((body_bytes + HEAD_BYTES - 8) as u64).to_le_bytes());
    head.extend_from_slice(&[kind]);
    head.extend_from_slice(&part.to_le_bytes());
    push(head.freeze());
    body.into_iter().for_each(push);
}

fn json(value: &impl Serialize) -> Bytes {
    // Our own structs of strings and numbers: serializing them cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, LinkError> {
    serde_json::from_slice(bytes).map_err(|error| LinkError::Malformed(error.to_string()))
}
