//! A connected unix socket that wakes its process only for what somebody waits for.
//!
//! tokio's own waits for "can be written" all the time, and Linux says that of a unix socket whenever the other end has
//! read something: a wake-up for each message that was sent, for nobody. Here room to write is waited for only after a
//! write that found none.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::process::set_send_room;

/// With the usual room for 200 kB two processes wake each other for every 100 kB.
const ROOM_BYTES: i32 = 1 << 20;

type Std = std::os::unix::net::UnixStream;

/// See the module.
#[derive(Debug)]
pub struct UnixStream {
    socket: AsyncFd<Std>,
}

/// The end that reads. The socket is closed when both halves are gone.
#[derive(Debug)]
pub struct ReadHalf(Arc<UnixStream>);

/// The end that writes.
#[derive(Debug)]
pub struct WriteHalf {
    stream: Arc<UnixStream>,
    /// While there is no room.
    room: Option<AsyncFd<OwnedFd>>,
}

impl UnixStream {
    /// Needs a tokio runtime with I/O, as all of these.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Self::new(tokio::net::UnixStream::connect(path).await?)
    }

    /// What a listener has accepted.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        Self::from_std(stream.into_std()?)
    }

    /// One that does not block.
    pub fn from_std(socket: Std) -> io::Result<Self> {
        set_send_room(&socket, ROOM_BYTES);
        // SAFETY: std's socket owns its descriptor, and gives the same one as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Two that are connected.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = tokio::net::UnixStream::pair()?;
        Ok((Self::new(one)?, Self::new(other)?))
    }

    /// For two tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        let stream = Arc::new(self);
        let write = WriteHalf {
            stream: stream.clone(),
            room: None,
        };
        (ReadHalf(stream), write)
    }

    /// Waits until there may be something to read, or the end.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until there is room to write, or nobody who reads.
    pub async fn writable(&self) -> io::Result<()> {
        self.room()?.writable().await.map(drop)
    }

    /// Reads with `read` if there may be something; `WouldBlock` else.
    pub fn try_read(
        &self,
        read: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.socket
            .try_io(Interest::READABLE, |socket| read(socket.as_fd()))
    }

    /// What was there has been read: there is nothing before the system says so.
    pub fn drained(&self) {
        let nothing = |_: &Std| Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.socket.try_io(Interest::READABLE, nothing);
    }

    /// Reads behind what is in `buf`, at most as much as it has room for at once; 0: the end.
    pub fn try_read_buf(&self, buf: &mut impl BufMut) -> io::Result<usize> {
        let space = buf.chunk_mut();
        let (into, length) = (space.as_mut_ptr(), space.len());
        prefer_large_pages(into, length);
        // SAFETY: `length` bytes from `into` on are the buffer's to be written.
        let n = self.try_read(|socket| unsafe { receive(socket, into, length) })?;
        // SAFETY: so many were written.
        unsafe { buf.advance_mut(n) };
        if 0 < n && n < length {
            self.drained();
        }
        Ok(n)
    }

    /// Writes what there is room for.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        io::Write::write_vectored(&mut self.socket.get_ref(), slices)
    }

    /// The same socket under another descriptor: one is in epoll's set already.
    fn room(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let socket = self.socket.get_ref().as_fd().try_clone_to_owned()?;
        // SAFETY: a descriptor that is owned stays what it is as long as its owner lives.
        Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }?)
    }
}

/// Where much is read into one place, most of its cost is the system's: a page fault for each 4 KiB of new memory.
fn prefer_large_pages(into: *mut u8, length: usize) {
    const FROM_BYTES: usize = 4 << 20;
    const PAGE_BYTES: usize = 4 << 10;
    if length < FROM_BYTES {
        return;
    }
    let skip = into.align_offset(PAGE_BYTES).min(length);
    let pages = into.wrapping_add(skip);
    // SAFETY: whole pages of memory that the caller has; this is a hint, which changes nothing of what is in them.
    unsafe { libc::madvise(pages.cast(), length - skip, libc::MADV_HUGEPAGE) };
}

/// # Safety
///
/// `length` bytes from `into` on can be written.
unsafe fn receive(socket: BorrowedFd<'_>, into: *mut u8, length: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the caller's promise.
    let read = unsafe {
        let into = into.cast();
        libc::recv(socket.as_raw_fd(), into, length, libc::MSG_DONTWAIT)
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// A peer that always has something ready, or room, must not starve the other tasks of this thread.
fn share_of_time(context: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::consume_budget()).poll(context)
}

impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(share_of_time(context));
        loop {
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.0.socket.poll_read_ready(context))?.retain_ready();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(share_of_time(context));
        loop {
            match self.stream.try_write_vectored(slices) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    self.room = None;
                    return Poll::Ready(done);
                }
            }
            let room = match self.room.take() {
                Some(room) => room,
                None => self.stream.room()?,
            };
            let room = self.room.insert(room);
            // There was none: what was said of it before does not count.
            ready!(room.poll_write_ready(context))?.clear_ready();
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.stream.socket.get_ref();
        Poll::Ready(socket.shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const MANY: usize = 3 << 20;

    fn payload() -> Vec<u8> {
        (0..MANY).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn much_goes_through_in_both_directions_and_the_end_is_seen() {
        let (one, other) = UnixStream::pair().unwrap();
        let ((mut read, mut write), (mut far_read, mut far_write)) =
            (one.into_split(), other.into_split());
        let echo = async {
            let mut all = vec![0; MANY];
            far_read.read_exact(&mut all).await.unwrap();
            far_write.write_all(&all).await.unwrap();
            far_write.shutdown().await.unwrap();
        };
        let talk = async {
            write.write_all(&payload()).await.unwrap();
            let mut back = Vec::new();
            read.read_to_end(&mut back).await.unwrap();
            assert!(back == payload());
        };
        tokio::join!(echo, talk);
        // Whoever reads no more is an error, and no signal.
        drop((far_read, far_write));
        assert!(write.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn small_messages_with_pauses_arrive_each() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut read, _write) = one.into_split();
        let (_far_read, mut far_write) = other.into_split();
        for n in 0..100_u8 {
            far_write.write_all(&[n; 3]).await.unwrap();
            if n % 3 == 0 {
                tokio::task::yield_now().await;
            }
            let mut space = Vec::with_capacity(1000);
            assert_eq!(read.read_buf(&mut space).await.unwrap(), 3);
            assert_eq!(space, [n; 3]);
        }
    }

    #[tokio::test]
    async fn room_is_waited_for_where_there_is_none() {
        let (one, other) = UnixStream::pair().unwrap();
        let full = [0; 64 << 10];
        while one.try_write_vectored(&[IoSlice::new(&full)]).is_ok() {}
        let waiting = async {
            one.writable().await.unwrap();
            one.try_write_vectored(&[IoSlice::new(&full)]).unwrap();
        };
        let taking = async {
            loop {
                other.readable().await.unwrap();
                let mut space = Vec::with_capacity(1 << 20);
                let _ = other.try_read_buf(&mut space);
            }
        };
        tokio::select! {
            () = waiting => {}
            () = taking => unreachable!("it reads on"),
            () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("nobody said that there is room"),
        }
    }
}
