//! What the engine's processes use: reads /proc now and then, and tells the core.
//!
//! Who belongs to the engine and what counts is [`Tree`]'s business, and how a snapshot is taken [`snapshot`]'s. Here is
//! when, and what memory is. The first snapshot of an engine is of all of /proc. Those after it are of the session's own
//! processes, unless somebody who belongs to the engine was found elsewhere than below the session's keeper, or the
//! keeper is gone. Each is taken in a thread of its own.
//!
//! **Memory** is resident memory, where the engine is one process. Of several each one's proportional share (PSS)
//! counts, for processes forked from a large one share its pages, and eight workers would seem to need eight times as
//! much. The system counts that page by page (about 12 ms for a GB), so small ones are taken as they are, and it is
//! not done more often than every [`SHARES_EVERY`]; in between, the last known proportion is used.

mod snapshot;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::driver::Input;
use super::gpu::Gpu;
use super::inbox::Inbox;
use crate::journal::record::{ExecutionNumber, Micros};
use crate::session::event::{Event, Usage};
use crate::session::usage::{ProcessStat, Roots, Sample, Tree, interval, is_quiet};

/// Below this a process's resident memory is taken as its own.
const SHARED_FROM_BYTES: u64 = 32 << 20;

/// How often at most shares are counted.
const SHARES_EVERY: Duration = Duration::from_secs(5);

/// What to look at, as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Target {
    /// Which engine of the session.
    pub generation: u32,
    /// It and what is above it.
    pub roots: Roots,
    /// Whether an execution runs.
    pub active: bool,
    /// The last execution, and whether the engine is ready: when something has happened, there is something to see.
    pub seen: (ExecutionNumber, bool),
    /// What is left of the CPU budget, where there is one.
    pub left: Option<Micros>,
}

impl Target {
    /// Whether the engine has worked between this look and the one that is due.
    fn has_done_since(&self, now: &Self) -> bool {
        (self.active, self.seen) != (now.active, now.seen)
    }
}

/// The sampler. Dropping it ends it.
pub(super) struct Sampler {
    target: watch::Sender<Target>,
    inner: Rc<RefCell<Inner>>,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    tree: Tree,
    /// Ours, by which other sessions are told apart.
    session_dir: PathBuf,
    /// Of the newest snapshot that was taken in.
    newest: u64,
    next: u64,
    shares: Shares,
    gpu: Gpu,
    last: Option<Usage>,
}

/// Resident and proportional memory of processes at one time.
#[derive(Default)]
struct Shares {
    /// Of each process, by pid: a part of its resident memory.
    parts: HashMap<u32, f64>,
    at: Option<Instant>,
}

impl Sampler {
    /// Begins to look. `known` is the CPU time that the journal has for this generation's engine.
    pub fn start(inbox: Inbox<Input>, session_dir: &Path, generation: u32, known: Micros) -> Self {
        let inner = Inner::new(session_dir, generation, known);
        let inner = Rc::new(RefCell::new(inner));
        let (target, changes) = watch::channel(Target {
            generation,
            ..Target::default()
        });
        let task = tokio::task::spawn_local(run(inner.clone(), changes, inbox));
        Self {
            target,
            inner,
            task,
        }
    }

    /// Says what to look at from now on. Cheap where nothing has changed.
    pub fn look_at(&self, target: Target) {
        self.target.send_if_modified(|old| {
            let changed = *old != target;
            *old = target;
            changed
        });
    }

    /// The last figures of an engine that has just ended, while its processes' ends can still be seen. Reads /proc in
    /// this thread.
    ///
    /// The family is enough for it where it was enough before: what the engine left has come to the keeper. It is also
    /// the better one while processes end all the time, for parents are always read before their children. Somebody
    /// that nobody has seen before may be missed as at any look, and counts for the engine that comes after.
    pub fn last_look(&self) -> Option<Usage> {
        let target = *self.target.borrow();
        target.roots.engine?;
        let inner = &mut *self.inner.borrow_mut();
        let table = snapshot::take(inner.tree.family(&target.roots).as_ref()).ok()?;
        inner.next += 1;
        inner.newest = inner.next;
        let sample = inner.step(&target, &table);
        let resident: u64 = sample.resident.iter().map(|(_, bytes)| bytes).sum();
        let usage = Usage {
            generation: inner.tree.generation(),
            cpu: sample.cpu,
            // What it left behind is at most what there was.
            memory_bytes: inner
                .last
                .map_or(resident, |last| last.memory_bytes.min(resident)),
            gpu_memory_bytes: None,
        };
        inner.last = Some(usage);
        Some(usage)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn new(session_dir: &Path, generation: u32, known: Micros) -> Self {
        Self {
            tree: Tree::new(generation, known),
            session_dir: session_dir.to_owned(),
            newest: 0,
            next: 0,
            shares: Shares::default(),
            gpu: Gpu::default(),
            last: None,
        }
    }

    fn step(&mut self, target: &Target, table: &[ProcessStat]) -> Sample {
        self.tree.begin(target.generation);
        let own = &self.session_dir;
        (self.tree).step(&target.roots, table, |process| is_foreign(process.pid, own))
    }
}

async fn run(inner: Rc<RefCell<Inner>>, mut changes: watch::Receiver<Target>, inbox: Inbox<Input>) {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let mut last_at: Option<Instant> = None;
    let mut last: Option<Target> = None;
    let mut cost = Duration::ZERO;
    let mut failing = false;
    let mut quiet = 0;
    loop {
        let target = *changes.borrow_and_update();
        let active = target.active || last.is_some_and(|last| last.has_done_since(&target));
        let next = last_at.map(|at| at + interval(active, quiet, target.left, cpus, cost));
        let is_new = last
            .is_none_or(|last| (last.generation, last.roots) != (target.generation, target.roots));
        let wait = next.map_or(Duration::ZERO, |next| {
            next.saturating_duration_since(Instant::now())
        });
        // A new engine is looked at at once, and without one there is nothing to see.
        if target.roots.engine.is_none() || (!is_new && !wait.is_zero()) {
            let wait = if target.roots.engine.is_none() {
                Duration::MAX
            } else {
                wait
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
            continue;
        }
        last = Some(target);
        let time = last_at.map(|at| at.elapsed()).unwrap_or_default();
        last_at = Some(Instant::now());
        let (number, family) = {
            let inner = &mut *inner.borrow_mut();
            inner.next += 1;
            (inner.next, inner.tree.family(&target.roots))
        };
        let taken = tokio::task::spawn_blocking(move || {
            let since = Instant::now();
            (snapshot::take(family.as_ref()), since.elapsed())
        });
        let table = match taken.await {
            Ok((Ok(table), took)) => {
                cost = took;
                failing = false;
                table
            }
            Ok((Err(error), _)) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "/proc cannot be read: CPU and memory are not known");
                }
                continue;
            }
            // The host ends.
            Err(_) => return,
        };
        // The engine may have been replaced meanwhile: what was read still tells of the new one's absence only.
        let target = *changes.borrow();
        let sample = {
            let inner = &mut *inner.borrow_mut();
            // A newer one has been taken in.
            if number <= inner.newest {
                continue;
            }
            inner.newest = number;
            inner.step(&target, &table)
        };
        let memory_bytes = memory(&inner, &sample, &mut cost).await;
        let inner = &mut *inner.borrow_mut();
        if inner.newest != number {
            continue;
        }
        let pids: HashSet<u32> = sample.resident.iter().map(|(pid, _)| *pid).collect();
        let usage = Usage {
            generation: inner.tree.generation(),
            cpu: sample.cpu,
            memory_bytes,
            gpu_memory_bytes: inner.gpu.memory_of(&pids),
        };
        quiet = match &inner.last {
            Some(before) if !active && is_quiet(before, &usage, time) => quiet + 1,
            Some(_) | None => 0,
        };
        if inner.last != Some(usage) {
            inner.last = Some(usage);
            inbox.send_now(Input::Event(Event::Usage(usage)));
        }
    }
}

/// Memory of all of them together. See the module.
async fn memory(inner: &RefCell<Inner>, sample: &Sample, cost: &mut Duration) -> u64 {
    let large: Vec<u32> = (sample.resident.iter())
        .filter(|(_, bytes)| *bytes >= SHARED_FROM_BYTES)
        .map(|(pid, _)| *pid)
        .collect();
    let due = (inner.borrow().shares.at).is_none_or(|at| at.elapsed() >= SHARES_EVERY);
    if due && large.len() > 1 {
        let counted = tokio::task::spawn_blocking(move || {
            let since = Instant::now();
            let parts: HashMap<u32, f64> = (large.into_iter())
                .filter_map(|pid| Some((pid, share(pid)?)))
                .collect();
            (parts, since.elapsed())
        });
        if let Ok((parts, took)) = counted.await {
            *cost += took;
            inner.borrow_mut().shares = Shares {
                parts,
                at: Some(Instant::now()),
            };
        }
    } else if large.len() <= 1 {
        inner.borrow_mut().shares = Shares::default();
    }
    let parts = &inner.borrow().shares.parts;
    (sample.resident.iter())
        .map(|(pid, bytes)| {
            parts
                .get(pid)
                .map_or(*bytes, |part| (*bytes as f64 * part) as u64)
        })
        .sum()
}

/// Which part of its resident memory is a process's own, where pages that n processes share count 1/n for each.
fn share(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let (resident, proportional) = (field("Rss:")?, field("Pss:")?);
    (resident > 0).then(|| (proportional as f64 / resident as f64).min(1.0))
}

/// Whether this is the keeper or the host of another session, by its command line ([`crate::keeper`]) and the session
/// folder that it names.
fn is_foreign(pid: u32, own_dir: &Path) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .ok()
        .and_then(|line| crate::keeper::session_of_command_line(&line))
        .is_some_and(|dir| dir != own_dir && dir.join("session.json").exists())
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
