//! The decoder: what was read, turned into events.

use bytes::buf::{BufMut, Limit};
use bytes::{Buf, Bytes, BytesMut};

use super::{
    COMMAND_BYTES_MAX, GREETING_BYTES, IDENTITY_BYTES_MAX, LARGE_FRAME_BYTES, Limits, Ready,
    SocketType, ZmtpError, room_for,
};

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// What a peer's bytes meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's greeting: ZMTP 3.`minor`, NULL mechanism.
    Greeting {
        /// 0 or 1, or of a later version.
        minor: u8,
    },
    /// The peer's READY. Messages may follow.
    Ready(Ready),
    /// A message, all parts of it.
    Message(Vec<Bytes>),
    /// SUBSCRIBE command (ZMTP 3.1). A ZMTP 3.0 peer sends a message `0x01 topic` instead.
    Subscribe(Bytes),
    /// CANCEL command (ZMTP 3.1).
    Cancel(Bytes),
    /// PING: to be answered with a PONG that has the same context.
    Ping {
        /// At most 16 bytes.
        context: Bytes,
    },
    /// PONG.
    Pong,
}

/// Turns the bytes of one connection into [`Event`]s: read into [`Decoder::space`], then call [`Decoder::next`]
/// until it gives `None`. After an error the connection is of no more use.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    stage: Stage,
    /// What was read and not yet taken out. Empty while `large` is being filled.
    buf: BytesMut,
    /// What the last `space` asked for, to give a big buffer back after a flood.
    buf_asked: usize,
    /// Small frames of the message begun that lie whole in `buf`: (start of body, length). They are taken out
    /// together with one copy.
    small: Vec<(usize, usize)>,
    /// Bytes of `buf` that `small` covers, frame heads included.
    scanned: usize,
    /// Frames of the message begun that were taken out already.
    parts: Vec<Bytes>,
    /// Bytes and frames of the message begun, for the limits.
    message_bytes: usize,
    message_parts: usize,
    large: Option<Large>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Handshake,
    Open,
}

/// A frame of up to so many bytes gets its memory when its head has come: one that is not much larger than
/// [`LARGE_FRAME_BYTES`] would be moved when the rest comes, and a claim still costs next to nothing.
const AT_ONCE_BYTES: usize = 2 * LARGE_FRAME_BYTES;

/// A large frame in the making: read straight into its place.
#[derive(Debug)]
struct Large {
    data: Vec<u8>,
    frame_bytes: usize,
    more: bool,
}

struct Head {
    more: bool,
    command: bool,
    head_bytes: usize,
    body_bytes: u64,
}

impl Decoder {
    /// A decoder for a connection that has just been made.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            stage: Stage::Greeting,
            buf: BytesMut::new(),
            buf_asked: 0,
            small: Vec::new(),
            scanned: 0,
            parts: Vec::new(),
            message_bytes: 0,
            message_parts: 0,
            large: None,
        }
    }

    /// A decoder for a connection whose handshake is over and whose next byte begins a message.
    pub fn resumed(limits: Limits) -> Self {
        Self {
            stage: Stage::Open,
            ..Self::new(limits)
        }
    }

    /// Where the next read goes; room for about `read_bytes`, at least one byte. A large frame under way is read
    /// into its own buffer, which grows with what has really come: to twice that at most, until so much has come
    /// ([`room_for`]) that it may take address space for all of it.
    pub fn space(&mut self, read_bytes: usize) -> Limit<&mut dyn BufMut> {
        let read_bytes = read_bytes.max(1);
        if let Some(large) = &mut self.large {
            let missing = large.frame_bytes - large.data.len();
            if large.data.capacity() == large.data.len() {
                // Above malloc's mmap threshold this moves pages, not bytes.
                let there = large.data.len();
                let room = room_for(there, missing, read_bytes);
                // Where address space is short, what has come decides.
                if large.data.try_reserve_exact(room).is_err() {
                    large.data.reserve_exact(missing.min(there));
                }
            }
            let room = missing.min(large.data.capacity() - large.data.len());
            return (&mut large.data as &mut dyn BufMut).limit(room);
        }
        if self.buf.is_empty() && read_bytes < self.buf_asked {
            self.buf = BytesMut::new();
        }
        self.buf_asked = read_bytes;
        if self.buf.capacity() - self.buf.len() < read_bytes.div_ceil(2) {
            self.buf.reserve(read_bytes);
        }
        let room = self.buf.capacity() - self.buf.len();
        (&mut self.buf as &mut dyn BufMut).limit(room)
    }

    /// Copies `bytes` in, for callers that have them already.
    pub fn extend(&mut self, mut bytes: &[u8]) -> Result<Vec<Event>, ZmtpError> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let mut space = self.space(bytes.len());
            let n = bytes.len().min(space.remaining_mut());
            space.put_slice(&bytes[..n]);
            bytes = &bytes[n..];
            while let Some(event) = self.next()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// The next event; `None`: more bytes are needed.
    #[allow(clippy::should_implement_trait)] // it is fallible, and `None` is not the end
    pub fn next(&mut self) -> Result<Option<Event>, ZmtpError> {
        loop {
            if let Some(large) = self.large.take_if(|l| l.data.len() == l.frame_bytes) {
                self.parts.push(Bytes::from(large.data));
                if !large.more {
                    return Ok(Some(self.finish()));
                }
            }
            if self.large.is_some() {
                return Ok(None);
            }
            let step = match self.stage {
                Stage::Greeting => self.greeting()?,
                Stage::Handshake | Stage::Open => self.frame()?,
            };
            match step {
                Step::Event(event) => return Ok(Some(event)),
                Step::Again => {}
                Step::NeedMore => return Ok(None),
            }
        }
    }

    /// Whether the stream may end here: no message or handshake has been begun. (False also before READY.)
    pub fn at_boundary(&self) -> bool {
        self.stage == Stage::Open
            && self.buf.is_empty()
            && self.parts.is_empty()
            && self.large.is_none()
            && self.small.is_empty()
    }

    /// Bytes that belong to what comes after the last event, once [`Decoder::next`] has given a message.
    pub fn unread_bytes(&self) -> usize {
        self.buf.len()
    }

    /// Bytes that the large frame under way still lacks; 0: there is none.
    pub fn large_missing_bytes(&self) -> usize {
        self.large
            .as_ref()
            .map_or(0, |large| large.frame_bytes - large.data.len())
    }

    /// Whether nothing at all has come yet.
    pub fn is_untouched(&self) -> bool {
        self.stage == Stage::Greeting && self.buf.is_empty()
    }

    /// Memory held for what has not been handed out yet, with what is only address space so far.
    pub fn memory_bytes(&self) -> usize {
        self.buf.capacity()
            + self.large.as_ref().map_or(0, |l| l.data.capacity())
            + self.parts.iter().map(Bytes::len).sum::<usize>()
            + self.parts.capacity() * size_of::<Bytes>()
            + self.small.capacity() * size_of::<(usize, usize)>()
    }

    fn greeting(&mut self) -> Result<Step, ZmtpError> {
        let b = &self.buf[..];
        // As early as possible, so that a stranger (an HTTP client, say) is told off at its first byte.
        if b.first().is_some_and(|&b| b != 0xff) || b.get(9).is_some_and(|&b| b != 0x7f) {
            return Err(ZmtpError::NotZmtp);
        }
        if let Some(&major) = b.get(10)
            && major < 3
        {
            return Err(ZmtpError::OldVersion(major));
        }
        if b.len() < GREETING_BYTES {
            return Ok(Step::NeedMore);
        }
        let mechanism = &b[12..32];
        let name = mechanism.split(|&b| b == 0).next().unwrap_or_default();
        if name != b"NULL" {
            return Err(ZmtpError::Mechanism(
                String::from_utf8_lossy(name).into_owned(),
            ));
        }
        let minor = b[11];
        self.buf.advance(GREETING_BYTES);
        self.stage = Stage::Handshake;
        Ok(Step::Event(Event::Greeting { minor }))
    }

    fn frame(&mut self) -> Result<Step, ZmtpError> {
        let Some(head) = parse_head(&self.buf[self.scanned..])? else {
            return Ok(Step::NeedMore);
        };
        if head.command {
            return self.command_frame(&head);
        }
        if self.stage != Stage::Open {
            return Err(ZmtpError::NotReady);
        }
        let body_bytes = self.check_limits(&head)?;
        let at = self.scanned + head.head_bytes;
        let here = self.buf.len() - at;
        let large = body_bytes >= LARGE_FRAME_BYTES;
        if here < body_bytes && !large {
            return Ok(Step::NeedMore);
        }
        self.message_bytes += body_bytes;
        self.message_parts += 1;
        if !large {
            self.small.push((at, body_bytes));
            self.scanned = at + body_bytes;
            if self.scanned >= LARGE_FRAME_BYTES {
                self.take_small();
            }
        } else {
            self.take_small();
            self.buf.advance(head.head_bytes);
            if here < body_bytes {
                let mut data = Vec::with_capacity(body_bytes.min(AT_ONCE_BYTES.max(2 * here)));
                data.extend_from_slice(&self.buf);
                self.buf.clear();
                self.large = Some(Large {
                    data,
                    frame_bytes: body_bytes,
                    more: head.more,
                });
                return Ok(Step::NeedMore);
            }
            self.parts.push(self.buf.split_to(body_bytes).freeze());
        }
        Ok(if head.more {
            Step::Again
        } else {
            Step::Event(self.finish())
        })
    }

    fn check_limits(&self, head: &Head) -> Result<usize, ZmtpError> {
        let limits = &self.limits;
        let too_long = ZmtpError::FrameTooLong {
            bytes: head.body_bytes,
            max: limits.frame_bytes_max,
        };
        let bytes = usize::try_from(head.body_bytes).map_err(|_| too_long.clone())?;
        if bytes > limits.frame_bytes_max {
            return Err(too_long);
        }
        if self.message_parts >= limits.message_parts_max {
            return Err(ZmtpError::TooManyParts {
                max: limits.message_parts_max,
            });
        }
        if bytes > limits.message_bytes_max - self.message_bytes {
            return Err(ZmtpError::MessageTooLong {
                max: limits.message_bytes_max,
            });
        }
        Ok(bytes)
    }

    /// Copies the small frames that wait in `buf` out, all into one allocation of just their size: a part that
    /// somebody keeps then pins its own message, not the read buffer, and the read buffer is used again.
    fn take_small(&mut self) {
        if let Some(&(first, _)) = self.small.first() {
            let block = Bytes::copy_from_slice(&self.buf[first..self.scanned]);
            self.parts.reserve(self.small.len());
            for (at, len) in self.small.drain(..) {
                self.parts.push(block.slice(at - first..at - first + len));
            }
        }
        self.buf.advance(self.scanned);
        self.scanned = 0;
    }

    fn finish(&mut self) -> Event {
        self.take_small();
        self.message_bytes = 0;
        self.message_parts = 0;
        Event::Message(std::mem::take(&mut self.parts))
    }

    /// A command. libzmq's heartbeats may come between the frames of one message, so this does not end one.
    fn command_frame(&mut self, head: &Head) -> Result<Step, ZmtpError> {
        let len = usize::try_from(head.body_bytes).unwrap_or(usize::MAX);
        if len > COMMAND_BYTES_MAX {
            return Err(ZmtpError::CommandTooLong {
                bytes: head.body_bytes,
            });
        }
        if self.buf.len() - self.scanned - head.head_bytes < len {
            return Ok(Step::NeedMore);
        }
        self.take_small();
        self.buf.advance(head.head_bytes);
        let body = Bytes::copy_from_slice(&self.buf[..len]);
        self.buf.advance(len);
        let (name, data) = split_short(&body).ok_or(ZmtpError::MalformedCommand("unnamed"))?;
        let data = body.slice_ref(data);
        let event = match (self.stage, name) {
            (_, b"ERROR") => {
                let (reason, _) = split_short(&data).ok_or(ZmtpError::MalformedCommand("ERROR"))?;
                return Err(ZmtpError::Refused(
                    String::from_utf8_lossy(reason).into_owned(),
                ));
            }
            (Stage::Handshake, b"READY") => {
                let ready = parse_ready(&data)?;
                self.stage = Stage::Open;
                Event::Ready(ready)
            }
            (Stage::Greeting | Stage::Handshake, _) => return Err(ZmtpError::NotReady),
            (Stage::Open, b"SUBSCRIBE") => Event::Subscribe(data),
            (Stage::Open, b"CANCEL") => Event::Cancel(data),
            (Stage::Open, b"PONG") => Event::Pong,
            (Stage::Open, b"PING") => {
                // Two bytes of time to live, then up to 16 of context.
                if data.len() < 2 {
                    return Err(ZmtpError::MalformedCommand("PING"));
                }
                Event::Ping {
                    context: data.slice(2..data.len().min(18)),
                }
            }
            // A later version's: to be ignored.
            (Stage::Open, _) => return Ok(Step::Again),
        };
        Ok(Step::Event(event))
    }
}

enum Step {
    Event(Event),
    Again,
    NeedMore,
}

fn parse_head(b: &[u8]) -> Result<Option<Head>, ZmtpError> {
    let Some(&flags) = b.first() else {
        return Ok(None);
    };
    let command = flags & FLAG_COMMAND != 0;
    let more = flags & FLAG_MORE != 0;
    if flags & !(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) != 0 || (command && more) {
        return Err(ZmtpError::Flags(flags));
    }
    let (head_bytes, body_bytes) = if flags & FLAG_LONG == 0 {
        let Some(&len) = b.get(1) else {
            return Ok(None);
        };
        (2, u64::from(len))
    } else {
        let Some(len) = b.get(1..9).and_then(|len| <[u8; 8]>::try_from(len).ok()) else {
            return Ok(None);
        };
        (9, u64::from_be_bytes(len))
    };
    Ok(Some(Head {
        more,
        command,
        head_bytes,
        body_bytes,
    }))
}

/// Splits off what a length of one byte announces.
fn split_short(b: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = b.split_first()?;
    rest.split_at_checked(usize::from(len))
}

fn parse_ready(data: &Bytes) -> Result<Ready, ZmtpError> {
    const MALFORMED: ZmtpError = ZmtpError::MalformedCommand("READY");
    let mut socket_type = None;
    let mut identity = None;
    let mut rest = &data[..];
    while !rest.is_empty() {
        let (name, tail) = split_short(rest).ok_or(MALFORMED)?;
        let (len, tail) = tail.split_first_chunk::<4>().ok_or(MALFORMED)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| MALFORMED)?;
        let (value, tail) = tail.split_at_checked(len).ok_or(MALFORMED)?;
        rest = tail;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            let named = || ZmtpError::SocketType(String::from_utf8_lossy(value).into_owned());
            socket_type = Some(SocketType::from_name(value).ok_or_else(named)?);
        } else if name.eq_ignore_ascii_case(b"Identity") {
            if value.len() > IDENTITY_BYTES_MAX {
                return Err(MALFORMED);
            }
            identity = (!value.is_empty()).then(|| Bytes::copy_from_slice(value));
        }
    }
    let socket_type = socket_type.ok_or_else(|| ZmtpError::SocketType(String::new()))?;
    Ok(Ready {
        socket_type,
        identity,
    })
}
