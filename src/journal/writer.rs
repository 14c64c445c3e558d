//! The one process that appends to a journal: recovery, vectored appends, rotation. Knows nothing of what a record
//! means, but for checkpoints.
//!
//! Invariants: when [`Writer::append`] has returned `Ok`, the records survive the death of any process. After an
//! `Err` none of them counts as kept, and their seqs are never used again. A segment gets a successor only when
//! nothing more will be written to it.

use std::borrow::Borrow;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::codec;
use super::record::{Body, Note, Record};
use super::segments::{self, HEADER_BYTES, Header, Position};
use super::unkept::Unkept;
use crate::wire::Message;

pub use super::recovery::{Recovered, RecoveredRecord};

/// A segment that has reached this gets a successor: small enough that recovery reads it in a moment (records since
/// the last checkpoint never span more than about this), large enough that a session has few files.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// With so much written since the last checkpoint a new one is wanted: recovery holds what came after it in memory.
pub const CHECKPOINT_BYTES: u64 = 8 << 20;

/// Parts up to this size are copied next to the heads: cheaper than one more piece for the kernel to look at.
const COPY_PART_BYTES: usize = 4 << 10;

/// What the scratch buffer keeps between appends; a flood may make it larger for a moment.
const SCRATCH_BYTES: usize = 256 << 10;

/// A segment's name until its header is in it.
const UNFINISHED_NAME: &str = "journal.new";

/// How a writer is to work.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// See [`SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// An append returns when its records are on the disk, where a power cut does not take them.
    pub sync: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            sync: false,
        }
    }
}

/// Appends to a journal. There may be only one at a time (the host's lock sees to that).
pub struct Writer {
    dir: PathBuf,
    options: WriterOptions,
    tail: Tail,
    next_seq: u64,
    unkept: Unkept,
    /// To have the folder's entries written to the disk, where that is wanted; opened beforehand, for later there may be
    /// no descriptor left.
    folder: Option<File>,
    /// The last segment's name is not on the disk yet, and should be.
    name_unsynced: bool,
    /// `None`: there is none in this segment, and should be.
    since_checkpoint: Option<u64>,
    scratch: Vec<u8>,
}

/// The end of the journal.
enum Tail {
    Good(Segment),
    /// A failed append could not be cut off, or no segment could be opened. The next append starts the
    /// segment of this number.
    Broken {
        next: u32,
    },
}

impl Writer {
    /// Opens the journal in `dir`, which is created (0700) if need be; cuts a torn tail, and gives what is needed to
    /// go on. Reads the journal from its last checkpoint on.
    pub fn open(dir: &Path, options: WriterOptions) -> io::Result<(Self, Recovered)> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| segments::describe(e, "cannot create the journal's folder", dir))?;
        let (mut recovered, end) = super::recovery::recover(dir)?;
        let unkept = Unkept::open(dir);
        recovered.unkept_since = unkept.since();
        // Who has seen a record of one of these numbers must not be given another one in its place.
        recovered.next_seq = recovered.next_seq.max(unkept.next_seq());
        let next = end.as_ref().map_or(1, |end| end.segment + 1);
        let mut writer = Self {
            dir: dir.to_owned(),
            options,
            tail: Tail::Broken { next },
            next_seq: recovered.next_seq,
            unkept,
            folder: options.sync.then(|| File::open(dir)).and_then(Result::ok),
            // That of a host which was killed, say.
            name_unsynced: options.sync,
            since_checkpoint: Some(0),
            scratch: Vec::new(),
        };
        // A tail that cannot be cut, or was no half record but is damaged, or a segment whose header is not whole, is
        // left alone.
        let reopened = end
            .filter(|end| end.header_whole && !end.damaged)
            .and_then(|end| {
                let segment = Segment::reopen(dir, end.segment, end.length).ok()?;
                if options.sync {
                    // What an earlier host wrote may have been written with less care.
                    segment.file.sync_data().ok()?;
                }
                Some((segment, end.has_checkpoint))
            });
        match reopened {
            Some((segment, has_checkpoint)) => {
                writer.since_checkpoint =
                    (segment.number == 1 || has_checkpoint).then_some(recovered.after_bytes());
                writer.tail = Tail::Good(segment);
            }
            None => {
                recovered.cut_bytes = 0;
                match writer.start_segment(next, recovered.next_seq) {
                    Err(error) if next == 1 => return Err(error),
                    // The disk may be full; that does not end a session that lives. The next append tries again.
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok((writer, recovered))
    }

    /// The lowest seq that the next record may have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Number of the segment that is appended to, or will be.
    pub fn segment(&self) -> u32 {
        match &self.tail {
            Tail::Good(segment) => segment.number,
            Tail::Broken { next } => *next,
        }
    }

    /// A [`Note::Checkpoint`] should be the next record: a new segment has begun, and recovery should not have to
    /// read those before it; or [`CHECKPOINT_BYTES`] were written since the last one.
    pub fn wants_checkpoint(&self) -> bool {
        self.since_checkpoint
            .is_none_or(|bytes| bytes >= CHECKPOINT_BYTES)
    }

    /// Appends all of `records` in as few system calls as possible (one, if they are small). Large parts are not
    /// copied.
    ///
    /// On an error (disk full) nothing of them counts as kept; the next append may well succeed, with higher
    /// seqs. [`io::ErrorKind::InvalidInput`]: seqs that do not ascend from [`Writer::next_seq`].
    pub fn append<R: Borrow<Record>>(&mut self, records: &[R]) -> io::Result<Vec<Position>> {
        let Some(first) = records.first() else {
            return Ok(Vec::new());
        };
        let result = self.try_append(records);
        if result.is_err() {
            self.unkept.failed(first.borrow().time, self.next_seq);
        }
        result
    }

    /// Records that were not kept were told of in the journal, so that who comes after this writer need not know
    /// ([`Recovered::unkept_since`]).
    pub fn told_of_unkept(&mut self) {
        self.unkept.end();
    }

    fn try_append<R: Borrow<Record>>(&mut self, records: &[R]) -> io::Result<Vec<Position>> {
        let first_seq = self.next_seq;
        let mut next_seq = first_seq;
        for record in records {
            let seq = record.borrow().seq;
            if seq < next_seq {
                let text = format!("journal record {seq} comes after {}", next_seq - 1);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            next_seq = seq + 1;
        }
        self.roll_if_due();
        self.next_seq = next_seq;
        if let Tail::Broken { next } = self.tail {
            self.start_segment(next, first_seq)?;
        }
        let Tail::Good(segment) = &mut self.tail else {
            return Err(io::Error::other("the journal has no open segment"));
        };
        let kept = segment.length;
        let mut result = segment.append(records, &mut self.scratch);
        if self.options.sync {
            let mut synced = || {
                if self.name_unsynced {
                    sync_folder(self.folder.as_ref(), &self.dir)?;
                    self.name_unsynced = false;
                }
                segment.file.sync_data()
            };
            result = result.and_then(|positions| synced().map(|()| positions));
        }
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_BYTES);
        match result {
            Ok(positions) => {
                for (record, position) in records.iter().zip(&positions) {
                    self.since_checkpoint = match self.since_checkpoint {
                        _ if is_checkpoint(record.borrow()) => Some(0),
                        since => since.map(|bytes| bytes + position.length),
                    };
                }
                self.roll_if_due();
                Ok(positions)
            }
            Err(error) => {
                // What was written and could not be synced is not kept either.
                segment.length = kept;
                if segment.cut().is_err() {
                    self.tail = Tail::Broken {
                        next: segment.number + 1,
                    };
                }
                Err(segments::describe(
                    error,
                    "cannot append to the journal in",
                    &self.dir,
                ))
            }
        }
    }

    /// Leaves a segment that was deleted: what is written to it nobody finds. `true`: it was.
    pub fn leave_deleted(&mut self) -> bool {
        let Tail::Good(segment) = &self.tail else {
            return false;
        };
        let is_deleted = segment.file.metadata().is_ok_and(|meta| meta.nlink() == 0);
        if is_deleted {
            let next = segment.number + 1;
            self.tail = Tail::Broken { next };
            // Maybe the folder was deleted with it.
            self.folder = None;
        }
        is_deleted
    }

    /// If no new segment can be made now, the old one goes on growing.
    fn roll_if_due(&mut self) {
        if let Tail::Good(segment) = &self.tail
            && segment.length >= self.options.segment_bytes
        {
            let next = segment.number + 1;
            let _ = self.start_segment(next, self.next_seq);
        }
    }

    fn start_segment(&mut self, number: u32, first_seq: u64) -> io::Result<()> {
        let segment = Segment::create(&self.dir, number, first_seq, self.options.sync)?;
        self.tail = Tail::Good(segment);
        self.since_checkpoint = (number == 1).then_some(0);
        self.name_unsynced = self.options.sync;
        Ok(())
    }
}

fn sync_folder(folder: Option<&File>, dir: &Path) -> io::Result<()> {
    match folder {
        Some(folder) => folder.sync_all(),
        None => segments::sync_dir(dir),
    }
}

fn is_checkpoint(record: &Record) -> bool {
    matches!(record.body, Body::Note(Note::Checkpoint { .. }))
}

/// The file that is appended to. Opened with O_APPEND: after a cut the next write goes to the new end.
struct Segment {
    file: File,
    number: u32,
    /// Up to the end of the last record that was kept.
    length: u64,
    #[cfg(test)]
    fault: Option<tests::Fault>,
}

enum Piece<'a> {
    Scratch(Range<usize>),
    Part(&'a [u8]),
}

impl Segment {
    /// The file gets its name when its header is in it: a reader that sees it knows that the segment before it is
    /// complete, so it must not be seen before that is so for good.
    fn create(dir: &Path, number: u32, first_seq: u64, sync: bool) -> io::Result<Self> {
        let path = segments::path(dir, number);
        let unfinished = dir.join(UNFINISHED_NAME);
        let create = || {
            // One may have been left by a failure, or by a host that died here. (Not made empty: a file that was is
            // written to the disk by whoever closes it, ext4's auto_da_alloc, and that would be the host's loop.)
            segments::remove_if_there(&unfinished)?;
            let mut file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(
                &Header {
                    segment: number,
                    first_seq,
                }
                .encode(),
            )?;
            if sync {
                file.sync_all()?;
            }
            // From here on there is no way back: readers may have seen it.
            std::fs::rename(&unfinished, &path)?;
            Ok(file)
        };
        let file = create()
            .map_err(|e| segments::describe(e, "cannot create the journal segment", &path))?;
        Ok(Self::new(file, number, HEADER_BYTES))
    }

    fn reopen(dir: &Path, number: u32, length: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .open(segments::path(dir, number))?;
        file.set_len(length)?;
        Ok(Self::new(file, number, length))
    }

    fn new(file: File, number: u32, length: u64) -> Self {
        Self {
            file,
            number,
            length,
            #[cfg(test)]
            fault: None,
        }
    }

    fn append<R: Borrow<Record>>(
        &mut self,
        records: &[R],
        scratch: &mut Vec<u8>,
    ) -> io::Result<Vec<Position>> {
        let mut positions = Vec::with_capacity(records.len());
        let mut pieces = Vec::new();
        let mut end = self.length;
        let mut copied = 0;
        for record in records {
            let (message, length) = codec::write_framed(record.borrow(), self.number, end, scratch);
            positions.push(Position {
                segment: self.number,
                offset: end,
                length,
            });
            end += length;
            for part in message.into_iter().flat_map(Message::parts) {
                if part.len() <= COPY_PART_BYTES {
                    scratch.extend_from_slice(part);
                } else {
                    pieces.extend([Piece::Scratch(copied..scratch.len()), Piece::Part(part)]);
                    copied = scratch.len();
                }
            }
        }
        pieces.push(Piece::Scratch(copied..scratch.len()));
        let mut slices: Vec<_> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Scratch(range) => IoSlice::new(&scratch[range.clone()]),
                Piece::Part(part) => IoSlice::new(part),
            })
            .filter(|slice| !slice.is_empty())
            .collect();
        self.write_all(&mut slices)?;
        self.length = end;
        Ok(positions)
    }

    fn write_all(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !slices.is_empty() {
            // The standard library passes at most IOV_MAX of them on.
            match self.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(fault) = &mut self.fault {
            return fault.write(&mut self.file, slices);
        }
        self.file.write_vectored(slices)
    }

    /// Takes a failed append away again.
    fn cut(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if self.fault.as_ref().is_some_and(|fault| fault.cut_fails) {
            return Err(io::ErrorKind::Other.into());
        }
        self.file.set_len(self.length)
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
pub(crate) mod tests;
