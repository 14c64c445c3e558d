//! kill -9 in the middle of appending: whatever an append acknowledged is in the journal, whole and in order.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use farside::journal::record::{Body, Note, Record};
use farside::journal::{Item, Reader, Writer, WriterOptions};
use farside::wire::Message;

/// Names the folder to append to, and makes this test the process that will be killed.
const FOLDER: &str = "FARSIDE_TEST_CRASH_FOLDER";

fn record(seq: u64) -> Record {
    let size = if seq.is_multiple_of(50) {
        300_000
    } else {
        seq as usize % 3000
    };
    let message = Message {
        content: vec![seq as u8; size].into(),
        ..Message::default()
    };
    Record {
        seq,
        heard: 0,
        time: seq,
        body: Body::Iopub {
            client: None,
            execution: 1,
            message,
        },
    }
}

fn checkpoint(seq: u64) -> Record {
    let state = serde_json::json!({ "at": seq });
    Record {
        seq,
        heard: 0,
        time: seq,
        body: Body::Note(Note::Checkpoint { state }),
    }
}

/// Appends for ever, and says on its stdin (a socket) what is kept.
fn append_until_killed(dir: &Path) {
    let mut acknowledged =
        std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (mut writer, _) = Writer::open(
        dir,
        WriterOptions {
            segment_bytes: 500_000,
            ..WriterOptions::default()
        },
    )
    .unwrap();
    loop {
        let seq = writer.next_seq();
        let batch: Vec<_> = if writer.wants_checkpoint() {
            vec![checkpoint(seq)]
        } else {
            (seq..=seq + seq % 5).map(record).collect()
        };
        writer.append(&batch).unwrap();
        let last = writer.next_seq() - 1;
        if acknowledged.write_all(&last.to_le_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some(dir) = std::env::var_os(FOLDER) {
        return append_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut kept = 0;
    for round in 0..15_u64 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "what_was_acknowledged_survives_a_kill",
                "--nocapture",
            ])
            .env(FOLDER, dir.path())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut last = [0; 8];
        for _ in 0..1 + round * 37 % 200 {
            ours.read_exact(&mut last).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died counts too.
        while ours.read_exact(&mut last).is_ok() {}
        let acknowledged = u64::from_le_bytes(last);
        assert!(acknowledged > kept, "no progress in round {round}");
        kept = check(dir.path(), acknowledged);
    }
}

/// The whole journal is records 1.., with nothing missing; returns the last.
fn check(dir: &Path, acknowledged: u64) -> u64 {
    let mut reader = Reader::open(dir, 1).unwrap();
    let mut last = 0;
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            break;
        }
        for item in batch {
            let Item::Record(found, _) = item else {
                panic!("{item:?} after {last}")
            };
            last += 1;
            if found.body != checkpoint(last).body {
                assert_eq!(*found, record(last));
            }
        }
    }
    assert!(
        last >= acknowledged,
        "{last} are there, {acknowledged} were acknowledged"
    );
    let (writer, recovered) = Writer::open(dir, WriterOptions::default()).unwrap();
    assert_eq!(
        (writer.next_seq(), recovered.next_seq),
        (last + 1, last + 1)
    );
    let from = recovered
        .checkpoint
        .map_or(0, |state| state["at"].as_u64().unwrap());
    let after: Vec<_> = recovered.after.iter().map(|r| r.record.seq).collect();
    assert_eq!(after, (from + 1..=last).collect::<Vec<_>>());
    for recovered in &recovered.after {
        let mut expected = record(recovered.record.seq);
        if let (false, Body::Iopub { message, .. }) = (recovered.whole, &mut expected.body) {
            message.content = Bytes::new();
        }
        assert_eq!(recovered.record, expected);
    }
    last
}
