//! The five sockets that frontends connect to: accepting, verifying, routing replies back.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

use super::Shared;
use super::subscriber;
use crate::process;
use crate::transport::{Incoming, Listener, Reader, Stream, Writer, handshake};
use crate::wire::connection_file::{ConnectionFile, Endpoint, Socket, Transport};
use crate::wire::zmtp::{Limits, SocketType};
use crate::wire::{Channel, Message, frame};

/// A frontend that connects says who it is within this, or is let go. (VS Code probes ports by connecting and
/// closing.)
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Replies that wait for a frontend which does not read them. Past it the connection is closed, as a ROUTER would
/// drop: the frontend connects again, and attaches to what it missed.
const PEER_BYTES_MAX: usize = 64 << 20;

/// Where `farside connect` binds: for this machine only.
const LOOPBACK: &str = "127.0.0.1";

/// A frontend connects all its sockets at once, and its first request on shell can overtake its stdin connection: so
/// long the answer to it waits for that. Also for a connection that breaks and comes back with the same identity.
const EARLY_REPLY: Duration = Duration::from_secs(3);

/// Replies that wait so; of more, the oldest are dropped, as a ROUTER drops all of them.
const EARLY_REPLIES_MAX: usize = 32;

/// Root's processes are where nobody is kept out.
const ROOT: u32 = 0;

/// Where replies go: the connections by channel and identity.
#[derive(Default)]
pub(super) struct Peers {
    connections: HashMap<(Channel, Bytes), Peer>,
    /// Replies that came before the connection they are for, oldest first.
    early: VecDeque<(Instant, Channel, Bytes, Message)>,
    last_number: u64,
    changed: watch::Sender<()>,
}

struct Peer {
    number: u64,
    sender: mpsc::UnboundedSender<Message>,
    waiting_bytes: Rc<std::cell::Cell<usize>>,
    /// Ends the connection, also in the middle of a write.
    close: Rc<Notify>,
}

/// A connection's own side of that.
pub(super) struct Joined {
    pub identity: Bytes,
    pub number: u64,
    replies: mpsc::UnboundedReceiver<Message>,
    waiting_bytes: Rc<std::cell::Cell<usize>>,
    close: Rc<Notify>,
}

/// The bound sockets.
pub(super) struct Sockets {
    listeners: Vec<(Socket, Listener)>,
}

impl Sockets {
    /// Binds exactly what the connection file says.
    pub async fn bind(file: &ConnectionFile) -> Result<Self, super::LaunchError> {
        let mut listeners = Vec::new();
        for socket in Socket::ALL {
            let endpoint = file.endpoint(socket);
            let listener =
                Listener::bind(&endpoint)
                    .await
                    .map_err(|source| super::LaunchError::Bind {
                        socket: socket.field(),
                        endpoint,
                        source,
                    })?;
            listeners.push((socket, listener));
        }
        Ok(Self { listeners })
    }

    /// Binds free loopback ports; the connection file says which, with a fresh key.
    pub async fn bind_free() -> Result<(Self, ConnectionFile), super::LaunchError> {
        let mut listeners = Vec::new();
        let mut ports = [0; Socket::ALL.len()];
        for socket in Socket::ALL {
            let any = Endpoint::Tcp {
                host: LOOPBACK.to_owned(),
                port: 0,
            };
            let failed = |source| super::LaunchError::Bind {
                socket: socket.field(),
                endpoint: any.clone(),
                source,
            };
            let listener = Listener::bind(&any).await.map_err(failed)?;
            if let Endpoint::Tcp { port, .. } = listener.local_endpoint().map_err(failed)? {
                ports[socket as usize] = port.into();
            }
            listeners.push((socket, listener));
        }
        let file = ConnectionFile {
            transport: Transport::Tcp,
            ip: LOOPBACK.to_owned(),
            ports,
            key_text: uuid::Uuid::new_v4().to_string(),
            kernel_name: None,
            jupyter_session: None,
            other: serde_json::Map::new(),
        };
        Ok((Self { listeners }, file))
    }

    /// Accepts and serves on all of them until it is dropped.
    pub async fn serve(self, shared: Rc<Shared>) {
        let mut accepting = tokio::task::JoinSet::new();
        for (socket, listener) in self.listeners {
            accepting.spawn_local(accept(socket, listener, shared.clone()));
        }
        while accepting.join_next().await.is_some() {}
    }
}

async fn accept(socket: Socket, listener: Listener, shared: Rc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) if is_strangers(&stream) => {
                    tracing::warn!(?socket, "another user knocked at a port; refused");
                }
                Ok(stream) => {
                    connections.spawn_local(serve(socket, stream, shared.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, ?socket, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Whether it is another user of this machine who connects. What is sent to a kernel is signed, but what it publishes anybody
/// may subscribe to: so says Jupyter's protocol, and by loopback that is every user of the machine. (Unix sockets are
/// their owner's alone.)
fn is_strangers(stream: &Stream) -> bool {
    let Stream::Tcp(stream) = stream else {
        return false;
    };
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return false;
    };
    let uid = process::tcp_peer_uid(local, peer);
    uid.is_some_and(|uid| uid != process::effective_uid() && uid != ROOT)
}

async fn serve(socket: Socket, stream: Stream, shared: Rc<Shared>) {
    let kind = match socket {
        Socket::Shell | Socket::Control | Socket::Stdin => SocketType::Router,
        Socket::Iopub => SocketType::Xpub,
        Socket::Heartbeat => SocketType::Rep,
    };
    let (reader, writer, peer) =
        match handshake(stream, kind, b"", Limits::default(), HANDSHAKE_TIMEOUT).await {
            Ok(shaken) => shaken,
            Err(error) => {
                tracing::debug!(%error, ?socket, "somebody connected who is no frontend");
                return;
            }
        };
    match socket {
        Socket::Shell => converse(Channel::Shell, peer.identity, reader, writer, shared).await,
        Socket::Control => converse(Channel::Control, peer.identity, reader, writer, shared).await,
        Socket::Stdin => converse(Channel::Stdin, peer.identity, reader, writer, shared).await,
        Socket::Iopub => subscriber::serve(shared, reader, writer).await,
        Socket::Heartbeat => echo(reader, writer).await,
    }
}

async fn echo(mut reader: Reader, mut writer: Writer) {
    while let Ok(Some(incoming)) = reader.recv().await {
        if let Incoming::Message(parts) = incoming
            && writer.send(&parts).await.is_err()
        {
            return;
        }
    }
}

async fn converse(
    channel: Channel,
    identity: Option<Bytes>,
    mut reader: Reader,
    mut writer: Writer,
    shared: Rc<Shared>,
) {
    let Joined {
        identity,
        number,
        mut replies,
        waiting_bytes: waiting,
        close,
    } = shared.peers.borrow_mut().join(channel, identity);
    let sending = async {
        // No sender: somebody with the same identity came after us, and has the replies.
        while let Some(reply) = replies.recv().await {
            waiting.set(waiting.get().saturating_sub(reply.size_bytes()));
            if (writer.send(&frame::encode(&reply, &shared.key)).await).is_err() {
                return;
            }
        }
    };
    // Waits for room where there is none; replies go out all the while.
    let receiving = async {
        loop {
            match reader.recv().await {
                Ok(Some(Incoming::Message(parts))) => {
                    receive(channel, &identity, parts, &shared).await;
                }
                Ok(Some(Incoming::Subscribe(_) | Incoming::Unsubscribe(_))) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(%error, channel = channel.name(), "a frontend's connection broke");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
        () = close.notified() => {}
    }
    shared.peers.borrow_mut().leave(channel, &identity, number);
}

async fn receive(channel: Channel, identity: &Bytes, mut parts: Vec<Bytes>, shared: &Shared) {
    parts.insert(0, identity.clone());
    let decoded = frame::decode_once(parts, &shared.key, &mut shared.seen.borrow_mut());
    let message = match decoded {
        Ok(message) => message,
        Err(error) => {
            let refused = shared.refused.get() + 1;
            shared.refused.set(refused);
            tracing::warn!(%error, channel = channel.name(), refused, "a message was refused");
            return;
        }
    };
    if channel != Channel::Stdin && shared.on_leaving(channel, &message) {
        return;
    }
    shared.admit(channel, message).await;
}

impl Peers {
    /// Registers a connection. One with the identity of another takes its replies over, as a client that comes
    /// back expects.
    pub fn join(&mut self, channel: Channel, identity: Option<Bytes>) -> Joined {
        self.last_number += 1;
        let number = self.last_number;
        // A ROUTER's own identities begin with a zero byte, which no client may use.
        let identity = identity.unwrap_or_else(|| {
            let mut made = vec![0];
            made.extend_from_slice(&number.to_be_bytes()[3..]);
            made.into()
        });
        let (sender, replies) = mpsc::unbounded_channel();
        let waiting_bytes = Rc::new(std::cell::Cell::new(0));
        let close = Rc::<Notify>::default();
        for (at, early, its, message) in std::mem::take(&mut self.early) {
            if at.elapsed() >= EARLY_REPLY {
                continue;
            }
            if (early, &its) == (channel, &identity) {
                waiting_bytes.set(waiting_bytes.get() + message.size_bytes());
                let _ = sender.send(message);
            } else {
                self.early.push_back((at, early, its, message));
            }
        }
        let peer = Peer {
            number,
            sender,
            waiting_bytes: waiting_bytes.clone(),
            close: close.clone(),
        };
        self.connections.insert((channel, identity.clone()), peer);
        self.changed.send_replace(());
        Joined {
            identity,
            number,
            replies,
            waiting_bytes,
            close,
        }
    }

    pub fn leave(&mut self, channel: Channel, identity: &Bytes, number: u64) {
        let key = (channel, identity.clone());
        if self
            .connections
            .get(&key)
            .is_some_and(|peer| peer.number == number)
        {
            self.connections.remove(&key);
            self.changed.send_replace(());
        }
    }

    /// The identities of those that are connected.
    pub fn identities(&self) -> Vec<Vec<u8>> {
        let identities: BTreeSet<&Bytes> = self
            .connections
            .keys()
            .map(|(_, identity)| identity)
            .collect();
        identities.into_iter().map(|one| one.to_vec()).collect()
    }

    /// Tells when they have changed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Hands a reply to the connection it is for.
    pub fn deliver(&mut self, channel: Channel, mut message: Message) {
        if message.identities.is_empty() {
            return;
        }
        let identity = message.identities.remove(0);
        let key = (channel, identity);
        let Some(peer) = self.connections.get(&key) else {
            let (channel, identity) = key;
            tracing::debug!(
                channel = channel.name(),
                "a reply for a frontend that is not there"
            );
            self.early.retain(|(at, ..)| at.elapsed() < EARLY_REPLY);
            self.early
                .push_back((Instant::now(), channel, identity, message));
            if self.early.len() > EARLY_REPLIES_MAX {
                self.early.pop_front();
            }
            return;
        };
        let waiting = peer.waiting_bytes.get();
        if waiting > PEER_BYTES_MAX {
            tracing::warn!(
                channel = channel.name(),
                waiting,
                "a frontend does not read its replies; closed"
            );
            peer.close.notify_one();
            self.connections.remove(&key);
            self.changed.send_replace(());
            return;
        }
        peer.waiting_bytes.set(waiting + message.size_bytes());
        let _ = peer.sender.send(message);
    }
}
