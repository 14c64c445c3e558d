//! The index thread: keeps the index up with the log, and looks things up for the core.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::Input;
use super::inbox::Inbox;
use crate::journal::record::{Body, ExecutionState, Micros};
use crate::journal::{self, ExecutionInfo, Index, Reader};
use crate::session::event::{Answer, Event, ExecutionSummary, PastExecution, Query, Selector};

/// The thread and the way to it.
pub struct Lookups {
    /// A [`Task::CatchUp`] is on its way: a flood of records wakes the thread once.
    told: Arc<AtomicBool>,
    sender: Option<mpsc::SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

/// How far the index may lag behind the log. Readers scan what it lacks, so nobody sees the lag; and a transaction for
/// each small execution would cost more than the execution.
const CATCH_UP_EVERY: Duration = Duration::from_millis(250);

enum Task {
    CatchUp,
    Query(u64, Query, serde_json::Value),
}

/// Look-ups that may wait. Past it the core waits for the index.
const TASKS_MAX: usize = 1024;

impl Lookups {
    /// Starts the thread over the journal in `dir`.
    pub fn start(dir: PathBuf, inbox: Inbox<Input>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(TASKS_MAX);
        let told = Arc::<AtomicBool>::default();
        let heard = told.clone();
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || run(dir, receiver, inbox, heard))?;
        Ok(Self {
            told,
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// New records are in the log. Never waits: what is skipped is caught up with the next.
    pub fn catch_up(&self) {
        if let Some(sender) = &self.sender
            && !self.told.swap(true, Ordering::AcqRel)
        {
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

fn run(dir: PathBuf, tasks: mpsc::Receiver<Task>, inbox: Inbox<Input>, told: Arc<AtomicBool>) {
    let mut index = open(&dir);
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
                let answer = match catch_up(&mut index, &dir) {
                    Some(index) => answer(index, &dir, query, session),
                    None => {
                        Answer::Failed("the journal's index cannot be opened; see host.log".into())
                    }
                };
                inbox.send_now(Input::Event(Event::Answer { id, answer }));
            }
            Err(RecvTimeoutError::Timeout) => {
                due = None;
                // Cleared first: what comes from now on is told anew.
                told.store(false, Ordering::Release);
                catch_up(&mut index, &dir);
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    catch_up(&mut index, &dir);
}

fn open(dir: &std::path::Path) -> Option<Index> {
    Index::open(dir)
        .inspect_err(|error| tracing::error!(%error, "the journal's index cannot be opened"))
        .ok()
}

fn catch_up<'a>(index: &'a mut Option<Index>, dir: &std::path::Path) -> Option<&'a mut Index> {
    if index.is_none() {
        *index = open(dir);
    }
    if let Some(open) = index
        && let Err(error) = open.catch_up()
    {
        tracing::error!(%error, "the journal's index cannot be written; it will be rebuilt");
        *index = None;
    }
    index.as_mut()
}

fn answer(
    index: &mut Index,
    dir: &std::path::Path,
    query: Query,
    session: serde_json::Value,
) -> Answer {
    let result = match query {
        Query::Execution(selector) => past_execution(index, dir, &selector).map(Answer::Execution),
        Query::History { limit } => history(index, limit).map(|executions| Answer::History {
            session,
            executions,
        }),
    };
    result.unwrap_or_else(|error| Answer::Failed(format!("the journal cannot be read: {error}")))
}

type Failure = Box<dyn std::error::Error>;

fn past_execution(
    index: &Index,
    dir: &std::path::Path,
    selector: &Selector,
) -> Result<Option<Box<PastExecution>>, Failure> {
    let selector = match selector {
        Selector::Latest => journal::Selector::Latest,
        Selector::Number(n) => journal::Selector::Number(*n),
        Selector::MsgId(msg_id) => journal::Selector::ById(msg_id.clone()),
    };
    let Some(info) = index.execution(&selector)? else {
        return Ok(None);
    };
    let reply_content = match info.places.reply {
        Some(position) => match Reader::open_at(dir, position)?.read_at(position)? {
            Some(record) => match record.body {
                Body::Reply { message, .. } => Some(message.content),
                Body::Request { .. } | Body::Iopub { .. } | Body::Note(_) => None,
            },
            None => None,
        },
        None => None,
    };
    let first_seq = info.places.first_seq;
    Ok(Some(Box::new(PastExecution {
        summary: summary(info),
        first_seq,
        reply_content,
    })))
}

fn history(index: &Index, limit: usize) -> Result<Vec<ExecutionSummary>, Failure> {
    let filter = journal::Filter {
        limit: Some(limit),
        ..journal::Filter::default()
    };
    Ok(index
        .executions(&filter)?
        .into_iter()
        .map(summary)
        .collect())
}

fn summary(info: ExecutionInfo) -> ExecutionSummary {
    let ExecutionInfo {
        n,
        msg_id,
        cell_id,
        code,
        state,
        started,
        ended,
        ..
    } = info;
    let (started, ended): (Option<Micros>, Option<Micros>) = (started, ended);
    let state: ExecutionState = state;
    ExecutionSummary {
        n,
        msg_id,
        cell_id,
        code,
        state,
        started,
        ended,
    }
}
