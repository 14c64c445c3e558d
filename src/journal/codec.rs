//! PURE. The encoding of a record, version 1 (docs/journal.md has it byte by byte).
//!
//! A record's *body* is a fixed head, a table of part lengths, and the parts as raw bytes. The same body travels
//! on the link. In a segment file a *frame* stands before it: magic, two checksums, lengths. The frame and
//! the head can be read, and trusted, without the payload; so a scan skips payloads by length.
//!
//! Every decoder here is total: any bytes give `Ok` or `Err`, and nothing is allocated from a claimed length.

use bytes::Bytes;
use uuid::Uuid;

use super::record::{Body, ClientId, ExecutionNumber, Micros, Note, Record};
use crate::wire::{Channel, Message};

/// Bytes of the fixed part of a body's head. The part table follows.
pub const HEAD_BYTES: usize = 56;

/// Bytes of the frame before each body in a segment.
pub const FRAME_BYTES: usize = 24;

/// First bytes of each frame. 0xF5 and 0xFD never occur in UTF-8, so no JSON text contains it.
pub const FRAME_MAGIC: [u8; 4] = [0xF5, 0xA7, 0xFD, 0x1E];

/// Header, parent_header, metadata, content: the parts that every message has.
const DICTIONARIES: usize = 4;

/// Bit of the head's flags: the client field says whom the record is for.
const FLAG_CLIENT: u8 = 1;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum DecodeError {
    #[error("the record ends early: {what} needs {needs} bytes, there are {has}")]
    Short {
        what: &'static str,
        needs: u64,
        has: u64,
    },
    #[error("{0} bytes are left over behind the record's last part")]
    Trailing(u64),
    #[error("unknown record kind {0}: a newer farside may have written it")]
    UnknownKind(u8),
    #[error("channel {channel} makes no sense in a record of kind {kind}")]
    BadChannel { kind: u8, channel: u8 },
    #[error("the part table is inconsistent: {0}")]
    BadTable(&'static str),
    #[error("a note is not readable JSON: {0}")]
    BadNote(String),
    #[error("a checksum is wrong")]
    BadChecksum,
    #[error("no record starts here")]
    NoMagic,
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// The kind of a record: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Request = 1,
    Reply = 2,
    Iopub = 3,
    Note = 4,
}

/// What can be known of a record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which sort of record.
    pub kind: Kind,
    /// The message's channel; `None` for a note.
    pub channel: Option<Channel>,
    /// Number of the record.
    pub seq: u64,
    /// When it was written.
    pub time: Micros,
    /// See [`Record::heard`].
    pub heard: u32,
    /// The execution that it belongs to, else 0.
    pub execution: ExecutionNumber,
    /// Who asked, or whom it is for. Always there in requests and replies.
    pub client: Option<ClientId>,
    /// How many of the parts are identities.
    pub identities: u32,
    /// How many of the parts are buffers.
    pub buffers: u32,
}

impl Head {
    /// Decodes the fixed head from the beginning of a body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let Some(fixed) = body.first_chunk::<HEAD_BYTES>() else {
            return Err(short("head", HEAD_BYTES as u64, body.len()));
        };
        let (kind, channel) = (fixed[0], fixed[1]);
        let (kind, channel) = match (kind, channel, Channel::from_u8(channel)) {
            (1, _, Some(c @ (Channel::Shell | Channel::Control | Channel::Stdin))) => {
                (Kind::Request, Some(c))
            }
            (2, _, Some(c @ (Channel::Shell | Channel::Control | Channel::Stdin))) => {
                (Kind::Reply, Some(c))
            }
            (3, _, Some(c @ Channel::Iopub)) => (Kind::Iopub, Some(c)),
            (4, 0, _) => (Kind::Note, None),
            (1..=4, _, _) => return Err(DecodeError::BadChannel { kind, channel }),
            _ => return Err(DecodeError::UnknownKind(kind)),
        };
        let client = Uuid::from_bytes(array(fixed, 40));
        let head = Self {
            kind,
            channel,
            identities: u32::from_le_bytes(array(fixed, 4)),
            buffers: u32::from_le_bytes(array(fixed, 8)),
            heard: u32::from_le_bytes(array(fixed, 12)),
            seq: u64::from_le_bytes(array(fixed, 16)),
            time: u64::from_le_bytes(array(fixed, 24)),
            execution: u64::from_le_bytes(array(fixed, 32)),
            client: (fixed[2] & FLAG_CLIENT != 0).then_some(client),
        };
        match head.kind {
            _ if head.seq == u64::MAX => {
                Err(DecodeError::BadTable("a number that none can follow"))
            }
            Kind::Request | Kind::Reply if head.client.is_none() => {
                Err(DecodeError::BadTable("a request or reply without a client"))
            }
            Kind::Note if head.identities != 0 || head.buffers != 0 => {
                Err(DecodeError::BadTable("a note has one part"))
            }
            _ => Ok(head),
        }
    }

    /// How many parts the payload has.
    pub fn parts(&self) -> u64 {
        match self.kind {
            Kind::Note => 1,
            Kind::Request | Kind::Reply | Kind::Iopub => {
                u64::from(self.identities) + DICTIONARIES as u64 + u64::from(self.buffers)
            }
        }
    }

    /// Bytes of fixed head and part table together: where the payload starts in the body.
    pub fn encoded_bytes(&self) -> u64 {
        HEAD_BYTES as u64 + 8 * self.parts()
    }

    /// Where each part lies in the body, in wire order. `body` need hold no more than head and table.
    pub fn part_ranges<'a>(
        &self,
        body: &'a [u8],
    ) -> Result<
        impl Iterator<Item = Result<std::ops::Range<u64>, DecodeError>> + use<'a>,
        DecodeError,
    > {
        let start = self.encoded_bytes();
        let Some(table) = usize::try_from(start)
            .ok()
            .and_then(|end| body.get(HEAD_BYTES..end))
        else {
            return Err(short("part table", start, body.len()));
        };
        let mut at = start;
        Ok(table.chunks_exact(8).map(move |entry| {
            let length = u64::from_le_bytes(array(entry, 0));
            let end = at
                .checked_add(length)
                .ok_or(DecodeError::BadTable("lengths overflow"))?;
            let range = at..end;
            at = end;
            Ok(range)
        }))
    }

    /// Where header, parent_header, metadata and content of a message lie in the body, one behind the other. `None`:
    /// a note, or `body` does not hold head and table.
    pub fn dictionaries(&self, body: &[u8]) -> Option<std::ops::Range<u64>> {
        if self.kind == Kind::Note {
            return None;
        }
        let mut ranges = (self.part_ranges(body).ok()?)
            .skip(self.identities as usize)
            .take(DICTIONARIES);
        let first = ranges.next()?.ok()?;
        let last = ranges.last()?.ok()?;
        Some(first.start..last.end)
    }

    fn of(record: &Record) -> Self {
        let message_head = |kind, channel, client, execution, message: &Message| Self {
            kind,
            channel: Some(channel),
            seq: record.seq,
            time: record.time,
            heard: record.heard,
            execution,
            client,
            identities: count(message.identities.len()),
            buffers: count(message.buffers.len()),
        };
        match &record.body {
            Body::Request {
                channel,
                client,
                execution,
                message,
            } => message_head(Kind::Request, *channel, Some(*client), *execution, message),
            Body::Reply {
                channel,
                client,
                execution,
                message,
            } => message_head(Kind::Reply, *channel, Some(*client), *execution, message),
            Body::Iopub {
                client,
                execution,
                message,
            } => message_head(Kind::Iopub, Channel::Iopub, *client, *execution, message),
            Body::Note(_) => Self {
                kind: Kind::Note,
                channel: None,
                seq: record.seq,
                time: record.time,
                heard: record.heard,
                execution: 0,
                client: None,
                identities: 0,
                buffers: 0,
            },
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend([
            self.kind as u8,
            self.channel.map_or(0, |c| c as u8),
            if self.client.is_some() {
                FLAG_CLIENT
            } else {
                0
            },
            0,
        ]);
        out.extend(self.identities.to_le_bytes());
        out.extend(self.buffers.to_le_bytes());
        out.extend(self.heard.to_le_bytes());
        out.extend(self.seq.to_le_bytes());
        out.extend(self.time.to_le_bytes());
        out.extend(self.execution.to_le_bytes());
        out.extend(self.client.unwrap_or(Uuid::nil()).as_bytes());
    }
}

/// The payload of a record, as it is to be written behind its head.
pub enum Payload<'a> {
    /// A message's parts, in wire order ([`Message::parts`]).
    Message(&'a Message),
    /// A note's JSON.
    Note(Vec<u8>),
}

impl Payload<'_> {
    /// Calls `each` with every part, in order.
    pub fn for_each<'s>(&'s self, mut each: impl FnMut(&'s [u8])) {
        match self {
            Self::Message(message) => message.parts().for_each(|part| each(part)),
            Self::Note(json) => each(json),
        }
    }

    /// Bytes of all parts together.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.size_bytes(),
            Self::Note(json) => json.len(),
        }
    }
}

/// Appends the record's head and part table to `out` and returns what has to follow it.
pub fn write_head<'a>(record: &'a Record, out: &mut Vec<u8>) -> Payload<'a> {
    Head::of(record).write(out);
    let payload = match &record.body {
        Body::Request { message, .. }
        | Body::Reply { message, .. }
        | Body::Iopub { message, .. } => Payload::Message(message),
        Body::Note(note) => Payload::Note(
            serde_json::to_vec(note).expect("a note holds only strings, numbers and JSON values"),
        ),
    };
    payload.for_each(|part| out.extend((part.len() as u64).to_le_bytes()));
    payload
}

/// A record's body as the pieces of one vectored write: head and table first, then each part that is not empty.
/// Payloads are shared, not copied.
pub fn encode(record: &Record) -> Vec<Bytes> {
    let mut head = Vec::with_capacity(HEAD_BYTES + 8 * 8);
    match write_head(record, &mut head) {
        Payload::Message(message) => std::iter::once(head.into())
            .chain(message.parts().filter(|part| !part.is_empty()).cloned())
            .collect(),
        Payload::Note(json) => vec![head.into(), json.into()],
    }
}

/// Decodes a whole body. The parts of the record are slices of `body`: nothing is copied, and `body` stays in
/// memory as long as any of them.
pub fn decode(body: Bytes) -> Result<Record, DecodeError> {
    let head = Head::decode(&body)?;
    let total = body.len() as u64;
    let mut end = head.encoded_bytes();
    let record = assemble(&head, &body, |range| {
        if range.end > total {
            return Err(short("payload", range.end, body.len()));
        }
        end = range.end;
        // Both fit in usize: they are at most `body.len()`.
        Ok(body.slice(range.start as usize..range.end as usize))
    })?;
    if end != total {
        return Err(DecodeError::Trailing(total - end));
    }
    Ok(record)
}

/// Makes a record of its head and of the parts that `part` gives for their places in the body, in order.
/// `table` is the body's beginning, at least head and part table.
pub fn assemble<E: From<DecodeError>>(
    head: &Head,
    table: &[u8],
    mut part: impl FnMut(std::ops::Range<u64>) -> Result<Bytes, E>,
) -> Result<Record, E> {
    let mut ranges = head.part_ranges(table)?;
    let mut next = || {
        part(
            ranges
                .next()
                .ok_or(DecodeError::BadTable("too few parts"))??,
        )
    };
    let mut message = || -> Result<Message, E> {
        Ok(Message {
            identities: (0..head.identities)
                .map(|_| next())
                .collect::<Result<_, _>>()?,
            header: next()?,
            parent_header: next()?,
            metadata: next()?,
            content: next()?,
            buffers: (0..head.buffers)
                .map(|_| next())
                .collect::<Result<_, _>>()?,
        })
    };
    let execution = head.execution;
    let body = match (head.kind, head.channel, head.client) {
        (Kind::Request, Some(channel), Some(client)) => Body::Request {
            channel,
            client,
            execution,
            message: message()?,
        },
        (Kind::Reply, Some(channel), Some(client)) => Body::Reply {
            channel,
            client,
            execution,
            message: message()?,
        },
        (Kind::Iopub, _, client) => Body::Iopub {
            client,
            execution,
            message: message()?,
        },
        (Kind::Note, _, _) => Body::Note(decode_note(&next()?)?),
        (Kind::Request | Kind::Reply, _, _) => {
            return Err(DecodeError::BadTable("no channel or client").into());
        }
    };
    Ok(Record {
        seq: head.seq,
        time: head.time,
        heard: head.heard,
        body,
    })
}

/// A note of a newer farside is [`Note::Unknown`] also where it reuses a name with other fields: that it is
/// JSON is all that is asked for.
fn decode_note(json: &[u8]) -> Result<Note, DecodeError> {
    match serde_json::from_slice(json) {
        Ok(note) => Ok(note),
        Err(error) => match serde_json::from_slice::<serde::de::IgnoredAny>(json) {
            Ok(_) => Ok(Note::Unknown),
            Err(_) => Err(DecodeError::BadNote(error.to_string())),
        },
    }
}

/// What stands before a body in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Over the head (fixed part and table), the rest of the frame, and the place where the frame lies.
    pub head_crc: u32,
    /// Over the payload.
    pub payload_crc: u32,
    /// Bytes of fixed head and part table.
    pub head_bytes: u32,
    /// Bytes of the whole body.
    pub body_bytes: u64,
}

impl Frame {
    /// Reads a frame from the beginning of `bytes`. Nothing is verified but the magic and that lengths make sense.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some(fixed) = bytes.first_chunk::<FRAME_BYTES>() else {
            return Err(short("frame", FRAME_BYTES as u64, bytes.len()));
        };
        if fixed[..4] != FRAME_MAGIC {
            return Err(DecodeError::NoMagic);
        }
        let frame = Self {
            head_crc: u32::from_le_bytes(array(fixed, 4)),
            payload_crc: u32::from_le_bytes(array(fixed, 8)),
            head_bytes: u32::from_le_bytes(array(fixed, 12)),
            body_bytes: u64::from_le_bytes(array(fixed, 16)),
        };
        if (frame.head_bytes as usize) < HEAD_BYTES
            || u64::from(frame.head_bytes) > frame.body_bytes
        {
            return Err(DecodeError::BadTable(
                "a head that is too short, or longer than its body",
            ));
        }
        Ok(frame)
    }

    /// Verifies and decodes the head that follows this frame at `offset` of segment number `segment`.
    /// `head` is exactly `head_bytes` long.
    pub fn decode_head(&self, segment: u32, offset: u64, head: &[u8]) -> Result<Head, DecodeError> {
        if self.compute_head_crc(segment, offset, head) != self.head_crc {
            return Err(DecodeError::BadChecksum);
        }
        let decoded = Head::decode(head)?;
        let mut end = decoded.encoded_bytes();
        for range in decoded.part_ranges(head)? {
            end = range?.end;
        }
        if decoded.encoded_bytes() != u64::from(self.head_bytes) || end != self.body_bytes {
            return Err(DecodeError::BadTable(
                "the frame's lengths are not those of the head",
            ));
        }
        Ok(decoded)
    }

    /// The place is part of the checksum: bytes of a segment that a cell printed into an output are never taken
    /// for a record when a reader looks for the next one behind a damaged place.
    fn compute_head_crc(&self, segment: u32, offset: u64, head: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&segment.to_le_bytes());
        crc.update(&offset.to_le_bytes());
        crc.update(&self.payload_crc.to_le_bytes());
        crc.update(&self.head_bytes.to_le_bytes());
        crc.update(&self.body_bytes.to_le_bytes());
        crc.update(head);
        crc.finalize()
    }
}

impl Frame {
    /// The frame of the same body at another place. `head`: fixed head and part table.
    pub fn moved(&self, segment: u32, offset: u64, head: &[u8]) -> [u8; FRAME_BYTES] {
        let head_crc = self.compute_head_crc(segment, offset, head);
        Self { head_crc, ..*self }.encode()
    }

    fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(&FRAME_MAGIC);
        out[4..8].copy_from_slice(&self.head_crc.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[12..16].copy_from_slice(&self.head_bytes.to_le_bytes());
        out[16..].copy_from_slice(&self.body_bytes.to_le_bytes());
        out
    }
}

/// Whether a payload is that of a [`Note::Compacted`]: told without reading it as JSON.
pub fn is_compacted_note(payload: &[u8]) -> bool {
    payload.starts_with(br#"{"note":"compacted""#)
}

/// Appends frame, head and part table of a record that will lie at `offset` of segment number `segment`. A note
/// is then complete; of a message, the parts have to follow. Also returns the bytes of the whole: frame, head,
/// table and payload.
pub fn write_framed<'a>(
    record: &'a Record,
    segment: u32,
    offset: u64,
    out: &mut Vec<u8>,
) -> (Option<&'a Message>, u64) {
    let start = out.len();
    out.extend([0; FRAME_BYTES]);
    let payload = write_head(record, out);
    let mut crc = crc32fast::Hasher::new();
    payload.for_each(|part| crc.update(part));
    let head = &out[start + FRAME_BYTES..];
    let mut frame = Frame {
        head_crc: 0,
        payload_crc: crc.finalize(),
        // Four billion bytes of table would be half a billion buffers in one message.
        head_bytes: count(head.len()),
        body_bytes: (head.len() + payload.size_bytes()) as u64,
    };
    frame.head_crc = frame.compute_head_crc(segment, offset, head);
    out[start..start + FRAME_BYTES].copy_from_slice(&frame.encode());
    let length = FRAME_BYTES as u64 + frame.body_bytes;
    match payload {
        Payload::Message(message) => (Some(message), length),
        Payload::Note(json) => {
            out.extend(json);
            (None, length)
        }
    }
}

/// The next place in `bytes`, from `from` on, where a frame's magic stands (or the beginning of one at the end).
pub fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while at < bytes.len() {
        at += bytes[at..].iter().position(|&b| b == FRAME_MAGIC[0])?;
        let rest = &bytes[at..];
        let length = rest.len().min(FRAME_MAGIC.len());
        if rest[..length] == FRAME_MAGIC[..length] {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn short(what: &'static str, needs: u64, has: usize) -> DecodeError {
    DecodeError::Short {
        what,
        needs,
        has: has as u64,
    }
}

/// Counts of parts fit in 32 bits: a `Vec<Bytes>` of so many would be 128 GiB.
fn count(n: usize) -> u32 {
    u32::try_from(n).expect("no message has four billion parts")
}

/// `N` bytes at `at`. Callers have checked that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
#[path = "codec_tests.rs"]
pub(crate) mod tests;
