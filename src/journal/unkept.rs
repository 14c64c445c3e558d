//! Says over a writer's death that records were not kept, in a file beside the segments (`unkept`, 16 bytes): since when
//! the journal could not be written (little-endian microseconds since 1970; 0: it can be), and the lowest number that
//! no such record has (little-endian): frontends have seen them. (Eight bytes, without the latter, before 2026-11-26.)
//!
//! The file has its bytes from the journal's first moment on, so that they can be changed on a disk that is full. On one
//! that can only be read they cannot.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::record::Micros;

const NAME: &str = "unkept";

/// See the module. Whatever goes wrong with it, appending goes on.
#[derive(Debug)]
pub(super) struct Unkept {
    file: Option<File>,
    since: Option<Micros>,
    /// 0 where there are none.
    next_seq: u64,
}

impl Unkept {
    /// Of the journal in `dir`, with what an earlier writer has left there.
    pub fn open(dir: &Path) -> Self {
        let open = || -> io::Result<(File, [u64; 2])> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join(NAME))?;
            let known = [0, 8].map(|at| {
                let mut bytes = [0; 8];
                let read = file.read_exact_at(&mut bytes, at);
                read.map_or(0, |()| u64::from_le_bytes(bytes))
            });
            let [since, next_seq] = known.map(u64::to_le_bytes);
            file.write_all_at(&[since, next_seq].concat(), 0)?;
            Ok((file, known))
        };
        let (file, [since, next_seq]) = match open() {
            Ok((file, known)) => (Some(file), known),
            Err(_) => (None, [0, 0]),
        };
        Self {
            file,
            since: (since != 0).then_some(since),
            // A farside before that knew of the time only.
            next_seq: if since == 0 { 0 } else { next_seq },
        }
    }

    /// Since when records are missing that nothing in the journal tells of.
    pub fn since(&self) -> Option<Micros> {
        self.since
    }

    /// The lowest number that none of them has.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// An append failed at this time, of records before `next_seq`.
    pub fn failed(&mut self, now: Micros, next_seq: u64) {
        self.since.get_or_insert(now);
        self.next_seq = self.next_seq.max(next_seq);
        self.write();
    }

    /// The journal tells of it.
    pub fn end(&mut self) {
        if self.since.take().is_some() {
            self.next_seq = 0;
            self.write();
        }
    }

    fn write(&self) {
        if let Some(file) = &self.file {
            let bytes = [self.since.unwrap_or(0), self.next_seq].map(u64::to_le_bytes);
            let _ = file.write_all_at(&bytes.concat(), 0);
        }
    }
}
