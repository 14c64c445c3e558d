//! Cursors over a journal's records. Any number of them, in any process, while the writer appends; none of them
//! ever writes. Knows nothing of how damage is found (scan.rs) or of what a record means.
//!
//! A reader can see records of an append that fails in its middle and is cut off again: to the outside they were
//! never there, and their seqs are never used for others.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::{self, Kind};
use super::record::{ExecutionNumber, Record};
use super::scan::{
    Found, HEADS_CHUNK_BYTES, LogScan, PAYLOADS_CHUNK_BYTES, Scanned, SegmentScan, Step,
};
use super::segments::Position;

/// Records that cannot be read any more, or were never kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Their seqs. Empty where bytes are damaged but no record is missing.
    pub missing: Range<u64>,
    /// Damaged bytes in their place; 0 where they were never written.
    pub damaged_bytes: u64,
}

/// What a reader gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A whole record, and where it lies.
    Record(Arc<Record>, Position),
    /// Something is missing here.
    Gap(Gap),
}

/// A cursor.
pub struct Reader {
    dir: PathBuf,
    scan: LogScan,
    /// What went wrong behind the items that were given last.
    failed: Option<io::Error>,
    /// For [`Reader::read_at`]: the segment it used last.
    at: Option<SegmentScan>,
}

impl Reader {
    /// A reader of the journal in `dir` whose first record is `from_seq` (0 and 1 both mean all). Neither the
    /// folder nor the record need be there yet.
    pub fn open(dir: &Path, from_seq: u64) -> io::Result<Self> {
        let scan = LogScan::open(dir, from_seq, PAYLOADS_CHUNK_BYTES)?;
        Ok(Self {
            dir: dir.to_owned(),
            scan,
            failed: None,
            at: None,
        })
    }

    /// A reader whose first record is the one at `position`.
    pub fn open_at(dir: &Path, position: Position) -> io::Result<Self> {
        let scan = LogScan::open_at(dir, position, false, PAYLOADS_CHUNK_BYTES)?;
        Ok(Self {
            dir: dir.to_owned(),
            scan,
            failed: None,
            at: None,
        })
    }

    /// As [`Reader::open_at`], for one who looked the place up a while ago, and knows the seq of that record (or of one
    /// before it): see [`Outputs::open_near`].
    pub fn open_near(dir: &Path, position: Position, seq: u64) -> io::Result<Self> {
        if is_there(dir, position, seq)? {
            Self::open_at(dir, position)
        } else {
            Self::open(dir, seq)
        }
    }

    /// The next records, in order: as many as are there, up to about `max_bytes` (but at least one, however
    /// large). Empty: no more yet; ask again when there may be. After an error this reader is of no more use: all items
    /// before it were given.
    ///
    /// Parts of small records share the memory of one read of up to 512 KiB.
    pub fn next_batch(&mut self, max_bytes: usize) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        let result = match self.failed.take() {
            Some(error) => Err(error),
            None => self.fill(&mut items, max_bytes as u64),
        };
        match result {
            Err(error) if items.is_empty() => return Err(error),
            Err(error) => self.failed = Some(error),
            Ok(()) => {}
        }
        Ok(items)
    }

    fn fill(&mut self, items: &mut Vec<Item>, mut left: u64) -> io::Result<()> {
        loop {
            match self.scan.next()? {
                Found::End => return Ok(()),
                Found::Gap(gap) => items.push(Item::Gap(gap)),
                Found::Record(found) => {
                    if found.position.length > left && !items.is_empty() {
                        self.scan.put_back(found);
                        return Ok(());
                    }
                    left = left.saturating_sub(found.position.length);
                    items.push(load(&mut self.scan, &found)?);
                }
            }
        }
    }

    /// When there is no more, and nobody writes any more: what is damaged at the end, where something is.
    pub fn damaged_tail(&mut self) -> io::Result<Option<Item>> {
        Ok(self.scan.damaged_tail()?.map(Item::Gap))
    }

    /// The record at `position`. `Ok(None)`: there is no whole record there.
    pub fn read_at(&mut self, position: Position) -> io::Result<Option<Record>> {
        if self
            .at
            .as_ref()
            .is_none_or(|segment| segment.number() != position.segment)
        {
            self.at = Some(SegmentScan::open(&self.dir, position.segment, HEADS_CHUNK_BYTES)?.0);
        }
        let Some(segment) = &mut self.at else {
            return Ok(None);
        };
        segment.seek(position.offset);
        match segment.step()? {
            Step::Record(found) if found.position == position => Ok(segment
                .read(&found)?
                .and_then(|body| codec::decode(body).ok())),
            _ => Ok(None),
        }
    }
}

/// The iopub records of one execution for everybody, in order, and the gaps between them. Payloads of other
/// records are not read.
pub struct Outputs {
    scan: LogScan,
    execution: ExecutionNumber,
    until_seq: u64,
    done: bool,
}

impl Outputs {
    /// Those from `from` (the execution's first record, say) up to and with seq `until_seq`, or the end of what
    /// is there.
    pub fn open(
        dir: &Path,
        execution: ExecutionNumber,
        from: Position,
        until_seq: u64,
    ) -> io::Result<Self> {
        let scan = LogScan::open_at(dir, from, false, HEADS_CHUNK_BYTES)?;
        Ok(Self {
            scan,
            execution,
            until_seq,
            done: false,
        })
    }

    /// As [`Outputs::open`], for one who looked the place up a while ago: it may have been compacted since
    /// ([`super::rewrite`]), and then the records are looked for by the first one's seq.
    pub fn open_near(
        dir: &Path,
        execution: ExecutionNumber,
        from: Position,
        from_seq: u64,
        until_seq: u64,
    ) -> io::Result<Self> {
        if is_there(dir, from, from_seq)? {
            Self::open(dir, execution, from, until_seq)
        } else {
            Self::from_seq(dir, execution, from_seq, until_seq)
        }
    }

    /// As [`Outputs::open`], for one who knows the first record's seq and not its place.
    pub fn from_seq(
        dir: &Path,
        execution: ExecutionNumber,
        from_seq: u64,
        until_seq: u64,
    ) -> io::Result<Self> {
        let scan = LogScan::open(dir, from_seq, HEADS_CHUNK_BYTES)?;
        Ok(Self {
            scan,
            execution,
            until_seq,
            done: false,
        })
    }

    fn advance(&mut self) -> io::Result<Option<Item>> {
        loop {
            match self.scan.next()? {
                Found::End => return Ok(None),
                Found::Gap(gap) if gap.missing.start > self.until_seq => return Ok(None),
                Found::Gap(gap) => return Ok(Some(Item::Gap(gap))),
                Found::Record(found) if found.head.seq > self.until_seq => return Ok(None),
                Found::Record(found) => {
                    let head = found.head;
                    let is_output = head.kind == Kind::Iopub && head.client.is_none();
                    if is_output && head.execution == self.execution {
                        let last = head.seq == self.until_seq;
                        self.done = last;
                        return load(&mut self.scan, &found).map(Some);
                    }
                }
            }
        }
    }
}

impl Iterator for Outputs {
    type Item = io::Result<Item>;

    /// `None` is final, also where more is appended later.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done |= !matches!(next, Some(Ok(_)));
        next
    }
}

/// Whether a record with this seq, or one soon behind it, is at `position`.
fn is_there(dir: &Path, position: Position, seq: u64) -> io::Result<bool> {
    let mut segment = match SegmentScan::open(dir, position.segment, HEADS_CHUNK_BYTES) {
        Ok((segment, _)) => segment,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    segment.seek(position.offset);
    Ok(match segment.step()? {
        Step::Record(found) => found.position == position && found.head.seq >= seq,
        Step::Damaged(_) | Step::End => false,
    })
}

/// Reads the record that `scan` gave last.
fn load(scan: &mut LogScan, found: &Scanned) -> io::Result<Item> {
    let body = match scan.segment() {
        Some(segment) => segment.read(found)?,
        None => None,
    };
    Ok(match body.map(codec::decode) {
        Some(Ok(record)) => Item::Record(Arc::new(record), found.position),
        Some(Err(_)) | None => Item::Gap(Gap {
            missing: found.head.seq..found.head.seq + 1,
            damaged_bytes: found.position.length,
        }),
    })
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
