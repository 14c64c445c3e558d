//! The host's side of the socket to its keeper.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::args::{HostArgs, SessionDirs};
use super::backoff::Backoff;
use super::protocol::{Fds, FromKeeper, Process, Stream, ToKeeper};
use super::socket::{self, MESSAGE_BYTES_MAX, Received};
use super::start;

/// The keeper answers within a millisecond; a machine that swaps may need longer.
const HELD_TIMEOUT: Duration = Duration::from_secs(2);

/// Talks to the keeper, and replaces a keeper that was killed: then another [`FromKeeper::Hello`] comes, and all
/// processes known to the old one are watched by the new one. Nothing else is to be done about it.
///
/// [`Self::recv`] must be polled all the time: it also sends what [`Self::send`] could not send at once.
#[derive(Debug)]
pub struct Client {
    dirs: SessionDirs,
    link: Link,
    outbox: VecDeque<ToKeeper>,
    inbox: VecDeque<FromKeeper>,
    /// Processes whose end has not been told yet.
    alive: Vec<Process>,
    /// The engine's streams that a keeper is to hold, with their descriptors.
    held: Vec<(Stream, Fds)>,
    /// Ids of the spawns that were sent and not answered.
    spawning: Vec<String>,
    bye: bool,
    backoff: Backoff,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Link {
    Up {
        socket: AsyncFd<OwnedFd>,
        since: Instant,
    },
    Down {
        replace_at: Instant,
    },
}

impl Client {
    /// Needs a tokio runtime with I/O and time.
    pub fn new(args: HostArgs) -> io::Result<Self> {
        Ok(Self {
            dirs: args.dirs,
            link: Link::up(args.keeper)?,
            outbox: VecDeque::new(),
            inbox: VecDeque::new(),
            alive: Vec::new(),
            held: Vec::new(),
            spawning: Vec::new(),
            bye: false,
            backoff: Backoff::default(),
            buffer: vec![0; MESSAGE_BYTES_MAX],
        })
    }

    /// Asks the keeper for something. Does not wait: what cannot be sent at once is sent by [`Self::recv`] or
    /// [`Self::flush`].
    ///
    /// # Errors
    /// Only where the message is over [`MESSAGE_BYTES_MAX`].
    pub fn send(&mut self, message: ToKeeper) -> io::Result<()> {
        socket::encode(&message)?;
        match &message {
            ToKeeper::Watch(process) => self.note_alive(process),
            ToKeeper::Bye => self.bye = true,
            ToKeeper::Hold { stream, fds } => {
                self.held.retain(|(known, _)| known.name != stream.name);
                self.held.push((stream.clone(), fds.clone()));
            }
            ToKeeper::Spawn(_)
            | ToKeeper::Signal { .. }
            | ToKeeper::Ack { .. }
            | ToKeeper::TakeHeld
            | ToKeeper::HostProgram { .. }
            | ToKeeper::Unknown => {}
        }
        self.outbox.push_back(message);
        if let Link::Up { socket, .. } = &self.link {
            // An error shows when receiving, and is dealt with there.
            let _ = flush(socket.get_ref(), &mut self.outbox, &mut self.spawning);
        }
        Ok(())
    }

    /// The keeper's next message. Cancel-safe.
    pub async fn recv(&mut self) -> FromKeeper {
        loop {
            if let Some(message) = self.inbox.pop_front() {
                return message;
            }
            match &self.link {
                Link::Down { replace_at } => {
                    tokio::time::sleep_until(*replace_at).await;
                    self.replace();
                }
                Link::Up { .. } => self.exchange().await,
            }
        }
    }

    /// The engine's streams that the keeper holds for this host, each with its socket and its memory. None where the
    /// keeper is a new one, or an old one that does not know of such.
    pub async fn take_held(&mut self) -> Vec<(Stream, Fds)> {
        if self.send(ToKeeper::TakeHeld).is_err() {
            return Vec::new();
        }
        let answered = async {
            while matches!(self.link, Link::Up { .. }) {
                self.exchange().await;
                let is_answer = |message: &FromKeeper| {
                    matches!(
                        message,
                        FromKeeper::Held { .. } | FromKeeper::Refused { .. }
                    )
                };
                if let Some(at) = self.inbox.iter().position(is_answer) {
                    self.inbox.remove(at);
                    return;
                }
            }
        };
        if tokio::time::timeout(HELD_TIMEOUT, answered).await.is_err() {
            tracing::warn!("the keeper does not say what it holds");
        }
        self.held.clone()
    }

    /// Waits until all that was given to [`Self::send`] has been sent: before the process exits after a `Bye`.
    /// Where the keeper is gone there is nobody to be told, and it returns at once.
    pub async fn flush(&mut self) {
        while !self.outbox.is_empty() && matches!(self.link, Link::Up { .. }) {
            // Receives as well: a keeper whose answers are not taken reads no requests.
            self.exchange().await;
        }
    }

    /// Receives a message, or sends what is left to send, whichever can be done first.
    async fn exchange(&mut self) {
        let Link::Up { socket, .. } = &self.link else {
            return;
        };
        let (outbox, spawning) = (&mut self.outbox, &mut self.spawning);
        let buffer = &mut self.buffer;
        let has_more = !outbox.is_empty();
        let received = tokio::select! {
            biased;
            received = socket.async_io(Interest::READABLE, |fd| {
                socket::receive(fd, buffer)
            }) => received,
            sent = socket.async_io(Interest::WRITABLE, |fd| {
                flush(fd, outbox, spawning)
            }), if has_more => match sent {
                Ok(()) => return,
                // The keeper is gone; its last words are still to be read, and then its end.
                Err(_) => socket
                    .async_io(Interest::READABLE, |fd| socket::receive(fd, buffer))
                    .await,
            },
        };
        self.received(received);
    }

    fn received(&mut self, received: io::Result<Received<FromKeeper>>) {
        match received {
            Ok(Received::Message(message)) => {
                self.note(&message);
                self.inbox.push_back(message);
            }
            Ok(Received::Garbage(what)) => tracing::warn!("from the keeper: {what}"),
            Ok(Received::Closed) => self.lost(),
            Err(error) => {
                tracing::warn!("the socket to the keeper: {error}");
                self.lost();
            }
        }
    }

    fn note(&mut self, message: &FromKeeper) {
        match message {
            FromKeeper::Hello(hello) => {
                for process in &hello.alive {
                    self.note_alive(process);
                }
                for end in &hello.ended {
                    self.alive.retain(|process| *process != end.process);
                }
            }
            FromKeeper::Spawned(process) => {
                self.spawning.retain(|id| *id != process.id);
                self.note_alive(process);
            }
            FromKeeper::SpawnFailed { id, .. } => self.spawning.retain(|other| other != id),
            FromKeeper::Ended(end) => self.alive.retain(|process| {
                (process.pid, process.start_time) != (end.process.pid, end.process.start_time)
            }),
            FromKeeper::Held { streams, fds } => {
                let pairs = fds.as_slice().chunks_exact(2);
                let pairs = pairs.map(|pair| pair.iter().map(OwnedFd::try_clone).collect());
                self.held = (streams.iter().cloned())
                    .zip(pairs)
                    .filter_map(|(stream, pair): (_, io::Result<_>)| {
                        Some((stream, Fds::new(pair.ok()?)))
                    })
                    .collect();
            }
            FromKeeper::HostProgram { .. }
            | FromKeeper::Refused { .. }
            | FromKeeper::Terminate
            | FromKeeper::Unknown => {}
        }
    }

    fn note_alive(&mut self, process: &Process) {
        if !self.alive.contains(process) {
            self.alive.push(process.clone());
        }
    }

    /// The keeper is gone.
    fn lost(&mut self) {
        let lived = match &self.link {
            Link::Up { since, .. } => since.elapsed(),
            Link::Down { .. } => Duration::ZERO,
        };
        let delay = self.backoff.died_after(lived);
        tracing::warn!("the keeper is gone; another one is started in {delay:?}");
        self.link = Link::Down {
            replace_at: Instant::now() + delay,
        };
        // What it was about to do, nobody knows.
        for id in self.spawning.drain(..) {
            let error = "the keeper was killed while it started the process: try again".to_owned();
            self.inbox.push_back(FromKeeper::SpawnFailed { id, error });
        }
    }

    /// Starts another keeper. Blocks for some milliseconds, which is rare enough.
    fn replace(&mut self) {
        match start::replace(&self.dirs).and_then(Link::up) {
            Ok(link) => {
                self.link = link;
                for (stream, fds) in &self.held {
                    let (stream, fds) = (stream.clone(), fds.clone());
                    self.outbox.push_front(ToKeeper::Hold { stream, fds });
                }
                // Before whatever has been asked since: a signal needs a process that the keeper knows.
                if self.bye && !self.outbox.contains(&ToKeeper::Bye) {
                    self.outbox.push_front(ToKeeper::Bye);
                }
                for process in self.alive.iter().rev() {
                    self.outbox.push_front(ToKeeper::Watch(process.clone()));
                }
            }
            Err(error) => {
                tracing::error!("no new keeper: {error}");
                self.lost();
            }
        }
    }
}

impl Link {
    fn up(socket: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self::Up {
            // SAFETY: an owned descriptor, which the AsyncFd keeps as it is until both are dropped.
            socket: unsafe { AsyncFd::register_with_interest(socket, interest) }?,
            since: Instant::now(),
        })
    }
}

/// Sends what can be sent without waiting.
fn flush(
    socket: &OwnedFd,
    outbox: &mut VecDeque<ToKeeper>,
    spawning: &mut Vec<String>,
) -> io::Result<()> {
    while let Some(message) = outbox.front() {
        socket::send(socket, &socket::encode(message)?)?;
        if let Some(ToKeeper::Spawn(spawn)) = outbox.pop_front() {
            spawning.push(spawn.id);
        }
    }
    Ok(())
}
