//! What there is in a journal, and which of its segments are to be written anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::{Halt, check_stop};
use crate::journal::record::{Body, ExecutionNumber, Note};
use crate::journal::segments;
use crate::journal::{Kind, Segment, Step};

/// The segments at the end that are left alone: the one that is appended to, and the one before it, where the index and
/// the readers that keep up may stand.
const UNTOUCHED: usize = 2;

/// An execution with less output than this is not worth the trouble: a request and a reply have as much.
const WORTH_BYTES: u64 = 4 << 10;

/// What records of no execution have in its place.
pub(super) const UNOWNED: ExecutionNumber = 0;

/// Whose outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Of executions that are over, and have nothing in the segments that are left alone.
    Over,
    /// Of all others (they run, or threads of theirs do, or they have just ended) with at least so many bytes of outputs.
    GoingOn { bytes_min: u64 },
    /// Of none: what widgets and magics have said, and all requests but those of executions. No replay shows it.
    Unowned,
}

/// What is to be done.
pub(super) struct Plan<'a> {
    pub wanted: Wanted,
    /// Those that were begun are gone on with, however little is left of them by now.
    pub begun: &'a BTreeSet<ExecutionNumber>,
    /// Up to which output each was compacted so before.
    pub done: &'a HashMap<ExecutionNumber, u64>,
    /// What an execution takes at most afterwards.
    pub cap_bytes: u64,
    /// An execution with more is compacted in steps of this, so that room is made from the first step on.
    pub step_bytes: u64,
    /// New segments need not be smaller.
    pub segment_bytes: u64,
}

/// What is known of the journal's segments. Those that are sealed are read once: their heads, and the notes.
#[derive(Debug)]
pub(super) struct Survey {
    dir: PathBuf,
    segments: Vec<Facts>,
}

#[derive(Debug)]
struct Facts {
    number: u32,
    /// Nothing comes to it any more.
    is_sealed: bool,
    bytes: u64,
    last_seq: u64,
    /// The newest execution of this segment and those before.
    newest: ExecutionNumber,
    has_checkpoint: bool,
    /// Of executions with outputs in here, in their order.
    parts: Vec<Part>,
    /// Whether executions are over at the end of it, of those that it says something of.
    states: Vec<(ExecutionNumber, bool)>,
    /// Executions of which all is in here, and not worth the trouble: in neither of the above, for there may be very
    /// many of them. Ascending.
    small: Vec<RangeInclusive<ExecutionNumber>>,
}

/// Outputs of an execution in one segment.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    n: ExecutionNumber,
    bytes: u64,
    /// 0: none is left.
    last_seq: u64,
    /// Numbers of records that were taken out before.
    free: u64,
}

/// The outputs of an execution.
#[derive(Debug, Default)]
struct Outputs {
    /// By the segment's place in [`Survey::segments`], ascending.
    parts: Vec<(usize, Part)>,
    is_over: bool,
}

/// From which segment to which an execution is to be compacted.
struct Span {
    n: ExecutionNumber,
    last: usize,
    /// There is more of it that can be compacted.
    is_partial: bool,
}

/// Segments that become one.
#[derive(Debug)]
pub(super) struct Group {
    /// Their numbers, ascending.
    pub segments: Vec<u32>,
    /// No record in them has a lower one.
    pub first_seq: u64,
    /// Of their last record.
    pub last_seq: u64,
    /// Executions whose outputs are compacted.
    pub victims: BTreeMap<ExecutionNumber, Victim>,
    /// Those of them that are to be gone on with.
    pub partial: BTreeSet<ExecutionNumber>,
    /// Checkpoints in them are of no use any more.
    pub drop_checkpoints: bool,
}

/// What is known of an execution's outputs in a [`Group`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    /// Number of the last one.
    pub last_seq: u64,
    /// So many numbers are free, since records were taken out before.
    pub free: u64,
}

impl Survey {
    /// Of the journal in `dir`, of which nothing is known yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            segments: Vec::new(),
        }
    }

    /// Reads what is new.
    pub fn update(&mut self, stop: &AtomicBool) -> Result<(), Halt> {
        let known = std::mem::take(&mut self.segments).into_iter();
        let mut known: HashMap<u32, Facts> = known.map(|facts| (facts.number, facts)).collect();
        let numbers = segments::list(&self.dir)?;
        let last = numbers.last().copied();
        for number in numbers {
            check_stop(stop)?;
            let facts = match known.remove(&number) {
                Some(facts) if facts.is_sealed => Some(facts),
                _ => self.read_segment(number, Some(number) != last)?,
            };
            self.segments.extend(facts);
        }
        Ok(())
    }

    /// These are not as they were.
    pub fn forget(&mut self, numbers: &[u32]) {
        self.segments
            .retain(|facts| !numbers.contains(&facts.number));
    }

    /// Executions of which there is more to know than a number in a range.
    pub fn large(&self) -> HashSet<ExecutionNumber> {
        let parts = self.segments.iter().flat_map(|facts| &facts.parts);
        parts.map(|part| part.n).collect()
    }

    /// What it holds in memory, in entries of a few words.
    #[cfg(test)]
    pub fn entries(&self) -> usize {
        let of = |facts: &Facts| 1 + facts.parts.len() + facts.states.len() + facts.small.len();
        self.segments.iter().map(of).sum()
    }

    /// `None`: all of it is in a segment before.
    fn read_segment(&self, number: u32, is_sealed: bool) -> io::Result<Option<Facts>> {
        let (mut segment, _) = Segment::open_for_heads(&self.dir, number)?;
        let before = self.segments.last();
        let (seq_before, newest_before) = before.map_or((0, 0), |f| (f.last_seq, f.newest));
        let mut facts = Facts {
            number,
            is_sealed,
            bytes: 0,
            last_seq: seq_before,
            newest: newest_before,
            has_checkpoint: false,
            parts: Vec::new(),
            states: Vec::new(),
            small: Vec::new(),
        };
        let mut passed = false;
        let mut executions: BTreeMap<ExecutionNumber, (Part, Option<bool>)> = BTreeMap::new();
        loop {
            let found = match segment.step()? {
                Step::Record(found) => found,
                Step::Damaged(_) => continue,
                Step::End => break,
            };
            facts.bytes = found.position.offset + found.position.length;
            let head = found.head;
            // What was merged into a segment before, and could not be removed: it is passed over, as readers do.
            if head.seq <= facts.last_seq {
                passed = true;
                continue;
            }
            facts.last_seq = head.seq;
            match head.kind {
                Kind::Iopub if head.client.is_none() && head.execution > 0 => {
                    let (part, _) = executions.entry(head.execution).or_default();
                    part.bytes += found.position.length;
                    part.last_seq = head.seq;
                }
                Kind::Iopub | Kind::Request if head.execution == UNOWNED => {
                    let (part, _) = executions.entry(UNOWNED).or_default();
                    part.bytes += found.position.length;
                    part.last_seq = head.seq;
                }
                Kind::Note => match segment.read_record(&found)?.map(|record| record.body) {
                    Some(Body::Note(Note::Execution { n, state, .. })) => {
                        executions.entry(n).or_default().1 = Some(state.is_final());
                    }
                    Some(Body::Note(Note::Checkpoint { .. })) => facts.has_checkpoint = true,
                    Some(Body::Note(Note::Compacted { n, until, .. })) => {
                        facts.last_seq = until.max(head.seq);
                        if n > 0 {
                            let (part, _) = executions.entry(n).or_default();
                            part.bytes += found.position.length;
                            part.free += facts.last_seq - head.seq + 1;
                        }
                    }
                    Some(_) | None => {}
                },
                Kind::Iopub | Kind::Request | Kind::Reply => {}
            }
        }
        if passed && facts.last_seq == seq_before {
            // Whoever merged it there died before it could remove this one.
            std::fs::remove_file(segments::path(&self.dir, number))?;
            return Ok(None);
        }
        for (n, (part, is_over)) in executions {
            facts.newest = facts.newest.max(n);
            if n > newest_before && is_over == Some(true) && part.bytes < WORTH_BYTES {
                match facts.small.last_mut() {
                    Some(range) if *range.end() + 1 == n => *range = *range.start()..=n,
                    _ => facts.small.push(n..=n),
                }
                continue;
            }
            facts.states.extend(is_over.map(|is_over| (n, is_over)));
            if part.bytes > 0 {
                facts.parts.push(Part { n, ..part });
            }
        }
        facts.parts.shrink_to_fit();
        facts.states.shrink_to_fit();
        facts.small.shrink_to_fit();
        Ok(Some(facts))
    }

    fn executions(&self) -> BTreeMap<ExecutionNumber, Outputs> {
        let mut executions: BTreeMap<ExecutionNumber, Outputs> = BTreeMap::new();
        for (at, facts) in self.segments.iter().enumerate() {
            for part in &facts.parts {
                let outputs = executions.entry(part.n).or_insert_with(|| Outputs {
                    parts: Vec::new(),
                    is_over: self.small_before(at, part.n).is_some(),
                });
                outputs.parts.push((at, *part));
            }
            for (n, is_over) in &facts.states {
                executions.entry(*n).or_default().is_over = *is_over;
            }
        }
        executions
    }

    /// In which segment before `at` there is a small execution of this number: one that said more when it was over.
    fn small_before(&self, at: usize, n: ExecutionNumber) -> Option<usize> {
        let before = &self.segments[..at];
        // It is new here.
        if before.last().is_none_or(|facts| facts.newest < n) {
            return None;
        }
        before.iter().position(|facts| {
            let behind = facts.small.partition_point(|range| *range.end() < n);
            (facts.small.get(behind)).is_some_and(|range| range.contains(&n))
        })
    }

    /// In which segment the last checkpoint is.
    fn last_checkpoint(&self) -> Option<usize> {
        self.segments.iter().rposition(|facts| facts.has_checkpoint)
    }

    /// What to write anew, the oldest first. Behind a step of an execution that has more nothing is planned: the next
    /// step comes first.
    pub fn groups(&self, plan: &Plan<'_>) -> Vec<Group> {
        let mut end = self.segments.len().saturating_sub(UNTOUCHED);
        let executions = self.executions();
        // By first segment.
        let mut victims: BTreeMap<usize, Vec<Span>> = BTreeMap::new();
        if plan.wanted == Wanted::Unowned {
            // What comes behind the last checkpoint the next host reads.
            end = end.min(self.last_checkpoint().unwrap_or(0));
            let parts = executions.get(&UNOWNED).into_iter().flat_map(|o| &o.parts);
            for (at, _) in parts.filter(|(at, part)| *at < end && part.bytes >= WORTH_BYTES) {
                let span = Span {
                    n: UNOWNED,
                    last: *at,
                    is_partial: false,
                };
                victims.insert(*at, vec![span]);
            }
        } else {
            for (&n, outputs) in executions.iter().filter(|(n, _)| **n != UNOWNED) {
                if let Some(span) = outputs.span(n, plan, end) {
                    let first = outputs.parts[0].0;
                    let first = self.small_before(first, n).unwrap_or(first);
                    victims.entry(first).or_default().push(span);
                }
            }
        }
        let mut groups: Vec<(Range<usize>, Vec<&Span>, u64)> = Vec::new();
        let mut at = 0;
        while at < end {
            let (mut behind, mut found) = (at + 1, Vec::new());
            let mut look = at;
            while look < behind {
                for span in victims.get(&look).into_iter().flatten() {
                    behind = behind.max(span.last + 1);
                    found.push(span);
                }
                look += 1;
            }
            let is_partial = found.iter().any(|span| span.is_partial);
            let bytes = self.bytes_after(plan, at..behind, &found, &executions);
            match groups.last_mut() {
                // Small segments become one.
                Some((range, known, so_far))
                    if range.end == at && *so_far + bytes <= plan.segment_bytes =>
                {
                    range.end = behind;
                    known.extend(found);
                    *so_far += bytes;
                }
                _ if found.is_empty() => {}
                _ => groups.push((at..behind, found, bytes)),
            }
            if is_partial {
                break;
            }
            at = behind;
        }
        (groups.into_iter())
            .map(|(range, found, _)| self.group(range, &found, &executions))
            .collect()
    }

    /// What the segments have once these executions are compacted, about.
    fn bytes_after(
        &self,
        plan: &Plan<'_>,
        range: Range<usize>,
        victims: &[&Span],
        executions: &BTreeMap<ExecutionNumber, Outputs>,
    ) -> u64 {
        let all: u64 = self.segments[range.clone()].iter().map(|s| s.bytes).sum();
        let mut saved = 0;
        for span in victims {
            let parts = executions[&span.n].parts_in(&range);
            let bytes: u64 = parts.map(|part| part.bytes).sum();
            let kept = if span.n == UNOWNED { 0 } else { plan.cap_bytes };
            saved += bytes - bytes.min(kept);
        }
        all - saved.min(all)
    }

    fn group(
        &self,
        range: Range<usize>,
        found: &[&Span],
        executions: &BTreeMap<ExecutionNumber, Outputs>,
    ) -> Group {
        let victim = |span: &&Span| {
            let parts = || executions[&span.n].parts_in(&range);
            let victim = Victim {
                last_seq: parts().map(|part| part.last_seq).max().unwrap_or(0),
                free: parts().map(|part| part.free).sum(),
            };
            (span.n, victim)
        };
        let partial = found.iter().filter(|span| span.is_partial);
        Group {
            segments: self.segments[range.clone()]
                .iter()
                .map(|s| s.number)
                .collect(),
            first_seq: self.segments[..range.start]
                .last()
                .map_or(1, |before| before.last_seq + 1),
            last_seq: self.segments[range.end - 1].last_seq,
            victims: found.iter().map(victim).collect(),
            partial: partial.map(|span| span.n).collect(),
            drop_checkpoints: (self.last_checkpoint()).is_some_and(|last| range.end <= last),
        }
    }
}

impl Outputs {
    fn parts_in(&self, range: &Range<usize>) -> impl Iterator<Item = &Part> {
        let in_range = |(at, _): &&(usize, Part)| range.contains(at);
        self.parts.iter().filter(in_range).map(|(_, part)| part)
    }

    /// How far it is to be compacted, of the segments before `end`; `None`: not at all.
    fn span(&self, n: ExecutionNumber, plan: &Plan<'_>, end: usize) -> Option<Span> {
        let total: u64 = self.parts.iter().map(|(_, part)| part.bytes).sum();
        let (behind, _) = self.parts.last()?;
        let is_done = self.is_over && *behind < end;
        let suits = match plan.wanted {
            Wanted::Over => is_done && total >= WORTH_BYTES,
            Wanted::GoingOn { bytes_min } => {
                let is_enough = total >= bytes_min.max(WORTH_BYTES) || plan.begun.contains(&n);
                !is_done && is_enough
            }
            Wanted::Unowned => false,
        };
        if !suits {
            return None;
        }
        let done = plan.done.get(&n).copied().unwrap_or(0);
        let (mut bytes, mut last_seq, mut last) = (0, 0, None);
        let mut parts = (self.parts.iter()).take_while(|(at, _)| *at < end);
        for (at, part) in parts.by_ref() {
            bytes += part.bytes;
            last_seq = last_seq.max(part.last_seq);
            last = Some(*at);
            if bytes >= plan.step_bytes && last_seq > done {
                break;
            }
        }
        let is_partial = parts.next().is_some();
        (last_seq > done).then_some(Span {
            n,
            last: last?,
            is_partial,
        })
    }
}
