//! Walks over records by their heads, without reading payloads: over one segment ([`SegmentScan`]), over a whole
//! journal ([`LogScan`]). Readers, the index and recovery are built on it.
//!
//! What it takes care of: a tail that is still being written (or torn) is the end for now, not damage; behind a
//! damaged place the next whole record is searched for; when the writer cut off a failed append that had already
//! been read in part, the scan finds its feet again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::codec::{self, FRAME_BYTES, Frame, HEAD_BYTES, Head, Kind};
use super::reader::Gap;
use super::record::{Body, Note, Record};
use super::segments::{self, HEADER_BYTES, Header, HeaderState, Position};

/// Read-ahead of a scan that looks at heads mostly. Large enough that small records cost few system calls, small
/// enough that skipping 100 kB payloads does not read them all.
pub const HEADS_CHUNK_BYTES: usize = 64 << 10;

/// Read-ahead of a scan that wants the payloads too.
pub const PAYLOADS_CHUNK_BYTES: usize = 512 << 10;

/// A record's body from this size on has memory of its own: who keeps a part of it does not keep what was read beside
/// it.
pub const OWN_BYTES: u64 = 64 << 10;

/// A record whose head was read and verified.
#[derive(Clone, Copy, Debug)]
pub struct Scanned {
    /// Its head.
    pub head: Head,
    /// Where it is.
    pub position: Position,
    /// Its frame.
    pub frame: Frame,
}

impl Scanned {
    fn body_offset(&self) -> u64 {
        self.position.offset + FRAME_BYTES as u64
    }
}

/// What comes next in a segment.
#[derive(Debug)]
pub enum Step {
    /// A record.
    Record(Scanned),
    /// So many bytes that are no record.
    Damaged(u64),
    /// Nothing more yet.
    End,
}

/// A [`Note::Compacted`] is shorter: five numbers and their names.
const COMPACTED_BYTES_MAX: u64 = 300;

/// And so little at least.
const CHUNK_BYTES_MIN: usize = 4 << 10;

/// Longest head (with its part table) that is accepted behind a damaged place: what looks like a frame there may
/// be anything, and must not make us read gigabytes.
const SEARCH_HEAD_BYTES: u32 = 1 << 20;

enum Look {
    Record(Scanned),
    /// Not a record.
    Suspect,
    /// A frame whose head is not all there. It may be damaged, or still being written.
    HeadIncomplete,
    /// A good head, or the beginning of a frame, at the end of the file.
    Incomplete,
}

/// A cursor in one segment.
pub struct SegmentScan {
    file: File,
    number: u32,
    /// Where the next record begins.
    offset: u64,
    /// Read-ahead at most.
    chunk_bytes: usize,
    /// And for now: where most of what is read ahead is passed over, as large payloads are, it is less.
    ahead_bytes: usize,
    chunk_start: u64,
    chunk: Bytes,
    /// How much of the chunk was asked for.
    used_bytes: usize,
    /// The chunk's memory, for the next one, where nobody holds parts of it by then.
    memory: BytesMut,
    /// Length of the file when it was last looked at.
    known_length: u64,
    /// The record before `offset`: offset, head checksum and seq. Tells whether the writer cut it off again.
    previous: Option<(u64, u32, u64)>,
    /// Behind a damaged `offset`: no record begins between `offset` and here.
    searched_to: u64,
}

impl SegmentScan {
    /// Opens a segment at its first record.
    pub fn open(dir: &Path, number: u32, chunk_bytes: usize) -> io::Result<(Self, HeaderState)> {
        let path = segments::path(dir, number);
        let file = File::open(&path)
            .map_err(|e| segments::describe(e, "cannot open the journal segment", &path))?;
        let header = Header::read(&file)?;
        if let HeaderState::Newer(version) = header {
            return Err(segments::newer_error(&path, version));
        }
        let scan = Self {
            file,
            number,
            offset: HEADER_BYTES,
            chunk_bytes,
            ahead_bytes: chunk_bytes,
            chunk_start: 0,
            chunk: Bytes::new(),
            used_bytes: 0,
            memory: BytesMut::new(),
            known_length: 0,
            previous: None,
            searched_to: 0,
        };
        Ok((scan, header))
    }

    /// Opens a segment for one who looks at heads mostly.
    pub fn open_for_heads(dir: &Path, number: u32) -> io::Result<(Self, HeaderState)> {
        Self::open(dir, number, HEADS_CHUNK_BYTES)
    }

    /// Number of the segment.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Where the next record begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether another file has this one's name, or none: the segment was compacted.
    pub fn is_replaced(&self, dir: &Path) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match std::fs::metadata(segments::path(dir, self.number)) {
            Ok(now) => Ok((now.dev(), now.ino()) != (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Goes to a place where a record is known to begin.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset.max(HEADER_BYTES);
        self.previous = None;
        self.searched_to = 0;
    }

    /// Bytes from here to the end of the file.
    pub fn remaining_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(self.offset))
    }

    /// Whether what lies here is damaged for certain, and not merely half written: a half record is the beginning of a
    /// whole one.
    pub fn is_damaged_here(&mut self) -> io::Result<bool> {
        self.forget_chunk();
        Ok(matches!(self.look(self.offset)?, Look::Suspect))
    }

    /// The next record's head, and steps over the record.
    pub fn step(&mut self) -> io::Result<Step> {
        let mut look = self.look(self.offset)?;
        // What looks odd may be stale: read ahead while the writer was at it, or before it cut off a failed
        // append. So look again at what the file has now, from a place that is certain.
        let odd = match (&look, self.previous) {
            (Look::Record(found), Some((_, _, seq))) => found.head.seq != seq + 1,
            (Look::Record(_), None) => false,
            (Look::Suspect | Look::HeadIncomplete, _) => true,
            // At the end: other records may have taken the place of those that were cut off.
            (Look::Incomplete, previous) => previous.is_some(),
        };
        if odd {
            self.forget_chunk();
            if !self.previous_still_there()? {
                self.seek(HEADER_BYTES);
            }
            look = self.look(self.offset)?;
        }
        match look {
            Look::Record(found) => Ok(self.pass(found)),
            Look::Suspect | Look::HeadIncomplete => self.search(),
            Look::Incomplete => {
                self.forget_chunk();
                Ok(Step::End)
            }
        }
    }

    fn pass(&mut self, found: Scanned) -> Step {
        self.offset += found.position.length;
        self.previous = Some((found.position.offset, found.frame.head_crc, found.head.seq));
        self.searched_to = 0;
        Step::Record(found)
    }

    /// The whole body of a record, if its payload's checksum is right.
    pub fn read(&mut self, record: &Scanned) -> io::Result<Option<Bytes>> {
        let body = self.body(record.body_offset(), record.frame.body_bytes)?;
        Ok(body.filter(|body| {
            let payload = &body[record.frame.head_bytes as usize..];
            crc32fast::hash(payload) == record.frame.payload_crc
        }))
    }

    /// The record itself; `None` if its payload is damaged.
    pub fn read_record(&mut self, record: &Scanned) -> io::Result<Option<Record>> {
        Ok(self.read(record)?.and_then(|body| codec::decode(body).ok()))
    }

    /// Up to which number records were taken out, if this one says so ([`Note::Compacted`]).
    fn compacted_until(&mut self, record: &Scanned) -> io::Result<Option<u64>> {
        let payload_bytes = record.frame.body_bytes - u64::from(record.frame.head_bytes);
        if record.head.kind != Kind::Note || payload_bytes > COMPACTED_BYTES_MAX {
            return Ok(None);
        }
        let Some(body) = self.read(record)? else {
            return Ok(None);
        };
        if !codec::is_compacted_note(&body[record.frame.head_bytes as usize..]) {
            return Ok(None);
        }
        Ok(match codec::decode(body) {
            Ok(Record {
                body: Body::Note(Note::Compacted { until, .. }),
                ..
            }) if until < u64::MAX => Some(until),
            Ok(_) | Err(_) => None,
        })
    }

    /// Some bytes of a record's body, not verified but to lie in it.
    pub fn read_range(&mut self, record: &Scanned, range: Range<u64>) -> io::Result<Option<Bytes>> {
        if range.start > range.end || range.end > record.frame.body_bytes {
            return Ok(None);
        }
        self.body(record.body_offset() + range.start, range.end - range.start)
    }

    /// Whether a record's payload is whole, without holding it in memory.
    pub fn verify(&mut self, record: &Scanned) -> io::Result<bool> {
        let mut at = record.body_offset() + u64::from(record.frame.head_bytes);
        let end = record.position.offset + record.position.length;
        let mut crc = crc32fast::Hasher::new();
        while at < end {
            let Some(piece) = self.fetch(at, (end - at).min(self.chunk_bytes as u64))? else {
                return Ok(false);
            };
            crc.update(&piece);
            at += piece.len() as u64;
        }
        Ok(crc.finalize() == record.frame.payload_crc)
    }

    fn look(&mut self, offset: u64) -> io::Result<Look> {
        let Some(fixed) = self.fetch(offset, (FRAME_BYTES + HEAD_BYTES) as u64)? else {
            return Ok(Look::Incomplete);
        };
        let Ok(frame) = Frame::decode(&fixed) else {
            return Ok(Look::Suspect);
        };
        let Some(head) = self.fetch(offset + FRAME_BYTES as u64, u64::from(frame.head_bytes))?
        else {
            return Ok(Look::HeadIncomplete);
        };
        let Ok(head) = frame.decode_head(self.number, offset, &head) else {
            return Ok(Look::Suspect);
        };
        let length = frame.body_bytes.saturating_add(FRAME_BYTES as u64);
        if !self.reaches(offset.saturating_add(length))? {
            return Ok(Look::Incomplete);
        }
        let position = Position {
            segment: self.number,
            offset,
            length,
        };
        Ok(Look::Record(Scanned {
            head,
            position,
            frame,
        }))
    }

    /// Looks for the next whole record behind a damaged place.
    fn search(&mut self) -> io::Result<Step> {
        let mut at = self.searched_to.max(self.offset + 1);
        let mut undecided = None;
        while let Some(window) = self.window(at)? {
            let Some(hit) = codec::find_magic(&window, 0) else {
                at += window.len() as u64;
                continue;
            };
            at += hit as u64;
            if Frame::decode(&window[hit..]).is_ok_and(|frame| frame.head_bytes > SEARCH_HEAD_BYTES)
            {
                at += 1;
                continue;
            }
            match self.look(at)? {
                Look::Record(_) => {
                    // What was half written when the search began is whole now, if this is behind it.
                    self.forget_chunk();
                    if let Look::Record(found) = self.look(self.offset)? {
                        return Ok(self.pass(found));
                    }
                    let skipped = at - self.offset;
                    self.seek(at);
                    return Ok(Step::Damaged(skipped));
                }
                Look::Incomplete => break,
                Look::HeadIncomplete => {
                    undecided.get_or_insert(at);
                    at += 1;
                }
                Look::Suspect => at += 1,
            }
        }
        // Not there yet. `at` may be the beginning of a record that is being written.
        self.searched_to = undecided.unwrap_or(at);
        self.forget_chunk();
        Ok(Step::End)
    }

    /// Some bytes from `at` on; `None` at the end of the file.
    fn window(&mut self, at: u64) -> io::Result<Option<Bytes>> {
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if at < self.chunk_start || at >= chunk_end {
            let length = self
                .length()?
                .saturating_sub(at)
                .min(self.ahead_bytes as u64);
            return Ok(self.fetch(at, length)?.filter(|window| !window.is_empty()));
        }
        Ok(Some(self.chunk.slice((at - self.chunk_start) as usize..)))
    }

    fn previous_still_there(&self) -> io::Result<bool> {
        let Some((offset, head_crc, _)) = self.previous else {
            return Ok(true);
        };
        let mut frame = [0; FRAME_BYTES];
        match self.file.read_exact_at(&mut frame, offset) {
            Ok(()) => Ok(Frame::decode(&frame).is_ok_and(|frame| frame.head_crc == head_crc)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn length(&mut self) -> io::Result<u64> {
        self.known_length = self.file.metadata()?.len();
        Ok(self.known_length)
    }

    fn reaches(&mut self, end: u64) -> io::Result<bool> {
        Ok(end <= self.known_length || end <= self.length()?)
    }

    fn forget_chunk(&mut self) {
        self.chunk = Bytes::new();
        self.known_length = 0;
    }

    /// A body, or a part of one: as [`SegmentScan::fetch`], but a large one has memory of its own.
    fn body(&mut self, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        if length < OWN_BYTES {
            self.fetch(offset, length)
        } else if self.reaches(offset.saturating_add(length))? {
            self.read_apart(offset, length)
        } else {
            Ok(None)
        }
    }

    /// Bytes that the file has, in memory of their own.
    fn read_apart(&mut self, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        // Fits: it is at most the length of a file that is there.
        let mut bytes = vec![0; length as usize];
        Ok(self.read_at(&mut bytes, offset)?.then(|| bytes.into()))
    }

    /// `length` bytes at `offset`; `None` if the file ends before. What is longer than a chunk is not kept as one.
    fn fetch(&mut self, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        let end = offset.saturating_add(length);
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if offset < self.chunk_start || end > chunk_end {
            if !self.reaches(end)? {
                return Ok(None);
            }
            if length > self.chunk_bytes as u64 {
                return self.read_apart(offset, length);
            }
            self.look_ahead();
            let ahead = length.max(self.ahead_bytes as u64);
            let wanted = (self.known_length - offset).min(ahead);
            self.chunk = Bytes::new();
            let mut bytes = std::mem::take(&mut self.memory);
            bytes.resize(wanted as usize, 0);
            if !self.read_at(&mut bytes, offset)? {
                return Ok(None);
            }
            self.chunk_start = offset;
            self.chunk = bytes.split().freeze();
            self.memory = bytes;
        }
        self.used_bytes += length as usize;
        let from = (offset - self.chunk_start) as usize;
        Ok(Some(self.chunk.slice(from..from + length as usize)))
    }

    /// `false`: the writer has cut it off just now.
    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        match self.file.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.forget_chunk();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// How much to read ahead next, by what the last chunk was good for.
    fn look_ahead(&mut self) {
        let used = std::mem::take(&mut self.used_bytes);
        if used < self.chunk.len() / 4 {
            self.ahead_bytes = (self.ahead_bytes / 2).max(CHUNK_BYTES_MIN);
        } else if used >= self.chunk.len() / 2 {
            self.ahead_bytes = (self.ahead_bytes * 2).min(self.chunk_bytes);
        }
    }
}

/// What comes next in a journal.
#[derive(Debug)]
pub enum Found {
    /// A record.
    Record(Scanned),
    /// Records that are lost, before the next one.
    Gap(Gap),
    /// Nothing more yet. Ask again when there may be.
    End,
}

/// A cursor over all segments of a journal.
pub struct LogScan {
    dir: PathBuf,
    chunk_bytes: usize,
    current: Option<SegmentScan>,
    /// The last seq that was given out, or should have been; `None`: whatever comes first is right.
    last_seq: Option<u64>,
    damaged_bytes: u64,
    stashed: Option<Scanned>,
    /// The current segment has a successor, so what it has now is all.
    complete: bool,
    /// The record given last says that those up to this one were taken out.
    taken_out: Option<u64>,
    /// The segment was replaced by a compacted one while it was being read: of what is taken out there, some was not
    /// given yet, and what stands for it may be before our place.
    swapped: bool,
}

impl LogScan {
    /// From the first record whose seq is at least `from_seq`. The journal need not be there yet.
    pub fn open(dir: &Path, from_seq: u64, chunk_bytes: usize) -> io::Result<Self> {
        let mut scan = Self::new(dir, Some(from_seq.saturating_sub(1)), chunk_bytes);
        for number in segments::list(dir)?.into_iter().rev() {
            let (segment, header) = match SegmentScan::open(dir, number, chunk_bytes) {
                // It was merged into one before it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            scan.current = Some(segment);
            match header {
                HeaderState::Whole(header) if header.first_seq <= from_seq => break,
                _ => {}
            }
        }
        Ok(scan)
    }

    /// From the record at `position`, or the one behind it.
    pub fn open_at(
        dir: &Path,
        position: Position,
        behind: bool,
        chunk_bytes: usize,
    ) -> io::Result<Self> {
        let mut scan = Self::new(dir, None, chunk_bytes);
        let (mut segment, _) = SegmentScan::open(dir, position.segment, chunk_bytes)?;
        segment.seek(position.offset);
        if behind && let Step::Record(found) = segment.step()? {
            scan.last_seq = Some(found.head.seq);
        }
        scan.current = Some(segment);
        Ok(scan)
    }

    fn new(dir: &Path, last_seq: Option<u64>, chunk_bytes: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            chunk_bytes,
            current: None,
            last_seq,
            damaged_bytes: 0,
            stashed: None,
            complete: false,
            taken_out: None,
            swapped: false,
        }
    }

    /// The next record's head, or a gap before it.
    pub fn next(&mut self) -> io::Result<Found> {
        if let Some(found) = self.stashed.take() {
            return Ok(Found::Record(found));
        }
        loop {
            let Some(segment) = &mut self.current else {
                match segments::list(&self.dir)?.first() {
                    Some(&first) => {
                        self.current =
                            Some(SegmentScan::open(&self.dir, first, self.chunk_bytes)?.0)
                    }
                    None => return Ok(Found::End),
                }
                continue;
            };
            match segment.step()? {
                Step::Record(found) => {
                    let expected = self.last_seq.map_or(found.head.seq, |last| last + 1);
                    if found.head.seq < expected {
                        self.damaged_bytes = 0;
                        continue;
                    }
                    self.last_seq = Some(found.head.seq);
                    // Up to there, what is missing was taken out, and not lost.
                    let explains = !self.swapped && self.damaged_bytes == 0;
                    let expected = match self.taken_out.filter(|_| explains) {
                        Some(until) => expected.max(found.head.seq.min(until + 1)),
                        None => expected,
                    };
                    self.taken_out = segment.compacted_until(&found)?;
                    let damaged_bytes = std::mem::take(&mut self.damaged_bytes);
                    if found.head.seq == expected && damaged_bytes == 0 {
                        return Ok(Found::Record(found));
                    }
                    self.stashed = Some(found);
                    return Ok(Found::Gap(Gap {
                        missing: expected..found.head.seq,
                        damaged_bytes,
                    }));
                }
                Step::Damaged(bytes) => self.damaged_bytes += bytes,
                Step::End => {
                    let number = segment.number();
                    let numbers = segments::list(&self.dir)?;
                    let next = numbers.iter().copied().find(|&n| n > number);
                    match next {
                        None => return Ok(Found::End),
                        // Also this and the ones behind it may have become one.
                        Some(_) if segment.is_replaced(&self.dir)? => {
                            let holder = numbers.iter().copied().rfind(|&n| n <= number);
                            let holder = holder.or(next).unwrap_or(number);
                            self.current =
                                Some(SegmentScan::open(&self.dir, holder, self.chunk_bytes)?.0);
                            self.complete = false;
                            self.swapped = true;
                            self.taken_out = None;
                        }
                        // A last look: the writer may have appended before it created the successor.
                        Some(_) if !self.complete => self.complete = true,
                        Some(next) => {
                            self.damaged_bytes += segment.remaining_bytes()?;
                            if let (Some(until), false) = (self.taken_out.take(), self.swapped) {
                                // Should a segment be left that was merged into this one, it has them still.
                                self.last_seq = self.last_seq.max(Some(until));
                            }
                            self.current =
                                Some(SegmentScan::open(&self.dir, next, self.chunk_bytes)?.0);
                            self.complete = false;
                            self.swapped = false;
                        }
                    }
                }
            }
        }
    }

    /// At the end, of a journal that nobody writes to any more: what is damaged there.
    pub fn damaged_tail(&mut self) -> io::Result<Option<Gap>> {
        let Some(segment) = &mut self.current else {
            return Ok(None);
        };
        if !segment.is_damaged_here()? {
            return Ok(None);
        }
        let next = self.last_seq.map_or(1, |last| last + 1);
        Ok(Some(Gap {
            missing: next..next,
            damaged_bytes: segment.remaining_bytes()?,
        }))
    }

    /// Has [`LogScan::next`] give the record again that it gave last.
    pub fn put_back(&mut self, record: Scanned) {
        self.stashed = Some(record);
    }

    /// The segment of the record that [`LogScan::next`] gave last, to read from.
    pub fn segment(&mut self) -> Option<&mut SegmentScan> {
        self.current.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::writer::tests::samples::output;
    use crate::journal::{Writer, WriterOptions};

    fn step(scan: &mut SegmentScan) -> Scanned {
        match scan.step().unwrap() {
            Step::Record(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_much_is_read_ahead_as_is_good_for_something() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
        let (small, large) = ("x".repeat(100), "x".repeat(100_000));
        let texts = [&small; 200].into_iter().chain([&large; 20]);
        let records: Vec<Record> = (1..)
            .zip(texts.chain([&small; 2000]))
            .map(|(seq, text)| output(seq, 1, text.clone()))
            .collect();
        writer.append(&records).unwrap();
        let (mut scan, _) = SegmentScan::open_for_heads(dir.path(), 1).unwrap();
        for _ in 0..200 {
            step(&mut scan);
        }
        assert_eq!(scan.ahead_bytes, HEADS_CHUNK_BYTES);
        for _ in 0..20 {
            step(&mut scan);
        }
        assert_eq!(scan.ahead_bytes, CHUNK_BYTES_MIN);
        for record in &records[220..] {
            let found = step(&mut scan);
            assert_eq!(scan.read_record(&found).unwrap().as_ref(), Some(record));
        }
        assert_eq!(scan.ahead_bytes, HEADS_CHUNK_BYTES);
    }

    #[test]
    fn a_chunks_memory_is_used_again_unless_somebody_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
        let records: Vec<Record> = (1..=40)
            .map(|seq| output(seq, 1, "x".repeat(50_000)))
            .collect();
        writer.append(&records).unwrap();
        let (mut scan, _) = SegmentScan::open(dir.path(), 1, PAYLOADS_CHUNK_BYTES).unwrap();
        let next = |scan: &mut SegmentScan| {
            let found = step(scan);
            scan.read(&found).unwrap().unwrap()
        };
        let first = next(&mut scan).as_ptr();
        let start = scan.chunk_start;
        while scan.chunk_start == start {
            next(&mut scan);
        }
        assert_eq!(scan.chunk.as_ptr(), first.wrapping_sub(FRAME_BYTES));
        let held = next(&mut scan);
        let copy = held.to_vec();
        let start = scan.chunk_start;
        while scan.chunk_start == start {
            next(&mut scan);
        }
        assert_ne!(scan.chunk.as_ptr(), first.wrapping_sub(FRAME_BYTES));
        assert_eq!(held, copy);
    }
}
