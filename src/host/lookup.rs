//! The index thread: keeps the index up with the log, and looks things up for the core.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::driver::Input;
use super::inbox::Inbox;
use crate::journal::record::{Body, ExecutionState, Micros};
use crate::journal::{self, ExecutionInfo, Index, Reader};
use crate::session::event::{Answer, Event, ExecutionSummary, PastExecution, Query, Selector};

/// The thread and the way to it.
pub struct Lookups {
    sender: Option<mpsc::SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

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
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || run(dir, receiver, inbox))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// New records are in the log. Never waits: what is skipped is caught up with the next.
    pub fn catch_up(&self) {
        if let Some(sender) = &self.sender {
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

fn run(dir: PathBuf, tasks: mpsc::Receiver<Task>, inbox: Inbox<Input>) {
    let mut index = open(&dir);
    loop {
        // A flood wakes us for each batch: take them together.
        let Ok(first) = tasks.recv() else { break };
        for task in std::iter::once(first).chain(std::iter::from_fn(|| tasks.try_recv().ok())) {
            if let Task::Query(id, query, session) = task {
                let answer = match catch_up(&mut index, &dir) {
                    Some(index) => answer(index, &dir, query, session),
                    None => {
                        Answer::Failed("the journal's index cannot be opened; see host.log".into())
                    }
                };
                inbox.send_now(Input::Event(Event::Answer { id, answer }));
            }
        }
        catch_up(&mut index, &dir);
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
