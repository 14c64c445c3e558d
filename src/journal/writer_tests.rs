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

/// All records in `dir`, and the gaps as ranges of seqs.
pub(crate) fn read_all(dir: &Path) -> (Vec<Record>, Vec<Range<u64>>) {
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
                crate::journal::Item::Gap(gap) => gaps.push(gap.missing),
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
