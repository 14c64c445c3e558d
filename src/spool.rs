//! The bytes of a stream between its socket and the journal, in memory that outlives the process that reads them.
//!
//! A host may be killed at any moment, also between reading an output from the engine's socket and having it in the
//! journal. So it reads into a *spool*: a ring in a memfd that its keeper holds as well, together with the socket. The
//! bytes stay there until the host says that what they meant is kept ([`Mark::consume`]). Whoever has the two
//! descriptors goes on where a killed reader stopped: the keeper while no host is there, and then the next host.
//!
//! It knows nothing of what the bytes mean. Positions count the stream's bytes from the first one on.
//!
//! Invariants:
//! - [`Spool::recoverable`] holds exactly if all bytes from `consumed` to `written` lie in the ring.
//! - One process reads at a time, and in it one thread. That of a dead reader is ended by [`Spool::open`].
//! - Nothing that lies in the memory makes this code fail: what is out of its bounds is no spool.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The ring of a stream that may flood: what an engine writes within about 0.1 s, the time without a host. It takes
/// memory only as far as it was filled since it was last empty.
pub const RING_BYTES: usize = 12 << 20;

/// The ring of a stream of single requests and answers.
pub const SMALL_RING_BYTES: usize = 1 << 20;

/// One read takes at most this: enough to make its system calls cheap, little enough to stay in the CPU's cache until
/// it is copied on.
const READ_BYTES_MAX: usize = 256 << 10;

/// An empty ring keeps so much of the memory that it took.
const KEEP_BYTES: usize = 1 << 20;

/// And gives the rest back at most so often: in a flood it is empty again and again.
const RELEASE_EVERY: Duration = Duration::from_secs(1);

/// "FARSPOOL".
const MAGIC: u64 = u64::from_le_bytes(*b"FARSPOOL");

/// The ring lies behind the page of the header.
const HEADER_BYTES: usize = 4096;

const CANARY_BYTES: usize = 16;

/// What stands at the beginning of the memory.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    capacity: AtomicU64,
    /// The position whose byte lies at the ring's beginning.
    base: AtomicU64,
    /// What the bytes up to here meant is kept.
    consumed: AtomicU64,
    /// Bytes up to here were read.
    written: AtomicU64,
    /// A read of so many bytes is under way; 0: none.
    intent: AtomicU64,
    /// What is being read passes the ring by.
    bypassing: AtomicU64,
    /// A message may have been sent by half, in the other direction.
    sending: AtomicU64,
    /// Stands where a read's last bytes will be: if it is still there, the read was not done.
    canary: [AtomicU64; CANARY_BYTES / 8],
}

/// The reader's end. See the module.
#[derive(Debug)]
pub struct Spool {
    memory: Arc<Memory>,
    /// So much of the ring was filled since memory was given back, at this time.
    touched: usize,
    released: Instant,
    /// The last read left something in the socket.
    left_some: bool,
}

/// The consumer's end.
#[derive(Debug, Clone)]
pub struct Mark {
    memory: Arc<Memory>,
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many more bytes.
    Bytes(usize),
    /// The ring is full: nothing was tried.
    Full,
    /// The peer has closed the stream.
    Ended,
}

#[derive(Debug)]
struct Memory {
    fd: OwnedFd,
    map: NonNull<u8>,
    capacity: usize,
    /// The consumer has made room. (Of this process only: another one's readers do not wait.)
    room: Notify,
}

// SAFETY: the mapping is shared memory that any thread may use; all of its header is atomic, and the ring's bytes are
// touched by the one reader only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `Memory::map` with this length, and nobody can have it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), HEADER_BYTES + self.capacity) };
    }
}

impl Memory {
    fn map(fd: OwnedFd, capacity: usize) -> io::Result<Self> {
        // SAFETY: a new mapping of a descriptor that is open; the kernel chooses where.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                HEADER_BYTES + capacity,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let room = Notify::new();
        Ok(Self {
            fd,
            map,
            capacity,
            room,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins on a page and is larger than the header, which is made of atomics, for which any
        // bytes are a value.
        unsafe { self.map.cast::<Header>().as_ref() }
    }

    /// The ring's place of a position.
    fn at(&self, position: u64) -> usize {
        let base = self.header().base.load(Ordering::Relaxed);
        // Below the capacity, which is a usize.
        (position.wrapping_sub(base) % self.capacity as u64) as usize
    }

    /// `at` is below the capacity.
    fn byte(&self, at: usize) -> *mut u8 {
        debug_assert!(at < self.capacity);
        // SAFETY: within the mapping.
        unsafe { self.map.as_ptr().add(HEADER_BYTES + at) }
    }

    fn consume(&self, upto: u64) {
        self.header().consumed.fetch_max(upto, Ordering::AcqRel);
        self.room.notify_one();
    }
}

impl Spool {
    /// A new one, for a stream of which `position` bytes are behind us.
    pub fn create(position: u64, capacity: usize) -> io::Result<Self> {
        // SAFETY: a string that ends in NUL, and flags.
        let fd = unsafe { libc::memfd_create(c"farside-spool".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        std::fs::File::from(fd.try_clone()?).set_len((HEADER_BYTES + capacity) as u64)?;
        let memory = Memory::map(fd, capacity)?;
        let header = memory.header();
        header.capacity.store(capacity as u64, Ordering::Relaxed);
        for position_of in [&header.base, &header.consumed, &header.written] {
            position_of.store(position, Ordering::Relaxed);
        }
        let canary = uuid::Uuid::new_v4().as_u64_pair();
        header.canary[0].store(canary.0, Ordering::Relaxed);
        header.canary[1].store(canary.1, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Self::of(memory))
    }

    fn of(memory: Memory) -> Self {
        Self {
            touched: memory.capacity,
            memory: Arc::new(memory),
            released: Instant::now(),
            left_some: false,
        }
    }

    /// One that another process has read into, and reads into no more.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "this memory is no spool");
        let length = std::fs::File::from(fd.try_clone()?).metadata()?.len();
        let capacity = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(HEADER_BYTES))
            .filter(|capacity| (1..=RING_BYTES).contains(capacity))
            .ok_or_else(invalid)?;
        let memory = Memory::map(fd, capacity)?;
        let header = memory.header();
        let magic = header.magic.load(Ordering::Acquire);
        if magic != MAGIC || header.capacity.load(Ordering::Relaxed) != capacity as u64 {
            return Err(invalid());
        }
        let spool = Self::of(memory);
        spool.end_read_of_the_dead();
        Ok(spool)
    }

    /// Its memory, for another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd.as_fd()
    }

    /// For who consumes.
    pub fn mark(&self) -> Mark {
        Mark {
            memory: self.memory.clone(),
        }
    }

    /// Whether all that is not consumed is here.
    pub fn recoverable(&self) -> bool {
        let (base, consumed, written) = (
            self.header().base.load(Ordering::Acquire),
            self.consumed(),
            self.written(),
        );
        self.header().bypassing.load(Ordering::Acquire) == 0
            && base <= consumed
            && consumed <= written
            && written - consumed <= self.memory.capacity as u64
    }

    /// Whether nothing more can be read before something is consumed.
    pub fn is_full(&self) -> bool {
        self.written().saturating_sub(self.consumed()) >= self.memory.capacity as u64
    }

    /// Position of the first byte that is not consumed.
    pub fn consumed(&self) -> u64 {
        self.header().consumed.load(Ordering::Acquire)
    }

    /// Position behind the last byte that was read.
    pub fn written(&self) -> u64 {
        self.header().written.load(Ordering::Acquire)
    }

    /// Reads from the socket what there is and what there is room for, without waiting (`WouldBlock`).
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        let memory = self.memory.clone();
        let header = memory.header();
        let written = header.written.load(Ordering::Relaxed);
        let kept_from = self.consumed().max(header.base.load(Ordering::Relaxed));
        let is_empty = kept_from >= written;
        if is_empty {
            // The ring begins anew, and takes no more memory than it must.
            header.base.store(written, Ordering::Release);
        }
        let used = usize::try_from(written.saturating_sub(kept_from)).unwrap_or(usize::MAX);
        let room = self.memory.capacity.saturating_sub(used);
        let at = self.memory.at(written);
        let room = room.min(self.memory.capacity - at).min(READ_BYTES_MAX);
        if room == 0 {
            return Ok(Received::Full);
        }
        let there = available(socket)?;
        let length = match there.min(room) {
            0 => {
                if is_empty {
                    self.release();
                }
                return is_at_end(socket);
            }
            length => length,
        };
        self.touched = self.touched.max(at + length);
        self.left_some = length < there;
        // There is nobody else who reads, so just these will come; and a kill lets a read that has begun come to its
        // end. Whether it has, the canary tells.
        let last = length.min(CANARY_BYTES);
        self.copy_canary(self.memory.byte(at + length - last), last);
        header.intent.store(length as u64, Ordering::Release);
        // SAFETY: `length` bytes from `at` on are in the mapping, and nobody else touches them.
        let read = unsafe {
            let into = self.memory.byte(at).cast();
            libc::recv(socket.as_raw_fd(), into, length, libc::MSG_DONTWAIT)
        };
        let failed = (read < 0).then(io::Error::last_os_error);
        let read = usize::try_from(read).unwrap_or(0);
        (header.written).store(written + read as u64, Ordering::Release);
        header.intent.store(0, Ordering::Release);
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, 0) => Ok(Received::Ended),
            (None, read) => Ok(Received::Bytes(read)),
        }
    }

    /// Whether another [`Spool::receive`] is of use before the socket says that there is more: it has more now, or memory
    /// can be given back once it has not.
    pub fn looks_again(&self) -> bool {
        self.left_some || self.touched > KEEP_BYTES
    }

    /// The bytes from `position` on that were read, in one piece; not all of them where the ring ends between.
    pub fn bytes(&self, position: u64) -> &[u8] {
        let length = usize::try_from(self.written().saturating_sub(position)).unwrap_or(0);
        let at = self.memory.at(position);
        let length = length.min(self.memory.capacity - at);
        // SAFETY: within the mapping; written by this reader, which is borrowed, or by one that is dead.
        unsafe { std::slice::from_raw_parts(self.memory.byte(at), length) }
    }

    /// Whether a message of so many bytes would fill the ring, so that its like is to be read past it.
    pub fn is_too_large(&self, bytes: usize) -> bool {
        bytes > self.memory.capacity / 2
    }

    /// From here on, what is read passes the ring by, until [`Spool::end_bypass`]: nothing can be recovered meanwhile.
    pub fn bypass(&mut self) {
        self.header().bypassing.store(1, Ordering::Release);
    }

    /// So many bytes were read past the ring.
    pub fn passed_by(&mut self, bytes: usize) {
        let written = self.written() + bytes as u64;
        self.header().written.store(written, Ordering::Release);
    }

    /// What is read now goes into the ring again.
    pub fn end_bypass(&mut self) {
        self.header().base.store(self.written(), Ordering::Release);
        self.header().bypassing.store(0, Ordering::Release);
    }

    /// Gives memory back that an empty ring does not need. It is read as zeros, and is taken again where it is written.
    fn release(&mut self) {
        if self.touched <= KEEP_BYTES || self.released.elapsed() < RELEASE_EVERY {
            return;
        }
        let from = self.memory.byte(KEEP_BYTES).cast();
        // SAFETY: a part of the mapping, from the beginning of a page on, that holds nothing. A failure costs memory.
        unsafe { libc::madvise(from, self.touched - KEEP_BYTES, libc::MADV_REMOVE) };
        self.touched = KEEP_BYTES;
        self.released = Instant::now();
    }

    fn header(&self) -> &Header {
        self.memory.header()
    }

    fn canary(&self) -> [u8; CANARY_BYTES] {
        let halves = [0, 1].map(|half| self.header().canary[half].load(Ordering::Relaxed));
        let mut canary = [0; CANARY_BYTES];
        canary[..8].copy_from_slice(&halves[0].to_le_bytes());
        canary[8..].copy_from_slice(&halves[1].to_le_bytes());
        canary
    }

    fn copy_canary(&self, to: *mut u8, length: usize) {
        let canary = self.canary();
        // SAFETY: the caller has so many bytes there, in the ring.
        unsafe { std::ptr::copy_nonoverlapping(canary.as_ptr(), to, length) };
    }

    /// A reader that was killed in the middle of a read may have got its bytes, and not come to say so.
    fn end_read_of_the_dead(&self) {
        let header = self.header();
        let intent = usize::try_from(header.intent.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        let at = self.memory.at(self.written());
        if intent == 0 || intent > self.memory.capacity - at {
            return;
        }
        let last = intent.min(CANARY_BYTES);
        // SAFETY: within the mapping, by the check above; nobody reads into it now.
        let found =
            unsafe { std::slice::from_raw_parts(self.memory.byte(at + intent - last), last) };
        if found != &self.canary()[..last] {
            let written = self.written() + intent as u64;
            header.written.store(written, Ordering::Release);
        }
        header.intent.store(0, Ordering::Release);
    }
}

impl Mark {
    /// What the bytes up to `position` meant is kept. Positions only ever grow; a smaller one does nothing.
    pub fn consume(&self, position: u64) {
        self.memory.consume(position);
    }

    /// Waits until something was consumed, now or since the last time.
    pub async fn room(&self) {
        self.memory.room.notified().await;
    }

    /// Says whether a message may have been sent by half.
    pub fn set_sending(&self, sending: bool) {
        let header = self.memory.header();
        header.sending.store(sending.into(), Ordering::Release);
    }

    /// Whether one may have been: then the peer can be sent nothing more on this stream.
    pub fn is_sending(&self) -> bool {
        self.memory.header().sending.load(Ordering::Acquire) != 0
    }
}

/// Bytes that can be read at once.
fn available(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Nothing is there to be read: has the stream ended, or is there nothing yet?
fn is_at_end(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut byte = 0_u8;
    // SAFETY: room for one byte, which stays in the socket.
    let peeked = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags)
    };
    match peeked {
        0 => Ok(Received::Ended),
        // It came just now: the next call takes it.
        1.. => Ok(Received::Bytes(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
