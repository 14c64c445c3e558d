//! The engine's streams that the keeper holds for its hosts.
//!
//! While a host lives it alone reads them, and the keeper does nothing but keep the sockets open. When it has died, the
//! keeper reads on into the same memory, so that the engine is never without a reader, and what the dead host had read
//! and not kept is still there. The next host gets all of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::log;
use super::protocol::{Fds, Stream};
use crate::spool::{Received, Spool};

/// Streams at one time: an engine has four.
const STREAMS_MAX: usize = 8;

/// See the module.
#[derive(Default)]
pub struct HeldStreams(Vec<Held>);

struct Held {
    stream: Stream,
    socket: OwnedFd,
    memory: OwnedFd,
    at: At,
}

enum At {
    /// The host reads it.
    Host,
    /// We do.
    Here(Spool),
    /// Nobody: it has ended, or its memory is full or in disorder.
    Nobody,
}

impl HeldStreams {
    /// Holds one more, or another one of the same name.
    pub fn hold(&mut self, stream: Stream, fds: &Fds) -> Result<(), String> {
        let [socket, memory] = fds.as_slice() else {
            return Err("a stream comes with its socket and its memory".into());
        };
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(|error| error.to_string());
        let (socket, memory) = (clone(socket)?, clone(memory)?);
        self.0.retain(|held| held.stream.name != stream.name);
        if self.0.len() >= STREAMS_MAX {
            return Err(format!("{STREAMS_MAX} streams are held already"));
        }
        self.0.push(Held {
            stream,
            socket,
            memory,
            at: At::Host,
        });
        Ok(())
    }

    /// A host takes them: nothing is read here any more.
    pub fn give(&mut self) -> (Vec<Stream>, Fds) {
        let mut fds = Vec::new();
        let mut streams = Vec::new();
        for held in &mut self.0 {
            if let (Ok(socket), Ok(memory)) = (held.socket.try_clone(), held.memory.try_clone()) {
                fds.extend([socket, memory]);
                streams.push(held.stream.clone());
                held.at = At::Host;
            }
        }
        (streams, Fds::new(fds))
    }

    /// The host is gone: reads on in its place.
    pub fn take_back(&mut self) {
        for held in &mut self.0 {
            held.at = match held.memory.try_clone().and_then(Spool::open) {
                Ok(spool) if spool.recoverable() => At::Here(spool),
                // The next host will connect anew.
                Ok(_) => At::Nobody,
                Err(error) => {
                    log(format_args!("{}: {error}", held.stream.name));
                    At::Nobody
                }
            };
        }
    }

    /// What is to be waited for.
    pub fn to_poll(&self) -> impl Iterator<Item = RawFd> {
        (self.0.iter())
            .filter(|held| matches!(held.at, At::Here(_)))
            .map(|held| held.socket.as_raw_fd())
    }

    /// Reads what has come.
    pub fn read(&mut self) {
        for held in &mut self.0 {
            if let At::Here(spool) = &mut held.at
                && let Some(why) = read(spool, &held.socket)
            {
                log(format_args!("{}: {why}", held.stream.name));
                held.at = At::Nobody;
            }
        }
    }
}

/// Reads all there is. Why there will be no more, if so.
fn read(spool: &mut Spool, socket: &OwnedFd) -> Option<String> {
    loop {
        match spool.receive(socket.as_fd()) {
            Ok(Received::Bytes(_)) => {}
            Ok(Received::Full) => return Some("as much as can be held is held".into()),
            Ok(Received::Ended) => return Some("the engine has closed it".into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Some(error.to_string()),
        }
    }
}
