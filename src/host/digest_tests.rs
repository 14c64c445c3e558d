use serde_json::json;

use super::*;
use crate::host::log::Log;
use crate::journal::record::{ClientId, ExecutionState};
use crate::journal::{Filter, View, Writer, WriterOptions};
use crate::session::outputs::compact;
use crate::wire::Channel;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// A journal of one session, and the records in it.
struct Journal {
    dir: tempfile::TempDir,
    log: Log,
    records: Vec<Arc<Record>>,
}

impl Journal {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
        let log = Log::new(writer, dir.path(), 0, None);
        Self {
            dir,
            log,
            records: Vec::new(),
        }
    }

    fn digester(&self) -> Digester {
        Digester::start("id", self.log.tail(), 1).unwrap()
    }

    fn append(&mut self, bodies: impl IntoIterator<Item = Body>) -> u64 {
        let first = self.records.len() as u64 + 1;
        let records: Vec<Arc<Record>> = (first..)
            .zip(bodies)
            .map(|(seq, body)| {
                Arc::new(Record {
                    seq,
                    time: seq,
                    heard: 0,
                    body,
                })
            })
            .collect();
        self.records.extend(records.iter().cloned());
        self.log.append(records);
        self.records.len() as u64
    }

    /// What the records of an execution up to `until_seq` come to, made at once.
    fn expected(&self, n: u64, until_seq: u64) -> Vec<(String, Bytes)> {
        let messages = self
            .records
            .iter()
            .filter(|record| record.seq < until_seq)
            .filter_map(|record| match &record.body {
                Body::Iopub {
                    client: None,
                    execution,
                    message,
                } if *execution == n => Some(message),
                _ => None,
            });
        let hint = format!("`farside logs id {n}` shows them all");
        compact(messages, Limits::default(), &hint)
            .into_iter()
            .map(|output| (output.msg_type.into_owned(), output.content))
            .collect()
    }

    fn extent(&self, n: u64) -> Extent {
        let execution = &View::open(self.dir.path())
            .unwrap()
            .executions(&Filter::default());
        let found = execution.iter().find(|info| info.n == n).unwrap();
        Extent {
            first: found.places.request.unwrap(),
            last_seq: found.places.last_seq,
        }
    }
}

fn message(msg_type: &str, content: &serde_json::Value) -> Message {
    let header = HeaderFields {
        msg_id: "m",
        msg_type,
        session_id: "s",
        username: "u",
        date: 0,
    };
    Message::new(&header, &Bytes::from_static(b"{\"msg_id\":\"r\"}"), content)
}

fn request(n: u64) -> Body {
    Body::Request {
        channel: Channel::Shell,
        client: ClientId::from_u128(1),
        execution: n,
        message: message("execute_request", &json!({ "code": "x" })),
    }
}

fn output(n: u64, msg_type: &str, content: &serde_json::Value) -> Body {
    Body::Iopub {
        client: None,
        execution: n,
        message: message(msg_type, content),
    }
}

fn print(n: u64, text: &str) -> Body {
    output(n, "stream", &json!({ "name": "stdout", "text": text }))
}

fn state(n: u64, state: ExecutionState) -> Body {
    Body::Note(Note::Execution {
        n,
        msg_id: "r".into(),
        state,
        reason: None,
    })
}

fn attach(n: u64) -> Body {
    Body::Note(Note::Attach {
        client: ClientId::from_u128(1),
        parent: "{}".into(),
        n,
        first_seq: 1,
        session: String::new(),
        extent: None,
    })
}

fn replay(n: u64, until_seq: u64, extent: Option<Extent>) -> Replay {
    Replay {
        session: String::new(),
        n,
        first_seq: 1,
        until_seq,
        extent,
        parent: "{}".into(),
    }
}

fn shown(outputs: &[(String, Message)]) -> Vec<(String, Bytes)> {
    let shown = outputs
        .iter()
        .map(|(msg_type, message)| (msg_type.clone(), message.content.clone()));
    shown
        .filter(|(msg_type, _)| msg_type != "execute_input")
        .collect()
}

/// A flood that is far more than what stays in memory, with something that compaction acts on.
fn flood(n: u64) -> Vec<Body> {
    let mut bodies = vec![request(n), state(n, ExecutionState::Running)];
    bodies.push(output(
        n,
        "execute_input",
        &json!({ "code": "x", "execution_count": 1 }),
    ));
    for at in 0..KEPT_FROM_OUTPUTS * 3 {
        bodies.push(match at % 3 {
            0 => print(n, &format!("line {at} {}\n", "x".repeat(900))),
            1 => print(n, &format!("\r{at}%")),
            _ => output(
                n,
                "display_data",
                &json!({ "data": { "text/plain": at.to_string() }, "metadata": {} }),
            ),
        });
    }
    bodies
}

#[test]
fn each_attachment_gets_the_outputs_up_to_it() {
    let mut journal = Journal::new();
    let digester = journal.digester();
    let digests = digester.digests();
    let first = journal.append([request(1), print(1, "a\n"), print(1, "b"), attach(1)]);
    // It comes on while nobody has asked for the first yet.
    let second = journal.append([
        print(1, "\rc\n"),
        request(2),
        print(2, "not this\n"),
        attach(1),
    ]);
    journal.append([print(1, "d\n")]);
    for seq in [second, first, second] {
        let outputs = block_on(digests.outputs(seq, &replay(1, seq, None)));
        assert_eq!(shown(&outputs), journal.expected(1, seq));
        assert!(
            digests.0.ready(seq).is_some(),
            "made on the way, not read again"
        );
    }
}

#[test]
fn a_reader_that_lags_gets_the_same_from_the_files() {
    let mut journal = Journal::new();
    journal.append(flood(1));
    let seq = journal.append([attach(1)]);
    let digester = journal.digester();
    let digests = digester.digests();
    let made = block_on(digests.outputs(seq, &replay(1, seq, None)));
    assert!(digests.0.ready(seq).is_some());
    let read = digests.0.read(&replay(1, seq, None)).unwrap();
    assert_eq!(made, read);
    assert_eq!(shown(&made), journal.expected(1, seq));
}

#[test]
fn a_large_execution_leaves_a_digest_and_a_small_one_none() {
    let mut journal = Journal::new();
    let mut digester = journal.digester();
    journal.append(flood(1));
    journal.append([state(1, ExecutionState::Ok)]);
    journal.append([
        request(2),
        print(2, "small\n"),
        state(2, ExecutionState::Ok),
    ]);
    digester.finish();
    let kept = digest::read(journal.dir.path(), 1).unwrap();
    assert!(digest::read(journal.dir.path(), 2).is_none());
    let extent = journal.extent(1);
    assert_eq!(kept.until_seq, extent.last_seq);
    let wanted = replay(1, u64::MAX, Some(extent));
    let shared = &digester.digests.0;
    let from_digest = shared.read(&wanted).unwrap();
    std::fs::remove_file(journal.dir.path().join("digest-00000001")).unwrap();
    let from_records = shared.read(&wanted).unwrap();
    assert_eq!(shown(&from_digest), shown(&from_records));
    assert_eq!(shown(&from_digest), journal.expected(1, u64::MAX));
    assert_eq!(from_digest[0].0, "execute_input");
    assert_eq!(from_digest[0].1.content, from_records[0].1.content);
    // Reading it has made one again.
    assert_eq!(digest::read(journal.dir.path(), 1), Some(kept));
}

#[test]
fn until_its_file_is_there_a_digest_is_had_from_memory() {
    let mut journal = Journal::new();
    let mut digester = journal.digester();
    let until_seq = journal.append([request(1), print(1, "one\n"), state(1, ExecutionState::Ok)]);
    digester.finish();
    let shared = &digester.digests.0;
    let sum = Sum {
        until_seq,
        outputs: Arc::new(vec![unreadable(&"not what the records say")]),
    };
    shared.over().insert(1, sum.clone());
    let wanted = replay(1, u64::MAX, Some(journal.extent(1)));
    assert_eq!(shared.read(&wanted).unwrap(), sum.outputs);
    shared.write_over();
    assert!(shared.over().is_empty());
    let kept = digest::read(journal.dir.path(), 1).unwrap();
    assert_eq!(shown(&typed(kept.messages)), shown(&sum.outputs));
}

#[test]
fn what_a_thread_prints_after_the_end_is_there_too() {
    let mut journal = Journal::new();
    let mut digester = journal.digester();
    journal.append(flood(1));
    journal.append([state(1, ExecutionState::Ok), print(1, "late\n")]);
    digester.finish();
    let extent = journal.extent(1);
    assert!(digest::read(journal.dir.path(), 1).unwrap().until_seq < extent.last_seq);
    let outputs = digester.digests.0.read(&replay(1, u64::MAX, Some(extent)));
    let text = |outputs: &[(String, Bytes)]| -> String {
        let streams = outputs.iter().filter(|(msg_type, _)| msg_type == "stream");
        let texts = streams.map(|(_, content)| {
            serde_json::from_slice::<serde_json::Value>(content).unwrap()["text"]
                .as_str()
                .unwrap()
                .to_owned()
        });
        texts.collect()
    };
    let shown = text(&shown(&outputs.unwrap()));
    assert!(
        shown.ends_with("late\n"),
        "{:?}",
        &shown[shown.len() - 100..]
    );
}

#[test]
fn a_host_that_takes_over_begins_at_the_first_execution_that_lives() {
    let mut journal = Journal::new();
    journal.append([request(1), print(1, "over\n"), state(1, ExecutionState::Ok)]);
    let first = journal.append([request(2)]);
    journal.append([print(2, "before\n")]);
    let digester = Digester::start("id", journal.log.tail(), first).unwrap();
    let seq = journal.append([print(2, "after\n"), attach(2)]);
    let digests = digester.digests();
    let outputs = block_on(digests.outputs(seq, &replay(2, seq, None)));
    assert!(digests.0.ready(seq).is_some());
    assert_eq!(shown(&outputs), journal.expected(2, seq));
}

#[test]
fn replays_that_nobody_fetched_go() {
    let mut journal = Journal::new();
    let digester = journal.digester();
    journal.append([request(1), print(1, "a\n")]);
    let seqs: Vec<u64> = (0..READY_MAX + 2)
        .map(|_| journal.append([attach(1)]))
        .collect();
    let digests = digester.digests();
    block_on(digests.outputs(seqs[READY_MAX + 1], &replay(1, seqs[READY_MAX + 1], None)));
    assert!(digests.0.ready(seqs[1]).is_none() && digests.0.ready(seqs[2]).is_some());
    // And are made anew where they are wanted after all.
    let outputs = block_on(digests.outputs(seqs[0], &replay(1, seqs[0], None)));
    assert_eq!(shown(&outputs), journal.expected(1, seqs[0]));
}

/// No descriptor is left, say, while the thread lags.
#[test]
fn files_that_cannot_be_read_for_a_moment_are_read_a_moment_later() {
    let mut journal = Journal::new();
    let mut digester = journal.digester();
    let has_come_to = |digester: &Digester, seq: u64| {
        digester.digests().hurry();
        let mut done = digester.digests().0.done.clone();
        block_on(async { done.wait_for(|done| *done >= seq).await.map(|_| ()) }).unwrap();
    };
    let begun = journal.append([
        request(1),
        state(1, ExecutionState::Running),
        print(1, "begin\n"),
    ]);
    has_come_to(&digester, begun);
    // More than stays in memory.
    let text = "x".repeat(99) + "\n";
    let display = json!({ "data": { "text/plain": text.repeat(60) }, "metadata": {} });
    for _ in 0..12 {
        journal.append((0..100).map(|_| output(1, "display_data", &display)));
    }
    let path = crate::journal::segments::path(journal.dir.path(), 1);
    let aside = journal.dir.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir(&path).unwrap();
    let attached = journal.append([attach(1)]);
    digester.digests().hurry();
    std::thread::sleep(std::time::Duration::from_millis(100));
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    has_come_to(&digester, attached);
    journal.append((0..2500).map(|_| print(1, "more\n")));
    let over = journal.append([state(1, ExecutionState::Ok)]);
    let extent = Some(journal.extent(1));
    digester.finish();
    assert_eq!(digest::read(journal.dir.path(), 1).unwrap().until_seq, over);
    let replay = Replay {
        n: 1,
        parent: String::new(),
        first_seq: 1,
        until_seq: 0,
        session: String::new(),
        extent,
    };
    let shown = block_on(journal.digester().digests().outputs(0, &replay));
    let shown: Vec<(String, Bytes)> = (shown.iter())
        .map(|(msg_type, message)| (msg_type.clone(), message.content.clone()))
        .collect();
    assert_eq!(shown, journal.expected(1, u64::MAX));
}
