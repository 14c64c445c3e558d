//! Keeps the session's journal below `journal_bytes_max`, on a thread of its own. docs/journal.md, "The bound", says what
//! goes first and what stays.
//!
//! It works on sealed segments: [`plan`] says which executions' outputs are to be compacted and which segments that
//! concerns, [`segment`] writes the one segment that replaces them. The index thread puts it in its place, so that index
//! and files change together; and not before every reader of this host has passed it, for a reader in the middle of raw
//! outputs has no use for their compacted form. That is what half of the bound is for: the work begins when the journal
//! has the other half. When it has three quarters, readers that lag are not waited for any more, and are told what they
//! miss.

mod plan;
mod segment;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use self::plan::{Group, Plan, Survey, Wanted};
use super::digest::Digests;
use super::log::Tail;
use super::lookup::Replacer;
use crate::journal::record::ExecutionNumber;
use crate::journal::{Prepared, Rewrite, digest, segments, writer};
use crate::session::outputs::{Budget, Limits};

/// The smallest segment: below it files cost more than they hold.
const SEGMENT_BYTES_MIN: u64 = 256 << 10;

/// A bound has room for so many segments: the last two are never compacted.
const SEGMENTS_OF_BOUND: u64 = 32;

/// A long execution is compacted in steps of at least so much of the bound.
const STEPS_OF_BOUND: u64 = 16;

/// How soon it is looked whether readers that were waited for have come on; then after twice that, and so on, up to
/// [`READERS_LOOK_SELDOM`]: one may stand still for days.
const READERS_LOOK_SOON: Duration = Duration::from_millis(100);
const READERS_LOOK_SELDOM: Duration = Duration::from_secs(5);

/// What the hint of a line says that stands for outputs that went.
const HINT: &str = "they are not kept (journal_bytes_max)";

/// How much of each execution stays, one after the other until there is room: as a replay shows it (nothing is lost then
/// that an attached cell would show), then ever less of head and tail.
const DIVISORS: [usize; 3] = [1, 8, 64];

/// See the module.
pub(super) struct Compaction {
    wake: Option<mpsc::SyncSender<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How large segments are for a journal of that bound.
pub(super) fn segment_bytes(bound: Option<u64>) -> u64 {
    bound.map_or(writer::SEGMENT_BYTES, |bound| {
        (bound / SEGMENTS_OF_BOUND).clamp(SEGMENT_BYTES_MIN, writer::SEGMENT_BYTES)
    })
}

/// How much of a long execution is compacted at once: what was compacted before is read again with each step.
fn step_bytes(bound: u64, cap_bytes: u64) -> u64 {
    (bound / STEPS_OF_BOUND).max(2 * cap_bytes)
}

impl Compaction {
    /// Starts the thread, where there is a bound.
    pub fn start(
        bound: Option<u64>,
        tail: Tail,
        digests: Digests,
        replacer: Option<Replacer>,
    ) -> io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (Some(bound), Some(replacer)) = (bound, replacer) else {
            return Ok(Self {
                wake: None,
                stop,
                thread: None,
            });
        };
        Rewrite::remove_unfinished(tail.dir());
        let worker = Worker {
            dir: tail.dir().to_owned(),
            bound,
            replace: Box::new(move |prepared, last_seq, waits| {
                replacer.replace(prepared, last_seq, waits)
            }),
            hurry: Box::new(move || digests.hurry()),
            stop: stop.clone(),
            step_bytes,
            survey: Survey::new(tail.dir()),
            done: HashMap::new(),
            steps: 0,
            again_at: 0,
            waits_for: None,
            tail,
        };
        // One wake-up that waits is as good as many.
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("compaction".into())
            .spawn(move || worker.run(&woken))?;
        let this = Self {
            wake: Some(wake),
            stop,
            thread: Some(thread),
        };
        // What an earlier host left.
        this.look();
        Ok(this)
    }

    /// A segment is complete.
    pub fn look(&self) {
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(());
        }
    }

    /// Stops what it is at, and ends the thread. What is half done has changed nothing.
    pub fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As [`Replacer::replace`].
type Replace = Box<dyn FnMut(Prepared, u64, bool) -> io::Result<bool> + Send>;

struct Worker {
    dir: PathBuf,
    bound: u64,
    tail: Tail,
    replace: Replace,
    /// Wakes the one reader that sleeps before its end: who makes the digests.
    hurry: Box<dyn Fn() + Send>,
    stop: Arc<AtomicBool>,
    /// Of a step: from the bound and what an execution takes at most afterwards.
    step_bytes: fn(u64, u64) -> u64,
    survey: Survey,
    /// By divisor: up to which output executions were compacted to it, or had nothing to gain.
    done: HashMap<usize, HashMap<ExecutionNumber, u64>>,
    /// Taken in this round.
    steps: u32,
    /// Where the last round did not help: not before the journal has this size.
    again_at: u64,
    /// Up to here readers had not come yet, and so something was left as it was.
    waits_for: Option<u64>,
}

/// Why a round ends before its last step.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error("there is room")]
    Enough,
    #[error("the host ends")]
    Stopped,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Worker {
    fn run(mut self, woken: &mpsc::Receiver<()>) {
        while self.wait(woken) && !self.is_stopped() {
            if let Err(error) = self.look() {
                tracing::error!(%error, "the journal cannot be compacted");
            }
        }
    }

    /// Until there is something to look at. `false`: there will be nothing.
    fn wait(&self, woken: &mpsc::Receiver<()>) -> bool {
        let Some(seq) = self.waits_for else {
            return woken.recv().is_ok();
        };
        let mut pause = READERS_LOOK_SOON;
        loop {
            match woken.recv_timeout(pause) {
                Ok(()) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) if self.tail.was_read_up_to(seq) => {
                    return true;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    pause = (pause * 2).min(READERS_LOOK_SELDOM);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// With so much the work begins. What comes meanwhile, and what readers that lag still need, is on top.
    fn level(&self) -> u64 {
        self.bound / 2
    }

    /// Up to here nobody else's work is to feel it.
    fn gives_way_until(&self) -> u64 {
        self.bound / 8 * 5
    }

    /// Up to here readers that lag are waited for. The rest is for what comes while a step is under way.
    fn waits_until(&self) -> u64 {
        self.bound / 4 * 3
    }

    /// A round leaves some room, or the next segment would begin the next one.
    fn target(&self) -> u64 {
        self.level() / 4 * 3
    }

    fn look(&mut self) -> io::Result<()> {
        // However this ends: with a reader that has come it would be looked again and again.
        let has_waited = self.waits_for.take().is_some();
        let digests = digest::total_bytes(&self.dir)?;
        let before = segments::total_bytes(&self.dir)? + digests;
        // It is looked at whenever a segment is complete: the next one must fit, too.
        let full = before + segment_bytes(Some(self.bound));
        let is_in_vain = !has_waited && before < self.again_at;
        if full <= self.level() || is_in_vain {
            return Ok(());
        }
        // What can be made again goes first.
        digest::remove_all(&self.dir)?;
        match self.round() {
            Ok(()) | Err(Halt::Enough) => {}
            Err(Halt::Stopped) => return Ok(()),
            Err(Halt::Io(error)) => return Err(error),
        }
        let after = segments::total_bytes(&self.dir)?;
        self.again_at = if after > self.level() {
            after + self.level() / 8
        } else {
            0
        };
        let steps = std::mem::take(&mut self.steps);
        if steps > 0 {
            let bound = self.bound;
            tracing::info!(before, after, bound, steps, "the journal was compacted");
            crate::process::release_memory();
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), Halt> {
        let [whole, less @ ..] = DIVISORS;
        self.compact(Wanted::Over, whole)?;
        // One that takes most of it alone is not spared at the cost of all others.
        let bytes_min = self.level() / 2;
        self.compact(Wanted::GoingOn { bytes_min }, whole)?;
        if self.waits_for.is_some() {
            // Less is not kept of anything for as long as there is more to gain when they come on.
            return Ok(());
        }
        self.compact(Wanted::Unowned, whole)?;
        for divisor in less {
            self.compact(Wanted::Over, divisor)?;
        }
        for divisor in DIVISORS {
            self.compact(Wanted::GoingOn { bytes_min: 0 }, divisor)?;
        }
        Ok(())
    }

    fn compact(&mut self, wanted: Wanted, divisor: usize) -> Result<(), Halt> {
        let mut begun = BTreeSet::new();
        loop {
            let partial = self.compact_step(wanted, &begun, divisor)?;
            if partial.is_empty() {
                return Ok(());
            }
            begun.extend(partial);
        }
    }

    /// As far as it can be planned at once. Gives the executions of which there is more.
    fn compact_step(
        &mut self,
        wanted: Wanted,
        begun: &BTreeSet<ExecutionNumber>,
        divisor: usize,
    ) -> Result<BTreeSet<ExecutionNumber>, Halt> {
        let limits = limits(divisor);
        let cap = cap_bytes(&limits);
        self.survey.update(&self.stop)?;
        let known = self.survey.large();
        for done in self.done.values_mut() {
            done.retain(|n, _| known.contains(n));
        }
        let plan = Plan {
            wanted,
            begun,
            done: self.done.entry(divisor).or_default(),
            cap_bytes: cap,
            step_bytes: (self.step_bytes)(self.bound, cap),
            segment_bytes: segment_bytes(Some(self.bound)),
        };
        let mut partial = BTreeSet::new();
        for group in self.survey.groups(&plan) {
            let total = segments::total_bytes(&self.dir)?;
            if total <= self.target() {
                return Err(Halt::Enough);
            }
            let waits = total <= self.waits_until();
            if waits && !self.tail.was_read_up_to(group.last_seq) {
                self.readers_lag(group.last_seq);
                continue;
            }
            let prepared = self.prepare(&group, limits, total)?;
            tracing::debug!(replaced = ?prepared.replaced(), bytes = prepared.bytes(), divisor, "compacting");
            if prepared.is_larger()? {
                // There was too little in it to be worth the marks of a compaction.
                drop(prepared);
            } else {
                self.survey.forget(&group.segments);
                if !(self.replace)(prepared, group.last_seq, waits)? {
                    self.readers_lag(group.last_seq);
                    continue;
                }
                // One may have been written since all were removed.
                for n in group.victims.keys() {
                    digest::remove(&self.dir, *n)?;
                }
                self.steps += 1;
            }
            let done = self.done.entry(divisor).or_default();
            done.extend(
                group
                    .victims
                    .iter()
                    .map(|(n, victim)| (*n, victim.last_seq)),
            );
            partial.extend(group.partial);
        }
        Ok(partial)
    }

    fn prepare(&self, group: &Group, limits: Limits, total: u64) -> Result<Prepared, Halt> {
        // Nobody waits for it, until little more would fit. A thread that has given way cannot take that back.
        let gives_way = total <= self.gives_way_until();
        let (dir, stop) = (&self.dir, &self.stop);
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                if gives_way {
                    crate::process::give_way();
                }
                segment::write(dir, group, limits, stop)
            });
            (writing.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn readers_lag(&mut self, seq: u64) {
        let first = self.waits_for.map_or(seq, |known| known.min(seq));
        self.waits_for = Some(first);
        (self.hurry)();
    }
}

fn limits(divisor: usize) -> Limits {
    let whole = Limits::default();
    let part = |budget: Budget| Budget {
        text_bytes: budget.text_bytes / divisor,
        rich_bytes: budget.rich_bytes / divisor,
        messages: (budget.messages / divisor).max(1),
    };
    Limits {
        head: part(whole.head),
        tail: part(whole.tail),
        asides_head: part(whole.asides_head),
        asides_tail: part(whole.asides_tail),
        line_units_max: whole.line_units_max,
    }
}

/// What an execution takes at most then, about.
fn cap_bytes(limits: &Limits) -> u64 {
    let budgets = [
        limits.head,
        limits.tail,
        limits.asides_head,
        limits.asides_tail,
    ];
    budgets
        .iter()
        .map(|budget| (budget.text_bytes + budget.rich_bytes) as u64)
        .sum()
}

fn check_stop(stop: &AtomicBool) -> Result<(), Halt> {
    if stop.load(Ordering::Acquire) {
        return Err(Halt::Stopped);
    }
    Ok(())
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
