//! `GET /metrics` on a loopback port or a unix socket: as much HTTP/1.1 as a scrape takes.
//!
//! Owns: where one may listen, the request's bounds, the socket's file. Refuses to know: what is in the page.
//! Invariants: nothing but loopback and unix sockets; the socket's file is 0600 from its first moment, and ours is
//! gone at the end; a peer costs at most [`REQUEST_BYTES_MAX`] and [`REQUEST_TIMEOUT`].

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use super::text::CONTENT_TYPE;
use crate::process::effective_uid;

/// A scrape's head has some hundred bytes; a browser's with cookies some thousand. At the limit: 431.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// From the connection to the answer's last byte. At the limit the connection is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time. The next ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 16;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A loopback address; port 0: any free one.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// clap's value parser for an address.
pub fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err("give the socket's path: unix:/path.sock".to_owned());
        }
        return Ok(Address::Unix(path.into()));
    }
    let localhost = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok())
        .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    let Some(address) = localhost.or_else(|| text.parse().ok()) else {
        return Err("give 127.0.0.1:PORT, [::1]:PORT, or unix:/path.sock".to_owned());
    };
    if !address.ip().is_loopback() {
        return Err(format!(
            "{} can be reached from other machines, and there is no password: listen on 127.0.0.1:{} or \
             unix:/path.sock, and put a proxy in front",
            address.ip(),
            address.port()
        ));
    }
    Ok(Address::Tcp(address))
}

/// Serves until SIGINT or SIGTERM. `page` is made anew for each request; `ready` is told where it is.
pub async fn serve(
    address: &Address,
    page: impl Fn() -> anyhow::Result<String> + 'static,
    ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    // Before there is a socket that would have to be removed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ended = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let page = Rc::new(page);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            ready(&format!("http://{}/metrics", listener.local_addr()?));
            let accept = async || Ok(listener.accept().await?.0);
            tokio::select! {
                () = ended => Ok(()),
                error = accept_all(accept, page, free) => Err(error),
            }
        }
        Address::Unix(path) => {
            let socket = SocketFile::bind(path)?;
            ready(&format!("unix:{} (GET /metrics)", path.display()));
            let accept = async || Ok(socket.listener.accept().await?.0);
            tokio::select! {
                () = ended => Ok(()),
                error = accept_all(accept, page, free) => Err(error),
            }
        }
    }
}

/// Ends with an error only.
async fn accept_all<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    accept: impl AsyncFn() -> io::Result<S>,
    page: Rc<impl Fn() -> anyhow::Result<String> + 'static>,
    free: Arc<Semaphore>,
) -> anyhow::Error {
    loop {
        let permit = free.clone().acquire_owned().await.expect("never closed");
        let stream = match accept().await {
            Ok(stream) => stream,
            // The peer has gone again before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return anyhow::Error::from(error).context("cannot accept connections"),
        };
        let page = page.clone();
        tokio::task::spawn_local(async move {
            // A peer that is too slow, or has gone, has no answer.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &*page)).await;
            drop(permit);
        });
    }
}

/// Reads a request and answers it. The connection ends with the answer.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    page: &dyn Fn() -> anyhow::Result<String>,
) -> io::Result<()> {
    let mut head = Vec::new();
    let answer = loop {
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break respond(&head[..end], page);
        }
        if head.len() >= REQUEST_BYTES_MAX {
            break response(
                "431 Request Header Fields Too Large",
                "the request is too large\n",
            );
        }
        let room = REQUEST_BYTES_MAX - head.len();
        if (&mut stream).take(room as u64).read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What has come and was not read would make the kernel reset the connection, and the answer be lost.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The answer to a request's head. The page may read files: milliseconds, in which a few scrapers can wait.
fn respond(head: &[u8], page: &dyn Fn() -> anyhow::Result<String>) -> String {
    let Some(request) = Request::parse(head) else {
        return response("400 Bad Request", "this is no HTTP/1 request\n");
    };
    if !request.is_for_this_machine() {
        // A page in a browser whose name was made to mean 127.0.0.1 could read this otherwise.
        return response(
            "403 Forbidden",
            "use the address, or localhost, in the URL\n",
        );
    }
    let path = request.target.split('?').next().unwrap_or_default();
    if (request.method, path) != ("GET", "/metrics") {
        return response("404 Not Found", "there is only GET /metrics\n");
    }
    match page() {
        Ok(text) => response("200 OK", &text),
        Err(error) => {
            tracing::warn!("{error:#}");
            response("500 Internal Server Error", &format!("{error:#}\n"))
        }
    }
}

fn response(status: &str, body: &str) -> String {
    let content_type = if status.starts_with("200") {
        CONTENT_TYPE
    } else {
        "text/plain; charset=utf-8"
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What counts of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    host: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// RFC 9112, section 3. `None`: it is none.
    fn parse(head: &'a [u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") || method.is_empty() {
            return None;
        }
        let mut host = None;
        for line in lines {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("host") {
                host = Some(value.trim());
            }
        }
        Some(Self {
            method,
            target,
            host,
        })
    }

    /// Whether it was sent to this machine by a name that no DNS can give to another one.
    fn is_for_this_machine(&self) -> bool {
        let Some(host) = self.host else { return true };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) | None => host,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => name.is_empty() || name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// A listening socket, and its file, which goes with it.
#[derive(Debug)]
struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another file in its place is not ours to remove.
    file: Option<(u64, u64)>,
}

impl SocketFile {
    fn bind(path: &Path) -> anyhow::Result<Self> {
        remove_dead(path)?;
        let listener = {
            let _private = Umask::set(0o177);
            StdUnixListener::bind(path)
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
        let file = fs::symlink_metadata(path)
            .ok()
            .map(|file| (file.dev(), file.ino()));
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path: path.to_owned(),
            file,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        if there.ok() == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes way: a socket of ours that nobody listens on any more is removed; anything else is an error.
fn remove_dead(path: &Path) -> anyhow::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    if !file.file_type().is_socket() {
        bail!(
            "{} is there, and is no socket; give another path",
            path.display()
        );
    }
    if file.uid() != effective_uid() {
        bail!(
            "{} is another user's socket; give another path",
            path.display()
        );
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the dead socket {}", path.display())),
        Ok(_) => bail!("somebody listens on {} already", path.display()),
        Err(error) => Err(error)
            .with_context(|| format!("cannot tell whether somebody listens on {}", path.display())),
    }
}

/// The process's file mode mask, until this is dropped.
struct Umask(libc::mode_t);

impl Umask {
    fn set(mask: libc::mode_t) -> Self {
        // SAFETY: takes and gives an integer. It counts for the whole process, in which no other thread is creating
        // files: this command has one.
        Self(unsafe { libc::umask(mask) })
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::umask(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_this_machine_can_listen_in() {
        for text in [
            "127.0.0.1:0",
            "127.9.9.9:80",
            "[::1]:9100",
            "localhost:9100",
        ] {
            assert!(matches!(address(text), Ok(Address::Tcp(_))), "{text}");
        }
        assert_eq!(
            address("unix:a/b.sock"),
            Ok(Address::Unix("a/b.sock".into()))
        );
        for text in [
            "0.0.0.0:9100",
            "[::]:9100",
            "192.168.1.1:9100",
            "[::ffff:127.0.0.1]:9100",
            "[::ffff:10.0.0.1]:1",
            ":9100",
            "9100",
            "127.0.0.1",
            "localhost",
            "example.org:80",
            "unix:",
            "http://127.0.0.1:1",
            "",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
        assert_eq!(
            address("0.0.0.0:9100").unwrap_err(),
            "0.0.0.0 can be reached from other machines, and there is no password: listen on 127.0.0.1:9100 or \
             unix:/path.sock, and put a proxy in front"
        );
    }

    fn status_of(head: &str) -> String {
        let answer = respond(head.as_bytes(), &|| Ok("page\n".to_owned()));
        answer.split("\r\n").next().unwrap()["HTTP/1.1 ".len()..].to_owned()
    }

    #[test]
    fn there_is_one_page() {
        for (head, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9100", "200 OK"),
            (
                "GET /metrics?name[]=x HTTP/1.1\r\nhost:localhost:9100",
                "200 OK",
            ),
            ("GET /metrics HTTP/1.1\r\nHost: [::1]:9100", "200 OK"),
            ("GET /metrics HTTP/1.0", "200 OK"),
            (
                "GET /metrics HTTP/1.1\r\nHost: evil.example:9100",
                "403 Forbidden",
            ),
            ("GET /metrics HTTP/1.1\r\nHost: 10.0.0.1", "403 Forbidden"),
            ("GET /metrics HTTP/1.1\r\nHost: intranet", "403 Forbidden"),
            ("GET /metrics HTTP/1.1\r\nHost:", "200 OK"),
            ("GET / HTTP/1.1", "404 Not Found"),
            ("GET /metrics/ HTTP/1.1", "404 Not Found"),
            ("GET //metrics HTTP/1.1", "404 Not Found"),
            ("POST /metrics HTTP/1.1", "404 Not Found"),
            ("HEAD /metrics HTTP/1.1", "404 Not Found"),
            ("GET /metrics", "400 Bad Request"),
            ("GET /metrics HTTP/2", "400 Bad Request"),
            ("GET  /metrics HTTP/1.1", "400 Bad Request"),
            ("GET /metrics HTTP/1.1\r\nno header", "400 Bad Request"),
            ("", "400 Bad Request"),
        ] {
            assert_eq!(status_of(head), expected, "{head:?}");
        }
        let answer = respond(b"GET /metrics HTTP/1.1", &|| {
            Ok("d\u{e9}j\u{e0}\n".to_owned())
        });
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 7\r\n\
             Connection: close\r\n\r\nd\u{e9}j\u{e0}\n"
        );
        let failed = respond(b"GET /metrics HTTP/1.1", &|| {
            Err(anyhow::anyhow!("no folder"))
        });
        assert!(failed.starts_with("HTTP/1.1 500 ") && failed.ends_with("no folder\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(respond(&head, &|| Ok(String::new())).starts_with("HTTP/1.1 "));
        }
    }
}
