use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;
use serde_json::json;

use super::plan::UNOWNED;
use super::*;
use crate::host::log::Log;
use crate::journal::record::{Body, ExecutionState, Note, Record};
use crate::journal::writer::tests::samples::{
    CLIENT, checkpoint, input, note, reply, request, state,
};
use crate::journal::{
    ExecutionInfo, Filter, Index, IndexError, Item, Outputs, Places, Reader, Selector, View,
    Writer, WriterOptions,
};
use crate::session::outputs::{Replayed, compact};
use crate::wire::Message;

/// Small enough that executions lie in several.
const SEGMENT_BYTES: u64 = 8_000;

/// What one step of a made-up session writes.
#[derive(Clone, Copy, Debug)]
enum Write {
    /// An execution begins, and the one before is over.
    Next,
    /// Outputs, of the execution that runs or (a thread that it left behind) of the one before.
    Prints {
        of_before: bool,
        count: u16,
        size: u16,
    },
    Progress {
        count: u16,
    },
    Image {
        size: u16,
    },
    Clears,
    Checkpoint,
    /// Much in one message.
    Large {
        size: u16,
    },
}

/// So many lines of that many characters and a few more.
fn prints(count: u16, size: u16) -> Write {
    Write::Prints {
        of_before: false,
        count,
        size,
    }
}

fn output(seq: u64, n: u64, msg_type: &str, content: serde_json::Value) -> Record {
    let Record { time, .. } = note(seq, Note::Interrupted);
    let parent = json!({ "msg_id": format!("request-{n}"), "msg_type": "execute_request" });
    let header = json!({ "msg_id": format!("output-{seq}"), "msg_type": msg_type, "session": "s" });
    let message = Message {
        identities: vec![format!("kernel.{msg_type}").into()],
        header: header.to_string().into(),
        parent_header: parent.to_string().into(),
        metadata: "{}".into(),
        content: content.to_string().into(),
        buffers: Vec::new(),
    };
    let body = Body::Iopub {
        client: None,
        execution: n,
        message,
    };
    Record {
        seq,
        time,
        heard: 0,
        body,
    }
}

/// The records of a session; the last execution runs still.
fn session(writes: &[Write]) -> Vec<Record> {
    let mut records = vec![note(
        1,
        Note::SessionStarted {
            id: "s1".into(),
            name: "notes".into(),
            engine: "python3".into(),
        },
    )];
    let mut n = 0;
    let push = |records: &mut Vec<Record>, make: &dyn Fn(u64) -> Record| {
        let seq = records.last().map_or(1, |record| record.seq + 1);
        records.push(make(seq));
    };
    for (step, write) in std::iter::once(&Write::Next).chain(writes).enumerate() {
        let stream = |n: u64, text: String| {
            move |seq| output(seq, n, "stream", json!({ "name": "stdout", "text": text }))
        };
        match *write {
            Write::Next => {
                if n > 0 {
                    push(&mut records, &|seq| reply(seq, n));
                    push(&mut records, &|seq| {
                        output(seq, n, "status", json!({ "execution_state": "idle" }))
                    });
                    push(&mut records, &|seq| state(seq, n, ExecutionState::Ok));
                }
                n += 1;
                push(&mut records, &|seq| request(seq, n, "print()"));
                push(&mut records, &|seq| state(seq, n, ExecutionState::Running));
                push(&mut records, &|seq| input(seq, n, n));
            }
            Write::Prints {
                of_before,
                count,
                size,
            } => {
                for line in 0..count {
                    let text = format!("{step}-{line}{}\n", "x".repeat(usize::from(size)));
                    let n = if of_before && line % 3 == 0 {
                        (n - 1).max(1)
                    } else {
                        n
                    };
                    push(&mut records, &stream(n, text));
                }
            }
            Write::Progress { count } => {
                for update in 0..count {
                    push(&mut records, &stream(n, format!("\r{update:5} {step}")));
                }
            }
            Write::Image { size } => push(&mut records, &|seq| {
                let data = json!({ "image/png": "A".repeat(usize::from(size)) });
                output(
                    seq,
                    n,
                    "display_data",
                    json!({ "data": data, "metadata": {} }),
                )
            }),
            Write::Clears => push(&mut records, &|seq| {
                output(seq, n, "clear_output", json!({ "wait": step % 2 == 0 }))
            }),
            Write::Checkpoint => push(&mut records, &checkpoint),
            Write::Large { size } => {
                let text = "\nx".repeat(usize::from(size) / 2);
                push(&mut records, &stream(n, format!("{step}{text}\nend\n")));
            }
        }
    }
    records
}

fn write(dir: &Path, records: &[Record]) -> Writer {
    let options = WriterOptions {
        segment_bytes: SEGMENT_BYTES,
        ..WriterOptions::default()
    };
    let (mut writer, _) = Writer::open(dir, options).unwrap();
    for batch in records.chunks(20) {
        writer.append(batch).unwrap();
    }
    writer
}

/// Everything that a reader gets.
fn items(dir: &Path) -> Vec<Item> {
    let mut reader = Reader::open(dir, 1).unwrap();
    let mut all = Vec::new();
    loop {
        let items = reader.next_batch(50_000).unwrap();
        if items.is_empty() {
            return all;
        }
        all.extend(items);
    }
}

/// The same, which must have no gap.
fn read(dir: &Path) -> Vec<Record> {
    let record = |item| match item {
        Item::Record(record, _) => Record::clone(&record),
        Item::Gap(gap) => panic!("{gap:?}"),
    };
    items(dir).into_iter().map(record).collect()
}

/// The same, without the gaps.
fn read_whole(dir: &Path) -> Vec<Record> {
    let record = |item| match item {
        Item::Record(record, _) => Some(Record::clone(&record)),
        Item::Gap(_) => None,
    };
    items(dir).into_iter().filter_map(record).collect()
}

/// What a cell that is attached to each execution shows.
fn shown(records: &[Record]) -> BTreeMap<u64, Vec<Replayed>> {
    let mut outputs: BTreeMap<u64, Vec<Message>> = BTreeMap::new();
    for record in records {
        if let Body::Iopub {
            client: None,
            execution,
            message,
        } = &record.body
        {
            outputs.entry(*execution).or_default().push(message.clone());
        }
    }
    let compacted = |messages: Vec<Message>| compact(&messages, Limits::default(), "hint");
    (outputs.into_iter())
        .map(|(n, messages)| (n, compacted(messages)))
        .collect()
}

/// The contents of what an execution said (`None`: any), one behind the other.
fn said(records: &[Record], of: Option<u64>) -> String {
    let contents = records.iter().filter_map(|record| match &record.body {
        Body::Iopub {
            client: None,
            execution,
            message,
        } if of.is_none_or(|n| n == *execution) => Some(&message.content),
        _ => None,
    });
    contents
        .map(|content| String::from_utf8_lossy(content))
        .collect()
}

/// What is no output of an execution, and so must stay as it is.
fn others(records: &[Record]) -> Vec<Record> {
    let is_other = |record: &&Record| match &record.body {
        Body::Note(Note::Compacted { .. } | Note::Checkpoint { .. }) => false,
        Body::Iopub { message, .. } => segment::is_frame(message),
        Body::Request { .. } | Body::Reply { .. } | Body::Note(_) => true,
    };
    records.iter().filter(is_other).cloned().collect()
}

/// The index's rows, without the places.
fn rows(executions: Vec<ExecutionInfo>) -> Vec<ExecutionInfo> {
    let bare = |info| ExecutionInfo {
        places: Places::default(),
        ..info
    };
    executions.into_iter().map(bare).collect()
}

fn check_index(dir: &Path, index: &Index, before: &[ExecutionInfo]) {
    let now = index.executions(&Filter::default()).unwrap();
    assert_eq!(rows(now.clone()), rows(before.to_vec()));
    let viewed = View::open(dir).unwrap().executions(&Filter::default());
    assert_eq!(viewed, now);
    let whole = std::fs::rename(dir.join("index.sqlite"), dir.join("aside"));
    let from_log = View::open(dir).unwrap().executions(&Filter::default());
    if whole.is_ok() {
        std::fs::rename(dir.join("aside"), dir.join("index.sqlite")).unwrap();
    }
    assert_eq!(
        rows(from_log),
        rows(before.to_vec()),
        "made anew from the log"
    );
    let mut reader = Reader::open(dir, 1).unwrap();
    for info in now {
        let places = info.places;
        let at = |position| reader.read_at(position).unwrap().map(|record| record.body);
        let mut at = at;
        let is_request = matches!(places.request.and_then(&mut at), Some(Body::Request { execution, .. }) if execution == info.n);
        assert!(is_request, "{places:?}");
        if let Some(position) = places.reply {
            let is_reply = matches!(at(position), Some(Body::Reply { execution, client, .. }) if execution == info.n && client == CLIENT);
            assert!(is_reply, "{places:?}");
        }
        for position in [places.start, places.last].into_iter().flatten() {
            assert!(at(position).is_some(), "{places:?}");
        }
    }
}

/// A worker over `dir`, without a host around it.
fn worker(dir: &Path, bound: u64, replace: Replace) -> Worker {
    let journal = tempfile::tempdir().unwrap();
    // A log of its own: only its readers' places count.
    let (writer, _) = Writer::open(journal.path(), WriterOptions::default()).unwrap();
    Worker {
        dir: dir.to_owned(),
        bound,
        tail: Log::new(writer, journal.path(), 0, None).tail(),
        replace,
        hurry: Box::new(|| {}),
        stop: Arc::default(),
        step_bytes,
        survey: Survey::new(dir),
        done: HashMap::new(),
        steps: 0,
        again_at: 0,
        waits_for: None,
    }
}

/// What the index thread does.
fn with_index(dir: &Path) -> (Arc<Mutex<Index>>, Replace) {
    let mut index = Index::open(dir).unwrap();
    index.catch_up().unwrap();
    let index = Arc::new(Mutex::new(index));
    let shared = index.clone();
    let replace = move |prepared: Prepared, _, _| {
        let mut index = shared.lock().unwrap();
        index
            .replace(&prepared, Prepared::commit)
            .map_err(io::Error::other)?;
        prepared.clean().map(|()| true)
    };
    (index, Box::new(replace))
}

fn a_write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => Just(Write::Next),
        4 => (any::<bool>(), 1u16..40, 0u16..200)
            .prop_map(|(of_before, count, size)| Write::Prints { of_before, count, size }),
        2 => (1u16..60).prop_map(|count| Write::Progress { count }),
        2 => (1u16..9000).prop_map(|size| Write::Image { size }),
        1 => Just(Write::Clears),
        1 => Just(Write::Checkpoint),
        1 => (1000u16..60_000).prop_map(|size| Write::Large { size }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// Whatever a session wrote: compacted as a replay shows it, every cell shows the same as before, all other records
    /// are the same, nothing counts as lost, and index, view and a rebuilt index agree.
    #[test]
    fn compacted_outputs_show_the_same(writes in prop::collection::vec(a_write(), 5..40), in_steps in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let records = session(&writes);
        drop(write(dir.path(), &records));
        let (index, replace) = with_index(dir.path());
        let before = index.lock().unwrap().executions(&Filter::default()).unwrap();
        let bytes = segments::total_bytes(dir.path()).unwrap();
        let mut worker = worker(dir.path(), 1, replace);
        if in_steps {
            worker.step_bytes = |_, _| 2 * SEGMENT_BYTES;
        }
        worker.compact(Wanted::Over, 1).unwrap();
        worker.compact(Wanted::GoingOn { bytes_min: 0 }, 1).unwrap();
        let now = read(dir.path());
        prop_assert!(segments::total_bytes(dir.path()).unwrap() <= bytes);
        prop_assert_eq!(others(&now), others(&records));
        prop_assert_eq!(shown(&now), shown(&records));
        check_index(dir.path(), &index.lock().unwrap(), &before);
        // Further rounds have nothing to do, but for what is in one segment now and was in several.
        let round = |worker: &mut Worker| {
            worker.compact(Wanted::Over, 1).unwrap();
            worker.compact(Wanted::GoingOn { bytes_min: 0 }, 1).unwrap();
            read(dir.path())
        };
        let second = round(&mut worker);
        prop_assert_eq!(shown(&second), shown(&records));
        prop_assert!(round(&mut worker) == second);
        // The next host begins anew; it may find a little more where others are smaller now.
        worker.done.clear();
        prop_assert_eq!(shown(&round(&mut worker)), shown(&records));
        check_index(dir.path(), &index.lock().unwrap(), &before);
    }

    /// A host that dies at any moment of it leaves a journal that is as before or compacted, and an index that is right.
    #[test]
    fn dying_in_between_does_no_harm(writes in prop::collection::vec(a_write(), 10..40), moment in 0..4u8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let records = session(&writes);
        drop(write(&path, &records));
        let mut index = Index::open(&path).unwrap();
        index.catch_up().unwrap();
        let before = index.executions(&Filter::default()).unwrap();
        let dies = move |prepared: Prepared, _, _| -> io::Result<bool> {
            let died = || io::Error::other("it died here");
            match moment {
                // The new segment is written, and nothing else.
                0 => {}
                // The index has forgotten its place.
                1 => {
                    let database = rusqlite::Connection::open(path.join("index.sqlite")).unwrap();
                    database.execute("DELETE FROM indexed", []).unwrap();
                }
                // And the segment is in its place.
                2 => {
                    let database = rusqlite::Connection::open(path.join("index.sqlite")).unwrap();
                    database.execute("DELETE FROM indexed", []).unwrap();
                    prepared.commit().unwrap();
                }
                // And the index knows; but the others are still there.
                _ => index.replace(&prepared, Prepared::commit).unwrap(),
            }
            Err(died())
        };
        let mut dying = worker(dir.path(), 1, Box::new(dies));
        let _ = dying.compact(Wanted::Over, 1);
        drop(dying);
        let path = dir.path();
        prop_assert_eq!(shown(&read(path)), shown(&records));
        prop_assert_eq!(others(&read(path)), others(&records));
        let (writer, recovered) = Writer::open(path, WriterOptions::default()).unwrap();
        prop_assert_eq!(recovered.next_seq, records.len() as u64 + 1);
        drop(writer);
        let (index, replace) = with_index(path);
        check_index(path, &index.lock().unwrap(), &before);
        // The next host goes on with it.
        let mut next = worker(path, 1, replace);
        next.compact(Wanted::Over, 1).unwrap();
        prop_assert_eq!(shown(&read(path)), shown(&records));
        check_index(path, &index.lock().unwrap(), &before);
        let left: Vec<_> = std::fs::read_dir(path).unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".seg"))
            .collect();
        prop_assert_eq!(left.len(), segments::list(path).unwrap().len());
    }

    /// Who is in the middle of a segment that is replaced gets the rest of it, or a gap: never less without a word.
    #[test]
    fn a_reader_in_the_middle_is_told(writes in prop::collection::vec(a_write(), 10..40), at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let records = session(&writes);
        drop(write(dir.path(), &records));
        let mut reader = Reader::open(dir.path(), 1).unwrap();
        let mut next = 1;
        let stop_at = 1 + at.index(records.len()) as u64;
        let (_, replace) = with_index(dir.path());
        let mut worker = worker(dir.path(), 1, replace);
        let mut compacted = false;
        let mut told = 0;
        loop {
            if next >= stop_at && !compacted {
                worker.compact(Wanted::Over, 1).unwrap();
                worker.compact(Wanted::GoingOn { bytes_min: 0 }, 1).unwrap();
                compacted = true;
            }
            let items = reader.next_batch(1).unwrap();
            if items.is_empty() {
                break;
            }
            for item in items {
                match item {
                    Item::Record(record, _) => {
                        // What is missing before it was said to be compacted, or lost to this reader.
                        prop_assert!(record.seq >= next);
                        prop_assert!(record.seq == next || told >= record.seq, "{next} to {} without a word", record.seq);
                        next = record.seq + 1;
                        if let Body::Note(Note::Compacted { until, .. }) = record.body {
                            told = until + 1;
                        }
                    }
                    Item::Gap(gap) => {
                        told = gap.missing.end;
                        next = next.max(gap.missing.end);
                    }
                }
            }
        }
        prop_assert_eq!(next, records.len() as u64 + 1);
    }

    /// A session that is compacted again and again while it goes on, this far and that far, by one host or several: all
    /// other records stay, the counts are what was written, and what is known of sealed segments is what is in them.
    #[test]
    fn compacted_while_it_is_written(
        writes in prop::collection::vec(a_write(), 5..60),
        rounds in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..DIVISORS.len(), any::<bool>()), 1..8),
    ) {
        let (dir, raw) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let records = session(&writes);
        let round = |(at, over, divisor, anew): (prop::sample::Index, _, _, _)| (at.index(records.len() + 1), over, divisor, anew);
        let mut rounds: Vec<_> = rounds.into_iter().map(round).collect();
        rounds.push((records.len(), true, 2, false));
        rounds.sort_by_key(|round| round.0);
        let mut writer = write(dir.path(), &[]);
        let (index, replace) = with_index(dir.path());
        let mut worker = worker(dir.path(), 1, replace);
        worker.step_bytes = |_, _| 2 * SEGMENT_BYTES;
        let (mut done, mut is_whole) = (0, true);
        for (at, over, divisor, anew) in rounds {
            for batch in records[done..at].chunks(20) {
                writer.append(batch).unwrap();
            }
            done = at;
            if anew {
                worker.done.clear();
                worker.survey = Survey::new(dir.path());
            }
            let wanted = if over { Wanted::Over } else { Wanted::GoingOn { bytes_min: 0 } };
            worker.compact(wanted, DIVISORS[divisor]).unwrap();
            let mut anew = Survey::new(dir.path());
            anew.update(&worker.stop).unwrap();
            worker.survey.update(&worker.stop).unwrap();
            prop_assert_eq!(format!("{anew:?}"), format!("{:?}", worker.survey));
            let now = read(dir.path());
            prop_assert_eq!(others(&now), others(&records[..done]));
            is_whole &= divisor == 0;
            prop_assert!(!is_whole || shown(&now) == shown(&records[..done]));
        }
        drop(write(raw.path(), &records));
        let (raw_index, _) = with_index(raw.path());
        let before = raw_index.lock().unwrap().executions(&Filter::default()).unwrap();
        index.lock().unwrap().catch_up().unwrap();
        check_index(dir.path(), &index.lock().unwrap(), &before);
    }

    /// What was damaged before it is compacted stays a gap, and costs nothing else.
    #[test]
    fn damaged_records_cost_no_others(
        writes in prop::collection::vec(a_write(), 5..40),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        drop(write(dir.path(), &session(&writes)));
        let (_, replace) = with_index(dir.path());
        let mut worker = worker(dir.path(), 1, replace);
        worker.step_bytes = |_, _| 2 * SEGMENT_BYTES;
        let numbers = segments::list(dir.path()).unwrap();
        for (segment, at, bits) in damage {
            let path = segments::path(dir.path(), *segment.get(&numbers));
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            std::fs::write(&path, bytes).unwrap();
        }
        let before = read_whole(dir.path());
        worker.compact(Wanted::Over, 1).unwrap();
        worker.compact(Wanted::GoingOn { bytes_min: 0 }, 1).unwrap();
        let now = read_whole(dir.path());
        prop_assert_eq!(others(&now), others(&before));
        prop_assert_eq!(shown(&now), shown(&before));
    }
}

fn many(count: usize, write: Write) -> Vec<Write> {
    (0..count).flat_map(|_| [write, Write::Next]).collect()
}

#[test]
fn finished_executions_make_room_first_and_the_end_of_what_runs_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut writes = many(20, prints(1000, 50));
    // And one that runs.
    writes.push(prints(200, 50));
    let records = session(&writes);
    drop(write(dir.path(), &records));
    let bytes = segments::total_bytes(dir.path()).unwrap();
    let (index, replace) = with_index(dir.path());
    let level = bytes / 8;
    let mut worker = worker(dir.path(), 2 * level, replace);
    worker.look().unwrap();
    let after = segments::total_bytes(dir.path()).unwrap();
    assert!(after <= level, "{after} bytes are more than {level}");
    let now = read(dir.path());
    assert_eq!(others(&now), others(&records));
    // What runs was not touched: the others made enough room.
    let (last, before) = (shown(&now), shown(&records));
    assert_eq!(last.last_key_value(), before.last_key_value());
    // The first execution shows head and tail, and a line that says what went.
    let first = shown(&now).remove(&1).unwrap();
    let text: String = first
        .iter()
        .map(|r| String::from_utf8_lossy(&r.content))
        .collect();
    assert!(
        text.contains("journal_bytes_max") && text.contains("1-0x") && text.contains("1-999x"),
        "{text}"
    );
    let info = index
        .lock()
        .unwrap()
        .execution(&Selector::Number(1))
        .unwrap()
        .unwrap();
    assert_eq!(info.outputs, 1000, "what it once had counts");
    let outputs = Outputs::from_seq(dir.path(), 1, info.places.first_seq, info.places.last_seq);
    assert!(
        outputs
            .unwrap()
            .all(|item| matches!(item.unwrap(), Item::Record(..)))
    );
}

#[test]
fn of_one_that_runs_alone_head_and_tail_stay() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&[prints(3000, 1000); 3]);
    drop(write(dir.path(), &records));
    let bytes = segments::total_bytes(dir.path()).unwrap();
    let (_, replace) = with_index(dir.path());
    let level = bytes / 2;
    let mut worker = worker(dir.path(), 2 * level, replace);
    worker.look().unwrap();
    assert!(segments::total_bytes(dir.path()).unwrap() <= level);
    let now = read(dir.path());
    let all = said(&now, None);
    assert!(all.contains("1-0xx") && all.contains("journal_bytes_max"));
    // From where the compacted part ends on, all is there.
    let line = |n: usize| format!("{}-{}xx", 1 + n / 3000, n % 3000);
    let gone = (0..9000).rfind(|&n| !all.contains(&line(n))).unwrap();
    assert!(gone > 0 && gone < 8500, "{gone}");
    assert_eq!(others(&now), others(&records));
}

#[test]
fn a_long_one_makes_room_from_the_first_step_on() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&[prints(1000, 1000); 6]);
    drop(write(dir.path(), &records));
    let path = dir.path().to_owned();
    let (_, mut replace) = with_index(dir.path());
    let sizes = Arc::new(Mutex::new(vec![segments::total_bytes(&path).unwrap()]));
    let shared = sizes.clone();
    let counting = move |prepared: Prepared, last_seq, waits| {
        let replaced = replace(prepared, last_seq, waits)?;
        shared
            .lock()
            .unwrap()
            .push(segments::total_bytes(&path).unwrap());
        Ok(replaced)
    };
    let mut worker = worker(dir.path(), 1, Box::new(counting));
    worker.step_bytes = |_, _| 1_000_000;
    // To head and tail of 32 kB together.
    worker
        .compact(
            Wanted::GoingOn {
                bytes_min: 5_000_000,
            },
            64,
        )
        .unwrap();
    let sizes = sizes.lock().unwrap().clone();
    // The first step and the last, too, are about as large as the others.
    assert!((6..=8).contains(&(sizes.len() - 1)), "{sizes:?}");
    for (before, after) in sizes.iter().zip(&sizes[1..]) {
        assert!(
            (700_000..1_100_000).contains(&(before - after)),
            "{sizes:?}"
        );
    }
    let now = read(dir.path());
    assert_eq!(others(&now), others(&records));
    let all = said(&now, None);
    // One line for all that went, and nothing between head and tail but it.
    assert_eq!(all.matches("journal_bytes_max").count(), 1);
    assert!(all.contains("1-0xx") && all.contains("6-999xx") && !all.contains("3-500xx"));
    // A second time there is nothing to do.
    worker
        .compact(Wanted::GoingOn { bytes_min: 0 }, 64)
        .unwrap();
    assert_eq!(read(dir.path()), now);
}

#[test]
fn executions_of_a_few_lines_are_left_alone_and_cost_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let line = prints(1, 50);
    let mut writes = many(500, line);
    // The last of them leaves a thread behind, which has much to say when the next one is there.
    for _ in 0..10 {
        writes.push(Write::Prints {
            of_before: true,
            count: 60,
            size: 900,
        });
    }
    // And then it is quiet.
    writes.push(Write::Next);
    writes.push(prints(60, 900));
    let records = session(&writes);
    drop(write(dir.path(), &records));
    let (index, replace) = with_index(dir.path());
    let before = index
        .lock()
        .unwrap()
        .executions(&Filter::default())
        .unwrap();
    let mut worker = worker(dir.path(), 1, replace);
    worker.survey.update(&worker.stop).unwrap();
    assert!(
        worker.survey.entries() < 1000,
        "{}",
        worker.survey.entries()
    );
    worker.compact(Wanted::Over, 64).unwrap();
    let now = read(dir.path());
    assert_eq!(others(&now), others(&records));
    check_index(dir.path(), &index.lock().unwrap(), &before);
    // With its first line, which it said before it was over.
    let (now, before) = (said(&now, Some(500)), said(&records, Some(500)));
    assert!(
        now.contains("journal_bytes_max") && now.len() < before.len() / 4,
        "{} of {}",
        now.len(),
        before.len()
    );
    assert!(now.contains("999-0xx"), "{}", &now[..1000]);
}

#[test]
fn a_reader_of_the_host_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(10, prints(500, 50)));
    drop(write(dir.path(), &records));
    let bytes = segments::total_bytes(dir.path()).unwrap();
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), bytes / 2 * 3, replace);
    let reader = worker.tail.pin(3);
    worker.look().unwrap();
    assert_eq!(read(dir.path()), records, "it stands at the beginning");
    reader.set(records.len() as u64);
    worker.again_at = 0;
    worker.look().unwrap();
    assert!(segments::total_bytes(dir.path()).unwrap() < bytes / 4 * 3);
    assert_eq!(shown(&read(dir.path())), shown(&records));
    drop(reader);
    // When there is little room left it is not waited for.
    let dir = tempfile::tempdir().unwrap();
    drop(write(dir.path(), &records));
    let (_, replace) = with_index(dir.path());
    let mut worker = self::worker(dir.path(), bytes / 3, replace);
    let _reader = worker.tail.pin(3);
    worker.look().unwrap();
    assert!(segments::total_bytes(dir.path()).unwrap() <= bytes / 3 * 2);
}

#[test]
fn while_readers_lag_nothing_is_cut_that_a_replay_would_show() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&[prints(500, 1000); 3]);
    drop(write(dir.path(), &records));
    let bytes = segments::total_bytes(dir.path()).unwrap();
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), bytes / 10 * 15, replace);
    let reader = worker.tail.pin(1000);
    worker.look().unwrap();
    assert!(worker.waits_for.is_some());
    assert_eq!(shown(&read(dir.path())), shown(&records));
    drop(reader);
    worker.again_at = 0;
    worker.look().unwrap();
    assert_ne!(shown(&read(dir.path())), shown(&records));
}

#[test]
fn an_index_error_leaves_a_journal_that_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(10, prints(300, 50)));
    drop(write(dir.path(), &records));
    let (index, _) = with_index(dir.path());
    let before = index
        .lock()
        .unwrap()
        .executions(&Filter::default())
        .unwrap();
    let shared = index.clone();
    let fails = move |prepared: Prepared, _, _| {
        let refused = |_: &Prepared| Err(io::Error::other("no"));
        let result = shared.lock().unwrap().replace(&prepared, refused);
        assert!(matches!(result, Err(IndexError::Io(_))));
        Ok(false)
    };
    let mut worker = worker(dir.path(), 1, Box::new(fails));
    worker.compact(Wanted::Over, 1).unwrap();
    assert_eq!(read(dir.path()), records);
    index.lock().unwrap().catch_up().unwrap();
    check_index(dir.path(), &index.lock().unwrap(), &before);
}

/// A reader lags behind a part of what could be compacted, and the other part made enough room: when it had come on, the
/// worker looked ten times a second, for as long as nothing else was written.
#[test]
fn who_waited_for_readers_and_has_room_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(20, prints(300, 1000)));
    drop(write(dir.path(), &records));
    let bytes = segments::total_bytes(dir.path()).unwrap();
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), 2 * bytes, replace);
    let reader = worker.tail.pin(records.len() as u64 / 2);
    worker.look().unwrap();
    let after = segments::total_bytes(dir.path()).unwrap();
    assert!(worker.target() < after && after < bytes - segment_bytes(Some(2 * bytes)));
    assert!(worker.waits_for.is_some());
    drop(reader);
    worker.look().unwrap();
    assert_eq!(worker.waits_for, None);
    assert_eq!(segments::total_bytes(dir.path()).unwrap(), after);
}

/// Of an execution whose first outputs were cleared a later one is parted in three: numbers that were taken out before
/// it counted as room for the parts, which then had none, and were lost.
#[test]
fn numbers_before_the_first_output_are_no_room() {
    let dir = tempfile::tempdir().unwrap();
    // Cleared at once. What lies between is so much that they are in other segments.
    let mut writes = vec![Write::Next, prints(100, 200), Write::Clears];
    writes.extend([Write::Checkpoint; 300]);
    let first = session(&writes).len();
    writes.push(Write::Large { size: 60_000 });
    writes.extend([Write::Checkpoint; 300]);
    let records = session(&writes);
    let mut writer = write(dir.path(), &records[..first]);
    let (index, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), 1, replace);
    let running = Wanted::GoingOn { bytes_min: 0 };
    worker.compact(running, 1).unwrap();
    assert!(shown(&read(dir.path()))[&2].is_empty());
    for batch in records[first..].chunks(20) {
        writer.append(batch).unwrap();
    }
    index.lock().unwrap().catch_up().unwrap();
    let before = index
        .lock()
        .unwrap()
        .executions(&Filter::default())
        .unwrap();
    worker.compact(running, 64).unwrap();
    assert_eq!(shown(&read(dir.path())), shown(&records));
    check_index(dir.path(), &index.lock().unwrap(), &before);
}

/// A segment whose header is damaged can still be read; it ended every round, and nothing behind it was ever compacted.
#[test]
fn a_damaged_header_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(10, prints(300, 50)));
    drop(write(dir.path(), &records));
    let numbers = segments::list(dir.path()).unwrap();
    for number in [numbers[0], numbers[numbers.len() / 2]] {
        let path = segments::path(dir.path(), number);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), 1, replace);
    worker.compact(Wanted::Over, 1).unwrap();
    assert!(segments::list(dir.path()).unwrap().len() < numbers.len() / 2);
    let now = read(dir.path());
    assert_eq!(shown(&now), shown(&records));
    assert_eq!(others(&now), others(&records));
}

/// The disk is full, say, or the host ends: what was written so far took all of the room that records would have had.
#[test]
fn what_is_not_put_in_its_place_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(10, prints(300, 50)));
    drop(write(dir.path(), &records));
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with("journal.") || name.ends_with(".seg"))
            .collect()
    };
    let mut before = names();
    before.sort();
    // A reader came to stand in it.
    let refused = |prepared: Prepared, _, _| {
        drop(prepared);
        Ok(false)
    };
    let mut worker = worker(dir.path(), 1, Box::new(refused));
    worker.compact(Wanted::Over, 1).unwrap();
    // In the middle of it.
    let stop = AtomicBool::new(false);
    worker.survey.update(&stop).unwrap();
    let nothing = (BTreeSet::new(), HashMap::new());
    let plan = Plan {
        wanted: Wanted::Over,
        begun: &nothing.0,
        done: &nothing.1,
        cap_bytes: 0,
        step_bytes: u64::MAX,
        segment_bytes: SEGMENT_BYTES,
    };
    let group = &worker.survey.groups(&plan)[0];
    stop.store(true, Ordering::Release);
    let written = segment::write(dir.path(), group, limits(1), &stop);
    assert!(matches!(written, Err(Halt::Stopped)));
    let is_as_before = || {
        let mut after = names();
        after.sort();
        after == before
    };
    assert!(is_as_before());
    // Killed in the middle of it.
    std::fs::write(dir.path().join("journal.compacting"), "half of").unwrap();
    assert!(!is_as_before());
    Rewrite::remove_unfinished(dir.path());
    assert!(is_as_before());
}

/// Of many executions that said much and come to little, nothing is held for each of them.
#[test]
fn what_is_small_by_now_costs_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let records = session(&many(200, Write::Progress { count: 30 }));
    drop(write(dir.path(), &records));
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), 1, replace);
    worker.compact(Wanted::Over, 1).unwrap();
    worker.compact(Wanted::Over, 8).unwrap();
    let held: usize = worker.done.values().map(HashMap::len).sum();
    assert!(held < 20, "{held}");
}

/// A digest covers an execution up to its end, and what a thread said later is read behind that. Compacted, all of it is
/// before: with a digest that was written while the round went on, nobody would see what came later.
#[test]
fn a_digest_of_what_is_compacted_goes() {
    let dir = tempfile::tempdir().unwrap();
    let prints = |of_before| Write::Prints {
        of_before,
        count: 200,
        size: 50,
    };
    let records = session(&[prints(false), Write::Next, prints(true), prints(false)]);
    drop(write(dir.path(), &records));
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), 1, replace);
    let nothing = digest::Digest {
        until_seq: 200,
        messages: Vec::new(),
    };
    digest::write(dir.path(), 1, &nothing).unwrap();
    digest::write(dir.path(), 2, &nothing).unwrap();
    worker.compact(Wanted::Over, 1).unwrap();
    let late = Outputs::from_seq(dir.path(), 1, 201, records.len() as u64);
    let mut late = late.unwrap().map(Result::unwrap);
    assert!(!late.any(|item| matches!(&item, Item::Record(record, _) if matches!(&record.body, Body::Iopub { message, .. } if !segment::is_frame(message)))));
    assert!(digest::read(dir.path(), 1).is_none());
    assert!(digest::read(dir.path(), 2).is_some());
}

/// A journal of an execution that is over and one that runs, and behind them much that came of `n`; how much there is
/// when it is compacted to a tenth.
fn flood_behind(n: u64) -> (u64, u64, Vec<Record>) {
    let dir = tempfile::tempdir().unwrap();
    let mut records = session(&[prints(2, 10), Write::Next]);
    let first = records.last().unwrap().seq + 1;
    for seq in first..first + 2000 {
        let text = format!("{seq}{}\n", "x".repeat(1000));
        let content = json!({ "name": "stdout", "text": text });
        records.push(match seq % 500 {
            0 => checkpoint(seq),
            _ => output(seq, n, "stream", content),
        });
    }
    drop(write(dir.path(), &records));
    let before = segments::total_bytes(dir.path()).unwrap();
    let (_, replace) = with_index(dir.path());
    let mut worker = worker(dir.path(), before / 10, replace);
    worker.look().unwrap();
    let after = segments::total_bytes(dir.path()).unwrap();
    (before, after, read(dir.path()))
}

#[test]
fn a_thread_that_goes_on_when_its_cell_is_over_is_bounded_as_a_running_cell() {
    let (before, after, now) = flood_behind(1);
    assert!(after < before / 2, "{before} bytes, and then {after}");
    let all = said(&now, Some(1));
    assert!(all.contains("journal_bytes_max") && all.contains("1999xx"));
}

#[test]
fn of_what_belongs_to_no_execution_the_oldest_goes() {
    let (before, after, now) = flood_behind(UNOWNED);
    // What comes behind the last checkpoint is a fourth of it.
    assert!(after < before / 2, "{before} bytes, and then {after}");
    let all = said(&now, Some(UNOWNED));
    assert!(!all.contains("\"100xx") && all.contains("1999xx"));
    // It is not taken for lost, and all else is there.
    assert!(said(&now, Some(1)).contains("1-1xx"));
    let last_checkpoint =
        |record: &&Record| matches!(record.body, Body::Note(Note::Checkpoint { .. }));
    assert_eq!(now.iter().rfind(last_checkpoint).unwrap().seq, 2000);
}
