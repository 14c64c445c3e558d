//! The index thread: keeps the index up with the log, and looks things up for the core.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::Input;
use super::elsewhere::{Elsewhere, Failure, Named, journal_selector, summary, with_reply};
use super::inbox::Inbox;
use super::log::Tail;
use crate::journal::{self, Index, IndexError, Prepared};
use crate::session::event::{Answer, Event, Query, Selector, Target};
use crate::state_dir::Session;

/// The thread and the way to it.
pub struct Lookups {
    /// A [`Task::CatchUp`] is on its way: many small turns wake the thread once.
    told: Arc<AtomicBool>,
    /// The last record that there was when the thread was last told not to wait.
    hurried_seq: u64,
    sender: Option<mpsc::SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

/// How far the index may lag behind the log. Readers scan what it lacks, so nobody sees the lag; and a transaction for
/// each small execution would cost more than the execution.
const CATCH_UP_EVERY: Duration = Duration::from_millis(250);

/// But not by more records than this, however many come meanwhile: what a look-up has to wait for. (Of large ones it
/// looks at the heads only.)
const LAG_RECORDS_MAX: u64 = 8192;

enum Task {
    /// Within [`CATCH_UP_EVERY`].
    CatchUp,
    /// At once.
    Hurry,
    Query(u64, Query, serde_json::Value),
    Replace {
        prepared: Prepared,
        /// Puts the segment in its place; `None`: not now.
        commit: Commit,
        done: mpsc::Sender<io::Result<bool>>,
    },
}

type Commit = Box<dyn FnOnce(&Prepared) -> Option<io::Result<()>> + Send>;

/// How a compacted segment gets its place: in the index thread, so that the index always knows where things are.
#[derive(Clone)]
pub struct Replacer {
    tail: Tail,
    sender: mpsc::SyncSender<Task>,
}

impl Replacer {
    /// Puts it in its place. `false`: it was dropped, since a reader stands before `last_seq` and is waited for
    /// (`waits`).
    pub fn replace(&self, prepared: Prepared, last_seq: u64, waits: bool) -> io::Result<bool> {
        let tail = self.tail.clone();
        let commit: Commit = Box::new(move |prepared| {
            if waits {
                tail.if_read_up_to(last_seq, || prepared.commit())
            } else {
                Some(prepared.commit())
            }
        });
        let (done, result) = mpsc::channel();
        let task = Task::Replace {
            prepared,
            commit,
            done,
        };
        let gone = || io::Error::other("the index thread has ended");
        self.sender.send(task).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

/// Look-ups that may wait. Past it the core waits for the index.
const TASKS_MAX: usize = 1024;

impl Lookups {
    /// Starts the thread over the session's journal, which has records up to `seq`.
    pub fn start(session: &Session, inbox: Inbox<Input>, seq: u64) -> std::io::Result<Self> {
        let (dir, elsewhere) = (session.dir.journal(), Elsewhere::new(session.clone()));
        let (sender, receiver) = mpsc::sync_channel(TASKS_MAX);
        let told = Arc::<AtomicBool>::default();
        let heard = told.clone();
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || run(dir, elsewhere, receiver, inbox, heard))?;
        Ok(Self {
            told,
            hurried_seq: seq,
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// For who compacts the journal. It must be gone before [`Lookups::finish`].
    pub fn replacer(&self, tail: Tail) -> Option<Replacer> {
        let sender = self.sender.clone()?;
        Some(Replacer { tail, sender })
    }

    /// New records are in the log, up to `seq`. Never waits: what is skipped is caught up with the next.
    pub fn catch_up(&mut self, seq: u64) {
        let Some(sender) = &self.sender else { return };
        if seq.saturating_sub(self.hurried_seq) >= LAG_RECORDS_MAX {
            self.hurried_seq = seq;
            let _ = sender.try_send(Task::Hurry);
        } else if !self.told.swap(true, Ordering::AcqRel) {
            let _ = sender.try_send(Task::CatchUp);
        }
    }

    /// Asks; the answer comes to the inbox. `session`: the session's facts, for lists.
    pub fn ask(&self, id: u64, query: Query, session: serde_json::Value) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(Task::Query(id, query, session));
        }
    }

    /// Brings the index up to the log's end and ends the thread.
    pub fn finish(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    dir: PathBuf,
    elsewhere: Elsewhere,
    tasks: mpsc::Receiver<Task>,
    inbox: Inbox<Input>,
    told: Arc<AtomicBool>,
) {
    let mut indexer = Indexer::open(dir.clone());
    let mut due: Option<Instant> = None;
    loop {
        let task = match due {
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => tasks.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match task {
            Ok(Task::CatchUp) => {
                due.get_or_insert_with(|| Instant::now() + CATCH_UP_EVERY);
            }
            Ok(Task::Query(id, query, session)) => {
                due = None;
                told.store(false, Ordering::Release);
                let answer = match indexer.caught_up() {
                    Some(index) => answer(index, &dir, &elsewhere, query, session),
                    None => {
                        Answer::Failed("the journal's index cannot be opened; see host.log".into())
                    }
                };
                inbox.send_now(Input::Event(Event::Answer { id, answer }));
            }
            Ok(Task::Replace {
                prepared,
                commit,
                done,
            }) => {
                let _ = done.send(indexer.replace(prepared, commit));
            }
            Ok(Task::Hurry) | Err(RecvTimeoutError::Timeout) => {
                due = None;
                // Cleared first: what comes from now on is told anew.
                told.store(false, Ordering::Release);
                indexer.caught_up();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    indexer.caught_up();
}

/// The thread's index, as far as there is one.
struct Indexer {
    index: Option<Index>,
    dir: PathBuf,
    /// It has been said that it cannot be kept up to date.
    failing: bool,
}

impl Indexer {
    fn open(dir: PathBuf) -> Self {
        let mut indexer = Self {
            index: None,
            dir,
            failing: false,
        };
        indexer.index = indexer.noted(Index::open(&indexer.dir));
        indexer
    }

    /// The index, up to date; one that fails is dropped, and made anew.
    fn caught_up(&mut self) -> Option<&mut Index> {
        let index = match self.index.take() {
            Some(index) => Ok(index),
            None => Index::open(&self.dir),
        };
        let index = self.noted(index.and_then(|mut index| index.catch_up().map(|_| index)))?;
        Some(self.index.insert(index))
    }

    /// Says what has failed, once: on a full disk it is tried again and again.
    fn noted(&mut self, result: Result<Index, IndexError>) -> Option<Index> {
        let told = std::mem::replace(&mut self.failing, result.is_err());
        result
            .inspect_err(|error| {
                if !told {
                    tracing::error!(%error, "the journal's index cannot be opened or written; it will be rebuilt");
                }
            })
            .ok()
    }

    /// `false`: a reader has come to stand where it would be disturbed.
    fn replace(&mut self, prepared: Prepared, commit: Commit) -> io::Result<bool> {
        let mut asking = Asking {
            commit: Some(commit),
            in_place: None,
        };
        let mut result = match self.caught_up() {
            Some(index) => index.replace(&prepared, |prepared| asking.ask(prepared)),
            None => Ok(()),
        };
        if asking.commit.is_some() {
            // There is no index, or it failed before. It is made anew from the files as they are then; what is left of it
            // would take them for what they were.
            if let Err(error) = result {
                tracing::error!(%error, "the journal's index cannot be written; it will be rebuilt");
            }
            self.index = None;
            journal::remove_index(&self.dir)?;
            result = asking.ask(&prepared).map_err(IndexError::from);
        }
        match (asking.in_place, result) {
            (None, _) => Ok(false),
            (Some(true), result) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the journal's index is made anew");
                    self.index = None;
                }
                prepared.clean().map(|()| true)
            }
            (Some(false), result) => Err(io::Error::other(result.err().map_or_else(
                || "a compacted segment could not be put in its place".to_owned(),
                |error| error.to_string(),
            ))),
        }
    }
}

/// A [`Commit`] that is asked once.
struct Asking {
    commit: Option<Commit>,
    /// Whether the segment is in its place; `None`: it is not to be put there now.
    in_place: Option<bool>,
}

impl Asking {
    fn ask(&mut self, prepared: &Prepared) -> io::Result<()> {
        let asked = self.commit.take().and_then(|commit| commit(prepared));
        self.in_place = asked.as_ref().map(io::Result::is_ok);
        asked.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }
}

fn answer(
    index: &mut Index,
    dir: &Path,
    elsewhere: &Elsewhere,
    query: Query,
    session: serde_json::Value,
) -> Answer {
    let result = match query {
        Query::Execution(target) => execution(index, dir, elsewhere, &target),
        Query::History {
            session: named,
            limit,
        } => history(index, elsewhere, named.as_deref(), limit, session),
    };
    result.unwrap_or_else(|error| Answer::Failed(format!("the journal cannot be read: {error}")))
}

fn execution(
    index: &Index,
    dir: &Path,
    elsewhere: &Elsewhere,
    target: &Target,
) -> Result<Answer, Failure> {
    let selector = &target.selector;
    match target.session.as_deref().map(|name| elsewhere.named(name)) {
        Some(Named::Other(session)) => return elsewhere.execution(&session, selector),
        Some(Named::None(why)) => return Ok(Answer::NotThere(why)),
        Some(Named::This) | None => {}
    }
    if *selector == Selector::Before
        && let found @ Answer::Execution(Some(_)) = elsewhere.before(selector)?
    {
        return Ok(found);
    }
    match index.execution(&journal_selector(selector))? {
        Some(info) => {
            let past = with_reply(dir, info)?;
            Ok(Answer::Execution(Some(Box::new(past))))
        }
        None => elsewhere.before(selector),
    }
}

fn history(
    index: &Index,
    elsewhere: &Elsewhere,
    named: Option<&str>,
    limit: usize,
    session: serde_json::Value,
) -> Result<Answer, Failure> {
    match named.map(|name| elsewhere.named(name)) {
        Some(Named::Other(session)) => return elsewhere.history(&session, limit),
        Some(Named::None(why)) => return Ok(Answer::NotThere(why)),
        Some(Named::This) | None => {}
    }
    let filter = journal::Filter {
        limit: Some(limit),
        ..journal::Filter::default()
    };
    let executions = index.executions(&filter)?.into_iter().map(summary);
    Ok(Answer::History {
        session,
        executions: executions.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::writer::tests::samples::output;
    use crate::journal::{Rewrite, View, Writer, WriterOptions};

    /// Another process is in the middle of a transaction, say, for longer than it is waited for.
    #[test]
    fn an_index_that_cannot_be_written_is_no_reader_that_lags() {
        let dir = tempfile::tempdir().unwrap();
        let options = WriterOptions {
            segment_bytes: 500,
            ..WriterOptions::default()
        };
        let (mut writer, _) = Writer::open(dir.path(), options).unwrap();
        for seq in 1..20 {
            writer.append(&[output(seq, 1, "text")]).unwrap();
        }
        let mut indexer = Indexer::open(dir.path().to_owned());
        indexer.caught_up().unwrap();
        let other = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let prepared = Rewrite::begin(dir.path(), vec![1], 1)
            .unwrap()
            .finish()
            .unwrap();
        let commit: Commit = Box::new(|prepared| Some(prepared.commit()));
        assert!(indexer.replace(prepared, commit).unwrap());
        assert!(
            !dir.path().join("index.sqlite").exists(),
            "it is of no use any more"
        );
        indexer.caught_up().unwrap();
        View::open(dir.path()).unwrap();
    }
}
