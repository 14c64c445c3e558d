//! Replaces sealed segments by one that has less in it. Knows nothing of what may go: that is the host's
//! (host/compaction.rs).
//!
//! Invariants: the new segment has the number and the first seq of the first one it replaces, and its records ascend as
//! theirs did; what was taken out is said by a note ([`super::record::Note::Compacted`]). It appears under that name whole, by a rename. Should
//! the process die before the others are removed, their records have numbers that were passed already, and every reader
//! skips them. The journal's last segment is never touched, and only the process that appends rewrites.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::codec;
use super::record::Record;
use super::scan::{Scanned, SegmentScan};
use super::segments::{self, HEADER_BYTES, Header, HeaderState};

/// The new segment's name until it is whole.
const UNFINISHED_NAME: &str = "journal.compacting";

/// Payloads are copied in pieces of this size: a record may have hundreds of megabytes.
const COPY_BYTES: u64 = 1 << 20;

/// Small records are written together.
const WRITE_BYTES: usize = 256 << 10;

/// A segment in the making.
pub struct Rewrite {
    unfinished: Unfinished,
    dir: PathBuf,
    replaced: Vec<u32>,
    file: File,
    /// Not written yet.
    waiting: Vec<u8>,
    /// Of the next record.
    offset: u64,
}

/// A segment that is whole, and not in its place yet.
#[derive(Debug)]
pub struct Prepared {
    unfinished: Unfinished,
    dir: PathBuf,
    replaced: Vec<u32>,
    bytes: u64,
}

/// The file of a segment that has no place yet. It does not stay without one: what it takes is room that records need.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It has its place, as a rule, and is not there.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Rewrite {
    /// Removes what a process left that was killed in the middle of it.
    pub fn remove_unfinished(dir: &Path) {
        drop(Unfinished(dir.join(UNFINISHED_NAME)));
    }

    /// Begins a segment in place of these, which are sealed, ascending, and at least one. No record in them has a lower
    /// seq than `from_seq`: it counts where the header that says so is damaged.
    pub fn begin(dir: &Path, replaced: Vec<u32>, from_seq: u64) -> io::Result<Self> {
        let first = *replaced.first().expect("at least one segment");
        let first_seq = match SegmentScan::open(dir, first, 1)?.1 {
            HeaderState::Whole(header) => header.first_seq,
            HeaderState::Torn | HeaderState::Damaged | HeaderState::Newer(_) => from_seq,
        };
        let unfinished = Unfinished(dir.join(UNFINISHED_NAME));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished.0)?;
        let segment = first;
        file.write_all(&Header { segment, first_seq }.encode())?;
        Ok(Self {
            unfinished,
            dir: dir.to_owned(),
            replaced,
            file,
            waiting: Vec::new(),
            offset: HEADER_BYTES,
        })
    }

    /// Writes a record.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        let (message, length) =
            codec::write_framed(record, self.replaced[0], self.offset, &mut self.waiting);
        for part in message.into_iter().flat_map(|message| message.parts()) {
            self.waiting.extend_from_slice(part);
        }
        self.offset += length;
        self.flush_beyond(WRITE_BYTES)
    }

    /// Writes a record of an old segment as it is, byte for byte. `false`: its payload is damaged, and it is left out.
    pub fn copy(&mut self, from: &mut SegmentScan, record: &Scanned) -> io::Result<bool> {
        let (head_bytes, body_bytes) =
            (u64::from(record.frame.head_bytes), record.frame.body_bytes);
        if !from.verify(record)? {
            return Ok(false);
        }
        let Some(head) = from.read_range(record, 0..head_bytes)? else {
            return Ok(false);
        };
        let frame = record.frame.moved(self.replaced[0], self.offset, &head);
        self.waiting.extend_from_slice(&frame);
        self.waiting.extend_from_slice(&head);
        let mut at = head_bytes;
        while at < body_bytes {
            let end = body_bytes.min(at + COPY_BYTES);
            let Some(piece) = from.read_range(record, at..end)? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            self.waiting.extend_from_slice(&piece);
            self.flush_beyond(WRITE_BYTES)?;
            at = end;
        }
        self.offset += record.position.length;
        Ok(true)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// All is written, and on the disk: the old segments may be on it already, and a power cut must not leave less than
    /// there was.
    pub fn finish(mut self) -> io::Result<Prepared> {
        self.flush_beyond(0)?;
        self.file.sync_all()?;
        Ok(Prepared {
            unfinished: self.unfinished,
            dir: self.dir,
            replaced: self.replaced,
            bytes: self.offset,
        })
    }

    fn flush_beyond(&mut self, bytes: usize) -> io::Result<()> {
        if self.waiting.len() > bytes {
            self.file.write_all(&self.waiting)?;
            self.waiting.clear();
            self.waiting.shrink_to(2 * WRITE_BYTES);
        }
        Ok(())
    }
}

impl Prepared {
    /// Puts the segment in its place. Quick: a rename.
    pub fn commit(&self) -> io::Result<()> {
        let path = segments::path(&self.dir, self.segment());
        std::fs::rename(&self.unfinished.0, &path)
            .map_err(|e| segments::describe(e, "cannot put in its place the segment", &path))
    }

    /// Whether it takes more room than what it replaces.
    pub fn is_larger(&self) -> io::Result<bool> {
        let mut old = 0;
        for &segment in &self.replaced {
            old += segments::path(&self.dir, segment).metadata()?.len();
        }
        Ok(self.bytes > old)
    }

    /// Removes the segments that are in the new one now.
    pub fn clean(self) -> io::Result<()> {
        segments::sync_dir(&self.dir)?;
        for &segment in &self.replaced[1..] {
            std::fs::remove_file(segments::path(&self.dir, segment))?;
        }
        Ok(())
    }

    /// Number of the new segment.
    pub fn segment(&self) -> u32 {
        self.replaced[0]
    }

    /// Numbers of those that it replaces, its own among them.
    pub fn replaced(&self) -> &[u32] {
        &self.replaced
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
