//! Keeps the session's journal below `journal_bytes_max`, on a thread of its own. docs/journal.md, "The bound", says what
//! goes first and what stays.
//!
//! It works on sealed segments: [`plan`] says which executions' outputs are to be compacted and which segments that
//! concerns, [`segment`] writes the one segment that replaces them. The index thread puts it in its place, so that index
//! and files change together; and not before every reader of this host has passed it, for a reader in the middle of raw
//! outputs has no use for their compacted form. That is what half of the bound is for: the work begins when the journal
//! has the other half. When it has all of it, readers that lag are not waited for any more, and are told what they miss.

mod plan;
mod segment;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use self::plan::{Plan, Survey, Wanted};
use super::digest::Digests;
use super::log::Tail;
use super::lookup::Replacer;
use crate::journal::record::ExecutionNumber;
use crate::journal::{Prepared, digest, segments, writer};
use crate::session::outputs::{Budget, Limits};

/// The smallest segment: below it files cost more than they hold.
const SEGMENT_BYTES_MIN: u64 = 256 << 10;

/// A bound has room for so many segments: the last two are never compacted.
const SEGMENTS_OF_BOUND: u64 = 32;

/// How often it is looked whether readers that were waited for have come on.
const READERS_LOOK_EVERY: Duration = Duration::from_millis(100);

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
        let worker = Worker {
            dir: tail.dir().to_owned(),
            bound,
            tail,
            replace: Box::new(move |prepared, last_seq, waits| {
                replacer.replace(prepared, last_seq, waits)
            }),
            hurry: Box::new(move || digests.hurry()),
            stop: stop.clone(),
            tried: HashSet::new(),
            again_at: 0,
            waits_for: None,
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
    /// Executions that were compacted to a divisor, or had nothing to gain.
    tried: HashSet<(ExecutionNumber, usize)>,
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
        loop {
            match woken.recv_timeout(READERS_LOOK_EVERY) {
                Ok(()) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) if self.tail.was_read_up_to(seq) => {
                    return true;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
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

    /// A round leaves some room, or the next segment would begin the next one.
    fn target(&self) -> u64 {
        self.level() / 4 * 3
    }

    fn look(&mut self) -> io::Result<()> {
        let digests = digest::total_bytes(&self.dir)?;
        let before = segments::total_bytes(&self.dir)? + digests;
        // It is looked at whenever a segment is complete: the next one must fit, too.
        let full = before + segment_bytes(Some(self.bound));
        let is_in_vain = self.waits_for.is_none() && before < self.again_at;
        if full <= self.level() || is_in_vain {
            return Ok(());
        }
        self.waits_for = None;
        // What can be made again goes first.
        digest::remove_all(&self.dir)?;
        // Nobody waits for it, until little more would fit. (A thread that has given way cannot take that back.)
        let gives_way = before <= self.bound / 4 * 3;
        let round = std::thread::scope(|scope| {
            let round = scope.spawn(|| {
                if gives_way {
                    crate::process::give_way();
                }
                self.round()
            });
            (round.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match round {
            Ok(()) | Err(Halt::Enough) => {}
            Err(Halt::Stopped) => return Ok(()),
            Err(Halt::Io(error)) => return Err(error),
        }
        let after = segments::total_bytes(&self.dir)?;
        // Every round reads all of the journal.
        self.again_at = if after > self.level() {
            after + self.level() / 8
        } else {
            0
        };
        tracing::info!(
            before,
            after,
            bound = self.bound,
            "the journal was compacted"
        );
        Ok(())
    }

    fn round(&mut self) -> Result<(), Halt> {
        let [whole, less @ ..] = DIVISORS;
        self.compact(Wanted::Over, whole)?;
        // One that takes most of it alone is not spared at the cost of all others.
        let bytes_min = self.level() / 2;
        self.compact(Wanted::Running { bytes_min }, whole)?;
        for divisor in less {
            self.compact(Wanted::Over, divisor)?;
        }
        for divisor in DIVISORS {
            self.compact(Wanted::Running { bytes_min: 0 }, divisor)?;
        }
        Ok(())
    }

    fn compact(&mut self, wanted: Wanted, divisor: usize) -> Result<(), Halt> {
        let limits = limits(divisor);
        let cap = cap_bytes(&limits);
        let survey = Survey::of(&self.dir, &self.stop)?;
        let tried = self.tried.clone();
        let plan = Plan {
            wanted,
            cap_bytes: cap,
            segment_bytes: segment_bytes(Some(self.bound)),
        };
        for group in survey.groups(&plan, |n| tried.contains(&(n, divisor))) {
            let total = segments::total_bytes(&self.dir)?;
            if total <= self.target() {
                return Err(Halt::Enough);
            }
            let waits = total <= self.bound;
            if waits && !self.tail.was_read_up_to(group.last_seq) {
                self.readers_lag(group.last_seq);
                continue;
            }
            let over: Vec<ExecutionNumber> = group.victims.keys().copied().collect();
            let prepared = segment::write(&self.dir, &group, limits, &self.stop)?;
            tracing::debug!(replaced = ?prepared.replaced(), bytes = prepared.bytes(), divisor, "compacting");
            if prepared.is_larger()? {
                // There was too little in it to be worth the marks of a compaction.
                prepared.discard()?;
                continue;
            }
            if !(self.replace)(prepared, group.last_seq, waits)? {
                self.readers_lag(group.last_seq);
            } else if wanted == Wanted::Over {
                self.tried.extend(over.into_iter().map(|n| (n, divisor)));
            }
        }
        Ok(())
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
