//! The journal's readers: segments of any bytes, of frames with right checksums and any claims, and of real records that
//! were damaged afterwards.
//!
//! Input: byte 0 which of the three, byte 1 where the second segment begins, then what is in them.

use std::path::Path;
use std::sync::Arc;

use farside::journal::codec::{FRAME_BYTES, FRAME_MAGIC};
use farside::journal::record::{Body, ExecutionState, Note, Record};
use farside::journal::segments::{self, HEADER_BYTES, Header};
use farside::journal::{Filter, Item, Outputs, Position, Reader, View, Writer, WriterOptions};
use farside::wire::{Channel, Message};
use serde_json::json;
use uuid::Uuid;

pub fn check(bytes: &[u8]) {
    let [mode, cut, rest @ ..] = bytes else {
        return;
    };
    let dir = memory_dir();
    let dir = dir.path();
    let at = rest.len() * usize::from(*cut) / 256;
    let (first, second) = rest.split_at(at);
    match mode % 3 {
        0 => {
            for (number, content) in [(1, first), (2, second)] {
                write_segment(dir, number, mode & 0x80 == 0, content);
            }
            read_all(dir);
            reopen(dir);
        }
        1 => {
            for (number, content) in [(1, first), (2, second)] {
                write_segment(dir, number, true, &frames(number, content));
            }
            read_all(dir);
            reopen(dir);
        }
        _ => check_damage(dir, first, second),
    }
}

/// Where files are memory, if there is such a place: many thousands of journals are made.
fn memory_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).expect("a folder in memory")
    } else {
        tempfile::tempdir().expect("a temporary folder")
    }
}

fn write_segment(dir: &Path, segment: u32, with_header: bool, content: &[u8]) {
    let header = Header {
        segment,
        first_seq: u64::from(segment) * 10,
    };
    let bytes = if with_header {
        [&header.encode()[..], content].concat()
    } else {
        content.to_vec()
    };
    std::fs::write(segments::path(dir, segment), bytes).expect("a file");
}

/// Frames whose checksums are right, whatever their heads claim. Each: a byte how long the head is, a byte what length is
/// claimed for the whole, a byte how much payload there is; then both.
fn frames(segment: u32, mut program: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [head_bytes, claim, payload_bytes, rest @ ..] = program {
        let (head, rest) = rest.split_at(rest.len().min(usize::from(*head_bytes)));
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*payload_bytes)));
        program = rest;
        let offset = HEADER_BYTES + out.len() as u64;
        let whole = (head.len() + payload.len()) as u64;
        let body_bytes = match claim % 8 {
            0..=4 => whole,
            5 => 1 << 60,
            6 => u64::MAX,
            _ => whole + u64::from(*claim),
        };
        let mut fixed = [0; FRAME_BYTES];
        fixed[..4].copy_from_slice(&FRAME_MAGIC);
        fixed[8..12].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        fixed[12..16].copy_from_slice(&(head.len() as u32).to_le_bytes());
        fixed[16..].copy_from_slice(&body_bytes.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&segment.to_le_bytes());
        crc.update(&offset.to_le_bytes());
        crc.update(&fixed[8..]);
        crc.update(head);
        fixed[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&fixed);
        out.extend_from_slice(head);
        out.extend_from_slice(payload);
    }
    out
}

/// Everything that reads a journal comes to an end, in order.
fn read_all(dir: &Path) -> Vec<Arc<Record>> {
    let mut records = Vec::new();
    let mut places: Vec<Position> = Vec::new();
    let Ok(mut reader) = Reader::open(dir, 1) else {
        return records;
    };
    let mut next = 0;
    loop {
        let Ok(items) = reader.next_batch(300) else {
            break;
        };
        if items.is_empty() {
            break;
        }
        for item in items {
            match item {
                Item::Record(record, position) => {
                    assert!(record.seq >= next, "record {} after {next}", record.seq);
                    next = record.seq + 1;
                    records.push(record);
                    places.push(position);
                }
                Item::Gap(gap) => {
                    assert!(gap.missing.start >= next && gap.missing.start <= gap.missing.end);
                    next = gap.missing.end;
                }
            }
        }
    }
    for (record, position) in records.iter().zip(places) {
        let found = reader.read_at(position).expect("it was just read");
        assert_eq!(found.as_ref(), Some(&**record));
        if let Body::Iopub { execution, .. } = &record.body {
            let outputs = Outputs::from_seq(dir, *execution, 0, record.seq);
            outputs.expect("there").for_each(drop);
        }
    }
    if let Some(middle) = records.get(records.len() / 2) {
        // Segments that lie about where they begin may hide it; see `check_damage` for those that do not.
        from(dir, middle.seq);
    }
    if let Ok(view) = View::open(dir) {
        view.executions(&Filter::default());
        view.session();
    }
    records
}

/// What a reader gets first that begins with record `seq`.
fn from(dir: &Path, seq: u64) -> Option<Item> {
    let mut reader = Reader::open(dir, seq).ok()?;
    reader.next_batch(1).ok()?.into_iter().next()
}

/// A host opens what it found, and goes on.
fn reopen(dir: &Path) -> Option<u64> {
    let (mut writer, recovered) = Writer::open(dir, WriterOptions::default()).ok()?;
    let seq = recovered.next_seq;
    assert_eq!(writer.next_seq(), seq);
    writer.append(&[note(seq, Note::Interrupted)]).ok()?;
    Some(seq)
}

/// Records of a program, damaged as another says: those that were not hit are all read, and nothing else; and a host that
/// opens it goes on behind them.
fn check_damage(dir: &Path, program: &[u8], damage: &[u8]) {
    let records = records(program);
    let options = WriterOptions {
        segment_bytes: 2000,
        ..WriterOptions::default()
    };
    let (mut writer, _) = Writer::open(dir, options).expect("an empty folder");
    let mut places = Vec::new();
    for batch in records.chunks(3) {
        places.extend(writer.append(batch).expect("there is room"));
    }
    drop(writer);
    let hit = damage_files(dir, damage);
    let intact: Vec<&Record> = (records.iter().zip(&places))
        .filter(|(_, place)| !hit.iter().any(|(segment, at)| is_in(place, *segment, *at)))
        .map(|(record, _)| record)
        .collect();
    let read = read_all(dir);
    assert_eq!(
        read.iter().map(|record| &**record).collect::<Vec<_>>(),
        intact
    );
    for record in &read {
        let first = from(dir, record.seq);
        assert!(
            matches!(&first, Some(Item::Record(first, _)) if first == record)
                || matches!(&first, Some(Item::Gap(gap)) if gap.missing.is_empty()),
            "{first:?} instead of record {}",
            record.seq
        );
    }
    let Some(seq) = reopen(dir) else {
        panic!("the journal cannot be opened again");
    };
    let again = read_all(dir);
    assert_eq!(again[..read.len()], read[..]);
    assert_eq!(again.len(), read.len() + 1);
    assert_eq!(again[read.len()].seq, seq);
}

fn is_in(place: &Position, segment: u32, at: u64) -> bool {
    place.segment == segment && (place.offset..place.offset + place.length).contains(&at)
}

/// Three bytes for each change: where (two) and what. Gives the places that are different now.
fn damage_files(dir: &Path, damage: &[u8]) -> Vec<(u32, u64)> {
    let numbers = segments::list(dir).expect("a folder");
    let mut hit = Vec::new();
    for change in damage.chunks_exact(3).take(8) {
        let segment = numbers[usize::from(change[0] >> 5) % numbers.len()];
        let path = segments::path(dir, segment);
        let mut bytes = std::fs::read(&path).expect("a segment");
        let room = bytes.len().saturating_sub(HEADER_BYTES as usize);
        if room == 0 || change[2] == 0 {
            continue;
        }
        let at = usize::from(change[0] & 31) << 8 | usize::from(change[1]);
        let at = HEADER_BYTES as usize + at % room;
        // Twice at one place could put it right again.
        if hit.contains(&(segment, at as u64)) {
            continue;
        }
        bytes[at] ^= change[2];
        std::fs::write(path, bytes).expect("a segment");
        hit.push((segment, at as u64));
    }
    hit
}

/// One byte a record, and one for its size.
fn records(program: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    for (seq, what) in (1..).zip(program.chunks(2).take(60)) {
        let size = usize::from(*what.get(1).unwrap_or(&0));
        let execution = u64::from(what[0] >> 5);
        let message = Message {
            identities: vec![vec![what[0]; size % 3].into()],
            header: json!({ "msg_id": "m", "msg_type": "stream" })
                .to_string()
                .into(),
            parent_header: "{}".into(),
            metadata: "{}".into(),
            content: vec![what[0]; size * 4].into(),
            buffers: vec![vec![0xF5; size % 5].into(); size % 2],
        };
        let client = Uuid::from_u128(1);
        let body = match what[0] % 8 {
            0..=3 => Body::Iopub {
                client: None,
                execution,
                message,
            },
            4 => Body::Request {
                channel: Channel::Shell,
                client,
                execution,
                message,
            },
            5 => Body::Reply {
                channel: Channel::Shell,
                client,
                execution,
                message,
            },
            6 => Body::Note(Note::Execution {
                n: execution,
                msg_id: "m".into(),
                state: ExecutionState::Ok,
                reason: None,
            }),
            _ => Body::Note(Note::Checkpoint {
                state: json!({ "at": seq }),
            }),
        };
        records.push(Record {
            seq,
            time: seq,
            heard: 0,
            body,
        });
    }
    // So that no damage lies behind the last record: a torn tail is cut, and that is no gap.
    let end = records.len() as u64 + 1;
    records.push(note(end, Note::Interrupted));
    records
}

fn note(seq: u64, note: Note) -> Record {
    Record {
        seq,
        time: seq,
        heard: 0,
        body: Body::Note(note),
    }
}
