//! What there is in a journal, and which of its segments are to be written anew.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
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

/// Which executions' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Of those that are over.
    Over,
    /// Of those that are not, and have at least so many bytes of outputs.
    Running { bytes_min: u64 },
}

/// What is to be done.
pub(super) struct Plan {
    pub wanted: Wanted,
    /// What an execution takes at most afterwards.
    pub cap_bytes: u64,
    /// New segments need not be smaller.
    pub segment_bytes: u64,
}

/// The outputs of an execution.
#[derive(Debug, Default)]
struct Outputs {
    /// Bytes in each segment, by its place in [`Survey::segments`].
    bytes: BTreeMap<usize, u64>,
    last_seq: BTreeMap<usize, u64>,
    /// Numbers of records that were taken out before.
    free: BTreeMap<usize, u64>,
    is_over: bool,
}

#[derive(Debug)]
struct Facts {
    number: u32,
    bytes: u64,
    last_seq: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Survey {
    segments: Vec<Facts>,
    executions: BTreeMap<ExecutionNumber, Outputs>,
    /// Of those in [`Survey::segments`], the last one with a checkpoint.
    last_checkpoint: usize,
}

/// Segments that become one.
#[derive(Debug)]
pub(super) struct Group {
    /// Their numbers, ascending.
    pub segments: Vec<u32>,
    /// Of their last record.
    pub last_seq: u64,
    /// Executions whose outputs are compacted.
    pub victims: BTreeMap<ExecutionNumber, Victim>,
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
    /// Reads all heads, and the notes.
    pub fn of(dir: &Path, stop: &AtomicBool) -> Result<Self, Halt> {
        let mut survey = Self {
            segments: Vec::new(),
            executions: BTreeMap::new(),
            last_checkpoint: 0,
        };
        let mut last_seq = 0;
        for number in segments::list(dir)? {
            check_stop(stop)?;
            survey.read_segment(dir, number, &mut last_seq)?;
        }
        Ok(survey)
    }

    fn read_segment(&mut self, dir: &Path, number: u32, last_seq: &mut u64) -> io::Result<()> {
        let (mut segment, _) = Segment::open_for_heads(dir, number)?;
        let at = self.segments.len();
        let (mut bytes, mut passed, before) = (0, false, *last_seq);
        loop {
            let found = match segment.step()? {
                Step::Record(found) => found,
                Step::Damaged(_) => continue,
                Step::End => break,
            };
            bytes = found.position.offset + found.position.length;
            let head = found.head;
            // What was merged into a segment before, and could not be removed: it is passed over, as readers do.
            if head.seq <= *last_seq {
                passed = true;
                continue;
            }
            *last_seq = head.seq;
            match head.kind {
                Kind::Iopub if head.client.is_none() && head.execution > 0 => {
                    let outputs = self.executions.entry(head.execution).or_default();
                    *outputs.bytes.entry(at).or_default() += found.position.length;
                    outputs.last_seq.insert(at, head.seq);
                }
                Kind::Note => match segment.read_record(&found)?.map(|record| record.body) {
                    Some(Body::Note(Note::Execution { n, state, .. })) => {
                        self.executions.entry(n).or_default().is_over = state.is_final();
                    }
                    Some(Body::Note(Note::Checkpoint { .. })) => self.last_checkpoint = at,
                    Some(Body::Note(Note::Compacted { n, until, .. })) => {
                        *last_seq = until.max(head.seq);
                        if n > 0 {
                            let outputs = self.executions.entry(n).or_default();
                            *outputs.bytes.entry(at).or_default() += found.position.length;
                            *outputs.free.entry(at).or_default() += *last_seq - head.seq + 1;
                        }
                    }
                    Some(_) | None => {}
                },
                Kind::Iopub | Kind::Request | Kind::Reply => {}
            }
        }
        if passed && *last_seq == before {
            // All of it is in a segment before: whoever merged it there died before it could remove this one.
            return std::fs::remove_file(segments::path(dir, number));
        }
        self.segments.push(Facts {
            number,
            bytes,
            last_seq: *last_seq,
        });
        Ok(())
    }

    /// What to write anew, the oldest first. `skip`: executions that need not be looked at.
    pub fn groups(&self, plan: &Plan, skip: impl Fn(ExecutionNumber) -> bool) -> Vec<Group> {
        let end = self.segments.len().saturating_sub(UNTOUCHED);
        // By first segment, where each victim ends.
        let mut victims: BTreeMap<usize, Vec<(ExecutionNumber, usize)>> = BTreeMap::new();
        for (&n, outputs) in &self.executions {
            let Some((first, last)) = outputs.span(plan.wanted, end) else {
                continue;
            };
            if !skip(n) {
                victims.entry(first).or_default().push((n, last));
            }
        }
        let mut groups: Vec<(std::ops::Range<usize>, Vec<ExecutionNumber>, u64)> = Vec::new();
        let mut at = 0;
        while at < end {
            let (mut behind, mut found) = (at + 1, Vec::new());
            let mut look = at;
            while look < behind {
                for &(n, last) in victims.get(&look).into_iter().flatten() {
                    behind = behind.max(last + 1);
                    found.push(n);
                }
                look += 1;
            }
            let bytes = self.bytes_after(plan, at..behind, &found);
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
            at = behind;
        }
        let to_group = |(range, found, _)| self.group(range, found);
        groups.into_iter().map(to_group).collect()
    }

    /// What the segments have once these executions are compacted, about.
    fn bytes_after(
        &self,
        plan: &Plan,
        range: std::ops::Range<usize>,
        victims: &[ExecutionNumber],
    ) -> u64 {
        let all: u64 = self.segments[range.clone()].iter().map(|s| s.bytes).sum();
        let mut saved = 0;
        for n in victims {
            let bytes: u64 = self.executions[n]
                .bytes
                .range(range.clone())
                .map(|(_, b)| b)
                .sum();
            saved += bytes - bytes.min(plan.cap_bytes);
        }
        all - saved.min(all)
    }

    fn group(&self, range: std::ops::Range<usize>, found: Vec<ExecutionNumber>) -> Group {
        let victim = |n: &ExecutionNumber| {
            let outputs = &self.executions[n];
            let last = outputs.last_seq.range(range.clone()).next_back();
            let free = outputs.free.range(range.clone()).map(|(_, n)| n).sum();
            let last_seq = last.map_or(0, |(_, &seq)| seq);
            (*n, Victim { last_seq, free })
        };
        Group {
            segments: self.segments[range.clone()]
                .iter()
                .map(|s| s.number)
                .collect(),
            last_seq: self.segments[range.end - 1].last_seq,
            victims: found.iter().map(victim).collect(),
            drop_checkpoints: range.end <= self.last_checkpoint,
        }
    }
}

impl Outputs {
    /// From which segment to which it is to be compacted, of those before `end`; `None`: not at all.
    fn span(&self, wanted: Wanted, end: usize) -> Option<(usize, usize)> {
        let total: u64 = self.bytes.values().sum();
        let last = *self.bytes.keys().next_back()?;
        let suits = match wanted {
            Wanted::Over => self.is_over && last < end && total >= WORTH_BYTES,
            Wanted::Running { bytes_min } => !self.is_over && total >= bytes_min.max(WORTH_BYTES),
        };
        let first = *self.bytes.keys().next()?;
        let last = *self.bytes.range(..end).next_back()?.0;
        suits.then_some((first, last))
    }
}
