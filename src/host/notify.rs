//! Tells a person of something (`notify`): posts JSON to a URL, or runs a command. docs/settings.md has the JSON.
//!
//! One thread, started with the first notification, and a bounded queue in front of it: the session never waits.
//! Owns tries, time-outs and what is said in the log; decides nothing about what is worth telling.
//! Invariant: no secret that a URL may hold (its path included) gets into the log.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;

use super::hook;
use super::shell::{self, ShellCommand, StopSignal, Stopper};
use crate::session::event::Notification;
use crate::state_dir::{Session, iso};

/// Notifications that may wait, while a server does not answer. Past it the oldest is dropped: the newest says most.
const WAITING_MAX: usize = 64;

/// Of a text or of code, so many characters go out: a line or two is meant, and an environment has a bound.
const TEXT_CHARS_MAX: usize = 4000;

/// Of what a failed command said, so much goes to the log.
const LOGGED_CHARS_MAX: usize = 500;

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
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
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

/// Whether `notify` means a URL rather than a command.
fn is_url(to: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        to.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// Scheme and host. User info, path and query can each be what lets one in.
fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    let more = if end < rest.len() { "/..." } else { "" };
    format!("{scheme}://{host}{more}")
}

fn deliver(job: &Job, policy: &Policy, queue: &Queue, stop: &StopSignal) -> Result<(), String> {
    const NO_TIME: &str = "the session is over, and its time for this is up";
    match &job.to {
        Target::Command { command, cwd, env } => {
            let command = ShellCommand {
                command: command.clone(),
                cwd: cwd.clone(),
                env: env.clone(),
                stdin: Some(format!("{}\n", job.json).into_bytes()),
                limit: queue.allowed(policy.command_limit).ok_or(NO_TIME)?,
            };
            let ended = shell::run(&command, stop);
            if ended.is_success() {
                Ok(())
            } else {
                Err(cut(&ended.to_string(), LOGGED_CHARS_MAX))
            }
        }
        Target::Url(url) => {
            let mut pauses = policy.pauses.iter();
            for tried in 1.. {
                let limit = queue.allowed(policy.try_limit).ok_or(NO_TIME)?;
                let failure = match post(url, &job.json, limit) {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                match (failure, pauses.next()) {
                    (Failure::Final(why), _) => return Err(why),
                    (Failure::Passing(why), None) => {
                        return Err(format!("{why}; tried {tried} times"));
                    }
                    (Failure::Passing(why), Some(&pause)) => {
                        tracing::info!(to = shown_url(url), "notify: {why}; will be tried again");
                        queue.pause(pause, policy.last_pause);
                    }
                }
            }
            Ok(())
        }
    }
}

/// What came of one try, in words without the URL.
#[derive(Debug)]
enum Failure {
    /// It may go better later.
    Passing(String),
    /// It will not.
    Final(String),
}

fn post(url: &str, json: &str, limit: Duration) -> Result<(), Failure> {
    use ureq::tls::{RootCerts, TlsConfig};
    // A new one for each: notifications are rare, and a connection kept open for the next would be closed by then.
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        // A POST that is sent elsewhere becomes a GET, or is sent where nobody meant it to go.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("farside/", env!("CARGO_PKG_VERSION")))
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .build(),
        )
        .build()
        .new_agent();
    let answer = agent
        .post(url)
        .content_type("application/json")
        .send(json)
        .map_err(|error| failure(&error, limit))?;
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        status @ (408 | 429 | 500..=599) => {
            Err(Failure::Passing(format!("the server answered {status}")))
        }
        status @ 300..=399 => Err(Failure::Final(format!(
            "the server answered {status}: it wants another URL; give that one to `notify`"
        ))),
        status => Err(Failure::Final(format!("the server answered {status}"))),
    }
}

fn failure(error: &ureq::Error, limit: Duration) -> Failure {
    match error {
        // Their own texts may quote the URL.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Failure::Final("this is no URL that something can be sent to".to_owned())
        }
        ureq::Error::InvalidProxyUrl => {
            Failure::Final("the proxy in the environment has no valid URL".to_owned())
        }
        ureq::Error::Timeout(_) => {
            Failure::Passing(format!("no answer within {:.1} s", limit.as_secs_f64()))
        }
        ureq::Error::HostNotFound => Failure::Passing("its host is not found".to_owned()),
        other => Failure::Passing(other.to_string()),
    }
}

/// What is posted. Its fields are documented in docs/settings.md; they may become more, and keep their meaning.
#[derive(Debug, Serialize)]
struct Shape {
    event: &'static str,
    text: String,
    time: String,
    session_id: String,
    session_name: String,
    engine: String,
    execution: Option<u64>,
    state: Option<String>,
    seconds: Option<f64>,
    code: Option<String>,
    reason: Option<String>,
    machine: Option<String>,
    farside: &'static str,
}

impl Shape {
    fn of(told: &Notification) -> Self {
        let state = told.state.map(serde_json::to_value);
        Self {
            event: told.event.name(),
            text: cut(&told.text, TEXT_CHARS_MAX),
            time: iso::format(told.time),
            session_id: told.session.clone(),
            session_name: told.name.clone(),
            engine: told.engine.clone(),
            execution: told.execution,
            state: state.and_then(|state| state.ok()?.as_str().map(str::to_owned)),
            seconds: told
                .seconds
                .map(|seconds| (seconds * 1000.0).round() / 1000.0),
            code: told.code.as_ref().map(|code| cut(code, TEXT_CHARS_MAX)),
            reason: told
                .reason
                .as_ref()
                .map(|reason| cut(reason, TEXT_CHARS_MAX)),
            machine: machine(),
            farside: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The same for a command: `session_id` is `FARSIDE_SESSION_ID`, and so on. What is null is not there.
    fn variables(&self) -> Vec<(String, String)> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        let text = |value: serde_json::Value| match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text),
            other => Some(other.to_string()),
        };
        fields
            .into_iter()
            .filter(|(key, _)| key != "farside")
            .filter_map(|(key, value)| {
                Some((format!("FARSIDE_{}", key.to_uppercase()), text(value)?))
            })
            .collect()
    }
}

/// Which machine this is.
fn machine() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// At most so many characters; what is left out shows as dots.
fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
