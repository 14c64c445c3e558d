use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;
use crate::journal::codec::tests::record;
use crate::journal::record::Body;
use crate::link::{Hello, Refusal, Resume, Welcome};
use crate::session::event::Command;
use crate::session::view::Mirror;
use crate::wire::{Channel, Message};

/// Gives its bytes in pieces of these sizes, over and over.
struct Pieces {
    bytes: Bytes,
    sizes: VecDeque<usize>,
}

impl Pieces {
    fn new(bytes: impl Into<Bytes>, sizes: Vec<usize>) -> Self {
        Self {
            bytes: bytes.into(),
            sizes: sizes.into(),
        }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.sizes.pop_front().unwrap_or(usize::MAX).max(1);
        self.sizes.push_back(size);
        let size = size.min(self.bytes.len()).min(buf.remaining());
        buf.put_slice(&self.bytes.split_to(size));
        Poll::Ready(Ok(()))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(|piece| bytes.extend_from_slice(&piece));
    }
    bytes
}

/// All frames, and how it ended.
async fn read_all<R: AsyncRead + Unpin>(io: R) -> (Vec<Frame>, Result<(), LinkError>) {
    let mut reader = LinkReader::new(io);
    let mut frames = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, Ok(())),
            Err(error) => return (frames, Err(error)),
        }
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let text = any::<String>;
    let resume = (
        any::<u64>(),
        any::<u32>(),
        vec((text(), any::<u64>()), 0..3),
    )
        .prop_map(|(seq, part, mirrors)| Resume {
            seq,
            part,
            mirrors: (mirrors.into_iter())
                .map(|(parent, n)| Mirror { parent, n })
                .collect(),
        });
    let hello = (
        any::<u128>(),
        text(),
        any::<[bool; 3]>(),
        proptest::option::of(text()),
        proptest::option::of(resume),
    )
        .prop_map(
            |(client, kind, [claim, replies, iopub], connection_file, resume)| Hello {
                version: 1,
                client: uuid::Uuid::from_u128(client),
                kind,
                pid: 7,
                parent_pid: claim.then_some(3),
                claim,
                connection_file,
                replies,
                iopub,
                resume,
            },
        );
    let command = prop_oneof![
        (any::<bool>(), text()).prop_map(|(now, reason)| Command::Stop { now, reason }),
        Just(Command::Restart),
        Just(Command::Interrupt),
        any::<u64>().prop_map(|seconds| Command::Extend { seconds }),
    ];
    prop_oneof![
        hello.prop_map(Frame::Hello),
        (text(), any::<u64>()).prop_map(|(name, seq)| Frame::Welcome(Welcome {
            version: 1,
            session: name.clone(),
            session_id: name.clone(),
            name,
            seq,
            farside: "0".into(),
        })),
        Just(Frame::Refused(Refusal::Attached)),
        Just(Frame::Refused(Refusal::Version { host: 2 })),
        (any::<u32>(), record()).prop_map(|(part, record)| Frame::Record { part, record }),
        any::<u64>().prop_map(|number| Frame::Ack { number }),
        (any::<u64>(), command).prop_map(|(id, command)| Frame::Command { id, command }),
        (any::<u64>(), text()).prop_map(|(id, text)| Frame::Answer {
            id,
            answer: serde_json::json!({ "ok": false, "error": text }),
        }),
        text().prop_map(|reason| Frame::Ended { reason }),
        vec(vec(any::<u8>(), 0..9), 0..4).prop_map(|identities| Frame::Frontends { identities }),
        proptest::option::of(".{0,9}").prop_map(|text| Frame::KernelInfo {
            content: text.map(|text| serde_json::json!({ "banner": text })),
        }),
    ]
}

fn large(bytes: usize) -> Record {
    Record {
        seq: 1,
        time: 2,
        heard: 0,
        body: Body::Request {
            channel: Channel::Shell,
            client: uuid::Uuid::nil(),
            execution: 0,
            message: Message {
                content: vec![b'x'; bytes].into(),
                ..Message::default()
            },
        },
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_wherever_the_stream_is_cut(
        frames in vec(frame(), 0..6),
        sizes in vec(1usize..200, 1..8),
    ) {
        let (read, end) = block_on(read_all(Pieces::new(encoded(&frames), sizes)));
        prop_assert!(end.is_ok());
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn a_stream_that_ends_early_gives_its_whole_frames_and_an_error(
        frames in vec(frame(), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(&frames);
        let last = encoded(&frames[frames.len() - 1..]).len();
        bytes.truncate(bytes.len() - last + 1 + cut.index(last - 1));
        let (read, end) = block_on(read_all(Pieces::new(bytes, vec![])));
        prop_assert_eq!(&read, &frames[..frames.len() - 1]);
        prop_assert!(matches!(end, Err(LinkError::Torn)));
    }

    #[test]
    fn any_bytes_end_in_frames_or_an_error(
        bytes in vec(any::<u8>(), 0..400),
        sizes in vec(1usize..50, 1..4),
    ) {
        let _ = block_on(read_all(Pieces::new(bytes, sizes)));
    }

    /// Bytes that get past the length, into the decoders.
    #[test]
    fn any_body_is_a_frame_or_an_error(kind in 0u8..10, body in vec(any::<u8>(), 0..200)) {
        let mut bytes = (body.len() as u64 + 5).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&body);
        let _ = block_on(read_all(Pieces::new(bytes, vec![])));
    }

    #[test]
    fn a_frame_with_one_byte_changed_does_no_harm(
        frame in frame(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut bytes = encoded(&[frame]);
        let at = at.index(bytes.len());
        bytes[at] = with;
        let _ = block_on(read_all(Pieces::new(bytes, vec![])));
    }
}

#[test]
fn a_length_that_lies_gets_no_memory() {
    for length in [6u64, 1 << 30, 16 << 30] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[4, 0, 0, 0, 0]);
        let mut reader = LinkReader::new(Pieces::new(bytes, vec![1]));
        let end = block_on(reader.next());
        assert!(matches!(end, Err(LinkError::Torn)), "{end:?}");
        let held = reader.buffer.capacity();
        assert!(
            held <= 4 * READ_BYTES_MAX,
            "{held} bytes for a claim of {length}"
        );
    }
    for length in [0u64, 4, (16 << 30) + 1, u64::MAX] {
        let bytes = length.to_le_bytes().to_vec();
        let end = block_on(LinkReader::new(Pieces::new(bytes, vec![])).next());
        assert!(matches!(end, Err(LinkError::Malformed(_))), "{end:?}");
    }
}

#[test]
fn frames_cross_a_narrow_pipe_in_order() {
    let frames: Vec<Frame> = (0..200)
        .map(|number| match number % 3 {
            0 => Frame::Ack { number },
            1 => Frame::Record {
                part: number as u32,
                record: large(number as usize * 37),
            },
            _ => Frame::Ended {
                reason: number.to_string(),
            },
        })
        .collect();
    let (ours, theirs) = tokio::io::duplex(64);
    let write = async {
        let mut writer = LinkWriter::new(ours);
        for frame in &frames {
            match frame {
                Frame::Record { part, record } => writer.push_record(*part, record),
                other => writer.push(other),
            }
            if writer.waiting_bytes() > 1000 {
                writer.flush().await.unwrap();
            }
        }
        writer.flush().await.unwrap();
        assert_eq!(writer.waiting_bytes(), 0);
    };
    let ((), (read, end)) = block_on(async { tokio::join!(write, read_all(theirs)) });
    assert!(end.is_ok());
    assert_eq!(read, frames);
}

#[test]
fn a_cancelled_flush_goes_on_where_it_was() {
    block_on(async {
        let (ours, theirs) = tokio::io::duplex(100);
        let mut writer = LinkWriter::new(ours);
        let frame = Frame::Record {
            part: 0,
            record: large(1000),
        };
        writer.push(&frame);
        let before = writer.waiting_bytes();
        tokio::select! {
            biased;
            done = writer.flush() => panic!("nobody reads: {done:?}"),
            () = std::future::ready(()) => {}
        }
        assert!(
            writer.waiting_bytes() < before,
            "the pipe took what it could"
        );
        let mut reader = LinkReader::new(theirs);
        let (flushed, read) = tokio::join!(writer.flush(), reader.next());
        flushed.unwrap();
        assert_eq!(read.unwrap(), Some(frame));
    });
}

#[test]
fn a_cancelled_read_loses_nothing() {
    block_on(async {
        let (ours, theirs) = tokio::io::duplex(10_000);
        let mut writer = LinkWriter::new(ours);
        let frame = Frame::Ended {
            reason: "over".into(),
        };
        let bytes = encoded(std::slice::from_ref(&frame));
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let mut reader = LinkReader::new(theirs);
        writer.outgoing.push_bytes(Bytes::copy_from_slice(first));
        writer.flush().await.unwrap();
        tokio::select! {
            biased;
            frame = reader.next() => panic!("half a frame: {frame:?}"),
            () = std::future::ready(()) => {}
        }
        writer.outgoing.push_bytes(Bytes::copy_from_slice(second));
        writer.flush().await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(frame));
    });
}

#[test]
fn a_large_frames_memory_is_given_back() {
    let frames = [
        Frame::Record {
            part: 0,
            record: large(8 << 20),
        },
        Frame::Ack { number: 1 },
    ];
    block_on(async {
        let mut reader = LinkReader::new(Pieces::new(encoded(&frames), vec![]));
        assert_eq!(reader.next().await.unwrap().as_ref(), Some(&frames[0]));
        assert_eq!(reader.next().await.unwrap().as_ref(), Some(&frames[1]));
        assert_eq!(reader.next().await.unwrap(), None);
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES_MAX);
    });
}

#[test]
fn a_small_frame_that_came_alone_keeps_no_more_than_itself() {
    let frame = Frame::Record {
        part: 0,
        record: large(300),
    };
    let bytes = encoded(std::slice::from_ref(&frame));
    block_on(async {
        let mut reader = LinkReader::new(Pieces::new(bytes.repeat(100), vec![bytes.len()]));
        let mut kept = vec![reader.next().await.unwrap().unwrap()];
        let buffer = reader.buffer.as_ptr();
        while let Some(frame) = reader.next().await.unwrap() {
            kept.push(frame);
            assert_eq!(reader.buffer.as_ptr(), buffer, "used again");
        }
        assert!(kept.len() == 100 && kept.iter().all(|one| *one == frame));
    });
}

#[test]
fn a_frame_whose_end_is_held_back_is_none_yet() {
    block_on(async {
        let frames = [
            Frame::Ack { number: 7 },
            Frame::Ended {
                reason: "x".repeat(100_000),
            },
        ];
        let whole = encoded(&frames);
        for kept in [1, 9, 99_999, whole.len()] {
            let mut bytes = Vec::new();
            let mut writer = LinkWriter::new(&mut bytes);
            frames.iter().for_each(|frame| writer.push(frame));
            writer.flush_but(kept).await.unwrap();
            assert_eq!(writer.waiting_bytes(), kept);
            writer.flush_but(kept).await.unwrap();
            assert_eq!(writer.waiting_bytes(), kept);
            drop(writer);
            assert!(bytes == whole[..whole.len() - kept]);
            let (read, end) = read_all(&bytes[..]).await;
            if kept < whole.len() {
                assert_eq!(read, frames[..1]);
                assert!(matches!(end, Err(LinkError::Torn)));
            }
        }
        let mut bytes = Vec::new();
        let mut writer = LinkWriter::new(&mut bytes);
        frames.iter().for_each(|frame| writer.push(frame));
        writer.flush_but(1).await.unwrap();
        writer.flush().await.unwrap();
        drop(writer);
        assert!(bytes == whole);
    });
}

proptest! {
    #[test]
    fn the_dictionaries_of_a_frame_are_found_as_soon_as_its_table_is_there(
        record in record(), cut in any::<prop::sample::Index>(),
    ) {
        let frame = Frame::Record { part: 3, record };
        let bytes = encoded(std::slice::from_ref(&frame));
        let Frame::Record { record, .. } = frame else { unreachable!() };
        let expected = match &record.body {
            Body::Note(_) => None,
            Body::Request { message, .. } | Body::Reply { message, .. } | Body::Iopub { message, .. } => {
                Some([&message.header[..], &message.parent_header, &message.metadata, &message.content].concat())
            }
        };
        let range = Frame::dictionaries(&bytes);
        let found = range.clone().map(|range| bytes[range.start as usize..range.end as usize].to_vec());
        prop_assert_eq!(found, expected);
        let early = Frame::dictionaries(&bytes[..cut.index(bytes.len())]);
        prop_assert!(early.is_none() || early == range);
    }

    #[test]
    fn any_bytes_have_dictionaries_or_not(mut bytes in vec(any::<u8>(), 0..300), kind in 3u8..6) {
        if let Some(byte) = bytes.get_mut(8) {
            *byte = kind;
        }
        if let Some(range) = Frame::dictionaries(&bytes) {
            prop_assert!(range.start <= range.end);
        }
    }
}

proptest! {
    #[test]
    fn a_shared_record_is_written_as_a_frame_is(records in vec(record(), 0..4), part in any::<u32>(), bytes in 0usize..20_000) {
        let records: Vec<Record> = records.into_iter().chain([large(bytes)]).collect();
        let mut written = Vec::new();
        let mut writer = LinkWriter::new(&mut written);
        records.iter().for_each(|record| writer.push_record(part, record));
        block_on(writer.flush()).unwrap();
        drop(writer);
        let frames: Vec<Frame> = records.into_iter().map(|record| Frame::Record { part, record }).collect();
        prop_assert!(written == encoded(&frames));
    }
}
