//! What the outputs of executions come to, compacted as they come: who attaches to an execution of a million messages
//! need not wait until all of them were read.
//!
//! A thread of its own reads the journal as every reader does. Of each live execution it holds the compacted outputs;
//! when it comes to the note of an attachment it makes the replay for the cursor that asks for it. When a large
//! execution is over, what it came to goes into a file ([`crate::journal::digest`]), and the memory is free; who comes
//! before the file is there gets it from memory. It is woken for an attachment, and when so much has come that it would soon be in the files only: a small execution does
//! not cost its waking.
//!
//! Invariants: a replay is what reading the records up to the attachment's would give (also where it is not at hand:
//! then that is done). Memory is bounded by [`Limits`] for each live execution that has outputs.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::elsewhere::journal_of;
use super::log::Tail;
use super::source::Source;
use crate::journal::digest::{self, Digest};
use crate::journal::record::{Body, ExecutionNumber, Extent, Note, Record};
use crate::journal::{self, Item};
use crate::session::outputs::{Compactor, Limits};
use crate::session::view::Replay;
use crate::wire::Message;
use crate::wire::message::HeaderFields;

/// A digest is kept of executions with so many outputs, or so many bytes of them. What is smaller is read in some
/// milliseconds.
const KEPT_FROM_OUTPUTS: u64 = 2000;
/// See [`KEPT_FROM_OUTPUTS`].
const KEPT_FROM_BYTES: usize = 4 << 20;

/// With so much appended the thread is woken: long before it has left memory (`TAIL_BYTES_MAX`, log.rs), for reading it
/// from the files costs several times as much. That is also why it does not give way to others.
const WAKE_BYTES: u64 = 256 << 10;

/// So much at once is a large message, which has left memory in any case. On its way to the frontends there is more use
/// for the CPUs than here, so the thread comes to it this much later.
const LARGE_BYTES: u64 = 8 << 20;
const LARGE_DELAY: Duration = Duration::from_millis(500);

/// Replays that are held for cursors that are about to ask for them. What is not there any more is read.
const READY_MAX: usize = 4;
/// Bytes of those, but for the newest.
const READY_BYTES_MAX: usize = 8 << 20;

/// Type and message, in order. Headers are made by who sends them.
pub(super) type Outputs = Arc<Vec<(String, Message)>>;

/// The thread, and what it needs to be told.
pub(super) struct Digester {
    digests: Digests,
    /// Of all that was appended, what there was when the thread was woken last.
    seen_bytes: u64,
    thread: Option<JoinHandle<()>>,
}

/// For cursors; cheap to clone.
#[derive(Clone)]
pub(super) struct Digests(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    tail: Tail,
    session: String,
    wake: mpsc::Sender<Wake>,
    /// A [`Wake`] is on its way.
    woken: AtomicBool,
    /// Up to this record the thread has come.
    done: watch::Receiver<u64>,
    ready: Mutex<VecDeque<Ready>>,
    /// Of executions that are over, and whose files are not written yet.
    over: Mutex<HashMap<ExecutionNumber, Sum>>,
}

enum Wake {
    Look,
    /// In [`LARGE_DELAY`].
    Later,
    End,
}

/// What an execution that is over comes to, up to a record.
#[derive(Clone)]
struct Sum {
    until_seq: u64,
    outputs: Outputs,
}

/// The replay of the attachment that the record `seq` is.
struct Ready {
    seq: u64,
    outputs: Outputs,
}

impl Digester {
    /// Starts the thread over a session's journal. `from_seq`: no record of an execution that lives is before it.
    pub fn start(session: &str, tail: Tail, from_seq: u64) -> io::Result<Self> {
        let (wake, wakes) = mpsc::channel();
        let source = Source::new(tail, from_seq.saturating_sub(1));
        let (done, told) = watch::channel(source.seq());
        let shared = Arc::new(Shared {
            dir: source.tail().dir().to_owned(),
            tail: source.tail().clone(),
            session: session.to_owned(),
            wake,
            woken: AtomicBool::new(false),
            done: told,
            ready: Mutex::default(),
            over: Mutex::default(),
        });
        let worker = Worker {
            shared: shared.clone(),
            source,
            live: HashMap::new(),
            done,
        };
        let thread = std::thread::Builder::new()
            .name("digest".into())
            .spawn(move || worker.run(&wakes))?;
        Ok(Self {
            digests: Digests(shared),
            seen_bytes: 0,
            thread: Some(thread),
        })
    }

    /// For a cursor.
    pub fn digests(&self) -> Digests {
        self.digests.clone()
    }

    /// So many bytes are there in all. Never waits.
    pub fn appended(&mut self, bytes: u64) {
        let wake = match bytes - self.seen_bytes {
            ..WAKE_BYTES => return,
            WAKE_BYTES..LARGE_BYTES => Wake::Look,
            LARGE_BYTES.. => Wake::Later,
        };
        self.seen_bytes = bytes;
        self.digests.wake(wake);
    }

    /// Waits until all records were seen, and ends the thread.
    pub fn finish(&mut self) {
        let _ = self.digests.0.wake.send(Wake::End);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Digester {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Digests {
    /// Makes the thread come to the journal's end soon.
    pub fn hurry(&self) {
        // Also where one is on its way that would wait.
        self.0.woken.store(true, Ordering::Release);
        let _ = self.0.wake.send(Wake::Look);
    }

    fn wake(&self, wake: Wake) {
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            let _ = self.0.wake.send(wake);
        }
    }

    /// What a replay that the record `seq` asks for consists of.
    pub async fn outputs(&self, seq: u64, replay: &Replay) -> Outputs {
        if replay.session.is_empty() {
            // The thread may just be coming to what is asked for: to the attachment, or to the execution's end.
            let seq = replay.extent.map_or(seq, |extent| extent.last_seq);
            self.hurry();
            // An error: it is gone, and will not come to it.
            let _ = self.0.done.clone().wait_for(|done| *done >= seq).await;
            if replay.extent.is_none()
                && let Some(outputs) = self.0.ready(seq)
            {
                return outputs;
            }
        }
        let (shared, replay) = (self.0.clone(), replay.clone());
        // What it reads stays as it is until it has it.
        let own = replay.session.is_empty();
        let _pin = own.then(|| shared.tail.pin(replay.first_seq));
        let made = tokio::task::spawn_blocking(move || shared.read(&replay)).await;
        match made {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(error)) => Arc::new(vec![unreadable(&error)]),
            Err(error) => Arc::new(vec![unreadable(&error)]),
        }
    }
}

impl Shared {
    fn ready(&self, seq: u64) -> Option<Outputs> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let found = ready.iter().find(|ready| ready.seq == seq)?;
        Some(found.outputs.clone())
    }

    fn put_ready(&self, seq: u64, outputs: Vec<(String, Message)>) {
        let bytes_of = |ready: &Ready| -> usize {
            let messages = ready.outputs.iter();
            messages.map(|(_, message)| message.size_bytes()).sum()
        };
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.push_back(Ready {
            seq,
            outputs: Arc::new(outputs),
        });
        while ready.len() > READY_MAX
            || ready.len() > 1 && ready.iter().map(bytes_of).sum::<usize>() > READY_BYTES_MAX
        {
            ready.pop_front();
        }
    }

    fn over(&self) -> MutexGuard<'_, HashMap<ExecutionNumber, Sum>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an execution that is over came to, where that is known.
    fn sum(&self, dir: &Path, replay: &Replay) -> Option<Sum> {
        let in_memory = || self.over().get(&replay.n).cloned();
        let in_memory = replay.session.is_empty().then(in_memory).flatten();
        in_memory.or_else(|| {
            let digest = digest::read(dir, replay.n)?;
            Some(Sum {
                until_seq: digest.until_seq,
                outputs: Arc::new(typed(digest.messages)),
            })
        })
    }

    /// From the files; blocks.
    fn read(&self, replay: &Replay) -> io::Result<Outputs> {
        let (dir, session) = match replay.session.as_str() {
            "" => (self.dir.clone(), &self.session),
            other => (journal_of(&self.dir, other)?, &replay.session),
        };
        let mut gathered = Gathered::new(session, replay.n);
        let records = match replay.extent {
            None => {
                let until = replay.until_seq.saturating_sub(1);
                journal::Outputs::from_seq(&dir, replay.n, replay.first_seq, until)?
            }
            Some(Extent { first, last_seq }) => match self.sum(&dir, replay) {
                Some(sum) if sum.until_seq == last_seq => return Ok(sum.outputs),
                // Something came after the end: compacting what is compact and then the rest gives the same.
                Some(sum) if sum.until_seq < last_seq => {
                    for (msg_type, message) in sum.outputs.iter() {
                        gathered.push(msg_type, message);
                    }
                    journal::Outputs::from_seq(&dir, replay.n, sum.until_seq + 1, last_seq)?
                }
                Some(_) | None => {
                    let from = replay.first_seq;
                    journal::Outputs::open_near(&dir, replay.n, first, from, last_seq)?
                }
            },
        };
        for item in records {
            match item? {
                Item::Record(record, _) => {
                    if let Body::Iopub { message, .. } = &record.body {
                        gathered.push_message(message);
                    }
                }
                Item::Gap(_) => {
                    let (_, message) = unreadable(&"a part of it is damaged and left out here");
                    gathered.push("stream", &message);
                }
            }
        }
        let outputs = Arc::new(gathered.outputs());
        if let (Some(extent), true, true) = (
            replay.extent,
            replay.session.is_empty(),
            gathered.is_large(),
        ) {
            // Of an execution that an earlier host did not see through to its end, say.
            let sum = Sum {
                until_seq: extent.last_seq,
                outputs: outputs.clone(),
            };
            sum.write(&dir, replay.n);
        }
        Ok(outputs)
    }

    /// Puts into files what is in memory of executions that are over.
    fn write_over(&self) {
        // The lock is held neither while they are written nor while they are freed. (Only this thread adds to them.)
        let over = self.over().clone();
        if over.is_empty() {
            return;
        }
        for (n, sum) in over {
            sum.write(&self.dir, n);
            self.over().remove(&n);
        }
        // What they took while the executions ran, and what came with it.
        crate::process::release_memory();
    }
}

impl Sum {
    fn write(&self, dir: &Path, n: ExecutionNumber) {
        let digest = Digest {
            until_seq: self.until_seq,
            messages: self.outputs.iter().map(with_type).collect(),
        };
        if let Err(error) = digest::write(dir, n, &digest) {
            tracing::warn!(%error, n, "the digest of an execution cannot be written; a replay will read its records");
        }
    }
}

/// The thread's own.
struct Worker {
    shared: Arc<Shared>,
    source: Source,
    live: HashMap<ExecutionNumber, Gathered>,
    done: watch::Sender<u64>,
}

impl Worker {
    fn run(mut self, wakes: &mpsc::Receiver<Wake>) {
        // What was there before this host.
        self.catch_up();
        while let Ok(mut wake) = wakes.recv() {
            if let Wake::Later = wake {
                wake = wakes.recv_timeout(LARGE_DELAY).unwrap_or(Wake::Look);
            }
            // Cleared first: what comes from now on is told anew.
            self.shared.woken.store(false, Ordering::Release);
            self.catch_up();
            match wake {
                Wake::Look | Wake::Later => {}
                Wake::End => break,
            }
        }
    }

    fn catch_up(&mut self) {
        loop {
            let records = match self.source.memory() {
                Some(records) if records.is_empty() => break,
                Some(records) => records,
                None => {
                    let batch = (self.source.files())();
                    self.source.take(batch)
                }
            };
            for record in &records {
                if self.source.missing_before(record.seq).is_some() {
                    // Whoever attaches to them reads the files, which may have it.
                    self.live.clear();
                }
                self.take(record);
            }
            self.done.send_replace(self.source.seq());
            // Nobody waits for that.
            self.shared.write_over();
        }
    }

    fn take(&mut self, record: &Record) {
        match &record.body {
            Body::Request { execution, .. } if *execution != 0 => {
                let gathered = Gathered::new(&self.shared.session, *execution);
                self.live.insert(*execution, gathered);
            }
            Body::Iopub {
                client: None,
                execution,
                message,
            } => {
                if let Some(gathered) = self.live.get_mut(execution) {
                    gathered.push_message(message);
                }
            }
            Body::Note(Note::Execution { n, state, .. }) if state.is_final() => {
                let gathered = self.live.remove(n);
                if let Some(gathered) = gathered.filter(Gathered::is_large) {
                    let sum = Sum {
                        until_seq: record.seq,
                        outputs: Arc::new(gathered.outputs()),
                    };
                    self.shared.over().insert(*n, sum);
                }
            }
            Body::Note(Note::Attach { n, session, .. }) if session.is_empty() => {
                if let Some(gathered) = self.live.get(n) {
                    self.shared.put_ready(record.seq, gathered.outputs());
                }
            }
            Body::Request { .. } | Body::Reply { .. } | Body::Iopub { .. } | Body::Note(_) => {}
        }
    }
}

/// The outputs of one execution so far.
struct Gathered {
    input: Option<Message>,
    /// The header of the execution's request.
    parent: Bytes,
    compactor: Compactor,
    outputs: u64,
    bytes: usize,
}

impl Gathered {
    fn new(session: &str, n: ExecutionNumber) -> Self {
        let hint = format!("`farside logs {session} {n}` shows them all");
        Self {
            input: None,
            parent: Bytes::new(),
            compactor: Compactor::new(Limits::default(), &hint),
            outputs: 0,
            bytes: 0,
        }
    }

    fn push_message(&mut self, message: &Message) {
        if let Ok(header) = message.header() {
            self.push(&header.msg_type, message);
        }
    }

    fn push(&mut self, msg_type: &str, message: &Message) {
        if self.parent.is_empty() {
            self.parent = Bytes::copy_from_slice(&message.parent_header);
        }
        self.outputs += 1;
        self.bytes += message.size_bytes();
        match msg_type {
            "execute_input" => self.input = Some(message.clone()),
            _ => self.compactor.push_as(msg_type, message),
        }
    }

    /// What a replay sends.
    fn outputs(&self) -> Vec<(String, Message)> {
        let input = self.input.clone();
        let input = input.map(|input| ("execute_input".to_owned(), input));
        let replayed = self.compactor.replay().into_iter().map(|output| {
            let msg_type = output.msg_type.to_string();
            let message = output.into_message(Bytes::new(), self.parent.clone());
            (msg_type, message)
        });
        input.into_iter().chain(replayed).collect()
    }

    /// Whether a digest is worth its file.
    fn is_large(&self) -> bool {
        self.outputs >= KEPT_FROM_OUTPUTS || self.bytes >= KEPT_FROM_BYTES
    }
}

/// In a digest a message's header says its type, and nothing else that counts.
fn with_type((msg_type, message): &(String, Message)) -> Message {
    let fields = HeaderFields {
        msg_id: "digest",
        msg_type,
        session_id: "",
        username: "",
        date: 0,
    };
    Message {
        header: fields.to_json(),
        ..message.clone()
    }
}

fn typed(messages: Vec<Message>) -> Vec<(String, Message)> {
    let typed = messages.into_iter().filter_map(|message| {
        let msg_type = message.header().ok()?.msg_type.into_owned();
        Some((msg_type, message))
    });
    typed.collect()
}

/// A visible line in place of what cannot be read.
fn unreadable(error: &dyn std::fmt::Display) -> (String, Message) {
    let text = format!("[farside] the outputs so far cannot be read from the journal: {error}\n");
    let content = serde_json::json!({ "name": "stderr", "text": text });
    let message = Message {
        metadata: Bytes::from_static(b"{}"),
        content: content.to_string().into(),
        ..Message::default()
    };
    ("stream".into(), message)
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
