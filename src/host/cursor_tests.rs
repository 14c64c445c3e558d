use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::host::digest::Digester;
use crate::host::log::appending::{self, is_pending};
use crate::host::log::{Appended, Log, is_large};
use crate::host::source::BATCH_BYTES_MAX;
use crate::journal::record::{Micros, Note};
use crate::journal::{Writer, WriterOptions};
use crate::session::view::Mirror;
use crate::wire::message::HeaderFields;
use serde_json::json;

const CLIENT: ClientId = ClientId::from_u128(1);

/// Larger than what the log keeps in memory, in so many records.
const LAGGING_RECORDS: u64 = 120;
const LARGE_BYTES: usize = 64 << 10;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn new_log(dir: &Path) -> Log {
    let (writer, recovered) = Writer::open(dir, WriterOptions::default()).unwrap();
    Log::new(writer, dir, recovered.next_seq - 1, None)
}

fn hello(resume: Option<Resume>) -> Hello {
    Hello {
        version: 1,
        client: CLIENT,
        kind: "launcher".into(),
        pid: 1,
        parent_pid: None,
        claim: true,
        connection_file: None,
        replies: true,
        iopub: true,
        resume,
    }
}

/// Of a thread that has read what there is, and ends with this.
fn digests(log: &Log) -> Digests {
    Digester::start("id", log.tail(), 0).unwrap().digests()
}

fn cursor(log: &Log, resume: Option<Resume>) -> Cursor {
    Cursor::new(&hello(resume), "s", log.tail(), digests(log))
}

fn from_the_start() -> Option<Resume> {
    Some(Resume::default())
}

fn message(msg_type: &str, msg_id: &str, parent: &str, content: serde_json::Value) -> Message {
    let header = HeaderFields {
        msg_id,
        msg_type,
        session_id: "s",
        username: "u",
        date: 0,
    };
    Message::new(
        &header,
        &Bytes::copy_from_slice(parent.as_bytes()),
        &content,
    )
}

fn record(seq: u64, body: Body) -> Arc<Record> {
    let time: Micros = seq;
    Arc::new(Record {
        seq,
        time,
        heard: 0,
        body,
    })
}

fn large(seq: u64) -> Arc<Record> {
    large_of(seq, 0)
}

fn large_of(seq: u64, execution: u64) -> Arc<Record> {
    let parent = r#"{"msg_id":"run"}"#;
    let mut message = message("stream", &format!("m{seq}"), parent, json!({}));
    message.content = vec![b' '; LARGE_BYTES].into();
    record(
        seq,
        Body::Iopub {
            client: None,
            execution,
            message,
        },
    )
}

fn append(log: &mut Log, records: Vec<Arc<Record>>) {
    assert!(matches!(log.append(records), Appended::Kept));
}

/// What the cursor has, until it has this record.
async fn read_until(cursor: &mut Cursor, seq: u64) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.last() != Some(&seq) {
        let deliveries = cursor.next().await.expect("the host lives");
        seqs.extend(deliveries.iter().map(|delivery| delivery.record.seq));
    }
    seqs
}

#[test]
fn a_reader_that_lags_gets_the_files_and_then_the_tail_without_loss_or_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    block_on(async {
        let mut lags = cursor(&log, from_the_start());
        let mut keeps_up = cursor(&log, None);
        for seq in 1..=LAGGING_RECORDS {
            append(&mut log, vec![large(seq)]);
            assert_eq!(read_until(&mut keeps_up, seq).await, [seq]);
        }
        assert!(log.tail().first_in_memory().unwrap() > 20, "it does lag");
        // While it catches up, more comes: it ends in memory.
        let mut seqs = Vec::new();
        let mut last = LAGGING_RECORDS;
        while seqs.last() != Some(&last) {
            let deliveries = lags.next().await.unwrap();
            let bytes: usize = (deliveries.iter()).map(|_| LARGE_BYTES).sum();
            assert!(
                bytes <= BATCH_BYTES_MAX + LARGE_BYTES,
                "one batch at a time"
            );
            seqs.extend(deliveries.iter().map(|delivery| delivery.record.seq));
            if last < LAGGING_RECORDS + 40 {
                append(&mut log, (last + 1..=last + 4).map(large).collect());
                last += 4;
            }
        }
        assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
        assert!(!lags.source.is_behind(), "it keeps up now");
    });
}

#[test]
fn a_reader_behind_a_hole_in_the_journal_gets_what_memory_has_of_it() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The journal has 1..=20 and 101.., as after a full disk; the log in memory was not interrupted.
    let (mut kept, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    let (writer, _) = Writer::open(elsewhere.path(), WriterOptions::default()).unwrap();
    let mut log = Log::new(writer, dir.path(), 0, None);
    for seq in 1..=110 {
        append(&mut log, vec![large(seq)]);
        if seq <= 20 || seq > 100 {
            kept.append(&[large(seq)]).unwrap();
        }
    }
    let first = log.tail().first_in_memory().unwrap();
    assert!((21..100).contains(&first), "{first}");
    let seqs = block_on(read_until(&mut cursor(&log, from_the_start()), 110));
    let expected: Vec<u64> = (1..=20).chain(first..=110).collect();
    assert_eq!(seqs, expected);
}

#[test]
fn what_a_reader_can_have_no_more_is_said_in_its_place() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // As after a compaction that did not wait for it: the journal has 1..=20 and 101...
    let (mut kept, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    let (writer, _) = Writer::open(elsewhere.path(), WriterOptions::default()).unwrap();
    let mut log = Log::new(writer, dir.path(), 0, None);
    for seq in 1..=300 {
        let record = large_of(seq, 7);
        if seq <= 20 || seq > 100 {
            kept.append(std::slice::from_ref(&*record)).unwrap();
        }
        append(&mut log, vec![record]);
    }
    let attached = |seq| {
        Some(Resume {
            seq,
            part: u32::MAX,
            mirrors: vec![Mirror {
                parent: r#"{"msg_id":"attach"}"#.into(),
                n: 7,
            }],
        })
    };
    let read = |resume| block_on(all(&mut cursor(&log, resume), 300));
    let deliveries = read(attached(0));
    let lines: Vec<_> = deliveries
        .iter()
        .filter(|delivery| !(1..=20).contains(&delivery.record.seq) && delivery.record.seq <= 100)
        .map(|delivery| {
            let Body::Iopub { message, .. } = &delivery.record.body else {
                panic!("{:?}", delivery.record);
            };
            let text = String::from_utf8_lossy(&message.content);
            assert!(
                text.contains("up to 80 messages are missing here"),
                "{text}"
            );
            let parent = String::from_utf8_lossy(&message.parent_header).into_owned();
            (delivery.record.seq, delivery.part, parent)
        })
        .collect();
    let parents = [r#"{"msg_id":"run"}"#, r#"{"msg_id":"attach"}"#];
    assert_eq!(
        lines,
        [
            (21, 0, parents[0].to_owned()),
            (21, 1, parents[1].to_owned())
        ]
    );
    // A client whose link broke right behind it is not told again, and one that had seen half of it the rest.
    let from = |seq, part| {
        let place = attached(seq).map(|resume| Resume { part, ..resume });
        plain(&read(place))
    };
    let all = plain(&deliveries);
    let behind = |seq, part| all.iter().filter(move |(s, p, _)| (*s, *p) > (seq, part));
    assert_eq!(from(21, 1), behind(21, 1).cloned().collect::<Vec<_>>());
    assert_eq!(from(21, 0), behind(21, 0).cloned().collect::<Vec<_>>());
    // Who has it all already hears of no gap.
    assert_eq!(
        from(100, u32::MAX),
        behind(100, u32::MAX).cloned().collect::<Vec<_>>()
    );
}

/// An execution with outputs, another one, and a client that attaches to both.
fn attached_session(log: &mut Log) -> u64 {
    let execute = |id: &str| message("execute_request", id, "{}", json!({ "code": "x" }));
    let parents: Vec<String> = ["e1", "e2", "a1", "a2"]
        .iter()
        .map(|id| String::from_utf8(execute(id).header.to_vec()).unwrap())
        .collect();
    let mut bodies = Vec::new();
    let output = |n: u64, msg_type: &str, content: serde_json::Value, id: usize| Body::Iopub {
        client: None,
        execution: n,
        message: message(
            msg_type,
            &format!("o{id}"),
            &parents[n as usize - 1],
            content,
        ),
    };
    for (n, id) in [(1, "e1"), (2, "e2")] {
        bodies.push(Body::Request {
            channel: Channel::Shell,
            client: CLIENT,
            execution: n,
            message: execute(id),
        });
        let first = bodies.len();
        bodies.push(output(
            n,
            "status",
            json!({ "execution_state": "busy" }),
            first,
        ));
        bodies.push(output(
            n,
            "execute_input",
            json!({ "code": "x" }),
            first + 1,
        ));
        for (at, name) in ["stdout", "stderr", "stdout"].into_iter().enumerate() {
            let content = json!({ "name": name, "text": format!("{n} {at}\n") });
            bodies.push(output(n, "stream", content, first + 2 + at));
        }
    }
    let attach = |parent: usize, n: u64, first_seq: u64| {
        Body::Note(Note::Attach {
            client: CLIENT,
            parent: parents[parent].clone(),
            n,
            first_seq,
            session: String::new(),
            extent: None,
        })
    };
    bodies.push(attach(2, 1, 1));
    bodies.push(output(
        1,
        "stream",
        json!({ "name": "stdout", "text": "live" }),
        50,
    ));
    bodies.push(attach(3, 1, 1));
    bodies.push(output(
        1,
        "stream",
        json!({ "name": "stderr", "text": "both" }),
        51,
    ));
    bodies.push(attach(3, 2, 7));
    bodies.push(output(
        2,
        "stream",
        json!({ "name": "stdout", "text": "two" }),
        52,
    ));
    bodies.push(Body::Note(Note::AttachEnded {
        client: CLIENT,
        msg_id: "a1".into(),
    }));
    bodies.push(Body::Reply {
        channel: Channel::Shell,
        client: CLIENT,
        execution: 0,
        message: message(
            "execute_reply",
            "r1",
            &parents[2],
            json!({ "status": "ok" }),
        ),
    });
    bodies.push(output(
        1,
        "stream",
        json!({ "name": "stdout", "text": "end" }),
        53,
    ));
    // For nobody here.
    bodies.push(Body::Reply {
        channel: Channel::Shell,
        client: ClientId::from_u128(2),
        execution: 0,
        message: message("execute_reply", "r2", "{}", json!({})),
    });
    bodies.push(output(
        2,
        "stream",
        json!({ "name": "stdout", "text": "last" }),
        54,
    ));
    let records: Vec<_> = (1..)
        .zip(bodies)
        .map(|(seq, body)| record(seq, body))
        .collect();
    let last = records.len() as u64;
    append(log, records);
    last
}

/// A client's account of where it is, kept as a launcher keeps it.
#[derive(Clone, Default)]
struct Place {
    seq: u64,
    part: u32,
    mirrors: Vec<Mirror>,
}

impl Place {
    fn take(&mut self, delivery: &Delivery) {
        (self.seq, self.part) = (delivery.record.seq, delivery.part);
        match &delivery.record.body {
            Body::Note(Note::Attach { parent, n, .. }) => {
                self.mirrors.push(Mirror {
                    parent: parent.clone(),
                    n: *n,
                });
            }
            Body::Note(Note::AttachEnded { msg_id, .. }) => self
                .mirrors
                .retain(|mirror| crate::session::state::header_id(&mirror.parent) != *msg_id),
            _ => {}
        }
    }

    fn resume(&self) -> Option<Resume> {
        Some(Resume {
            seq: self.seq,
            part: self.part,
            mirrors: self.mirrors.clone(),
        })
    }
}

async fn all(cursor: &mut Cursor, last: u64) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries
        .last()
        .is_none_or(|delivery: &Delivery| delivery.record.seq < last)
    {
        deliveries.extend(cursor.next().await.expect("the host lives"));
    }
    deliveries
}

fn plain(deliveries: &[Delivery]) -> Vec<(u64, u32, Record)> {
    (deliveries.iter())
        .map(|delivery| {
            let record = (*delivery.record).clone();
            (record.seq, delivery.part, record)
        })
        .collect()
}

#[test]
fn a_client_that_comes_back_to_any_place_gets_exactly_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    let last = attached_session(&mut log);
    block_on(async {
        let deliveries = all(&mut cursor(&log, from_the_start()), last).await;
        let everything = plain(&deliveries);
        let replays = (deliveries.iter())
            .filter(|delivery| delivery.part > 0)
            .count();
        // Three replays of the input and three or more streams each, and the copies of what came live.
        assert!(replays > 16, "{replays}");
        let mut place = Place::default();
        for (at, delivery) in deliveries.iter().enumerate() {
            let rest = all(&mut cursor(&log, place.resume()), last).await;
            assert_eq!(
                plain(&rest),
                everything[at..],
                "from {} {}",
                place.seq,
                place.part
            );
            place.take(delivery);
        }
    });
}

#[test]
fn a_replay_is_the_input_and_the_outputs_so_far_and_then_come_copies() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    let last = attached_session(&mut log);
    let deliveries = block_on(async { all(&mut cursor(&log, from_the_start()), last).await });
    let shown: Vec<String> = (deliveries.iter())
        .filter_map(|delivery| match &delivery.record.body {
            Body::Iopub { message, .. } if message.parent().is_some_and(|p| p.msg_id == "a1") => {
                let content: serde_json::Value = serde_json::from_slice(&message.content).unwrap();
                let gist = content["text"].as_str().or(content["code"].as_str());
                Some(gist.unwrap().to_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(shown, ["x", "1 0\n", "1 1\n", "1 2\n", "live", "both"]);
    let mut ids: Vec<String> = (deliveries.iter())
        .filter_map(|delivery| match &delivery.record.body {
            Body::Iopub { message, .. } => Some(message.header().unwrap().msg_id.into_owned()),
            _ => None,
        })
        .collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "each message has its own id");
}

#[test]
fn a_client_that_saw_more_than_the_journal_has_begins_with_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    append(&mut log, (1..=3).map(large).collect());
    let mut cursor = cursor(
        &log,
        Some(Resume {
            seq: 10,
            part: 0,
            mirrors: Vec::new(),
        }),
    );
    append(&mut log, (4..=5).map(large).collect());
    assert_eq!(block_on(read_until(&mut cursor, 5)), [4, 5]);
}

#[test]
fn without_a_place_the_stream_begins_with_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    append(&mut log, (1..=3).map(large).collect());
    let mut cursor = cursor(&log, None);
    append(&mut log, vec![large(4)]);
    assert_eq!(block_on(read_until(&mut cursor, 4)), [4]);
}

#[test]
fn a_subscription_that_comes_late_gets_what_was_said_to_its_client_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    let iopub = |seq, to: Option<ClientId>, time| {
        let body = Body::Iopub {
            client: to,
            execution: 0,
            message: message("stream", &format!("m{seq}"), "{}", json!({})),
        };
        Arc::new(Record {
            seq,
            time,
            heard: 0,
            body,
        })
    };
    let (now, long_ago) = (crate::state_dir::now(), 1000);
    append(
        &mut log,
        vec![
            iopub(1, Some(CLIENT), long_ago),
            iopub(2, None, now),
            iopub(3, Some(CLIENT), now),
            iopub(4, Some(ClientId::from_u128(2)), now),
        ],
    );
    let hello = Hello {
        replies: false,
        ..hello(None)
    };
    let mut cursor = Cursor::new(&hello, "s", log.tail(), digests(&log));
    append(&mut log, vec![iopub(5, None, now)]);
    assert_eq!(block_on(read_until(&mut cursor, 5)), [3, 5]);
}

#[test]
fn a_client_gets_what_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    let last = attached_session(&mut log);
    append(&mut log, vec![large(last + 1)]);
    append(
        &mut log,
        vec![record(
            last + 2,
            Body::Reply {
                channel: Channel::Control,
                client: CLIENT,
                execution: 0,
                message: message("x_reply", "r9", "{}", json!({})),
            },
        )],
    );
    let of = |replies, iopub| {
        let hello = Hello {
            replies,
            iopub,
            ..hello(from_the_start())
        };
        Cursor::new(&hello, "s", log.tail(), digests(&log))
    };
    block_on(async {
        let replies = all(&mut of(true, false), last + 2).await;
        let is_reply = |delivery: &Delivery| matches!(delivery.record.body, Body::Reply { .. });
        assert_eq!(replies.len(), 2);
        assert!(replies.iter().all(is_reply));
        let iopub = all(&mut of(false, true), last + 1).await;
        assert!(!iopub.iter().any(is_reply));
    });
}

#[test]
fn the_hosts_end_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    append(&mut log, vec![large(1)]);
    let mut stays = cursor(&log, from_the_start());
    drop(log);
    block_on(async {
        assert_eq!(read_until(&mut stays, 1).await, [1], "what there is");
        assert!(stays.next().await.is_none());
    });
    let mut log = new_log(dir.path());
    let reason = "stopped".into();
    append(
        &mut log,
        vec![
            large(2),
            record(3, Body::Note(Note::SessionEnded { reason })),
        ],
    );
    let mut ends = cursor(&log, from_the_start());
    block_on(async {
        let mut seqs = Vec::new();
        while let Some(deliveries) = ends.next().await {
            seqs.extend(deliveries.iter().map(|delivery| delivery.record.seq));
        }
        assert_eq!(seqs, [1, 2], "and then nothing, though the host lives");
    });
}

#[test]
fn the_tail_gives_what_fits_and_knows_what_it_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    let tail = log.tail();
    assert_eq!(tail.behind(0, 1).unwrap().len(), 0);
    append(&mut log, (1..=LAGGING_RECORDS).map(large).collect());
    let first = tail.first_in_memory().unwrap();
    assert!(tail.behind(first - 2, usize::MAX).is_none());
    let seqs = |seq, bytes| -> Vec<u64> {
        (tail.behind(seq, bytes).unwrap().iter())
            .map(|record| record.seq)
            .collect()
    };
    assert_eq!(
        seqs(first - 1, usize::MAX),
        (first..=LAGGING_RECORDS).collect::<Vec<_>>()
    );
    assert_eq!(seqs(first - 1, 1), [first], "at least one");
    assert_eq!(seqs(first - 1, LARGE_BYTES + 4096), [first, first + 1]);
    assert_eq!(seqs(LAGGING_RECORDS, usize::MAX), [0; 0]);
    let memory: usize = (first..=LAGGING_RECORDS).map(|_| LARGE_BYTES).sum();
    assert!(memory <= 4 << 20, "{memory}");
}

/// A subscriber gets the outputs of an ended session's execution from that one's journal, and of its own session
/// nothing in their stead.
#[test]
fn a_replay_of_an_ended_session_is_read_from_its_journal() {
    let all_sessions = tempfile::tempdir().unwrap();
    let (own, old) = ("own1own1", "old1old1");
    let journal = |id: &str| {
        let dir = all_sessions.path().join(id).join("journal");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    };
    let mut log = new_log(&journal(old));
    attached_session(&mut log);
    drop(log);
    let parent =
        json!({ "msg_id": "a1", "msg_type": "execute_request", "session": "f", "username": "u",
        "date": "2026-01-01T00:00:00Z", "version": "5.4" })
        .to_string();
    let attach = |n, session: &str| {
        Body::Note(Note::Attach {
            client: CLIENT,
            parent: parent.clone(),
            n,
            first_seq: 1,
            session: session.into(),
            extent: None,
        })
    };
    let mut log = new_log(&journal(own));
    let output = |text: &str| Body::Iopub {
        client: None,
        execution: 1,
        message: message(
            "stream",
            text,
            "{}",
            json!({ "name": "stdout", "text": text }),
        ),
    };
    let bodies = [
        output("ours"),
        attach(1, old),
        output("ours, later"),
        attach(1, "gone1111"),
        attach(1, "../../x1"),
    ];
    let records: Vec<_> = (1..)
        .zip(bodies)
        .map(|(seq, body)| record(seq, body))
        .collect();
    append(&mut log, records);
    let deliveries = block_on(async { all(&mut cursor(&log, from_the_start()), 5).await });
    let shown: Vec<String> = (deliveries.iter())
        .filter_map(|delivery| match &delivery.record.body {
            Body::Iopub { message, .. } => {
                let content: serde_json::Value = serde_json::from_slice(&message.content).unwrap();
                let gist = content["text"].as_str().or(content["code"].as_str());
                let parent = message.parent().map(|parent| parent.msg_id.into_owned());
                Some(format!("{} {}", parent.unwrap_or_default(), gist.unwrap()))
            }
            _ => None,
        })
        .collect();
    let expected = [
        " ours",
        "a1 x",
        "a1 1 0\n",
        "a1 1 1\n",
        "a1 1 2\nlive",
        "a1 both",
        "a1 end",
        " ours, later",
    ];
    assert_eq!(shown[..expected.len()], expected);
    let [gone, no_id] = &shown[expected.len()..] else {
        panic!("{shown:?}");
    };
    assert!(gone.contains("not kept any more"), "{gone}");
    assert!(no_id.contains("no session's id"), "{no_id}");
}

/// Large enough to be appended on another thread.
fn huge(seq: u64) -> Arc<Record> {
    let mut message = message("stream", &format!("m{seq}"), "{}", json!({}));
    message.content = vec![b' '; 3 << 20].into();
    let body = Body::Iopub {
        client: None,
        execution: 0,
        message,
    };
    record(seq, body)
}

#[test]
fn a_large_record_is_shown_while_it_is_appended_and_counts_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    assert!(is_large(&huge(1)) && !is_large(&large(1)));
    appending::block_on(async |held| {
        append(&mut log, vec![large(1)]);
        let mut tail = log.tail();
        let mut reader = cursor(&log, from_the_start());
        assert_eq!(read_until(&mut reader, 1).await, [1]);
        {
            let mut appending = std::pin::pin!(log.append_apart(vec![huge(2)]));
            assert!(is_pending(appending.as_mut()).await);
            assert_eq!(read_until(&mut reader, 2).await, [2]);
            assert_eq!(tail.last_seq(), 1);
            assert!(is_pending(std::pin::pin!(tail.wait_tried(2))).await);
            drop(held);
            assert!(matches!(appending.await, Appended::Kept));
        }
        assert_eq!(tail.last_seq(), 2);
        assert!(tail.wait_tried(2).await);
        append(&mut log, vec![large(3)]);
        assert_eq!(read_until(&mut reader, 3).await, [3]);
        // And from the files.
        drop(log);
        let mut log = new_log(dir.path());
        let mut again = cursor(&log, from_the_start());
        append(&mut log, vec![large(4)]);
        assert_eq!(read_until(&mut again, 4).await, [1, 2, 3, 4]);
    });
}

#[test]
fn what_is_being_appended_stays_in_memory_whatever_comes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = new_log(dir.path());
    appending::block_on(async |held| {
        let mut reader = cursor(&log, from_the_start());
        // More than stays in memory otherwise, and not in the files yet.
        let mut appending = std::pin::pin!(log.append_apart(vec![huge(1), huge(2), huge(3)]));
        assert!(is_pending(appending.as_mut()).await);
        assert_eq!(read_until(&mut reader, 3).await, [1, 2, 3]);
        drop(held);
        assert!(matches!(appending.await, Appended::Kept));
    });
    assert_eq!(log.tail().first_in_memory(), Some(3));
}

#[test]
fn a_large_record_that_is_not_kept_is_shown_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    append(&mut new_log(dir.path()), vec![large(1), large(2), large(3)]);
    let (writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    // A writer that is further than its log refuses what the log thinks is next.
    let mut log = Log::new(writer, dir.path(), 0, None);
    block_on(async {
        let mut reader = cursor(&log, None);
        for seq in [1, 2] {
            let appended = log.append_apart(vec![huge(seq)]).await;
            match seq {
                1 => assert!(matches!(appended, Appended::Failed(_))),
                _ => assert!(matches!(appended, Appended::StillFailing)),
            }
            assert_eq!(read_until(&mut reader, seq).await, [seq]);
            assert_eq!(log.tail().last_seq(), seq);
        }
        let healed = log.append_apart(vec![huge(4)]).await;
        assert!(matches!(healed, Appended::Healed(1)));
    });
}

#[test]
fn the_next_writer_knows_what_the_last_one_could_not_keep() {
    let dir = tempfile::tempdir().unwrap();
    append(&mut new_log(dir.path()), vec![large(1), large(2), large(3)]);
    let (writer, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    assert_eq!(recovered.unkept_since, None);
    // Refused, as above; and then its process dies.
    let mut log = Log::new(writer, dir.path(), 0, None);
    assert!(matches!(log.append(vec![large(2)]), Appended::Failed(_)));
    drop(log);
    for _ in 0..2 {
        let (_, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
        assert_eq!(
            recovered.unkept_since,
            Some(2),
            "also by who comes after one that said nothing"
        );
    }
    let (writer, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    let mut log = Log::new(writer, dir.path(), 3, recovered.unkept_since);
    assert!(matches!(log.append(vec![large(4)]), Appended::Healed(2)));
    // A record that has come in between says nothing of it; the session's note does.
    assert!(matches!(log.append(vec![large(5)]), Appended::Kept));
    let (_, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    assert_eq!(recovered.unkept_since, Some(2));
    let gap = Note::Gap {
        from: 2,
        until: 4,
        why: "refused".into(),
        said: false,
    };
    let told = Record {
        body: Body::Note(gap),
        ..Record::clone(&large(6))
    };
    assert!(matches!(log.append(vec![Arc::new(told)]), Appended::Kept));
    let (_, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    assert_eq!(recovered.unkept_since, None);
}
