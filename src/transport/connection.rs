//! One ZMTP connection: handshake, then a reader and a writer that two tasks can own.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::coop::consume_budget;

use super::{Stream, TransportError};
use crate::spool::{Mark, Received, Spool};
use crate::wire::zmtp::{self, Decoder, Event, Limits, Outgoing, Ready, SocketType};

/// Reads begin with this size: a hundred idle connections cost less than a megabyte.
const READ_BYTES_MIN: usize = 8 * 1024;
/// They double up to this one while they come back full.
const READ_BYTES_MAX: usize = 256 * 1024;
/// After so many reads that used less than a quarter, the size is halved.
const SMALL_READS: u32 = 16;

/// What is held already is given to the decoder in pieces of this size: a large frame's head is seen before much of
/// the frame was copied to where it does not stay.
const FEED_BYTES: usize = 16 * 1024;

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
    held: Option<Held>,
    /// After the end or an error nothing more is read.
    ended: bool,
}

/// What is read goes through memory that outlives this process.
#[derive(Debug)]
struct Held {
    spool: Spool,
    /// The decoder has the bytes up to this position.
    fed: u64,
    /// The message given last ended here.
    given: u64,
    /// The message under way is too large, and is read past the spool.
    bypassing: bool,
}

impl Held {
    fn new(spool: Spool) -> Self {
        Self {
            fed: spool.consumed(),
            given: spool.consumed(),
            spool,
            bypassing: false,
        }
    }

    fn begin_bypass(&mut self) {
        self.bypassing = true;
        self.spool.bypass();
    }

    /// `behind`: so many bytes have come that are of the next one.
    fn message_ended(&mut self, behind: usize) {
        self.given = self.fed - behind as u64;
        if std::mem::take(&mut self.bypassing) {
            self.spool.end_bypass();
        }
    }
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
    /// Where what is read is held: whether a message is out by half is said there.
    mark: OnceLock<Mark>,
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
        mark: OnceLock::new(),
    });
    let mut writer = Writer {
        link: Arc::clone(&link),
    };
    let mut reader = Reader {
        link,
        decoder: Decoder::new(limits),
        socket_type,
        read_size: ReadSize::default(),
        held: None,
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

/// Goes on with a connection of which a process that is no more had the reader and the writer, and whose reader held
/// what it read ([`Reader::hold`]). What it had not consumed comes first. `None`: something of it is lost, or a message
/// may have been sent by half, so that the connection is of no more use.
pub fn resume(
    socket: OwnedFd,
    spool: Spool,
    socket_type: SocketType,
    limits: Limits,
) -> io::Result<Option<(Reader, Writer)>> {
    let mark = spool.mark();
    if !spool.recoverable() || mark.is_sending() {
        return Ok(None);
    }
    let link = Arc::new(Link {
        stream: Stream::from_fd(socket)?,
        outgoing: Mutex::default(),
        mark: OnceLock::from(mark),
    });
    let writer = Writer {
        link: Arc::clone(&link),
    };
    let reader = Reader {
        link,
        decoder: Decoder::resumed(limits),
        socket_type,
        read_size: ReadSize::default(),
        held: Some(Held::new(spool)),
        ended: false,
    };
    Ok(Some((reader, writer)))
}

impl Reader {
    /// From here on, what is read is held in this spool, until its [`Mark`] consumes it. To be called right after the
    /// handshake: `false` where the peer has sent something behind it already.
    pub fn hold(&mut self, spool: Spool) -> bool {
        if !self.decoder.at_boundary() {
            return false;
        }
        // Set once: this is the one place, and it takes the reader.
        let _ = self.link.mark.set(spool.mark());
        self.held = Some(Held::new(spool));
        true
    }

    /// The socket, for who holds it too.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.link.stream.as_fd()
    }

    /// Where what is read is held, if it is.
    pub fn spool(&self) -> Option<&Spool> {
        self.held.as_ref().map(|held| &held.spool)
    }

    /// The position in the stream behind the message that was given last; 0 where nothing is held.
    pub fn position(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.given)
    }

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

    /// Goes on reading into the spool, as far as there is room, without looking at what it reads: for while nobody can
    /// take another message. Never done, to be dropped at any time. An end or an error is for [`Reader::recv`] to find.
    pub async fn read_ahead(&mut self) -> Infallible {
        loop {
            consume_budget().await;
            match self.receive_held() {
                Some(Ok(Received::Bytes(_))) => {}
                Some(Ok(Received::Full)) => self.consumed().await,
                Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.link.readable().await.is_err() {
                        std::future::pending().await
                    }
                }
                Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                None | Some(Ok(Received::Ended) | Err(_)) => std::future::pending().await,
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
                None if !self.feed() => return Ok(None),
                None => {}
                Some(event) => {
                    if let (Some(held), Event::Message(_)) = (&mut self.held, &event) {
                        held.message_ended(self.decoder.unread_bytes());
                    }
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
        loop {
            match self.try_read() {
                Ok(Received::Bytes(_)) => return Ok(true),
                Ok(Received::Ended) => break,
                Ok(Received::Full) => self.make_room().await,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.link.readable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(e)),
            }
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

    fn try_read(&mut self) -> io::Result<Received> {
        if let Some(held) = &mut self.held
            && held.spool.is_too_large(self.decoder.large_missing_bytes())
        {
            held.begin_bypass();
        }
        if let Some(received) = self.receive_held() {
            self.feed();
            return received;
        }
        let mut space = self.decoder.space(self.read_size.bytes);
        let offered = space.limit();
        let n = self.link.stream.try_read_buf(&mut space)?;
        self.read_size.after(n, offered);
        if 0 < n && n < offered {
            self.link.stream.drained();
        }
        if let Some(held) = &mut self.held {
            held.spool.passed_by(n);
            held.fed += n as u64;
        }
        Ok(match n {
            0 => Received::Ended,
            n => Received::Bytes(n),
        })
    }

    /// Reads into the spool; `None`: what comes passes it by, or there is none.
    fn receive_held(&mut self) -> Option<io::Result<Received>> {
        let held = self.held.as_mut().filter(|held| !held.bypassing)?;
        let received = self.link.stream.try_receive(&mut held.spool);
        if matches!(received, Ok(Received::Bytes(1..))) && !held.spool.looks_again() {
            self.link.stream.drained();
        }
        Some(received)
    }

    /// Gives the decoder more of what is held. `false`: it has all.
    fn feed(&mut self) -> bool {
        let Some(held) = &mut self.held else {
            return false;
        };
        let bytes = held.spool.bytes(held.fed);
        if bytes.is_empty() {
            return false;
        }
        let at_once = match self.decoder.large_missing_bytes() {
            0 => FEED_BYTES,
            // Memory for all of it that is here.
            _ => bytes.len(),
        };
        let mut space = self.decoder.space(at_once);
        let n = space.limit().min(bytes.len());
        bytes::BufMut::put_slice(&mut space, &bytes[..n]);
        held.fed += n as u64;
        true
    }

    /// The spool is full: waits until something is consumed. Where only the message under way fills it, nothing will
    /// be: the rest of it is read past the spool.
    async fn make_room(&mut self) {
        if let Some(held) = &mut self.held
            && held.spool.consumed() >= held.given
        {
            held.begin_bypass();
        } else {
            self.consumed().await;
        }
    }

    /// Waits until something of the spool was consumed.
    async fn consumed(&self) {
        if let Some(mark) = self.link.mark.get() {
            mark.room().await;
        }
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
            self.link.stream.writable().await?;
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
        if let Some(mark) = self.mark.get().filter(|_| !queue.data.is_empty()) {
            mark.set_sending(true);
        }
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
        if let Some(mark) = self.mark.get() {
            mark.set_sending(false);
        }
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
            tokio::select! {
                biased;
                readable = self.stream.readable() => return readable,
                writable = self.stream.writable() => writable?,
            }
            if self.try_flush().is_err() {
                break;
            }
        }
        self.stream.readable().await
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
