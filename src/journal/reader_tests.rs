use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::journal::record::{Body, ExecutionState};
use crate::journal::segments;
use crate::journal::writer::tests::read_all;
use crate::journal::writer::tests::samples::{
    checkpoint, input, note, output, reply, request, state,
};
use crate::journal::{Writer, WriterOptions};

fn open(dir: &Path) -> Writer {
    Writer::open(dir, WriterOptions::default()).unwrap().0
}

fn outputs(seqs: Range<u64>) -> Vec<Record> {
    seqs.map(|seq| output(seq, 1, format!("output {seq}")))
        .collect()
}

fn seqs(items: &[Item]) -> Vec<u64> {
    items
        .iter()
        .map(|item| match item {
            Item::Record(record, _) => record.seq,
            Item::Gap(gap) => panic!("{gap:?}"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is damaged: the records that were not hit are all read, in order, those that were are reported, and
    /// nothing is read that was not written.
    #[test]
    fn damage_costs_only_the_records_it_hits(
        mut records in prop::collection::vec(crate::journal::codec::tests::record(), 2..30),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (record, seq) in records.iter_mut().zip(1..) {
            record.seq = seq;
        }
        // So that everything else lies in the middle.
        let end = records.len() as u64 + 1;
        records.push(checkpoint(end));
        let positions = open(dir.path()).append(&records).unwrap();
        let last = *positions.last().unwrap();
        let file = OpenOptions::new().read(true).write(true).open(segments::path(dir.path(), 1)).unwrap();
        let mut bytes = vec![0; last.offset as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let before = bytes.clone();
        for (at, flip) in &damage {
            let at = 32 + at.index(bytes.len() - 32);
            bytes[at] ^= flip;
        }
        file.write_all_at(&bytes, 0).unwrap();

        let untouched = |position: &Position| {
            let range = position.offset as usize..((position.offset + position.length) as usize).min(bytes.len());
            before[range.clone()] == bytes[range]
        };
        let (intact, hit): (Vec<_>, Vec<_>) = records.iter().zip(&positions).partition(|(_, p)| untouched(p));
        let (read, gaps) = read_all(dir.path());
        prop_assert_eq!(&read, &intact.into_iter().map(|(record, _)| record.clone()).collect::<Vec<_>>());
        prop_assert_eq!(gaps, hit.into_iter().map(|(record, _)| record.seq).collect::<Vec<_>>());
    }
}

#[test]
fn journal_bytes_in_an_output_are_not_taken_for_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let first = writer.append(&outputs(1..20)).unwrap()[18];
    let printed = std::fs::read(segments::path(dir.path(), 1)).unwrap();
    let position = writer
        .append(&[output(20, 1, printed), output(21, 1, "last")])
        .unwrap()[0];
    assert!(first.offset < position.offset);
    let file = OpenOptions::new()
        .write(true)
        .open(segments::path(dir.path(), 1))
        .unwrap();
    // Its length: the reader has to search through it.
    file.write_all_at(&[0xFF], position.offset + 16).unwrap();
    let expected = [outputs(1..20), vec![output(21, 1, "last")]].concat();
    assert_eq!(read_all(dir.path()), (expected, vec![20]));
}

#[test]
fn a_damaged_segment_header_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        segment_bytes: 1,
        ..WriterOptions::default()
    };
    let (mut writer, _) = Writer::open(dir.path(), options).unwrap();
    for record in outputs(1..5) {
        writer.append(&[record]).unwrap();
    }
    let file = OpenOptions::new()
        .write(true)
        .open(segments::path(dir.path(), 2))
        .unwrap();
    file.write_all_at(b"garbage", 3).unwrap();
    assert_eq!(read_all(dir.path()), (outputs(1..5), vec![]));
    for from in 1..5 {
        let items = Reader::open(dir.path(), from)
            .unwrap()
            .next_batch(usize::MAX)
            .unwrap();
        assert_eq!(seqs(&items), (from..5).collect::<Vec<_>>());
    }
}

#[test]
fn a_segment_of_a_newer_format_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = segments::path(dir.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Reader::open(dir.path(), 1).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("use the newer farside"),
        "{error}"
    );
    assert!(Writer::open(dir.path(), WriterOptions::default()).is_err());
}

#[test]
fn a_reader_begins_at_any_seq_and_stops_at_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::open(
        dir.path(),
        WriterOptions {
            segment_bytes: 2000,
            ..WriterOptions::default()
        },
    )
    .unwrap();
    let mut positions = Vec::new();
    for record in outputs(1..50) {
        positions.extend(writer.append(&[record]).unwrap());
    }
    for from in 0..52 {
        let mut reader = Reader::open(dir.path(), from).unwrap();
        let mut read = Vec::new();
        loop {
            let batch = reader.next_batch(500).unwrap();
            assert!(batch.len() < 4);
            if batch.is_empty() {
                break;
            }
            read.extend(seqs(&batch));
        }
        assert_eq!(read, (from.max(1)..50).collect::<Vec<_>>());
    }
    let items = Reader::open_at(dir.path(), positions[30])
        .unwrap()
        .next_batch(usize::MAX)
        .unwrap();
    assert_eq!(seqs(&items), (31..50).collect::<Vec<_>>());
    assert_eq!(
        items[0],
        Item::Record(Arc::new(outputs(31..32).remove(0)), positions[30])
    );

    // A file that someone took away.
    std::fs::remove_file(segments::path(dir.path(), 2)).unwrap();
    let (read, gaps) = read_all(dir.path());
    assert!(!gaps.is_empty());
    assert_eq!(read.len() + gaps.len(), 49);
}

#[test]
fn a_reader_may_come_before_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("not yet");
    let mut reader = Reader::open(&journal, 1).unwrap();
    assert!(reader.next_batch(1).unwrap().is_empty());
    open(&journal).append(&outputs(1..2)).unwrap();
    assert_eq!(seqs(&reader.next_batch(1).unwrap()), [1]);
}

#[test]
fn a_reader_follows_a_writer_through_torn_tails_and_new_segments() {
    let dir = tempfile::tempdir().unwrap();
    let size = |seq: u64| {
        if seq.is_multiple_of(100) {
            700_000
        } else {
            10 + seq as usize % 5000
        }
    };
    let content = move |seq: u64| vec![seq as u8; size(seq)];
    let path = dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        let (mut writer, _) = Writer::open(
            &path,
            WriterOptions {
                segment_bytes: 300_000,
                ..WriterOptions::default()
            },
        )
        .unwrap();
        let mut seq = 1;
        while seq <= 2000 {
            let batch: Vec<_> = (seq..=seq + seq % 7)
                .map(|seq| output(seq, 1, content(seq)))
                .collect();
            seq += batch.len() as u64;
            writer.append(&batch).unwrap();
        }
    });
    let mut reader = Reader::open(dir.path(), 1).unwrap();
    let mut expected = 1;
    while expected <= 2000 {
        for item in reader.next_batch(100_000).unwrap() {
            let Item::Record(record, _) = item else {
                panic!("{item:?} after {expected}")
            };
            assert_eq!(*record, output(expected, 1, content(expected)));
            expected += 1;
        }
        std::thread::yield_now();
    }
    writer.join().unwrap();
}

/// What is half written when a reader looks at it may be whole, with more behind it, when the reader looks on.
#[test]
fn a_record_that_is_written_under_a_readers_eyes_is_not_damaged() {
    const RECORDS: u64 = 20_000;
    let source = tempfile::tempdir().unwrap();
    open(source.path())
        .append(&outputs(1..RECORDS + 1))
        .unwrap();
    let bytes = std::fs::read(segments::path(source.path(), 1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = segments::path(dir.path(), 1);
    std::fs::write(&path, &bytes[..32]).unwrap();
    let writer = std::thread::spawn(move || {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        // Ends within frames, within heads, and now and then a whole record behind them.
        for (at, piece) in (32..).step_by(50).zip(bytes[32..].chunks(50)) {
            file.write_all_at(piece, at).unwrap();
        }
    });
    let mut reader = Reader::open(dir.path(), 1).unwrap();
    let mut expected = 1;
    while expected <= RECORDS {
        for seq in seqs(&reader.next_batch(100_000).unwrap()) {
            assert_eq!(seq, expected);
            expected += 1;
        }
    }
    writer.join().unwrap();
}

/// An append fails in its middle (disk full), a reader has already seen its first record, and the writer cuts it
/// off: the reader's place is then inside, or behind, other records of later appends.
#[test]
fn a_reader_finds_its_feet_after_a_cut() {
    for (cut, then) in [(3..5, 5..9), (3..9, 9..11), (3..4, 4..5)] {
        for same_size in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = open(dir.path());
            writer.append(&outputs(1..3)).unwrap();
            let path = segments::path(dir.path(), 1);
            let length = std::fs::metadata(&path).unwrap().len();
            writer.append(&outputs(cut.clone())).unwrap();
            let mut reader = Reader::open(dir.path(), 1).unwrap();
            assert_eq!(
                reader.next_batch(usize::MAX).unwrap().len() as u64,
                cut.end - 1
            );
            drop(writer);

            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap();
            let later: Vec<_> = then
                .clone()
                .map(|seq| {
                    output(
                        seq,
                        1,
                        if same_size {
                            format!("output {seq}")
                        } else {
                            "o".into()
                        },
                    )
                })
                .collect();
            let mut writer = open(dir.path());
            // Those that recovery does not know of are used up.
            writer.append(&later).unwrap();
            let items = reader.next_batch(usize::MAX).unwrap();
            assert_eq!(
                seqs(&items),
                then.clone().collect::<Vec<_>>(),
                "cut {cut:?}, {same_size}"
            );
        }
    }
}

#[test]
fn outputs_of_one_execution_are_picked_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut to_one = output(9, 2, "for one client");
    let Body::Iopub { client, .. } = &mut to_one.body else {
        panic!("not iopub")
    };
    *client = Some(crate::journal::writer::tests::samples::CLIENT);
    let records = vec![
        request(1, 1, "a"),
        request(2, 2, "b"),
        state(3, 1, ExecutionState::Running),
        input(4, 1, 1),
        output(5, 1, vec![b'x'; 2 << 20]),
        reply(6, 1),
        input(7, 2, 2),
        output(8, 2, vec![b'y'; 1 << 20]),
        to_one,
        output(10, 1, "late"),
        output(11, 2, "end"),
        note(
            12,
            crate::journal::record::Note::SessionEnded {
                reason: "idle".into(),
            },
        ),
    ];
    let positions = open(dir.path()).append(&records).unwrap();
    let pick = |n, from: usize, until| {
        let outputs = Outputs::open(dir.path(), n, positions[from], until).unwrap();
        let items: Vec<_> = outputs.map(Result::unwrap).collect();
        for (item, seq) in items.iter().zip(seqs(&items)) {
            assert_eq!(
                *item,
                Item::Record(
                    Arc::new(records[seq as usize - 1].clone()),
                    positions[seq as usize - 1]
                )
            );
        }
        seqs(&items)
    };
    assert_eq!(pick(1, 0, u64::MAX), [4, 5, 10]);
    assert_eq!(pick(2, 1, u64::MAX), [7, 8, 11]);
    assert_eq!(pick(2, 1, 8), [7, 8]);
    assert_eq!(pick(2, 7, 10), [8]);
    assert_eq!(pick(3, 0, 12), [] as [u64; 0]);
}
