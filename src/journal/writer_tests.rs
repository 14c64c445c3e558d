use super::*;

/// A disk that fills up.
pub(super) struct Fault {
    /// How much of the next append still gets written.
    pub bytes_left: usize,
    /// Whether cutting it off fails as well.
    pub cut_fails: bool,
}

impl Fault {
    pub fn write(&mut self, file: &mut File, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = slices
            .first()
            .map_or(0, |slice| slice.len().min(self.bytes_left));
        if first == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = file.write(&slices[0][..first])?;
        self.bytes_left -= written;
        Ok(written)
    }
}

/// What several test modules of the journal use.
pub(crate) mod samples {
    use bytes::Bytes;
    use uuid::Uuid;

    use crate::journal::record::{Body, ExecutionState, Note, Record};
    use crate::wire::{Channel, Message};

    pub const CLIENT: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

    /// Time stamps of the samples: one a second from the beginning of 2026.
    fn record(seq: u64, body: Body) -> Record {
        Record {
            seq,
            time: 1_767_225_600_000_000 + seq * 1_000_000,
            heard: 0,
            body,
        }
    }

    pub fn message(msg_type: &str, msg_id: &str, content: impl Into<Bytes>) -> Message {
        Message {
            identities: vec![Bytes::from(format!("kernel.{msg_type}"))],
            header: Bytes::from(format!(
                r#"{{"msg_id":"{msg_id}","msg_type":"{msg_type}","session":"s"}}"#
            )),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(br#"{"cellId":"cell-1"}"#),
            content: content.into(),
            buffers: Vec::new(),
        }
    }

    pub fn note(seq: u64, note: Note) -> Record {
        record(seq, Body::Note(note))
    }

    pub fn request(seq: u64, n: u64, code: &str) -> Record {
        let content = serde_json::json!({ "code": code }).to_string();
        let message = message("execute_request", &format!("request-{n}"), content);
        record(
            seq,
            Body::Request {
                channel: Channel::Shell,
                client: CLIENT,
                execution: n,
                message,
            },
        )
    }

    pub fn reply(seq: u64, n: u64) -> Record {
        let message = message("execute_reply", &format!("reply-{n}"), r#"{"status":"ok"}"#);
        record(
            seq,
            Body::Reply {
                channel: Channel::Shell,
                client: CLIENT,
                execution: n,
                message,
            },
        )
    }

    pub fn input(seq: u64, n: u64, count: u64) -> Record {
        let content = format!(r#"{{"code":"","execution_count":{count}}}"#);
        let message = message("execute_input", &format!("input-{n}"), content);
        record(
            seq,
            Body::Iopub {
                client: None,
                execution: n,
                message,
            },
        )
    }

    pub fn output(seq: u64, n: u64, text: impl Into<Bytes>) -> Record {
        record(
            seq,
            Body::Iopub {
                client: None,
                execution: n,
                message: message("stream", "output", text),
            },
        )
    }

    pub fn state(seq: u64, n: u64, state: ExecutionState) -> Record {
        let msg_id = format!("request-{n}");
        note(
            seq,
            Note::Execution {
                n,
                msg_id,
                state,
                reason: None,
            },
        )
    }

    pub fn checkpoint(seq: u64) -> Record {
        note(
            seq,
            Note::Checkpoint {
                state: serde_json::json!({ "at": seq }),
            },
        )
    }
}

use samples::{checkpoint, output, request};

fn outputs(seqs: Range<u64>) -> Vec<Record> {
    seqs.map(|seq| output(seq, 1, format!("output {seq}")))
        .collect()
}

fn open(dir: &Path) -> (Writer, Recovered) {
    Writer::open(dir, WriterOptions::default()).unwrap()
}

/// All records in `dir`, and the seqs of those that are missing.
pub(crate) fn read_all(dir: &Path) -> (Vec<Record>, Vec<u64>) {
    let mut reader = crate::journal::Reader::open(dir, 1).unwrap();
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return (records, gaps);
        }
        for item in batch {
            match item {
                crate::journal::Item::Record(record, _) => records.push((*record).clone()),
                crate::journal::Item::Gap(gap) => gaps.extend(gap.missing),
            }
        }
    }
}

#[test]
fn what_was_appended_is_read_and_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, recovered) = open(dir.path());
    assert_eq!((recovered.next_seq, recovered.after.len()), (1, 0));
    let mut records = vec![request(1, 1, "pass"), checkpoint(2)];
    records.extend(outputs(3..10));
    records.push(output(10, 1, vec![b'x'; 200_000]));
    let positions = writer.append(&records).unwrap();
    drop(writer);

    assert_eq!(read_all(dir.path()), (records.clone(), vec![]));
    let mut reader = crate::journal::Reader::open(dir.path(), 1).unwrap();
    assert_eq!(
        reader.read_at(positions[9]).unwrap().as_ref(),
        Some(&records[9])
    );
    assert_eq!(
        reader.read_at(positions[0]).unwrap().as_ref(),
        Some(&records[0])
    );

    let (writer, recovered) = open(dir.path());
    assert_eq!(
        (recovered.next_seq, recovered.cut_bytes, writer.next_seq()),
        (11, 0, 11)
    );
    assert_eq!(recovered.checkpoint, Some(serde_json::json!({ "at": 2 })));
    let seqs: Vec<_> = recovered
        .after
        .iter()
        .map(|r| (r.record.seq, r.whole))
        .collect();
    assert_eq!(
        seqs,
        (3..11).map(|seq| (seq, seq != 10)).collect::<Vec<_>>()
    );
    assert_eq!(recovered.after[0].record, records[2]);
    assert_eq!(recovered.after[7].position, positions[9]);
}

#[test]
fn folder_and_files_are_the_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new");
    let (_writer, _) = open(&dir);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&segments::path(&dir, 1))), (0o700, 0o600));
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let records = [request(1, 1, "pass"), output(2, 1, "text"), checkpoint(3)];
    let (mut writer, _) = open(dir.path());
    let positions = writer.append(&records).unwrap();
    drop(writer);
    let path = segments::path(dir.path(), 1);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let ends = positions.iter().map(|p| (p.offset + p.length) as usize);
        let kept = ends.clone().filter(|&end| end <= length).count();
        assert_eq!(
            read_all(dir.path()),
            (records[..kept].to_vec(), vec![]),
            "cut at {length}"
        );

        let (mut writer, recovered) = open(dir.path());
        let end = ends
            .filter(|&end| end <= length)
            .max()
            .unwrap_or(HEADER_BYTES as usize);
        let cut = length.saturating_sub(end);
        if length >= HEADER_BYTES as usize {
            assert_eq!(
                (recovered.next_seq, recovered.cut_bytes),
                (kept as u64 + 1, cut as u64)
            );
        }
        let next = output(writer.next_seq(), 1, "next");
        writer.append(std::slice::from_ref(&next)).unwrap();
        let mut expected = records[..kept].to_vec();
        expected.push(next);
        assert_eq!(read_all(dir.path()), (expected, vec![]), "cut at {length}");
        let _ = std::fs::remove_file(segments::path(dir.path(), 2));
    }
}

#[test]
fn a_tail_that_a_power_cut_filled_with_zeros_is_left_alone_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let records = outputs(1..4);
    let (mut writer, _) = open(dir.path());
    let last = writer.append(&records).unwrap()[2];
    drop(writer);
    let path = segments::path(dir.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    // The last record's frame and head reached the disk, its payload did not; nor what came behind it.
    let from = bytes.len() - 5;
    bytes[from..].fill(0);
    bytes.extend([0; 10_000]);
    std::fs::write(&path, &bytes).unwrap();
    let (mut writer, recovered) = open(dir.path());
    // The record with seq 3 may have been seen, and more than that: none of those numbers comes again.
    let next = recovered.next_seq;
    assert!(next > 3 + 10_000 / last.length, "{next}");
    assert_eq!(recovered.cut_bytes, 0);
    let more = outputs(next..next + 2);
    writer.append(&more).unwrap();
    let kept: Vec<_> = records[..2].iter().chain(&more).cloned().collect();
    let (read, gaps) = read_all(dir.path());
    assert_eq!(read, kept);
    assert!(!gaps.is_empty());
}

/// Its length says that it was whole once.
#[test]
fn a_damaged_last_record_is_told_of_and_its_seq_is_not_used_again() {
    for at in [1, 30, 90] {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = open(dir.path());
        let last = writer.append(&outputs(1..4)).unwrap()[2];
        drop(writer);
        let path = segments::path(dir.path(), 1);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[(last.offset + at) as usize] ^= 0x40;
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = crate::journal::Reader::open(dir.path(), 1).unwrap();
        let mut seen = 0;
        while let items = reader.next_batch(1 << 20).unwrap()
            && !items.is_empty()
        {
            seen += items.len();
        }
        // A damaged payload is seen at once, a damaged head only when nobody can be writing it.
        let tail = reader.damaged_tail().unwrap();
        assert_eq!(seen + usize::from(tail.is_some()), 3, "{at}");
        let (mut writer, recovered) = open(dir.path());
        assert!(recovered.next_seq > 3, "{at}");
        let next = recovered.next_seq;
        writer.append(&outputs(next..next + 1)).unwrap();
        let (read, gaps) = read_all(dir.path());
        assert_eq!(read.len(), 3);
        assert!(!gaps.is_empty(), "{at}");
    }
}

#[test]
fn segments_roll_and_recovery_begins_at_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        segment_bytes: 1000,
        ..WriterOptions::default()
    };
    let (mut writer, _) = Writer::open(dir.path(), options).unwrap();
    let mut records = Vec::new();
    for seq in 1..40 {
        let record = if writer.wants_checkpoint() {
            checkpoint(seq)
        } else {
            output(seq, 1, "text")
        };
        writer.append(std::slice::from_ref(&record)).unwrap();
        records.push(record);
    }
    drop(writer);
    let numbers = segments::list(dir.path()).unwrap();
    assert!(numbers.len() > 3, "{numbers:?}");
    assert_eq!(read_all(dir.path()), (records.clone(), vec![]));

    let last = records
        .iter()
        .rev()
        .find(|record| is_checkpoint(record))
        .unwrap()
        .seq;
    let (writer, recovered) = Writer::open(dir.path(), options).unwrap();
    assert_eq!(
        recovered.checkpoint,
        Some(serde_json::json!({ "at": last }))
    );
    let after: Vec<_> = recovered.after.iter().map(|r| r.record.seq).collect();
    assert_eq!(after, (last + 1..40).collect::<Vec<_>>());
    assert_eq!(writer.next_seq(), 40);

    // A host that died between the roll and its checkpoint.
    drop(writer);
    let (mut writer, _) = Writer::open(dir.path(), options).unwrap();
    let mut seq = 40;
    while !writer.wants_checkpoint() {
        writer.append(&[output(seq, 1, "text")]).unwrap();
        seq += 1;
    }
    drop(writer);
    let (writer, recovered) = Writer::open(dir.path(), options).unwrap();
    assert!(writer.wants_checkpoint());
    assert_eq!(
        recovered.checkpoint,
        Some(serde_json::json!({ "at": last }))
    );
    assert_eq!(
        (recovered.next_seq, recovered.after.len() as u64),
        (seq, seq - last - 1)
    );
}

#[test]
fn a_checkpoint_is_also_wanted_after_much_output() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(dir.path());
    writer
        .append(&[output(1, 1, vec![0; CHECKPOINT_BYTES as usize - 1000])])
        .unwrap();
    assert!(!writer.wants_checkpoint());
    writer.append(&[output(2, 1, vec![0; 1000])]).unwrap();
    assert!(writer.wants_checkpoint());
    drop(writer);
    let (mut writer, _) = open(dir.path());
    assert!(writer.wants_checkpoint());
    writer.append(&[checkpoint(3)]).unwrap();
    assert!(!writer.wants_checkpoint());
}

#[test]
fn a_full_disk_loses_the_records_it_refused_and_no_others() {
    let records = outputs(1..9);
    let size = records
        .iter()
        .map(|record| codec::encode(record).concat().len())
        .sum::<usize>();
    for cut_fails in [false, true] {
        // Not a divisor of anything, so that all sorts of places are hit.
        for bytes_left in (0..size).step_by(7) {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, _) = open(dir.path());
            writer.append(&records[..2]).unwrap();
            let Tail::Good(segment) = &mut writer.tail else {
                panic!("broken")
            };
            segment.fault = Some(Fault {
                bytes_left,
                cut_fails,
            });
            let result = writer.append(&records[2..4]);
            let Tail::Good(segment) = &mut writer.tail else {
                // The next append goes to a new segment.
                assert!(cut_fails && result.is_err());
                writer.append(&records[4..6]).unwrap();
                assert_eq!(segments::list(dir.path()).unwrap(), [1, 2]);
                assert!(writer.wants_checkpoint());
                let (read, gaps) = read_all(dir.path());
                let kept: Vec<_> = read.iter().map(|record| record.seq).collect();
                // Those that were written whole before the disk was full cannot be taken back.
                let extra = gaps.first().map_or(2, |gap| gap - 3);
                assert_eq!(kept, (1..3 + extra).chain(5..7).collect::<Vec<_>>());
                assert_eq!(gaps, (3 + extra..5).collect::<Vec<_>>());
                continue;
            };
            segment.fault = None;
            let lost = result.is_err();
            writer.append(&records[4..6]).unwrap();
            let (read, gaps) = read_all(dir.path());
            if lost {
                assert_eq!(read, [&records[..2], &records[4..6]].concat());
                assert_eq!(gaps, [3, 4]);
            } else {
                assert_eq!((read.as_slice(), gaps.len()), (&records[..6], 0));
            }
            drop(writer);
            assert_eq!(open(dir.path()).1.next_seq, 7);
        }
    }
}

#[test]
fn seqs_must_ascend_and_may_have_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(dir.path());
    writer.append(&outputs(1..3)).unwrap();
    let kind = |result: io::Result<Vec<Position>>| result.unwrap_err().kind();
    assert_eq!(
        kind(writer.append(&outputs(2..3))),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(writer.append(&[outputs(4..5), outputs(4..5)].concat())),
        io::ErrorKind::InvalidInput
    );
    writer.append(&outputs(5..6)).unwrap();
    assert_eq!(
        read_all(dir.path()),
        ([outputs(1..3), outputs(5..6)].concat(), vec![3, 4])
    );
}

#[test]
fn more_pieces_than_one_system_call_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(dir.path());
    // Two pieces each, and IOV_MAX is 1024.
    let records: Vec<_> = (1..2000)
        .map(|seq| output(seq, 1, vec![seq as u8; COPY_PART_BYTES + 1]))
        .collect();
    writer.append(&records).unwrap();
    assert_eq!(read_all(dir.path()), (records, vec![]));
}

#[test]
fn numbers_of_what_was_not_kept_are_nobody_elses_in_the_next_process_either() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(dir.path());
    writer.append(&outputs(1..3)).unwrap();
    let Tail::Good(segment) = &mut writer.tail else {
        panic!("broken")
    };
    segment.fault = Some(Fault {
        bytes_left: 0,
        cut_fails: false,
    });
    for seqs in [3..6, 6..8] {
        writer.append(&outputs(seqs)).unwrap_err();
    }
    drop(writer);
    let (mut writer, recovered) = open(dir.path());
    assert_eq!(recovered.next_seq, 8);
    assert!(recovered.unkept_since.is_some());
    writer.append(&outputs(8..9)).unwrap();
    writer.told_of_unkept();
    drop(writer);
    assert_eq!(read_all(dir.path()).1, [3, 4, 5, 6, 7]);
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.next_seq, recovered.unkept_since), (9, None));
}

#[test]
fn a_file_of_a_farside_before_that_says_only_since_when() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::write(dir.path().join("unkept"), 17_u64.to_le_bytes()).unwrap();
    let (_, recovered) = open(dir.path());
    assert_eq!((recovered.next_seq, recovered.unkept_since), (1, Some(17)));
}

#[test]
fn a_segment_whose_name_is_not_on_the_disk_keeps_nothing_and_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        segment_bytes: 400,
        sync: true,
    };
    let (mut writer, _) = Writer::open(dir.path(), options).unwrap();
    let mut seq = 1;
    while writer.segment() == 1 {
        writer.append(&[output(seq, 1, "text")]).unwrap();
        seq += 1;
    }
    // Cannot be synced.
    writer.folder = Some(File::open("/dev/null").unwrap());
    writer.append(&[output(seq, 1, "text")]).unwrap_err();
    assert_eq!(writer.segment(), 2);
    writer.folder = None;
    writer.append(&[output(seq + 1, 1, "text")]).unwrap();
    let (read, gaps) = read_all(dir.path());
    assert_eq!(read.last().unwrap().seq, seq + 1);
    assert_eq!(gaps, [seq]);
}
