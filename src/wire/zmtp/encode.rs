//! The encoders: greeting and commands as bytes, messages as a queue of chunks for vectored writes.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{GREETING_BYTES, IDENTITY_BYTES_MAX, SocketType};

/// A payload below this is copied next to its neighbours: cheaper than an entry of its own in a vectored write.
const COALESCE_BELOW_BYTES: usize = 8 * 1024;
/// The coalescing buffer is sealed at this size, so that growing it never moves much.
const TAIL_BYTES_MAX: usize = 64 * 1024;

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// Our greeting: ZMTP 3.0, NULL mechanism.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut b = [0; GREETING_BYTES];
    b[0] = 0xff;
    b[9] = 0x7f;
    b[10] = 3;
    b[12..16].copy_from_slice(b"NULL");
    b
}

/// READY with Socket-Type and Identity. Of an identity longer than [`IDENTITY_BYTES_MAX`] the rest is left out.
pub fn ready(socket_type: SocketType, identity: &[u8]) -> Bytes {
    let identity = &identity[..identity.len().min(IDENTITY_BYTES_MAX)];
    let mut body = BytesMut::new();
    for (name, value) in [
        ("Socket-Type", socket_type.name().as_bytes()),
        ("Identity", identity),
    ] {
        put_short(&mut body, name.as_bytes());
        body.put_u32(value.len() as u32);
        body.put_slice(value);
    }
    command("READY", &body)
}

/// ERROR, with at most 255 bytes of `reason`.
pub fn error(reason: &str) -> Bytes {
    let mut body = BytesMut::new();
    put_short(&mut body, &reason.as_bytes()[..reason.len().min(255)]);
    command("ERROR", &body)
}

/// PONG with the context of the PING it answers.
pub fn pong(context: &[u8]) -> Bytes {
    command("PONG", context)
}

/// The message by which a ZMTP 3.0 SUB subscribes to a topic, or ends that.
pub fn subscription(subscribe: bool, topic: &[u8]) -> Bytes {
    let mut b = BytesMut::with_capacity(1 + topic.len());
    b.put_u8(subscribe.into());
    b.put_slice(topic);
    b.freeze()
}

fn command(name: &str, data: &[u8]) -> Bytes {
    let body_bytes = 1 + name.len() + data.len();
    let mut b = BytesMut::with_capacity(9 + body_bytes);
    put_head(&mut b, FLAG_COMMAND, body_bytes);
    put_short(&mut b, name.as_bytes());
    b.put_slice(data);
    b.freeze()
}

fn put_short(b: &mut BytesMut, value: &[u8]) {
    debug_assert!(value.len() <= 255);
    b.put_u8(value.len() as u8);
    b.put_slice(value);
}

fn put_head(b: &mut BytesMut, flags: u8, body_bytes: usize) {
    if let Ok(short) = u8::try_from(body_bytes) {
        b.put_slice(&[flags, short]);
    } else {
        b.put_u8(flags | FLAG_LONG);
        b.put_u64(body_bytes as u64);
    }
}

/// Encoded messages on their way out. A queue of chunks: frame heads and small payloads coalesced, each larger
/// payload the very `Bytes` that was given. Always ends at the end of a message or command.
#[derive(Debug, Default)]
pub struct Outgoing {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    chunks_bytes: usize,
    /// What was coalesced since the last chunk.
    tail: BytesMut,
}

impl Outgoing {
    /// Adds a message. One without parts is nothing in ZMTP and adds nothing.
    pub fn push_message(&mut self, parts: &[Bytes]) {
        for (i, part) in parts.iter().enumerate() {
            let more = if i + 1 < parts.len() { FLAG_MORE } else { 0 };
            if part.len() < COALESCE_BELOW_BYTES {
                self.tail.reserve(9 + part.len());
                put_head(&mut self.tail, more, part.len());
                self.tail.put_slice(part);
                if self.tail.len() >= TAIL_BYTES_MAX {
                    self.seal();
                }
            } else {
                put_head(&mut self.tail, more, part.len());
                self.push_chunk(part.clone());
            }
        }
    }

    /// Adds what is encoded already: a greeting or command.
    pub fn push_encoded(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// Adds bytes of another encoding, shared where they are many: the queue knows nothing of what it carries.
    pub fn push_bytes(&mut self, bytes: Bytes) {
        if bytes.len() >= COALESCE_BELOW_BYTES {
            self.push_chunk(bytes);
            return;
        }
        self.tail.put_slice(&bytes);
        if self.tail.len() >= TAIL_BYTES_MAX {
            self.seal();
        }
    }

    /// As [`Outgoing::push_bytes`], for one who keeps his: a small part costs no more than its copy.
    pub fn push_part(&mut self, part: &Bytes) {
        if part.len() >= COALESCE_BELOW_BYTES {
            self.push_chunk(part.clone());
            return;
        }
        self.tail.put_slice(part);
        if self.tail.len() >= TAIL_BYTES_MAX {
            self.seal();
        }
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.chunks_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `slices` with what comes next; gives how many it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.slices_of(self.len(), slices)
    }

    /// As [`Outgoing::slices`], of the next `bytes` only.
    pub fn slices_of<'a>(&'a self, mut bytes: usize, slices: &mut [IoSlice<'a>]) -> usize {
        let chunks = self.chunks.iter().map(|c| &c[..]);
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut filled = 0;
        for (slot, chunk) in slices.iter_mut().zip(chunks.chain(tail)) {
            if bytes == 0 {
                break;
            }
            let chunk = &chunk[..chunk.len().min(bytes)];
            bytes -= chunk.len();
            *slot = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    /// Takes the first `n` bytes away: they were written. At most [`Outgoing::len`].
    pub fn advance(&mut self, mut n: usize) {
        debug_assert!(n <= self.len());
        while let Some(chunk) = self.chunks.front_mut() {
            let here = n.min(chunk.len());
            chunk.advance(here);
            self.chunks_bytes -= here;
            n -= here;
            if !chunk.is_empty() {
                return;
            }
            self.chunks.pop_front();
        }
        self.tail.advance(n.min(self.tail.len()));
    }

    fn push_chunk(&mut self, chunk: Bytes) {
        self.seal();
        self.chunks_bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.chunks_bytes += sealed.len();
            self.chunks.push_back(sealed);
        }
    }
}
