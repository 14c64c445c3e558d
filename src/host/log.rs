//! The host's end of the journal: appends, keeps the newest records in memory, and wakes the readers.
//!
//! Invariant: a record's append was tried before any client has all of it. Small records are shown to the readers
//! behind their append; a large one while it is being appended on another thread, so that its way to the clients has
//! begun by then, and who sends it holds its end back ([`Tail::wait_tried`]). Where the append failed, readers that
//! keep up still get the record (a full disk does not stop a live stream), and the session says that it is not kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::journal::Writer;
use crate::journal::record::{Body, Micros, Note, Record};

/// How much of the newest records stays in memory for readers that keep up. One that lags further reads the
/// journal's files instead.
const TAIL_BYTES_MAX: usize = 4 << 20;

/// A record from this size on is appended on another thread: it takes so long to write that a thread's waking does not
/// count, and that its readers' work should not wait for it.
const LARGE_BYTES: usize = 1 << 20;

/// Fixed cost of a record in memory beside its message.
const RECORD_BYTES: usize = 256;

/// See the module. One writer; any number of [`Tail`]s.
pub struct Log {
    /// `None`: it is with the thread of [`Log::append_apart`].
    writer: Option<Writer>,
    tail: Tail,
    last: watch::Sender<Last>,
    shown_bytes: u64,
    failing: bool,
    /// Since when records are missing in the journal that it does not tell of.
    unkept_since: Option<Micros>,
    /// The session was told of that ([`Appended::Healed`]), and its note is not in the journal yet.
    untold: bool,
    /// Nothing can be kept any more, and why.
    closed: Option<&'static str>,
}

/// What the writer tells of an append.
pub enum Appended {
    /// All is in the journal.
    Kept,
    /// It was not, and the one before was.
    Failed(String),
    /// It was not, as the ones before.
    StillFailing,
    /// It was, for the first time since a failure at this time.
    Healed(Micros),
}

/// The newest records, shared with the readers.
#[derive(Clone)]
pub struct Tail {
    shared: Arc<Mutex<Shared>>,
    pins: Arc<Mutex<Pins>>,
    last: watch::Receiver<Last>,
    dir: PathBuf,
}

/// Numbers of newest records.
#[derive(Clone, Copy)]
struct Last {
    /// Of those whose append was tried.
    tried: u64,
    /// Of those that readers may look at: the same, or more while an append goes on on another thread.
    shown: u64,
}

impl Last {
    fn tried(seq: u64) -> Self {
        Self {
            tried: seq,
            shown: seq,
        }
    }
}

/// A reader's place: records behind it are not taken away (`compaction`), as long as this lives.
pub struct Pin {
    pins: Arc<Mutex<Pins>>,
    id: u64,
}

#[derive(Default)]
struct Pins {
    next_id: u64,
    places: HashMap<u64, u64>,
}

impl Pin {
    /// The reader has come to here.
    pub fn set(&self, seq: u64) {
        lock(&self.pins).places.insert(self.id, seq);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.pins).places.remove(&self.id);
    }
}

#[derive(Default)]
struct Shared {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
}

impl Log {
    /// `last_seq`: of the newest record in the journal. `unkept_since`: see [`Recovered`].
    ///
    /// [`Recovered`]: crate::journal::recovery::Recovered
    pub fn new(writer: Writer, dir: &Path, last_seq: u64, unkept_since: Option<Micros>) -> Self {
        let (last, receiver) = watch::channel(Last::tried(last_seq));
        let tail = Tail {
            shared: Arc::default(),
            pins: Arc::default(),
            last: receiver,
            dir: dir.to_owned(),
        };
        Self {
            writer: Some(writer),
            tail,
            last,
            shown_bytes: 0,
            failing: false,
            unkept_since,
            untold: false,
            closed: None,
        }
    }

    /// From now on every append fails: writing would succeed, into files that nobody can find.
    pub fn close(&mut self, why: &'static str) {
        self.closed = Some(why);
    }

    /// Whether the file that is written to still has a name; if not, the next append begins another one.
    pub fn look_after_file(&mut self) {
        if let Some(writer) = &mut self.writer
            && writer.leave_deleted()
        {
            tracing::error!("the journal's last segment was deleted; another one is begun");
        }
    }

    /// Whether what was appended last is not kept.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Since when what is appended is not kept, where it is not.
    pub fn unkept_since(&self) -> Option<Micros> {
        self.unkept_since.filter(|_| self.failing)
    }

    /// For a reader.
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// Number of the newest record whose append was tried.
    pub fn last_seq(&self) -> u64 {
        self.last.borrow().tried
    }

    /// What the records that readers were shown have cost in memory, in all.
    pub fn shown_bytes(&self) -> u64 {
        self.shown_bytes
    }

    /// Whether a checkpoint should be written now: a new segment has begun.
    pub fn wants_checkpoint(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::wants_checkpoint)
    }

    /// Number of the segment that is appended to; `None` while a large record is.
    pub fn segment(&self) -> Option<u32> {
        self.writer.as_ref().map(Writer::segment)
    }

    /// Appends in one go, then shows the records to the readers.
    pub fn append(&mut self, records: Vec<Arc<Record>>) -> Appended {
        let (Some(oldest), Some(newest)) = (records.first(), records.last()) else {
            return Appended::Kept;
        };
        let (last_seq, since) = (newest.seq, oldest.time);
        let tells = self.tells_of_unkept(&records);
        let result = match (&mut self.writer, self.closed) {
            (_, Some(why)) => Err(io::Error::other(why)),
            (Some(writer), None) => writer.append(&records).map(drop),
            (None, None) => Err(lost()),
        };
        self.shown_bytes += self.tail.lock().extend(records);
        self.tried(last_seq);
        self.appended(result, since, tells)
    }

    /// Only now may the records be taken out of memory: who does not find them there reads the files.
    fn tried(&mut self, seq: u64) {
        self.last.send_replace(Last::tried(seq));
        self.tail.lock().trim();
    }

    /// Appends in one go on another thread: for what takes long, by its size or because the disk is waited for. The
    /// readers have it meanwhile. Not to be cancelled.
    pub async fn append_apart(&mut self, records: Vec<Arc<Record>>) -> Appended {
        let (Some(oldest), Some(newest)) = (records.first(), records.last()) else {
            return Appended::Kept;
        };
        let (seq, since) = (newest.seq, oldest.time);
        let tells = self.tells_of_unkept(&records);
        let result = match self.writer.take_if(|_| self.closed.is_none()) {
            Some(mut writer) => {
                self.shown_bytes += self.tail.lock().extend(records.clone());
                self.last.send_modify(|last| last.shown = seq);
                let appending = tokio::task::spawn_blocking(move || {
                    let result = writer.append(&records).map(drop);
                    (writer, result)
                });
                match appending.await {
                    Ok((writer, result)) => {
                        self.writer = Some(writer);
                        result
                    }
                    Err(error) => match error.try_into_panic() {
                        // As if it had been on this thread.
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(error) => Err(io::Error::other(error)),
                    },
                }
            }
            None => {
                self.shown_bytes += self.tail.lock().extend(records);
                Err(self.closed.map_or_else(lost, io::Error::other))
            }
        };
        self.tried(seq);
        self.appended(result, since, tells)
    }

    /// Whether these say what the session was told.
    fn tells_of_unkept(&self, records: &[Arc<Record>]) -> bool {
        let is_gap = |record: &Arc<Record>| matches!(record.body, Body::Note(Note::Gap { .. }));
        self.untold && records.iter().any(is_gap)
    }

    /// `since`: of the first of what was appended. `tells`: it says what the session was told.
    fn appended(&mut self, result: io::Result<()>, since: Micros, tells: bool) -> Appended {
        match result {
            Ok(()) => {
                self.failing = false;
                if let Some(since) = self.unkept_since.take() {
                    self.untold = true;
                    return Appended::Healed(since);
                }
                if tells && let Some(writer) = &mut self.writer {
                    self.untold = false;
                    writer.told_of_unkept();
                }
                Appended::Kept
            }
            Err(_) if self.failing => Appended::StillFailing,
            Err(error) => {
                self.failing = true;
                self.unkept_since.get_or_insert(since);
                tracing::error!(%error, "the journal cannot be written");
                Appended::Failed(error.to_string())
            }
        }
    }
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// The place of a reader that has seen the records up to `seq`.
    pub fn pin(&self, seq: u64) -> Pin {
        let mut pins = lock(&self.pins);
        pins.next_id += 1;
        let id = pins.next_id;
        pins.places.insert(id, seq);
        drop(pins);
        Pin {
            pins: self.pins.clone(),
            id,
        }
    }

    /// Whether every reader has come to `seq` or further.
    pub fn was_read_up_to(&self, seq: u64) -> bool {
        lock(&self.pins).places.values().all(|&place| place >= seq)
    }

    /// Makes a quick change if every reader has come to `seq` or further; none can go back meanwhile.
    pub fn if_read_up_to<T>(&self, seq: u64, change: impl FnOnce() -> T) -> Option<T> {
        let pins = lock(&self.pins);
        (pins.places.values().all(|&place| place >= seq)).then(change)
    }

    /// Number of the newest record whose append was tried.
    pub fn last_seq(&self) -> u64 {
        self.last.borrow().tried
    }

    /// Waits until the append of the record `seq` was tried. `false`: it will not be, the host ends.
    pub async fn wait_tried(&mut self, seq: u64) -> bool {
        self.last.wait_for(|last| last.tried >= seq).await.is_ok()
    }

    /// Waits until there is a record behind `seq`, which may still be on its way into the journal. `false`: there will be none, the host ends.
    pub async fn wait_behind(&mut self, seq: u64) -> bool {
        self.last.wait_for(|last| last.shown > seq).await.is_ok()
    }

    /// The records behind `seq` that are in memory, at most about `bytes_max`; `None` where the next one is not in
    /// memory any more.
    pub fn behind(&self, seq: u64, bytes_max: usize) -> Option<Vec<Arc<Record>>> {
        let shared = self.lock();
        let first = match shared.records.front() {
            Some(record) => record.seq,
            None if seq >= self.last_seq() => return Some(Vec::new()),
            None => return None,
        };
        if seq + 1 < first {
            return None;
        }
        // Records are numbered without holes, so the place follows from the number.
        let start = (seq + 1 - first) as usize;
        let mut bytes = 0;
        let records = shared.records.iter().skip(start).take_while(|record| {
            let fits = bytes == 0 || bytes < bytes_max;
            bytes += cost(record);
            fits
        });
        Some(records.cloned().collect())
    }

    /// Number of the last record before `time`, as far back as memory goes.
    pub fn last_before(&self, time: Micros) -> u64 {
        let shared = self.lock();
        let newer = shared
            .records
            .iter()
            .rev()
            .take_while(|record| record.time >= time)
            .last();
        newer.map_or_else(|| self.last_seq(), |record| record.seq - 1)
    }

    /// Number of the oldest record in memory.
    pub fn first_in_memory(&self) -> Option<u64> {
        self.lock().records.front().map(|record| record.seq)
    }

    /// The folder of the journal.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What is in these is whole at every step, also where a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Gives what they cost.
    fn extend(&mut self, records: Vec<Arc<Record>>) -> u64 {
        let before = self.bytes;
        for record in records {
            self.bytes += cost(&record);
            self.records.push_back(record);
        }
        (self.bytes - before) as u64
    }

    fn trim(&mut self) {
        while self.bytes > TAIL_BYTES_MAX && self.records.len() > 1 {
            if let Some(oldest) = self.records.pop_front() {
                self.bytes -= cost(&oldest);
            }
        }
    }
}

/// Whether a record is one for [`Log::append_apart`].
pub fn is_large(record: &Record) -> bool {
    cost(record) >= LARGE_BYTES
}

fn lost() -> io::Error {
    io::Error::other("the journal's writer was lost")
}

fn cost(record: &Record) -> usize {
    use crate::journal::record::Body;
    let message = match &record.body {
        Body::Request { message, .. }
        | Body::Reply { message, .. }
        | Body::Iopub { message, .. } => message.size_bytes(),
        Body::Note(_) => 0,
    };
    message + RECORD_BYTES
}

/// For tests of what can be seen while a record is appended.
#[cfg(test)]
pub mod appending {
    use std::pin::Pin;
    use std::sync::mpsc;
    use std::task::Poll;

    /// Whether the future is pending, polled once.
    pub async fn is_pending<T>(mut future: Pin<&mut impl Future<Output = T>>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending()))
            .await
    }

    /// Holds the thread of [`Log::append_apart`](super::Log::append_apart) as long as it lives.
    pub struct Held(#[expect(dead_code, reason = "its end is what counts")] mpsc::Sender<()>);

    /// Runs a test in which no append apart comes to its end before the test lets go of it.
    pub fn block_on<T, F: Future<Output = T>>(test: impl FnOnce(Held) -> F) -> T {
        tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let (held, release) = mpsc::channel();
                tokio::task::spawn_blocking(move || release.recv());
                test(Held(held)).await
            })
    }
}
