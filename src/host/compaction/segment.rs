//! Writes the segment that takes the place of others: with the compacted outputs of some executions in place of the raw
//! ones, and all else as it was.
//!
//! An execution's compacted messages take the numbers of its first outputs; those of the others are said to be taken
//! out (`Note::Compacted`), run by run. So the order of all other records stays, a reader sees ascending numbers, and
//! "compacted" is never taken for "lost".

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::plan::{Group, UNOWNED, Victim};
use super::{HINT, Halt, check_stop};
use crate::journal::record::{Body, ExecutionNumber, Micros, Note, Record};
use crate::journal::{Item, Kind, Outputs, Prepared, Rewrite, Scanned, Segment, Step};
use crate::session::outputs::{self, Compactor, Limits, Replayed};
use crate::wire::Message;
use crate::wire::message::HeaderFields;

/// What the headers of a message take beside what a replay says of it, about.
const HEADERS_BYTES: usize = 500;

/// See the module.
pub(super) fn write(
    dir: &Path,
    group: &Group,
    limits: Limits,
    stop: &AtomicBool,
) -> Result<Prepared, Halt> {
    let mut writing = Writing {
        dir,
        group,
        limits,
        out: Rewrite::begin(dir, group.segments.clone(), group.first_seq)?,
        compacted: BTreeMap::new(),
        passed: BTreeMap::new(),
        hole: None,
        last_seq: 0,
    };
    for &number in &group.segments {
        let (mut segment, _) = Segment::open_for_heads(dir, number)?;
        loop {
            match segment.step()? {
                Step::Record(found) => {
                    check_stop(stop)?;
                    writing.take(&mut segment, &found)?;
                }
                Step::Damaged(_) => {}
                Step::End => break,
            }
        }
    }
    writing.end_hole()?;
    Ok(writing.out.finish()?)
}

struct Writing<'a> {
    dir: &'a Path,
    group: &'a Group,
    limits: Limits,
    out: Rewrite,
    /// `None`: it would not get smaller, and stays as it is.
    compacted: BTreeMap<ExecutionNumber, Option<Compacted>>,
    /// Of the numbers that are free ([`Victim::free`]), those before the first output: none of the messages can have one.
    passed: BTreeMap<ExecutionNumber, u64>,
    hole: Option<Hole>,
    last_seq: u64,
}

/// What is still to be written of an execution.
struct Compacted {
    messages: VecDeque<Message>,
    /// The outputs that it stands for, ascending: runs of seqs, in which other records of the execution are none.
    folded: VecDeque<RangeInclusive<u64>>,
    /// Outputs and bytes that went, until it is said.
    outputs: i64,
    bytes: i64,
}

impl Compacted {
    /// Whether it stands for this one. Asked in ascending order.
    fn has_folded(&mut self, seq: u64) -> bool {
        while self.folded.front().is_some_and(|run| *run.end() < seq) {
            self.folded.pop_front();
        }
        self.folded.front().is_some_and(|run| run.contains(&seq))
    }

    /// What is to be said with the first record that is left out, when all messages are written.
    fn said_when_done(&mut self) -> (i64, i64) {
        if self.messages.is_empty() {
            let (outputs, bytes) = (&mut self.outputs, &mut self.bytes);
            (std::mem::take(outputs), std::mem::take(bytes))
        } else {
            (0, 0)
        }
    }
}

/// Records that were left out, one behind the other.
struct Hole {
    n: ExecutionNumber,
    first: u64,
    until: u64,
    time: Micros,
    outputs: i64,
    bytes: i64,
}

impl Writing<'_> {
    fn take(&mut self, segment: &mut Segment, found: &Scanned) -> io::Result<()> {
        let head = found.head;
        if head.seq <= self.last_seq {
            return Ok(());
        }
        self.last_seq = head.seq;
        let is_unowned =
            matches!(head.kind, Kind::Iopub | Kind::Request) && head.execution == UNOWNED;
        if is_unowned && self.group.victims.contains_key(&UNOWNED) {
            return self.leave_out(found, UNOWNED, head.seq..=head.seq, (0, 0));
        }
        if head.kind == Kind::Iopub
            && head.client.is_none()
            && self.group.victims.contains_key(&head.execution)
        {
            return self.take_output(segment, found);
        }
        if head.kind == Kind::Note
            && let Some(record) = segment.read_record(found)?
        {
            match record.body {
                Body::Note(Note::Checkpoint { .. }) if self.group.drop_checkpoints => {
                    return self.leave_out(found, 0, head.seq..=head.seq, (0, 0));
                }
                Body::Note(Note::Compacted {
                    n,
                    until,
                    outputs,
                    bytes,
                }) => {
                    self.last_seq = until.max(head.seq);
                    if self.group.victims.contains_key(&n) && !self.compacted.contains_key(&n) {
                        *self.passed.entry(n).or_default() += self.last_seq - head.seq + 1;
                    }
                    let first = self.use_free(n, found, self.last_seq)?;
                    let now = self.compacted.get_mut(&n).and_then(Option::as_mut);
                    let mut less = (outputs, bytes);
                    if let Some(compacted) = now {
                        // It is said where a number is free: there is one behind the last message.
                        compacted.outputs += outputs;
                        compacted.bytes += bytes;
                        if first > self.last_seq {
                            return Ok(());
                        }
                        less = compacted.said_when_done();
                    }
                    return self.leave_out(found, n, first..=self.last_seq, less);
                }
                _ => {}
            }
        }
        self.keep(segment, found)
    }

    fn take_output(&mut self, segment: &mut Segment, found: &Scanned) -> io::Result<()> {
        let (seq, n) = (found.head.seq, found.head.execution);
        if !self.compacted.contains_key(&n) && is_output(segment, found)? {
            let mut victim = self.group.victims[&n];
            let passed = self.passed.get(&n).copied().unwrap_or(0);
            victim.free = victim.free.saturating_sub(passed);
            let made = compact(self.dir, n, found, victim, self.limits)?;
            self.compacted.insert(n, made);
        }
        let compacted = self.compacted.get_mut(&n).and_then(Option::as_mut);
        let Some(compacted) = compacted.and_then(|c| c.has_folded(seq).then_some(c)) else {
            // A frame, or damaged and so a gap, or of an execution that stays as it is.
            return self.keep(segment, found);
        };
        // Its payload was read once, and is of no more use.
        let less = compacted.said_when_done();
        match compacted.messages.pop_front() {
            Some(message) => self.push_output(n, seq, found.head.time, message),
            None => self.leave_out(found, n, seq..=seq, less),
        }
    }

    /// Numbers up to `until` that were taken out before are used again, where there are more messages now (a line that
    /// says what is missing parts a text in three). Gives the first one that is not used.
    fn use_free(&mut self, n: ExecutionNumber, found: &Scanned, until: u64) -> io::Result<u64> {
        let mut seq = found.head.seq;
        while seq <= until
            && let Some(Some(compacted)) = self.compacted.get_mut(&n)
            && let Some(message) = compacted.messages.pop_front()
        {
            self.push_output(n, seq, found.head.time, message)?;
            seq += 1;
        }
        Ok(seq)
    }

    fn push_output(
        &mut self,
        n: ExecutionNumber,
        seq: u64,
        time: Micros,
        message: Message,
    ) -> io::Result<()> {
        self.end_hole()?;
        let body = Body::Iopub {
            client: None,
            execution: n,
            message,
        };
        self.out.push(&Record {
            seq,
            time,
            heard: 0,
            body,
        })
    }

    fn keep(&mut self, segment: &mut Segment, found: &Scanned) -> io::Result<()> {
        self.end_hole()?;
        if !self.out.copy(segment, found)? {
            tracing::warn!(seq = found.head.seq, "a damaged record is not kept");
        }
        Ok(())
    }

    fn leave_out(
        &mut self,
        found: &Scanned,
        n: ExecutionNumber,
        seqs: RangeInclusive<u64>,
        (outputs, bytes): (i64, i64),
    ) -> io::Result<()> {
        let (first, until) = (*seqs.start(), *seqs.end());
        match &mut self.hole {
            Some(hole) if hole.n == n && hole.until + 1 == first => {
                hole.until = until;
                hole.outputs += outputs;
                hole.bytes += bytes;
            }
            _ => {
                self.end_hole()?;
                self.hole = Some(Hole {
                    n,
                    first,
                    until,
                    time: found.head.time,
                    outputs,
                    bytes,
                });
            }
        }
        Ok(())
    }

    fn end_hole(&mut self) -> io::Result<()> {
        let Some(hole) = self.hole.take() else {
            return Ok(());
        };
        self.out.push(&Record {
            seq: hole.first,
            time: hole.time,
            heard: 0,
            body: Body::Note(Note::Compacted {
                n: hole.n,
                until: hole.until,
                outputs: hole.outputs,
                bytes: hole.bytes,
            }),
        })
    }
}

/// Whether it stays where it is.
pub(super) fn is_frame(message: &Message) -> bool {
    (message.header()).is_ok_and(|header| outputs::is_frame(&header.msg_type))
}

/// Whether this record of an execution can be read, and is no frame.
fn is_output(segment: &mut Segment, found: &Scanned) -> io::Result<bool> {
    let record = segment.read_record(found)?;
    Ok(record.is_some_and(
        |record| matches!(&record.body, Body::Iopub { message, .. } if !is_frame(message)),
    ))
}

/// What counts as an output in the index (journal/execution_rows.rs).
fn counts(msg_type: &str) -> bool {
    matches!(
        msg_type,
        "stream" | "display_data" | "update_display_data" | "execute_result" | "error"
    )
}

/// The outputs of execution `n` from `first` on.
fn compact(
    dir: &Path,
    n: ExecutionNumber,
    first: &Scanned,
    victim: Victim,
    limits: Limits,
) -> io::Result<Option<Compacted>> {
    let mut compactor = Compactor::new(limits, HINT);
    let mut raw = Tally::default();
    let mut like: Option<Message> = None;
    let mut folded: VecDeque<RangeInclusive<u64>> = VecDeque::new();
    let mut in_run = false;
    for item in Outputs::open(dir, n, first.position, victim.last_seq)? {
        let Item::Record(record, _) = item? else {
            in_run = false;
            continue;
        };
        let Body::Iopub { message, .. } = &record.body else {
            continue;
        };
        let header = message.header();
        let is_frame = header
            .as_ref()
            .is_ok_and(|header| outputs::is_frame(&header.msg_type));
        if is_frame {
            in_run = false;
            continue;
        }
        match folded.back_mut() {
            Some(run) if in_run => *run = *run.start()..=record.seq,
            _ => folded.push_back(record.seq..=record.seq),
        }
        in_run = true;
        let Ok(header) = header else {
            raw.add("", message);
            continue;
        };
        raw.add(&header.msg_type, message);
        compactor.push_as(&header.msg_type, message);
        like.get_or_insert_with(|| Message {
            header: Bytes::copy_from_slice(&message.header),
            parent_header: Bytes::copy_from_slice(&message.parent_header),
            ..Message::default()
        });
    }
    let replayed = compactor.replay();
    drop(compactor);
    let Some(like) = like else { return Ok(None) };
    let mut left = Tally::default();
    let messages: VecDeque<Message> = (1..)
        .zip(replayed)
        .map(|(number, replayed)| {
            let msg_type = replayed.msg_type.to_string();
            let message = under_headers(replayed, &like, first, number);
            left.add(&msg_type, &message);
            message
        })
        .collect();
    // Else there is no number for each, and one more to say what went; or nothing to gain.
    let smaller = left.all_bytes + (HEADERS_BYTES as i64) < raw.all_bytes;
    let fit = left.messages < raw.messages.saturating_add_unsigned(victim.free);
    Ok((fit && smaller).then_some(Compacted {
        messages,
        folded,
        outputs: raw.outputs - left.outputs,
        bytes: raw.bytes - left.bytes,
    }))
}

fn under_headers(replayed: Replayed, like: &Message, first: &Scanned, number: usize) -> Message {
    let parent = like.parent();
    let parent_id = parent.map(|parent| parent.msg_id.into_owned());
    let session_id = like.header().map(|header| header.session_id.into_owned());
    let msg_id = format!(
        "{}_{}_{number}",
        parent_id.unwrap_or_default(),
        first.head.seq
    );
    let header = HeaderFields {
        msg_id: &msg_id,
        msg_type: replayed.msg_type.as_ref(),
        session_id: &session_id.unwrap_or_default(),
        username: "farside",
        date: first.head.time,
    };
    let header = header.to_json();
    replayed.into_message(header, like.parent_header.clone())
}

/// What messages come to.
#[derive(Default)]
struct Tally {
    messages: i64,
    all_bytes: i64,
    /// Of those that count as outputs.
    outputs: i64,
    bytes: i64,
}

impl Tally {
    fn add(&mut self, msg_type: &str, message: &Message) {
        let bytes = message.size_bytes() as i64;
        self.messages += 1;
        self.all_bytes += bytes;
        if counts(msg_type) {
            self.outputs += 1;
            self.bytes += bytes;
        }
    }
}
