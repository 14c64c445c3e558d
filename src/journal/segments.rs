//! The files of a journal: their names, their header, and places in them. Knows nothing of what a record says.
//!
//! Invariant: a session's folder holds `journal-00000001.seg`, `journal-00000002.seg`, ...; only the last one
//! grows, and a segment gets a successor only when nothing more will be written to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use super::record::Position;

/// Version of the format that this farside writes. It reads every one from 1 to this.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a segment's header; the first record begins there.
pub const HEADER_BYTES: u64 = 32;

const MAGIC: [u8; 8] = *b"FARSIDEJ";
const PREFIX: &str = "journal-";
const SUFFIX: &str = ".seg";

/// What a segment's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The segment's number, as in its file's name.
    pub segment: u32,
    /// No record in this segment, or in a later one, has a lower seq.
    pub first_seq: u64,
}

/// What was found where a header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderState {
    /// A good one.
    Whole(Header),
    /// The file ends within it: it is being created, or its creator died.
    Torn,
    /// It is damaged. Records behind it can still be read.
    Damaged,
    /// A newer farside wrote this segment.
    Newer(u32),
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut out = [0; HEADER_BYTES as usize];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of an open segment.
    pub fn read(file: &File) -> io::Result<HeaderState> {
        let mut bytes = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(HeaderState::Torn),
            Err(error) => Err(error),
        }
    }

    fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> HeaderState {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..28]) != word(28) {
            return HeaderState::Damaged;
        }
        match word(8) {
            FORMAT_VERSION => HeaderState::Whole(Self {
                segment: word(12),
                first_seq: u64::from(word(16)) | u64::from(word(20)) << 32,
            }),
            newer => HeaderState::Newer(newer),
        }
    }
}

/// Path of a segment in a session's folder.
pub fn path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{PREFIX}{segment:08}{SUFFIX}"))
}

/// Numbers of all segments in `dir`, ascending. A folder that is not there has none.
pub fn list(dir: &Path) -> io::Result<Vec<u32>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(describe(error, "cannot list the journal's folder", dir)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number: Option<u32> = name.to_str().and_then(|name| {
            name.strip_prefix(PREFIX)?
                .strip_suffix(SUFFIX)?
                .parse()
                .ok()
        });
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Bytes of all segments in `dir` together, as the files' lengths say.
pub fn total_bytes(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for number in list(dir)? {
        match std::fs::metadata(path(dir, number)) {
            Ok(metadata) => total += metadata.len(),
            // Just merged into another one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Removes a file; one that is not there is no error.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Has the operating system write a folder's entries to the disk: files that were made, renamed, removed.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The error that says that a segment was written by a newer farside.
pub fn newer_error(path: &Path, version: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{} has journal format {version}, this farside reads up to {FORMAT_VERSION}: use the newer farside \
             that wrote it",
            path.display()
        ),
    )
}

/// The same error with what failed, and on what, in its text.
pub fn describe(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
