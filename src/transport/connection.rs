//! One ZMTP connection: handshake, then a reader and a writer that two tasks can own.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::task::coop::consume_budget;

use super::{Stream, TransportError};
use crate::wire::zmtp::{self, Decoder, Event, Limits, Outgoing, Ready, SocketType};

/// Reads begin with this size: a hundred idle connections cost less than a megabyte.
const READ_BYTES_MIN: usize = 8 * 1024;
/// They double up to this one while they come back full.
const READ_BYTES_MAX: usize = 256 * 1024;
/// After so many reads that used less than a quarter, the size is halved.
const SMALL_READS: u32 = 16;

/// Slices of one vectored write. Most writes need one to three; the kernel takes up to 1024.
const WRITE_SLICES: usize = 64;
/// [`Writer::send_many`] writes when so much has gathered.
const SEND_MANY_BYTES: usize = 256 * 1024;

/// What a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message, all parts of it.
    Message(Vec<Bytes>),
    /// XPUB and PUB: the peer wants messages whose first part begins with this.
    Subscribe(Bytes),
    /// XPUB and PUB: no longer.
    Unsubscribe(Bytes),
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its socket type.
    pub socket_type: SocketType,
    /// The identity it asks for; `None`: it has none, and a ROUTER gives it one.
    pub identity: Option<Bytes>,
}

/// The receiving half. When both halves are dropped the connection is closed.
#[derive(Debug)]
pub struct Reader {
    link: Arc<Link>,
    decoder: Decoder,
    socket_type: SocketType,
    read_size: ReadSize,
    /// After the end or an error nothing more is read.
    ended: bool,
}

/// The sending half.
#[derive(Debug)]
pub struct Writer {
    link: Arc<Link>,
}

/// What the halves share. The reader writes, too: the PONGs that it owes.
#[derive(Debug)]
struct Link {
    stream: Stream,
    /// Held for the time of a write that does not block, never across an await.
    outgoing: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    data: Outgoing,
    /// A PONG waits in `data`. A second one is not added: what the peer wants to know, any traffic tells it, and a
    /// peer that sends PINGs and reads nothing must not fill our memory.
    pong: bool,
}

/// Does the ZMTP handshake on a fresh connection: greeting and READY go out at once, then the peer's are awaited.
/// `identity` is at most 255 bytes, empty for none. On an error the connection is closed.
pub async fn handshake(
    stream: Stream,
    socket_type: SocketType,
    identity: &[u8],
    limits: Limits,
    timeout: Duration,
) -> Result<(Reader, Writer, Peer), TransportError> {
    let link = Arc::new(Link {
        stream,
        outgoing: Mutex::default(),
    });
    let mut writer = Writer {
        link: Arc::clone(&link),
    };
    let mut reader = Reader {
        link,
        decoder: Decoder::new(limits),
        socket_type,
        read_size: ReadSize::default(),
        ended: false,
    };
    let shake = async {
        writer.link.lock().data.push_encoded(&zmtp::greeting());
        writer
            .link
            .lock()
            .data
            .push_encoded(&zmtp::ready(socket_type, identity));
        // A peer that has closed already may still have sent something: what it said counts, not our write error.
        let sent = writer.flush().await;
        let ready = match reader.ready().await {
            Err(TransportError::Io(e)) => return Err(sent.err().unwrap_or(TransportError::Io(e))),
            other => other?,
        };
        if !socket_type.accepts(ready.socket_type) {
            // Best effort, for the peer's log.
            writer
                .link
                .lock()
                .data
                .push_encoded(&zmtp::error("Invalid socket type"));
            let _ = writer.link.try_flush();
            return Err(TransportError::Incompatible {
                ours: socket_type,
                peer: ready.socket_type,
            });
        }
        Ok(Peer {
            socket_type: ready.socket_type,
            identity: ready.identity,
        })
    };
    let peer = tokio::time::timeout(timeout, shake)
        .await
        .unwrap_or(Err(TransportError::HandshakeTimeout(timeout)))?;
    Ok((reader, writer, peer))
}

impl Reader {
    /// The next thing that the peer sent; `None`: it closed the connection. Nothing is lost when the future is
    /// dropped. After an error, or the end, it gives `None`.
    pub async fn recv(&mut self) -> Result<Option<Incoming>, TransportError> {
        loop {
            // A peer that always has something ready must not starve the other tasks of this thread.
            consume_budget().await;
            if let Some(incoming) = self.buffered()? {
                return Ok(Some(incoming));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next thing that has been read already, without a system call: for taking all that came at once.
    pub fn buffered(&mut self) -> Result<Option<Incoming>, TransportError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            match self.event()? {
                None => return Ok(None),
                Some(event) => {
                    if let Some(incoming) = self.translate(event) {
                        return Ok(Some(incoming));
                    }
                }
            }
        }
    }

    /// Memory held for what was read and not yet handed out.
    pub fn memory_bytes(&self) -> usize {
        self.decoder.memory_bytes()
    }

    #[cfg(test)]
    pub(super) fn link_queued_bytes(&self) -> usize {
        self.link.lock().data.len()
    }

    fn event(&mut self) -> Result<Option<Event>, TransportError> {
        let event = self.decoder.next();
        self.ended |= event.is_err();
        Ok(event?)
    }

    /// `None`: not for the caller.
    fn translate(&mut self, event: Event) -> Option<Incoming> {
        let publishes = matches!(self.socket_type, SocketType::Pub | SocketType::Xpub);
        match event {
            // ZMTP 3.0 subscriptions are messages of one part, 0x01 or 0x00 and the topic.
            Event::Message(parts) if publishes => match parts.as_slice() {
                [one] if one.first() == Some(&1) => Some(Incoming::Subscribe(one.slice(1..))),
                [one] if one.first() == Some(&0) => Some(Incoming::Unsubscribe(one.slice(1..))),
                _ => Some(Incoming::Message(parts)),
            },
            Event::Message(parts) => Some(Incoming::Message(parts)),
            Event::Subscribe(topic) if publishes => Some(Incoming::Subscribe(topic)),
            Event::Cancel(topic) if publishes => Some(Incoming::Unsubscribe(topic)),
            Event::Ping { context } => {
                self.link.pong(&context);
                None
            }
            Event::Subscribe(_) | Event::Cancel(_) | Event::Pong => None,
            // The decoder gives each of them once, in the handshake.
            Event::Greeting { .. } | Event::Ready(_) => None,
        }
    }

    /// The handshake's half of reading.
    async fn ready(&mut self) -> Result<Ready, TransportError> {
        loop {
            match self.event()? {
                Some(Event::Ready(ready)) => return Ok(ready),
                Some(_) => {}
                None => match self.fill().await {
                    Ok(true) => {}
                    Ok(false) | Err(TransportError::Truncated(_)) => {
                        return Err(TransportError::Truncated("the handshake"));
                    }
                    Err(other) => return Err(other),
                },
            }
        }
    }

    /// Reads once, and waits for that if need be. `false`: the stream has ended.
    async fn fill(&mut self) -> Result<bool, TransportError> {
        if self.ended {
            return Ok(false);
        }
        let n = loop {
            match self.try_read() {
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.link.readable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(e)),
            }
        };
        if n > 0 {
            return Ok(true);
        }
        self.ended = true;
        if self.decoder.is_untouched() {
            return Err(TransportError::Probe);
        }
        if !self.decoder.at_boundary() {
            return Err(TransportError::Truncated("a message"));
        }
        Ok(false)
    }

    fn try_read(&mut self) -> io::Result<usize> {
        let mut space = self.decoder.space(self.read_size.bytes);
        let offered = space.limit();
        let n = self.link.stream.try_read_buf(&mut space)?;
        self.read_size.after(n, offered);
        Ok(n)
    }

    fn lost(&mut self, e: io::Error) -> TransportError {
        self.ended = true;
        // A probe that closes with a reset (our greeting was never read) is still a probe.
        if self.decoder.is_untouched() && e.kind() == io::ErrorKind::ConnectionReset {
            return TransportError::Probe;
        }
        e.into()
    }
}

impl Writer {
    /// Sends one message: done when all of it is with the operating system. If the future is dropped before, the
    /// rest goes out with the next send or [`Writer::flush`], so the peer never gets half a message.
    pub async fn send(&mut self, parts: &[Bytes]) -> Result<(), TransportError> {
        self.enqueue(parts);
        self.flush().await
    }

    /// Sends messages in as few writes as may be. Where many are at hand this is many times faster than one by one.
    pub async fn send_many<M: AsRef<[Bytes]>>(
        &mut self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<(), TransportError> {
        for message in messages {
            self.enqueue(message.as_ref());
            if self.queued_bytes() >= SEND_MANY_BYTES {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    /// Adds a message to what the next [`Writer::flush`] writes. The caller bounds [`Writer::queued_bytes`].
    pub fn enqueue(&mut self, parts: &[Bytes]) {
        self.link.lock().data.push_message(parts);
    }

    /// Bytes not yet with the operating system.
    pub fn queued_bytes(&self) -> usize {
        self.link.lock().data.len()
    }

    /// Writes all that is queued, and waits for the peer to take it if need be. May be dropped and called again.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        while !self.link.try_flush()? {
            self.link.stream.ready(Interest::WRITABLE).await?;
            consume_budget().await;
        }
        Ok(())
    }

    /// SUB and XSUB: asks for the messages whose first part begins with `topic`; the empty one for all.
    pub async fn subscribe(&mut self, topic: &[u8]) -> Result<(), TransportError> {
        self.send(&[zmtp::subscription(true, topic)]).await
    }

    /// SUB and XSUB: takes a subscription back.
    pub async fn unsubscribe(&mut self, topic: &[u8]) -> Result<(), TransportError> {
        self.send(&[zmtp::subscription(false, topic)]).await
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in there panics half way through a change.
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what goes without waiting. `true`: all of it.
    fn try_flush(&self) -> io::Result<bool> {
        let queue = &mut *self.lock();
        while !queue.data.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let filled = queue.data.slices(&mut slices);
            match self.stream.try_write_vectored(&slices[..filled]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => queue.data.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        queue.pong = false;
        Ok(true)
    }

    /// Answers a PING, now or as soon as there is room. Write errors are left to the writer: what the peer sent
    /// before it closed is still to be read.
    fn pong(&self, context: &[u8]) {
        {
            let queue = &mut *self.lock();
            if queue.pong {
                return;
            }
            queue.data.push_encoded(&zmtp::pong(context));
            queue.pong = true;
        }
        let _ = self.try_flush();
    }

    /// Waits for something to read. A PONG that waits is written meanwhile: nobody may be sending.
    async fn readable(&self) -> io::Result<()> {
        while self.lock().pong {
            let ready = self
                .stream
                .ready(Interest::READABLE | Interest::WRITABLE)
                .await?;
            if ready.is_readable() || ready.is_read_closed() {
                return Ok(());
            }
            if self.try_flush().is_err() {
                break;
            }
        }
        self.stream.ready(Interest::READABLE).await.map(drop)
    }
}

/// How much to read at once.
#[derive(Debug)]
struct ReadSize {
    bytes: usize,
    small: u32,
}

impl Default for ReadSize {
    fn default() -> Self {
        Self {
            bytes: READ_BYTES_MIN,
            small: 0,
        }
    }
}

impl ReadSize {
    fn after(&mut self, n: usize, offered: usize) {
        if n == offered && n >= self.bytes / 2 {
            self.bytes = (self.bytes * 2).min(READ_BYTES_MAX);
            self.small = 0;
        } else if n >= self.bytes / 4 {
            self.small = 0;
        } else {
            self.small += 1;
            if self.small >= SMALL_READS {
                self.bytes = (self.bytes / 2).max(READ_BYTES_MIN);
                self.small = 0;
            }
        }
    }
}
