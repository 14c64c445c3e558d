use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::journal::Position;
use crate::journal::record::{ExecutionState, Extent, ProcessEnd};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = Message> {
    (
        vec(bytes(), 0..4),
        bytes(),
        bytes(),
        bytes(),
        bytes(),
        vec(bytes(), 0..4),
    )
        .prop_map(
            |(identities, header, parent_header, metadata, content, buffers)| Message {
                identities,
                header,
                parent_header,
                metadata,
                content,
                buffers,
            },
        )
}

fn end() -> impl Strategy<Value = ProcessEnd> {
    (any::<Option<i32>>(), any::<Option<i32>>(), any::<bool>()).prop_map(
        |(exit_code, signal, out_of_memory)| ProcessEnd {
            exit_code,
            signal,
            out_of_memory,
        },
    )
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            vec((any::<String>(), inner), 0..4)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn note() -> impl Strategy<Value = Note> {
    let client = || any::<u128>().prop_map(Uuid::from_u128);
    let state = prop_oneof![
        Just(ExecutionState::Queued),
        Just(ExecutionState::WaitingInput),
        Just(ExecutionState::Interrupted)
    ];
    prop_oneof![
        (any::<String>(), any::<String>(), any::<String>())
            .prop_map(|(id, name, engine)| Note::SessionStarted { id, name, engine }),
        (any::<u32>(), any::<String>())
            .prop_map(|(pid, version)| Note::HostStarted { pid, version }),
        (any::<u32>(), any::<u32>()).prop_map(|(generation, pid)| Note::EngineStarted {
            generation,
            pid,
            start_time: u64::from(pid)
        }),
        (any::<u32>(), option::of(end()), any::<String>()).prop_map(|(generation, end, why)| {
            Note::EngineEnded {
                generation,
                end,
                why,
            }
        }),
        (any::<u64>(), any::<u64>(), any::<String>(), any::<bool>()).prop_map(
            |(from, until, why, said)| Note::Gap {
                from,
                until,
                why,
                said,
            }
        ),
        (client(), any::<String>(), any::<u32>())
            .prop_map(|(client, kind, pid)| Note::ClientAttached { client, kind, pid }),
        (client(), any::<String>()).prop_map(|(client, why)| Note::ClientDetached { client, why }),
        (
            any::<u64>(),
            any::<String>(),
            state,
            any::<Option<String>>()
        )
            .prop_map(|(n, msg_id, state, reason)| Note::Execution {
                n,
                msg_id,
                state,
                reason
            }),
        (client(), any::<String>(), any::<u64>()).prop_map(|(client, parent, n)| Note::Attach {
            client,
            parent,
            n,
            first_seq: n,
            session: String::new(),
            extent: None,
        }),
        (client(), any::<String>(), any::<String>()).prop_map(|(client, parent, session)| {
            Note::Attach {
                client,
                parent,
                n: 1,
                first_seq: 2,
                session,
                extent: Some(Extent {
                    first: Position {
                        segment: 1,
                        offset: 32,
                        length: 100,
                    },
                    last_seq: 9,
                }),
            }
        }),
        any::<String>().prop_map(|session| Note::PredecessorTold { session }),
        (any::<String>(), any::<String>()).prop_map(|(subshell_id, msg_id)| {
            Note::SubshellDeleted {
                subshell_id,
                msg_id,
            }
        }),
        (any::<u64>(), any::<u64>(), any::<i64>(), any::<i64>()).prop_map(
            |(n, until, outputs, bytes)| Note::Compacted {
                n,
                until,
                outputs,
                bytes
            }
        ),
        (client(), any::<String>())
            .prop_map(|(client, msg_id)| Note::AttachEnded { client, msg_id }),
        json().prop_map(|state| Note::Checkpoint { state }),
        any::<String>().prop_map(|reason| Note::SessionEnded { reason }),
        Just(Note::Unknown),
    ]
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    let channel = || {
        prop_oneof![
            Just(Channel::Shell),
            Just(Channel::Control),
            Just(Channel::Stdin)
        ]
    };
    let client = || any::<u128>().prop_map(Uuid::from_u128);
    let body = prop_oneof![
        (channel(), client(), any::<u64>(), message()).prop_map(
            |(channel, client, execution, message)| {
                Body::Request {
                    channel,
                    client,
                    execution,
                    message,
                }
            }
        ),
        (channel(), client(), any::<u64>(), message()).prop_map(
            |(channel, client, execution, message)| {
                Body::Reply {
                    channel,
                    client,
                    execution,
                    message,
                }
            }
        ),
        (option::of(client()), any::<u64>(), message()).prop_map(|(client, execution, message)| {
            Body::Iopub {
                client,
                execution,
                message,
            }
        }),
        note().prop_map(Body::Note),
    ];
    (any::<u64>(), any::<u64>(), any::<u32>(), body).prop_map(|(seq, time, heard, body)| Record {
        seq,
        time,
        heard,
        body,
    })
}

fn joined(record: &Record) -> Vec<u8> {
    encode(record).concat()
}

proptest! {
    #[test]
    fn decode_gives_what_was_encoded(record in record()) {
        prop_assert_eq!(decode(joined(&record).into()), Ok(record));
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(record) = decode(bytes.clone().into()) {
            // What is accepted means what it says. (A note's JSON may have been written otherwise.)
            if !matches!(record.body, Body::Note(_)) {
                prop_assert_eq!(decode(joined(&record).into()), Ok(record));
            }
        }
        if let Ok(frame) = Frame::decode(&bytes) {
            let _ = frame.decode_head(1, 32, &bytes[FRAME_BYTES..]);
        }
    }

    /// Nearly right bytes come closer to the decoder's inside than random ones.
    #[test]
    fn a_changed_record_is_a_record_or_an_error(
        record in record(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = joined(&record);
        for (at, value) in changes {
            let at = at.index(bytes.len().min(100));
            bytes[at] = value;
        }
        let _ = decode(bytes.clone().into());
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(bytes.into());
    }

    #[test]
    fn a_shorter_or_longer_body_is_refused(record in record(), cut in any::<prop::sample::Index>()) {
        let mut bytes = joined(&record);
        let short = bytes[..cut.index(bytes.len())].to_vec();
        prop_assert!(decode(short.into()).is_err());
        bytes.push(b' ');
        prop_assert!(decode(bytes.into()).is_err());
    }

    /// The head's checksum covers all of frame and head, and the place.
    #[test]
    fn a_flipped_bit_or_another_place_is_noticed(
        record in record(),
        bit in any::<prop::sample::Index>(),
        offset in 0..u64::MAX / 2,
    ) {
        let mut bytes = Vec::new();
        write_framed(&record, 3, offset, &mut bytes);
        let frame = Frame::decode(&bytes).unwrap();
        let end = FRAME_BYTES + frame.head_bytes as usize;
        let head = |bytes: &[u8], segment, offset| {
            let frame = Frame::decode(bytes)?;
            let end = FRAME_BYTES + frame.head_bytes as usize;
            let head = bytes.get(FRAME_BYTES..end).ok_or(DecodeError::NoMagic)?;
            frame.decode_head(segment, offset, head)
        };
        prop_assert_eq!(head(&bytes, 3, offset).map(|head| head.seq), Ok(record.seq));
        prop_assert!(head(&bytes, 4, offset).is_err());
        prop_assert!(head(&bytes, 3, offset + 1).is_err());
        let bit = bit.index(end * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(head(&bytes, 3, offset).is_err());
    }
}

#[test]
fn a_claimed_number_of_parts_is_not_believed() {
    let record = Record {
        seq: 1,
        time: 2,
        heard: 0,
        body: Body::Iopub {
            client: None,
            execution: 3,
            message: Message::default(),
        },
    };
    let mut bytes = joined(&record);
    bytes[4..12].fill(0xFF);
    assert_eq!(
        decode(bytes.into()),
        Err(DecodeError::Short {
            what: "part table",
            needs: 56 + 8 * (2 * u64::from(u32::MAX) + 4),
            has: 56 + 8 * 4
        })
    );
}

#[test]
fn lengths_that_overflow_are_refused() {
    let record = Record {
        seq: 1,
        time: 2,
        heard: 0,
        body: Body::Iopub {
            client: None,
            execution: 3,
            message: Message::default(),
        },
    };
    let mut bytes = joined(&record);
    bytes[HEAD_BYTES..HEAD_BYTES + 16].fill(0xFF);
    assert!(decode(bytes.into()).is_err());
}

#[test]
fn large_parts_are_shared_not_copied() {
    let content = Bytes::from(vec![b'x'; 1 << 20]);
    let message = Message {
        content: content.clone(),
        ..Message::default()
    };
    let record = Record {
        seq: 1,
        time: 2,
        heard: 0,
        body: Body::Iopub {
            client: None,
            execution: 0,
            message,
        },
    };
    assert_eq!(encode(&record)[1].as_ptr(), content.as_ptr());

    let body = Bytes::from(joined(&record));
    let Body::Iopub { message, .. } = decode(body.clone()).unwrap().body else {
        panic!("another kind")
    };
    assert!(body.as_ptr_range().contains(&message.content.as_ptr()));
}

#[test]
fn notes_of_a_newer_farside_are_unknown_not_errors() {
    let record = Record {
        seq: 1,
        time: 2,
        heard: 0,
        body: Body::Note(Note::Unknown),
    };
    let head = &joined(&record)[..HEAD_BYTES];
    for (json, expected) in [
        (
            r#"{"note":"from_the_future","x":[1,{}]}"#,
            Some(Note::Unknown),
        ),
        (r#"{"note":"gap","from":"yesterday"}"#, Some(Note::Unknown)),
        (
            r#"{"note":"session_ended","reason":"idle","more":1}"#,
            Some(Note::SessionEnded {
                reason: "idle".into(),
            }),
        ),
        (r#"{"note":"#, None),
    ] {
        let bytes = [head, &(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
        let note = match decode(bytes.into()) {
            Ok(Record {
                body: Body::Note(note),
                ..
            }) => Some(note),
            _ => None,
        };
        assert_eq!(note, expected, "{json}");
    }
}

#[test]
fn the_magic_is_found_also_where_only_its_beginning_is_there() {
    let [a, b, c, d] = FRAME_MAGIC;
    assert_eq!(find_magic(&[1, 2, a, b, c, d, 3], 0), Some(2));
    assert_eq!(find_magic(&[a, b, c, 1, a, b], 0), Some(4));
    assert_eq!(find_magic(&[a, a, b, c, d], 0), Some(1));
    assert_eq!(find_magic(&[a, b, c, d], 1), None);
    assert_eq!(find_magic(&[], 0), None);
}
