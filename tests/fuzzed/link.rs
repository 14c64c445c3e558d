//! The link's decoder: frames on a byte stream, and the look into one that is still on its way.
//!
//! Input: byte 0 how much comes at once, then the stream.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use farside::journal::record::{Body, Note};
use farside::link::{Frame, LinkReader, LinkWriter};
use tokio::io::{AsyncRead, ReadBuf};

pub fn check(bytes: &[u8]) {
    let [piece, stream @ ..] = bytes else { return };
    let frames = frames_of(Pieces {
        rest: stream,
        piece: 1 + usize::from(*piece),
    });
    let whole = frames_of(stream);
    assert_eq!(frames, whole, "it depends on how the stream is cut");
    check_dictionaries(stream);
    let written = written(&frames);
    let again = frames_of(&written[..]);
    assert_eq!(again.len(), frames.len());
    for (frame, again) in frames.iter().zip(&again) {
        if is_exact(frame) {
            assert_eq!(frame, again);
        }
    }
}

/// All whole frames up to the end, or to where it is no link any more.
fn frames_of(io: impl AsyncRead + Unpin) -> Vec<Frame> {
    let mut reader = LinkReader::new(io);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = now(reader.next_watched(|so_far| {
        check_dictionaries(so_far);
    })) {
        frames.push(frame);
    }
    frames
}

fn written(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LinkWriter::new(&mut bytes);
    for frame in frames {
        match frame {
            Frame::Record { part, record } => writer.push_record(*part, record),
            other => writer.push(other),
        }
    }
    now(writer.flush()).expect("memory takes all");
    drop(writer);
    bytes
}

/// Floating-point numbers in JSON may change in their last digit when they are written again.
fn is_exact(frame: &Frame) -> bool {
    match frame {
        Frame::Record { record, .. } => match &record.body {
            Body::Note(Note::Checkpoint { .. } | Note::EngineReady { .. }) => false,
            Body::Note(_) | Body::Request { .. } | Body::Reply { .. } | Body::Iopub { .. } => true,
        },
        Frame::Answer { .. } | Frame::KernelInfo { .. } => false,
        Frame::Hello(_)
        | Frame::Welcome(_)
        | Frame::Refused(_)
        | Frame::Ack { .. }
        | Frame::Command { .. }
        | Frame::Frontends { .. }
        | Frame::Ended { .. } => true,
    }
}

fn check_dictionaries(frame: &[u8]) {
    if let Some(range) = Frame::dictionaries(frame) {
        assert!(range.start <= range.end);
    }
}

/// What never has to wait is done at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits, and there is nothing to wait for"),
    }
}

struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let n = self.piece.min(self.rest.len()).min(to.remaining());
        let (now, later) = self.rest.split_at(n);
        to.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}
