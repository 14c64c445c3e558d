//! What each version of the link looks like on the wire, kept: a host of the build before serves today's launcher and
//! CLI, and the other way round.
//!
//! `tests/golden/link-v*/` has what a launcher, a CLI command and a host of that version say, one file a direction.
//! Today's code must read it, and (as long as it speaks that version) write it, byte for byte.
//! `FARSIDE_WRITE_GOLDEN=1 cargo test --test link_golden` writes the files of a new version.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use farside::journal::record::{Body, Note, Record};
use farside::link::{
    FRONTENDS_VERSION, Frame, Hello, KERNEL_INFO_VERSION, LinkReader, LinkWriter, OLDEST_VERSION,
    Refusal, Resume, VERSION, Welcome,
};
use farside::session::event::Command;
use farside::session::view::Mirror;
use farside::wire::{Channel, Message};
use serde_json::json;
use uuid::Uuid;

const CLIENT: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

fn message(msg_type: &str) -> Message {
    Message {
        identities: vec![Bytes::from_static(b"\x00ident")],
        header: format!(r#"{{"msg_id":"m-{msg_type}","msg_type":"{msg_type}","session":"s"}}"#)
            .into(),
        parent_header: "{}".into(),
        metadata: r#"{"odd": [ 1,2 ]}"#.into(),
        content: r#"{"code":"1 + 1"}"#.into(),
        buffers: vec![Bytes::from_static(&[0xff, 0, 1])],
    }
}

fn record(seq: u64, body: Body) -> Record {
    Record {
        seq,
        time: 1_767_225_600_000_000 + seq,
        heard: 0,
        body,
    }
}

/// All that a client of this version says.
fn client(version: u32) -> Vec<Frame> {
    let request = |part, seq| Frame::Record {
        part,
        record: Record {
            time: 0,
            ..record(
                seq,
                Body::Request {
                    channel: Channel::Shell,
                    client: CLIENT,
                    execution: 0,
                    message: message("execute_request"),
                },
            )
        },
    };
    let hello = Hello {
        version,
        client: CLIENT,
        kind: "launcher".into(),
        pid: 4711,
        parent_pid: Some(4710),
        claim: true,
        connection_file: Some("/run/kernel-1.json".into()),
        replies: true,
        iopub: false,
        resume: None,
    };
    let back = Hello {
        kind: "iopub".into(),
        claim: false,
        connection_file: None,
        replies: false,
        iopub: true,
        resume: Some(Resume {
            seq: 12,
            part: u32::MAX,
            mirrors: vec![Mirror {
                parent: r#"{"msg_id":"a"}"#.into(),
                n: 3,
            }],
        }),
        ..hello.clone()
    };
    let commands = [
        Command::Stop {
            now: true,
            reason: "stopped: by `farside stop`".into(),
        },
        Command::Restart,
        Command::Interrupt,
        Command::Extend { seconds: 7200 },
        Command::UpgradeHost {
            program: "/usr/bin/farside".into(),
        },
    ];
    let commands = (1..)
        .zip(commands)
        .map(|(id, command)| Frame::Command { id, command });
    let frontends = (version >= FRONTENDS_VERSION).then(|| Frame::Frontends {
        identities: vec![b"\x00ident".to_vec(), b"9f9f8e2c-page".to_vec()],
    });
    [Frame::Hello(hello), Frame::Hello(back)]
        .into_iter()
        .chain(frontends)
        .chain([request(0, 1), request(1, 2)])
        .chain(commands)
        .collect()
}

/// All that a host of this version says.
fn host(version: u32) -> Vec<Frame> {
    let iopub = |client| Body::Iopub {
        client,
        execution: 3,
        message: message("stream"),
    };
    let frame = |part, seq, body| Frame::Record {
        part,
        record: record(seq, body),
    };
    let welcome = Frame::Welcome(Welcome {
        version,
        session: "k3x9a2bq".into(),
        name: "train".into(),
        session_id: "f9-db55".into(),
        seq: 11,
        farside: "0.1.0".into(),
    });
    let kernel_info = [Some(json!({ "status": "ok", "banner": "Python 3" })), None]
        .map(|content| Frame::KernelInfo { content });
    let kernel_info = (version >= KERNEL_INFO_VERSION).then_some(kernel_info);
    let rest = [
        frame(0, 12, iopub(None)),
        frame(1, 12, iopub(Some(CLIENT))),
        frame(
            0,
            13,
            Body::Reply {
                channel: Channel::Control,
                client: CLIENT,
                execution: 0,
                message: message("interrupt_reply"),
            },
        ),
        frame(
            0,
            14,
            Body::Note(Note::Attach {
                client: CLIENT,
                parent: "{}".into(),
                n: 3,
                first_seq: 2,
                session: String::new(),
                extent: None,
            }),
        ),
        frame(
            0,
            15,
            Body::Note(Note::AttachEnded {
                client: CLIENT,
                msg_id: "a".into(),
            }),
        ),
        Frame::Ack { number: 2 },
        Frame::Answer {
            id: 1,
            answer: json!({ "ok": true, "ends_at": null }),
        },
        Frame::Ended {
            reason: "idle: nothing was run for 4h".into(),
        },
        Frame::Refused(Refusal::Attached),
        Frame::Refused(Refusal::Ending),
        Frame::Refused(Refusal::Version { host: version }),
    ];
    std::iter::once(welcome)
        .chain(kernel_info.into_iter().flatten())
        .chain(rest)
        .collect()
}

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/link-v{version}"))
}

async fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LinkWriter::new(&mut bytes);
    for frame in frames {
        writer.send(frame).await.unwrap();
    }
    drop(writer);
    bytes
}

async fn decoded(bytes: &[u8]) -> Vec<Frame> {
    let mut reader = LinkReader::new(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = reader.next().await.unwrap() {
        frames.push(frame);
    }
    frames
}

#[tokio::test]
async fn every_version_is_read_and_written_as_ever() {
    for version in OLDEST_VERSION..=VERSION {
        for (name, frames) in [("client.bin", client(version)), ("host.bin", host(version))] {
            let path = golden(version).join(name);
            if std::env::var_os("FARSIDE_WRITE_GOLDEN").is_some() && version == VERSION {
                std::fs::create_dir_all(golden(version)).unwrap();
                std::fs::write(&path, encoded(&frames).await).unwrap();
            }
            let kept = std::fs::read(&path).unwrap();
            assert_eq!(decoded(&kept).await, frames, "{name} of {version}");
            assert!(
                encoded(&frames).await == kept,
                "{name} of {version} is written otherwise"
            );
        }
    }
}

/// What a newer version may add to JSON bodies.
#[tokio::test]
async fn fields_that_are_not_known_do_no_harm() {
    let body = br#"{"version":1,"session":"k","name":"n","session_id":"s","seq":1,"farside":"9","new":{"a":[1]}}"#;
    let mut bytes = Vec::new();
    bytes.extend((body.len() as u64 + 5).to_le_bytes());
    bytes.push(2);
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(body);
    let frames = decoded(&bytes).await;
    assert!(matches!(&frames[..], [Frame::Welcome(Welcome { farside, .. })] if farside == "9"));
}
