//! What the outputs of a large execution that is over come to, in a file beside the segments: `digest-00000007` of
//! execution 7. A cache: whatever is wrong with one, it counts as not there, and the records say it all.
//! Knows nothing of how the messages were made.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};

use super::codec;
use super::record::{Body, ExecutionNumber, Record};
use super::segments::remove_if_there;
use crate::wire::Message;

/// Of the file's form, and of what compaction makes of the same records: grows when either changes, and a file of
/// another version counts as none.
const VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"FARSIDEG";

const PREFIX: &str = "digest-";

/// Magic, version, number of messages, execution, last seq.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 8;

const CRC_BYTES: usize = 4;

/// A file's contents.
#[derive(Clone, Debug, PartialEq)]
pub struct Digest {
    /// It covers the execution's records up to this one.
    pub until_seq: u64,
    /// What they come to.
    pub messages: Vec<Message>,
}

/// The digest of an execution, if there is one.
pub fn read(dir: &Path, n: ExecutionNumber) -> Option<Digest> {
    decode(fs::read(path(dir, n)).ok()?.into(), n)
}

/// Puts the digest of an execution in its place (0600): all of it or nothing.
pub fn write(dir: &Path, n: ExecutionNumber, digest: &Digest) -> io::Result<()> {
    let path = path(dir, n);
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    let written = file.write_all(&encode(n, digest));
    let placed = written.and_then(|()| fs::rename(&unfinished, &path));
    if placed.is_err() {
        // The disk may be full; half a file is of no use.
        let _ = fs::remove_file(&unfinished);
    }
    placed
}

/// Takes all of them away, and gives their bytes: where there is no room, they can be made again.
pub fn remove_all(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            // It may have got another name just now.
            remove_if_there(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Takes that of an execution away, if there is one: its records are not what they were.
pub fn remove(dir: &Path, n: ExecutionNumber) -> io::Result<()> {
    remove_if_there(&path(dir, n))
}

/// Bytes of all of them together.
pub fn total_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(bytes)
}

fn path(dir: &Path, n: ExecutionNumber) -> PathBuf {
    dir.join(format!("{PREFIX}{n:08}"))
}

fn encode(n: ExecutionNumber, digest: &Digest) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    // A replay has some thousand messages.
    out.extend((digest.messages.len() as u32).to_le_bytes());
    out.extend(n.to_le_bytes());
    out.extend(digest.until_seq.to_le_bytes());
    for message in &digest.messages {
        let record = Record {
            seq: digest.until_seq,
            time: 0,
            heard: 0,
            body: Body::Iopub {
                client: None,
                execution: n,
                message: message.clone(),
            },
        };
        let pieces = codec::encode(&record);
        let length: usize = pieces.iter().map(Bytes::len).sum();
        out.extend((length as u64).to_le_bytes());
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    }
    let crc = crc32fast::hash(&out);
    out.extend(crc.to_le_bytes());
    out
}

/// The messages share `file`'s memory.
fn decode(mut file: Bytes, n: ExecutionNumber) -> Option<Digest> {
    if file.len() < HEADER_BYTES + CRC_BYTES {
        return None;
    }
    let mut crc = file.split_off(file.len() - CRC_BYTES);
    if crc32fast::hash(&file) != crc.get_u32_le() || file[..8] != MAGIC {
        return None;
    }
    file.advance(8);
    let (version, count) = (file.get_u32_le(), file.get_u32_le());
    let (execution, until_seq) = (file.get_u64_le(), file.get_u64_le());
    if (version, execution) != (VERSION, n) {
        return None;
    }
    let mut messages = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(file.try_get_u64_le().ok()?).ok()?;
        if length > file.len() {
            return None;
        }
        match codec::decode(file.split_to(length)).ok()?.body {
            Body::Iopub { message, .. } => messages.push(message),
            Body::Request { .. } | Body::Reply { .. } | Body::Note(_) => return None,
        }
    }
    file.is_empty().then_some(Digest {
        until_seq,
        messages,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest() -> impl Strategy<Value = Digest> {
        let message = codec::tests::record().prop_filter_map("a message", |record| {
            let (Body::Request { message, .. }
            | Body::Reply { message, .. }
            | Body::Iopub { message, .. }) = record.body
            else {
                return None;
            };
            Some(message)
        });
        let messages = proptest::collection::vec(message, 0..6);
        (any::<u64>(), messages).prop_map(|(until_seq, messages)| Digest {
            until_seq,
            messages,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(digest in digest(), n in 1..100u64) {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), n, &digest).unwrap();
            prop_assert_eq!(read(dir.path(), n), Some(digest));
            prop_assert_eq!(read(dir.path(), n + 1), None);
        }

        #[test]
        fn a_damaged_file_counts_as_none(digest in digest(), at in any::<prop::sample::Index>(), with in 1..=255u8) {
            let mut bytes = encode(3, &digest);
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            prop_assert_eq!(decode(bytes.clone().into(), 3), None);
            prop_assert_eq!(decode(bytes[..at].to_vec().into(), 3), None);
        }

        #[test]
        fn any_bytes_are_a_digest_or_none(tail in proptest::collection::vec(any::<u8>(), 0..300), count in 0..9u32) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(3u64.to_le_bytes());
            bytes.extend(tail);
            let crc = crc32fast::hash(&bytes);
            bytes.extend(crc.to_le_bytes());
            let _ = decode(bytes.into(), 3);
        }
    }
}
