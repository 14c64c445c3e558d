//! One of the engine's streams, from the host that opened it to those that come after: what is read lies in a
//! [`Spool`] until it is in the journal, and the keeper holds socket and spool over a host's death.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::engine::Endpoints;
use crate::keeper::Fds;
use crate::spool::{Mark, RING_BYTES, SMALL_RING_BYTES, Spool};
use crate::transport::{self, Reader, Writer};
use crate::wire::Channel;
use crate::wire::zmtp::{Limits, SocketType};

/// How long the engine may take for a handshake: it is a process on this machine.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// A stream, from connection to connection.
pub(super) struct Stream {
    pub channel: Channel,
    /// Where the next connection's bytes begin to count.
    position: u64,
    /// The connection that an earlier host had.
    taken: Option<Taken>,
}

/// What there is of a stream that an earlier host had.
pub(super) enum Found {
    Nothing,
    /// It was killed in the middle of sending, or of a message too large to be held. The connection is closed.
    Broken,
    Whole(Taken),
}

/// A connection of an earlier host, with all that is not in the journal.
pub(super) struct Taken {
    socket: OwnedFd,
    spool: Spool,
    /// What ended up to here is in the journal: [`crate::journal::record::Record::heard`].
    heard: u32,
}

/// A connection to the engine.
pub(super) struct Connection {
    pub reader: Reader,
    /// For the keeper, where it does not have them yet.
    pub hold: Option<Fds>,
    /// What of it is in the journal already.
    heard: Heard,
}

/// The beginning of a stream that is in the journal: an earlier host had it.
#[derive(Debug)]
struct Heard {
    /// See [`Taken`]; 0: there is no such beginning, or it is behind us.
    until: u32,
}

impl Heard {
    /// Whether the message that ended at `position` belongs to it. Asked in the order of the stream.
    fn covers(&mut self, position: u32) -> bool {
        // While there is such a beginning their difference is far below 2^31: what is not in the journal yet fits into
        // the spool. Behind it, positions go on, and come round.
        if self.until != 0 && (self.until.wrapping_sub(position) as i32) < 0 {
            self.until = 0;
        }
        self.until != 0
    }
}

/// To be consumed when what was read up to here is in the journal.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    mark: Mark,
    position: u64,
}

impl Kept {
    /// It is.
    pub fn consume(self) {
        self.mark.consume(self.position);
    }
}

/// Closes a connection of an earlier host, whoever else has its descriptor: the engine would go on queueing for it.
pub(super) fn close(fds: &Fds) {
    if let Some(socket) = fds.as_slice().first() {
        shut_down(socket.as_fd());
    }
}

/// Ends a connection for all that have its descriptor.
pub(super) fn shut_down(socket: BorrowedFd<'_>) {
    // SAFETY: an open descriptor and a constant. An error is that it is closed already.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

impl Taken {
    /// What a keeper held; `None`: it is of no use.
    pub fn new(fds: &Fds, heard: u32) -> io::Result<Option<Self>> {
        let [socket, memory] = fds.as_slice() else {
            return Ok(None);
        };
        let spool = Spool::open(memory.try_clone()?)?;
        if !spool.recoverable() || spool.mark().is_sending() {
            return Ok(None);
        }
        Ok(Some(Self {
            socket: socket.try_clone()?,
            spool,
            heard,
        }))
    }

    /// Whether the keeper had to stop reading, so that the engine may have dropped something since.
    pub fn is_full(&self) -> bool {
        self.spool.is_full()
    }
}

impl Stream {
    /// `position`: of the last message of it in the journal, if any.
    pub fn new(channel: Channel, position: u32, found: Found) -> Self {
        let taken = match found {
            Found::Nothing | Found::Broken => None,
            Found::Whole(taken) => Some(taken),
        };
        Self {
            channel,
            position: position.into(),
            taken,
        }
    }

    /// The connection that was taken over, or else a new one; `None`: there is none yet.
    pub async fn connect(&mut self, endpoints: &Endpoints) -> Option<(Connection, Writer)> {
        let (socket_type, identity) = match self.channel {
            Channel::Iopub => (SocketType::Sub, Vec::new()),
            Channel::Shell | Channel::Control | Channel::Stdin => {
                (SocketType::Dealer, endpoints.identity())
            }
        };
        if let Some(taken) = self.taken.take() {
            let Taken {
                socket,
                spool,
                heard,
            } = taken;
            match transport::resume(socket, spool, socket_type, Limits::default()) {
                Ok(Some((reader, writer))) => {
                    let connection = Connection {
                        reader,
                        hold: None,
                        heard: Heard { until: heard },
                    };
                    return Some((connection, writer));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, channel = ?self.channel, "a held stream cannot be gone on with");
                }
            }
        }
        let stream = transport::connect(&endpoints.endpoint(self.channel))
            .await
            .ok()?;
        let limits = Limits::default();
        let shaken =
            transport::handshake(stream, socket_type, &identity, limits, HANDSHAKE_TIMEOUT).await;
        let (mut reader, mut writer) = match shaken {
            Ok((reader, writer, _)) => (reader, writer),
            Err(error) => {
                tracing::debug!(%error, channel = ?self.channel, "no handshake with the engine yet");
                return None;
            }
        };
        let hold = self.hold(&mut reader).unwrap_or_else(|error| {
            tracing::warn!(%error, channel = ?self.channel, "what is read is not held beyond this process");
            None
        });
        if self.channel == Channel::Iopub {
            writer.subscribe(b"").await.ok()?;
        }
        let connection = Connection {
            reader,
            hold,
            heard: Heard { until: 0 },
        };
        Some((connection, writer))
    }

    fn hold(&self, reader: &mut Reader) -> io::Result<Option<Fds>> {
        let bytes = match self.channel {
            Channel::Iopub => RING_BYTES,
            Channel::Shell | Channel::Control | Channel::Stdin => SMALL_RING_BYTES,
        };
        let spool = Spool::create(self.position, bytes)?;
        let memory = spool.fd().try_clone_to_owned()?;
        if !reader.hold(spool) {
            return Ok(None);
        }
        let socket = reader.socket().try_clone_to_owned()?;
        Ok(Some(Fds::new(vec![socket, memory])))
    }

    /// A connection has ended: the next one's bytes count on.
    pub fn ended(&mut self, reader: &Reader) {
        self.position = reader.position().max(self.position);
    }
}

impl Connection {
    /// Whether the message that the reader gave last is in the journal. Asked once for each.
    pub fn was_heard(&mut self) -> bool {
        let now = self.heard_now();
        self.heard.covers(now)
    }

    /// Where that message ended: [`crate::journal::record::Record::heard`].
    pub fn heard_now(&self) -> u32 {
        match self.reader.position() {
            0 => 0,
            // 0 means that it is not known.
            position => (position as u32).max(1),
        }
    }

    /// All up to that message.
    pub fn kept(&self) -> Option<Kept> {
        let mark = self.reader.spool()?.mark();
        Some(Kept {
            mark,
            position: self.reader.position(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_host_heard_is_only_the_beginning() {
        for until in [100_u32, u32::MAX - 3, 1] {
            let mut heard = Heard { until };
            let at = |distance: u32| until.wrapping_add(distance).max(1);
            assert!(heard.covers(until.saturating_sub(50).max(1)));
            assert!(heard.covers(until));
            assert!(!heard.covers(at(10)));
            // However much comes: gigabytes later, too, when the difference has another sign, and when it is none.
            for distance in [
                1 << 30,
                (1 << 31) - 1,
                1 << 31,
                (1 << 31) + 5,
                u32::MAX,
                0,
                20,
            ] {
                assert!(!heard.covers(at(distance)), "{until} + {distance}");
            }
        }
        assert!(!Heard { until: 0 }.covers(u32::MAX));
    }
}
