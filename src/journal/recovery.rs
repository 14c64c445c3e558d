//! What a host needs of a journal that an earlier one left: the last checkpoint, the records since, and where the last
//! whole record ends. Reads only; the writer cuts.

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::codec::{self, FRAME_BYTES, HEAD_BYTES, Kind};
use super::record::{Body, Micros, Note, Record};
use super::scan::{PAYLOADS_CHUNK_BYTES, Scanned, SegmentScan, Step};
use super::segments::{self, HEADER_BYTES, HeaderState, Position};

/// A part of a request or reply above this is left out of [`Recovered::after`]: nothing that is needed to go on is so
/// large, and recovery must not need more memory than the session did.
pub const RECOVERED_PART_BYTES: u64 = 64 << 10;

/// The same for iopub messages, of which there may be very many: what matters of them is the header, and the
/// content of a `status` or `execute_input`.
pub const RECOVERED_OUTPUT_PART_BYTES: u64 = 4 << 10;

/// What [`super::Writer::open`] found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// For the next record.
    pub next_seq: u64,
    /// State of the last [`Note::Checkpoint`].
    pub checkpoint: Option<serde_json::Value>,
    /// Records after it (all, if there is none), in order.
    pub after: Vec<RecoveredRecord>,
    /// Bytes behind the last whole record, which were cut: the half of a record that a host was killed over. (What was
    /// whole once and is damaged stays, for readers to tell of.)
    pub cut_bytes: u64,
    /// Since when, up to now, records were made that are not kept: the journal could not be written, and its writer died
    /// before it could say so in it.
    pub unkept_since: Option<Micros>,
}

impl Recovered {
    pub(super) fn after_bytes(&self) -> u64 {
        self.after.iter().map(|record| record.position.length).sum()
    }
}

/// A record since the last checkpoint.
#[derive(Debug)]
pub struct RecoveredRecord {
    /// The record; parts over `RECOVERED_PART_BYTES` or `RECOVERED_OUTPUT_PART_BYTES` are empty.
    pub record: Record,
    /// Where it lies ([`super::Reader::read_at`] gives all of it).
    pub position: Position,
    /// Whether no part was left out.
    pub whole: bool,
}

/// The journal's last segment.
pub(super) struct End {
    pub segment: u32,
    /// Up to the end of the last whole record.
    pub length: u64,
    pub header_whole: bool,
    /// What follows is no torn record but a damaged one (or more), and so may have been read by somebody.
    pub damaged: bool,
    pub has_checkpoint: bool,
}

pub(super) fn recover(dir: &Path) -> io::Result<(Recovered, Option<End>)> {
    let mut recovered = Recovered {
        next_seq: 1,
        ..Recovered::default()
    };
    let mut end = None;
    let numbers = segments::list(dir)?;
    let mut start = 0;
    for (index, &number) in numbers.iter().enumerate().rev() {
        if has_checkpoint(dir, number)? {
            start = index;
            break;
        }
    }
    for &number in &numbers[start..] {
        end = Some(read_segment(dir, number, &mut recovered)?);
    }
    if end.as_ref().is_some_and(|end| end.damaged) {
        // How many they were nobody can tell. None of their seqs may be another record's.
        recovered.next_seq += recovered.cut_bytes / (FRAME_BYTES + HEAD_BYTES) as u64 + 1;
    }
    Ok((recovered, end))
}

fn has_checkpoint(dir: &Path, number: u32) -> io::Result<bool> {
    let (mut segment, _) = SegmentScan::open(dir, number, PAYLOADS_CHUNK_BYTES)?;
    loop {
        match segment.step()? {
            Step::Record(found) if found.head.kind == Kind::Note => {
                let record = segment.read(&found)?.map(codec::decode);
                if let Some(Ok(Record {
                    body: Body::Note(Note::Checkpoint { .. }),
                    ..
                })) = record
                {
                    return Ok(true);
                }
            }
            Step::Record(_) | Step::Damaged(_) => {}
            Step::End => return Ok(false),
        }
    }
}

fn read_segment(dir: &Path, number: u32, recovered: &mut Recovered) -> io::Result<End> {
    let (mut segment, header) = SegmentScan::open(dir, number, PAYLOADS_CHUNK_BYTES)?;
    if let HeaderState::Whole(header) = header {
        recovered.next_seq = recovered.next_seq.max(header.first_seq);
    }
    let mut end = End {
        segment: number,
        length: HEADER_BYTES,
        header_whole: matches!(header, HeaderState::Whole(_)),
        damaged: false,
        has_checkpoint: false,
    };
    while let step @ (Step::Record(_) | Step::Damaged(_)) = segment.step()? {
        let Step::Record(found) = step else { continue };
        let Some((record, whole)) = read_stripped(&mut segment, &found)? else {
            end.damaged = true;
            continue;
        };
        end.damaged = false;
        end.length = found.position.offset + found.position.length;
        recovered.next_seq = recovered.next_seq.max(found.head.seq + 1);
        if let Body::Note(Note::Checkpoint { state }) = record.body {
            end.has_checkpoint = true;
            recovered.checkpoint = Some(state);
            recovered.after.clear();
        } else {
            recovered.after.push(RecoveredRecord {
                record,
                position: found.position,
                whole,
            });
        }
    }
    end.damaged |= segment.is_damaged_here()?;
    recovered.cut_bytes =
        (segment.offset() + segment.remaining_bytes()?).saturating_sub(end.length);
    Ok(end)
}

/// The record without its large parts, in memory of its own; `None` if it is damaged. The bool: nothing was left out.
fn read_stripped(segment: &mut SegmentScan, found: &Scanned) -> io::Result<Option<(Record, bool)>> {
    let limit = match found.head.kind {
        Kind::Note => u64::MAX,
        Kind::Request | Kind::Reply => RECOVERED_PART_BYTES,
        Kind::Iopub => RECOVERED_OUTPUT_PART_BYTES,
    };
    if !segment.verify(found)? {
        return Ok(None);
    }
    let Some(table) = segment.read_range(found, 0..u64::from(found.frame.head_bytes))? else {
        return Ok(None);
    };
    let mut whole = true;
    let record = codec::assemble(&found.head, &table, |range| {
        if range.end - range.start > limit {
            whole = false;
            return Ok(Bytes::new());
        }
        let part = segment.read_range(found, range)?;
        Ok::<_, io::Error>(
            part.map(|part| Bytes::copy_from_slice(&part))
                .unwrap_or_default(),
        )
    });
    match record {
        Ok(record) => Ok(Some((record, whole))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}
