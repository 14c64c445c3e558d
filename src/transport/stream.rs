//! tcp and unix sockets under one type.

use std::fs::{self, File, Permissions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BufMut;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket};

use crate::spool::{Received, Spool};
use crate::unix_stream::UnixStream;
use crate::wire::Endpoint;

/// Connections waiting to be accepted, as libzmq has it.
const BACKLOG: u32 = 100;

/// How long to wait where the process or system has no descriptor left for a connection that is waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, before anything has been said.
#[derive(Debug)]
pub enum Stream {
    /// tcp, with TCP_NODELAY.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

/// A bound endpoint. A unix socket's file goes away with it.
#[derive(Debug)]
pub struct Listener(Inner);

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        id: (u64, u64),
    },
}

impl Listener {
    /// Binds exactly this endpoint. A unix socket is for its owner only (0600); a file that a dead process left
    /// there is replaced, one where somebody listens is an `AddrInUse`.
    pub async fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        let bound = match endpoint {
            Endpoint::Tcp { host, port } => {
                let host = if host == "*" { "0.0.0.0" } else { host };
                // std sets SO_REUSEADDR: a port whose last connections are in TIME_WAIT can be bound.
                TcpListener::bind((host, *port)).await.map(Inner::Tcp)
            }
            Endpoint::Ipc { path } => bind_unix(Path::new(path)).await,
        };
        let why = |e: io::Error| io::Error::new(e.kind(), format!("cannot bind {endpoint}: {e}"));
        Ok(Self(bound.map_err(why)?))
    }

    /// Where it is bound, with the port that was really taken.
    pub fn local_endpoint(&self) -> io::Result<Endpoint> {
        match &self.0 {
            Inner::Tcp(listener) => listener.local_addr().map(|a| Endpoint::Tcp {
                host: a.ip().to_string(),
                port: a.port(),
            }),
            Inner::Unix { path, .. } => Ok(Endpoint::Ipc {
                path: path.to_string_lossy().into_owned(),
            }),
        }
    }

    /// The next connection. A connection that broke before it was accepted is passed over, and a lack of
    /// descriptors is waited out, so an error here means that the listener itself is broken.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            let accepted = match &self.0 {
                Inner::Tcp(listener) => listener.accept().await.map(|(s, _)| Stream::Tcp(s)),
                Inner::Unix { listener, .. } => {
                    let accepted = listener.accept().await;
                    accepted.and_then(|(s, _)| UnixStream::new(s).map(Stream::Unix))
                }
            };
            match accepted {
                Ok(stream) => {
                    if let Ok(stream) = stream.without_delay() {
                        return Ok(stream);
                    }
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        tracing::warn!(error = %e, "cannot accept a connection, trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT) | None => {
                        return Err(e);
                    }
                    // accept(2): the error of the connection that came, not of the listener.
                    Some(_) => {}
                },
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Inner::Unix { path, id, .. } = &self.0
            && file_id(path).is_ok_and(|now| now == *id)
        {
            // Nothing can be done about it, and the next bind removes it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Connects to an endpoint.
pub async fn connect(endpoint: &Endpoint) -> io::Result<Stream> {
    let connected = match endpoint {
        Endpoint::Tcp { host, port } => TcpStream::connect((host.as_str(), *port))
            .await
            .map(Stream::Tcp),
        Endpoint::Ipc { path } => UnixStream::connect(Path::new(path)).await.map(Stream::Unix),
    };
    connected
        .and_then(Stream::without_delay)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot connect to {endpoint}: {e}")))
}

async fn bind_unix(path: &Path) -> io::Result<Inner> {
    let listener = match listen_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_dead_socket(path).await => {
            fs::remove_file(path)?;
            listen_unix(path)?
        }
        other => other?,
    };
    Ok(Inner::Unix {
        listener,
        path: path.to_owned(),
        id: file_id(path)?,
    })
}

/// Whether this is a socket that nobody listens on. An ordinary file refuses connections, too, but is not ours to
/// remove.
async fn is_dead_socket(path: &Path) -> bool {
    let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).await.is_err_and(refused)
}

fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // On Linux bind(2) gives the file the mode of the socket: 0600 from its first moment on.
    File::from(socket.as_fd().try_clone_to_owned()?)
        .set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

impl Stream {
    fn without_delay(self) -> io::Result<Self> {
        if let Self::Tcp(stream) = &self {
            stream.set_nodelay(true)?;
        }
        Ok(self)
    }

    /// A connected socket that another process had. Needs a tokio runtime with I/O.
    pub(super) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        // Of any other family's socket std gives no unix address.
        if socket.local_addr().is_ok() {
            UnixStream::from_std(socket).map(Self::Unix)
        } else {
            TcpStream::from_std(OwnedFd::from(socket).into()).map(Self::Tcp)
        }
    }

    pub(super) fn try_receive(&self, spool: &mut Spool) -> io::Result<Received> {
        match self {
            Self::Tcp(s) => s.try_io(Interest::READABLE, || spool.receive(s.as_fd())),
            Self::Unix(s) => {
                let mut received = Received::Bytes(0);
                s.try_read(|socket| {
                    received = spool.receive(socket)?;
                    Ok(0)
                })?;
                Ok(received)
            }
        }
    }

    pub(super) fn try_read_buf(&self, buf: &mut impl BufMut) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_read_buf(buf),
            Self::Unix(s) => s.try_read_buf(buf),
        }
    }

    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.try_write_vectored(slices),
            Self::Unix(s) => s.try_write_vectored(slices),
        }
    }

    /// What was there has been read: nothing is tried before the system says that there is more.
    pub(super) fn drained(&self) {
        match self {
            Self::Tcp(s) => {
                let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = s.try_io(Interest::READABLE, nothing);
            }
            Self::Unix(s) => s.drained(),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.readable().await,
            Self::Unix(s) => s.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.writable().await,
            Self::Unix(s) => s.writable().await,
        }
    }
}
