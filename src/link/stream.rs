//! Reading and writing frames on any byte stream.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::write_record_head;
use super::{Frame, LinkError};
use crate::journal::codec::Payload;
use crate::journal::record::Record;
use crate::wire::zmtp::{Outgoing, room_for};

/// The least that is read at once: many small frames fit.
const READ_BYTES_MIN: usize = 16 << 10;

/// The buffer grows by so much ahead of what has come, or doubles ([`room_for`]). A frame's length is the other end's
/// claim; memory follows the bytes that arrive.
const READ_BYTES_MAX: usize = 1 << 20;

/// What of a frame is kept keeps all that was read with it. So a frame that came alone, and is no more than a part of the
/// buffer, is copied to where it fits, and the buffer is used again.
const ALONE_BYTES_MAX: usize = READ_BYTES_MIN / 4;

/// How many pieces one vectored write takes.
const SLICES_MAX: usize = 64;

/// The reading end of a link.
#[derive(Debug)]
pub struct LinkReader<R> {
    io: R,
    buffer: BytesMut,
    read_bytes: usize,
}

impl<R: AsyncRead + Unpin> LinkReader<R> {
    /// Reads frames from `io`.
    pub fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
        }
    }

    /// The next frame; `None` at the stream's end. Cancelling loses nothing.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        self.next_watched(|_| {}).await
    }

    /// As [`LinkReader::next`], and shows `watch` what has come of the frame whenever more of it has: for work on a
    /// large frame that need not wait for its end, which may never come.
    pub async fn next_watched(
        &mut self,
        mut watch: impl FnMut(&[u8]),
    ) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            watch(&self.buffer);
            let missing = match Frame::size(&self.buffer)? {
                Some(size) => usize::try_from(size)
                    .unwrap_or(usize::MAX)
                    .saturating_sub(self.buffer.len()),
                None => 0,
            };
            let room = room_for(self.buffer.len(), missing, READ_BYTES_MAX);
            self.buffer.reserve(room.max(self.read_bytes));
            let space = self.buffer.capacity() - self.buffer.len();
            let read = self.io.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(LinkError::Torn)
                };
            }
            // Read more at once while the stream keeps up with it, and give the memory back when it is quiet.
            if read == space {
                self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX / 4);
            } else if read < self.read_bytes / 4 {
                self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
            }
        }
    }

    /// The next frame that has come whole already.
    pub fn buffered(&mut self) -> Result<Option<Frame>, LinkError> {
        let Some(size) = Frame::size(&self.buffer)? else {
            return Ok(None);
        };
        if (self.buffer.len() as u64) < size {
            return Ok(None);
        }
        // It is at most the buffer's length.
        let size = size as usize;
        if size == self.buffer.len() && size <= ALONE_BYTES_MAX {
            let frame = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            return Frame::decode(frame).map(Some);
        }
        let frame = self.buffer.split_to(size).freeze();
        if frame.len() > READ_BYTES_MAX
            || self.buffer.is_empty() && self.buffer.capacity() > READ_BYTES_MAX
        {
            // What is left would keep all of a large frame's memory, and later take it for its own.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Frame::decode(frame).map(Some)
    }
}

/// The writing end of a link.
#[derive(Debug)]
pub struct LinkWriter<W> {
    io: W,
    outgoing: Outgoing,
    /// Of a record, what comes before its payload; kept for the next one.
    head: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> LinkWriter<W> {
    /// Writes frames to `io`.
    pub fn new(io: W) -> Self {
        Self {
            io,
            outgoing: Outgoing::default(),
            head: Vec::new(),
        }
    }

    /// Puts a frame behind those that wait.
    pub fn push(&mut self, frame: &Frame) {
        frame.encode(|piece| self.outgoing.push_bytes(piece));
    }

    /// A [`Frame::Record`] of what is shared.
    pub fn push_record(&mut self, part: u32, record: &Record) {
        self.head.clear();
        let payload = write_record_head(part, record, &mut self.head);
        self.outgoing.push_encoded(&self.head);
        match payload {
            Payload::Message(message) => message
                .parts()
                .for_each(|part| self.outgoing.push_part(part)),
            Payload::Note(json) => self.outgoing.push_bytes(json.into()),
        }
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes all that waits. Cancelled, it goes on where it was at the next call.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_but(0).await
    }

    /// As [`LinkWriter::flush`], but for the last `kept` bytes: a frame without its last byte is none yet for the
    /// other end.
    pub async fn flush_but(&mut self, kept: usize) -> io::Result<()> {
        while self.outgoing.len() > kept {
            let mut slices = [io::IoSlice::new(&[]); SLICES_MAX];
            let filled = self
                .outgoing
                .slices_of(self.outgoing.len() - kept, &mut slices);
            let written = self.io.write_vectored(&slices[..filled]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.outgoing.advance(written);
        }
        Ok(())
    }

    /// One frame, at once.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.push(frame);
        self.flush().await
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
