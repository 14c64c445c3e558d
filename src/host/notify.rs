//! Tells a person of something (`notify`): posts JSON to a URL, or runs a command. docs/settings.md has the JSON.
//!
//! One thread, started with the first notification, and a bounded queue in front of it: the session never waits.
//! Owns tries, time-outs and what is said in the log; decides nothing about what is worth telling.
//! Invariant: no secret that a URL may hold (its path included) gets into the log.

mod delivery;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::delivery::{deliver, is_url, shown_url};
use self::shape::Shape;
use super::hook;
use super::shell::{self, Stopper};
use crate::session::event::Notification;
use crate::state_dir::Session;

/// Notifications that may wait, while a server does not answer. Past it the oldest is dropped: the newest says most.
const WAITING_MAX: usize = 64;

/// A limit beyond the last one, in which the thread notices that it is over.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How hard it is tried.
#[derive(Debug, Clone)]
struct Policy {
    /// One HTTP request, from looking up the name to the response's head.
    try_limit: Duration,
    /// Before the second try, the third and so on.
    pauses: &'static [Duration],
    /// The same once the session is over, at most.
    last_pause: Duration,
    /// A command.
    command_limit: Duration,
    /// All that still waits when the session is over.
    close_limit: Duration,
}

const POLICY: Policy = Policy {
    try_limit: Duration::from_secs(10),
    pauses: &[Duration::from_secs(5), Duration::from_secs(20)],
    last_pause: Duration::from_secs(1),
    command_limit: Duration::from_secs(60),
    close_limit: Duration::from_secs(15),
};

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Notifier {
    policy: Policy,
    queue: Arc<Queue>,
    worker: Option<Worker>,
}

#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    stopper: Stopper,
    done: oneshot::Receiver<()>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// One is under way.
    delivering: bool,
    /// The session is over; whatever is not delivered by then is not.
    until: Option<Instant>,
}

/// One notification on its way.
#[derive(Debug)]
struct Job {
    event: &'static str,
    to: Target,
    json: String,
}

#[derive(Debug)]
enum Target {
    Url(String),
    Command {
        command: String,
        cwd: PathBuf,
        env: Vec<(OsString, OsString)>,
    },
}

impl Notifier {
    /// With no thread yet.
    pub fn new() -> Self {
        Self::with(POLICY)
    }

    fn with(policy: Policy) -> Self {
        Self {
            policy,
            queue: Arc::default(),
            worker: None,
        }
    }

    /// Whether nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        let waiting = self.queue.lock();
        waiting.jobs.is_empty() && !waiting.delivering
    }

    /// Queues it; never waits.
    pub fn send(&mut self, session: &Session, to: String, notification: &Notification) {
        let shape = Shape::of(notification);
        let json = serde_json::to_string(&shape).expect("strings and numbers");
        let target = if is_url(&to) {
            Target::Url(to)
        } else {
            let mut ours = shape.variables();
            ours.push(("FARSIDE_JSON".to_owned(), json.clone()));
            Target::Command {
                command: to,
                cwd: existing(&session.json.cwd),
                env: hook::environment(session, &ours),
            }
        };
        self.queue(Job {
            event: notification.event.name(),
            to: target,
            json,
        });
    }

    fn queue(&mut self, job: Job) {
        if self.worker.is_none() {
            match Worker::start(self.policy.clone(), self.queue.clone()) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    tracing::error!(%error, event = job.event, "notify: no thread for it; nothing was sent");
                    return;
                }
            }
        }
        let mut waiting = self.queue.lock();
        if waiting.jobs.len() >= WAITING_MAX
            && let Some(dropped) = waiting.jobs.pop_front()
        {
            tracing::warn!(
                event = dropped.event,
                to = dropped.to.shown(),
                "notify: {WAITING_MAX} wait already; the oldest is dropped"
            );
        }
        waiting.jobs.push_back(job);
        self.queue.changed.notify_one();
    }

    /// The session is over: delivers what waits, within [`Policy::close_limit`], and ends the thread.
    pub async fn finish(mut self) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        let limit = self.policy.close_limit;
        self.queue.lock().until = Some(Instant::now() + limit);
        self.queue.changed.notify_one();
        let mut done = worker.done;
        let is_done = tokio::time::timeout(limit, &mut done).await.is_ok();
        // A command that runs still is killed.
        drop(worker.stopper);
        if is_done || tokio::time::timeout(LAST_WORD, done).await.is_ok() {
            let _ = worker.thread.join();
        } else {
            // In a system call that has no limit. It ends with this process.
            tracing::warn!("notify: the last notification did not get out in time");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is done under the lock that could leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one, and by when it has to be out; `None` when there is none and will be none.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        waiting.delivering = false;
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                waiting.delivering = true;
                return Some(job);
            }
            if waiting.until.is_some() {
                return None;
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How long something may take that is begun now; `None`: no time is left.
    fn allowed(&self, limit: Duration) -> Option<Duration> {
        let left = match self.lock().until {
            Some(until) => until.saturating_duration_since(Instant::now()).min(limit),
            None => limit,
        };
        (!left.is_zero()).then_some(left)
    }

    /// Waits before the next try, less long once the session is over.
    fn pause(&self, pause: Duration, last_pause: Duration) {
        let begun = Instant::now();
        let mut waiting = self.lock();
        loop {
            let length = match waiting.until {
                Some(_) => pause.min(last_pause),
                None => pause,
            };
            let left = length.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            (waiting, _) = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Worker {
    fn start(policy: Policy, queue: Arc<Queue>) -> std::io::Result<Self> {
        let (stopper, stop) = shell::stopper()?;
        let (sender, done) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || {
                while let Some(job) = queue.next() {
                    let (event, to) = (job.event, job.to.shown());
                    match deliver(&job, &policy, &queue, &stop) {
                        Ok(()) => tracing::debug!(event, to, "notify: delivered"),
                        Err(why) => tracing::warn!(event, to, "notify: not delivered: {why}"),
                    }
                }
                let _ = sender.send(());
            })?;
        Ok(Self {
            thread,
            stopper,
            done,
        })
    }
}

impl Target {
    /// For the log.
    fn shown(&self) -> String {
        match self {
            Self::Url(url) => shown_url(url),
            // Its text may hold a token; whose it is, the person knows.
            Self::Command { .. } => "the command".to_owned(),
        }
    }
}

/// A folder that has gone is no reason not to tell.
fn existing(cwd: &Path) -> PathBuf {
    if cwd.is_dir() {
        cwd.to_owned()
    } else {
        PathBuf::from("/")
    }
}
