//! Golden files: what version 1 of the journal's format looks like on disk. Today's reader must read them for ever;
//! today's writer writes exactly these bytes as long as the format is version 1.
//!
//! The files were made by running this test with `FARSIDE_WRITE_GOLDEN=1`. Never do that again for a version that
//! was released: a new version gets a folder of its own.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use farside::journal::record::{Body, ExecutionState, Note, ProcessEnd, Record};
use farside::journal::{Filter, Gap, Item, Reader, View, Writer, WriterOptions};
use farside::wire::{Channel, Message};
use uuid::Uuid;

const CLIENT: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

/// Small enough that the golden journal has several segments.
const OPTIONS: WriterOptions = WriterOptions {
    segment_bytes: 2500,
    sync: false,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/journal-v1")
}

fn message(msg_type: &str, msg_id: &str, content: &str, buffers: &[&'static [u8]]) -> Message {
    let header = format!(
        r#"{{"msg_id":"{msg_id}","msg_type":"{msg_type}","username":"u","session":"s","date":"2026-01-01T00:00:00Z","version":"5.4"}}"#
    );
    Message {
        identities: vec![
            Bytes::from_static(b"\x00\xffidentity"),
            Bytes::from(msg_type.to_owned()),
        ],
        header: header.into(),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(br#"{"cellId":"c0ffee","trusted":true}"#),
        content: content.to_owned().into(),
        buffers: buffers.iter().copied().map(Bytes::from_static).collect(),
    }
}

/// Every kind of record, and every kind of note.
fn records() -> Vec<Record> {
    let shell = Channel::Shell;
    let request = |channel, execution, message| Body::Request {
        channel,
        client: CLIENT,
        execution,
        message,
    };
    let reply = |channel, execution, message| Body::Reply {
        channel,
        client: CLIENT,
        execution,
        message,
    };
    let iopub = |client, execution, message| Body::Iopub {
        client,
        execution,
        message,
    };
    let state = |n, state, reason: Option<&str>| {
        let reason = reason.map(str::to_owned);
        Body::Note(Note::Execution {
            n,
            msg_id: format!("request-{n}"),
            state,
            reason,
        })
    };
    let ended = Some(ProcessEnd {
        exit_code: None,
        signal: Some(9),
        out_of_memory: true,
    });
    let bodies = vec![
        Body::Note(Note::SessionStarted {
            id: "0123abcd".into(),
            name: "träning".into(),
            engine: "python3".into(),
        }),
        Body::Note(Note::HostStarted {
            pid: 4321,
            version: "0.1.0".into(),
        }),
        Body::Note(Note::EngineStarted {
            generation: 1,
            pid: 4322,
            start_time: 123_456,
        }),
        Body::Note(Note::ClientAttached {
            client: CLIENT,
            kind: "launcher".into(),
            pid: 4323,
        }),
        request(
            shell,
            1,
            message(
                "execute_request",
                "request-1",
                r#"{"code":"print('hä')"}"#,
                &[],
            ),
        ),
        state(1, ExecutionState::Queued, None),
        state(1, ExecutionState::Running, None),
        iopub(
            None,
            1,
            message(
                "execute_input",
                "m1",
                r#"{"code":"print('hä')","execution_count":1}"#,
                &[],
            ),
        ),
        iopub(
            None,
            1,
            message(
                "stream",
                "m2",
                r#"{"name":"stdout","text":"h\u00e4\n"}"#,
                &[],
            ),
        ),
        iopub(
            None,
            1,
            message(
                "comm_msg",
                "m3",
                "{}",
                &[b"\xf5\xa7\xfd\x1e binary", b"", b"\x00"],
            ),
        ),
        iopub(
            Some(CLIENT),
            0,
            message("status", "m4", r#"{"execution_state":"busy"}"#, &[]),
        ),
        reply(
            Channel::Stdin,
            1,
            message(
                "input_request",
                "m5",
                r#"{"prompt":"?","password":false}"#,
                &[],
            ),
        ),
        state(1, ExecutionState::WaitingInput, None),
        request(
            Channel::Stdin,
            0,
            message("input_reply", "m6", r#"{"value":"v"}"#, &[]),
        ),
        reply(
            shell,
            1,
            message(
                "execute_reply",
                "m7",
                r#"{"status":"ok","execution_count":1}"#,
                &[],
            ),
        ),
        state(1, ExecutionState::Ok, None),
        request(
            Channel::Control,
            0,
            message("interrupt_request", "m8", "{}", &[]),
        ),
        request(
            shell,
            2,
            message("execute_request", "request-2", r#"{"code":"1/0"}"#, &[]),
        ),
        Body::Note(Note::Checkpoint {
            state: serde_json::json!({"next": 3, "list": [null, true, "x"]}),
        }),
        state(2, ExecutionState::Running, None),
        Body::Note(Note::Attach {
            client: CLIENT,
            parent: r#"{"msg_id":"a"}"#.into(),
            n: 1,
            first_seq: 5,
            session: String::new(),
            extent: None,
        }),
        Body::Note(Note::AttachEnded {
            client: CLIENT,
            msg_id: "a".into(),
        }),
        Body::Note(Note::Gap {
            from: 1,
            until: 2,
            why: "the host was not there".into(),
            said: false,
        }),
        Body::Note(Note::EngineEnded {
            generation: 1,
            end: ended,
            why: "killed by signal 9".into(),
        }),
        state(2, ExecutionState::Lost, Some("the engine died")),
        Body::Note(Note::ClientDetached {
            client: CLIENT,
            why: "its parent has gone".into(),
        }),
        Body::Iopub {
            client: None,
            execution: 0,
            message: Message::default(),
        },
        Body::Note(Note::SessionEnded {
            reason: "engine_died: killed by signal 9".into(),
        }),
    ];
    let time = |seq| 1_767_225_600_000_000 + seq;
    bodies
        .into_iter()
        .zip(1..)
        .map(|(body, seq)| Record {
            seq,
            time: time(seq),
            heard: 0,
            body,
        })
        .collect()
}

fn write(dir: &Path) {
    let (mut writer, _) = Writer::open(dir, OPTIONS).unwrap();
    for record in records() {
        writer.append(&[record]).unwrap();
    }
}

fn read(dir: &Path) -> Vec<Item> {
    let mut reader = Reader::open(dir, 1).unwrap();
    let mut items = Vec::new();
    loop {
        let batch = reader.next_batch(1000).unwrap();
        if batch.is_empty() {
            return items;
        }
        items.extend(batch);
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn version_1_is_read() {
    if std::env::var_os("FARSIDE_WRITE_GOLDEN").is_some() {
        write(&golden());
    }
    let found: Vec<_> = read(&golden())
        .into_iter()
        .map(|item| match item {
            Item::Record(record, _) => (*record).clone(),
            Item::Gap(gap) => panic!("{gap:?}"),
        })
        .collect();
    assert_eq!(found, records());

    let view = View::open(&golden()).unwrap();
    let json = serde_json::to_string_pretty(&view.executions(&Filter::default())).unwrap();
    let expected = golden().join("../journal-v1-executions.json");
    if std::env::var_os("FARSIDE_WRITE_GOLDEN").is_some() {
        std::fs::write(&expected, format!("{json}\n")).unwrap();
    }
    assert_eq!(json, std::fs::read_to_string(expected).unwrap().trim_end());
    assert_eq!(view.session().name, "träning");
}

#[test]
fn version_1_is_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let (mut written, golden) = (files(dir.path()), files(&golden()));
    // It says that nothing was not kept.
    assert_eq!(written.pop(), Some(("unkept".to_owned(), vec![0; 16])));
    let names = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&written), names(&golden));
    for ((name, written), (_, golden)) in written.iter().zip(&golden) {
        let difference = written.iter().zip(golden).position(|(a, b)| a != b);
        assert_eq!((written.len(), difference), (golden.len(), None), "{name}");
    }
}

#[test]
fn version_1_is_read_also_where_it_is_damaged_and_torn() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&golden()) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let first = dir.path().join("journal-00000001.seg");
    let Item::Record(_, second_record) = &read(dir.path())[1] else {
        panic!("a gap")
    };
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[second_record.offset as usize + 30] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let (last, mut bytes) = files(dir.path()).pop().unwrap();
    bytes.pop();
    std::fs::write(dir.path().join(last), bytes).unwrap();

    let items = read(dir.path());
    assert_eq!(
        items[1],
        Item::Gap(Gap {
            missing: 2..3,
            damaged_bytes: second_record.length
        })
    );
    // The gap stands for the second record, and the last is torn.
    assert_eq!(items.len(), records().len() - 1);
}
