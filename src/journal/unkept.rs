//! Says over a writer's death that records were not kept: since when the journal could not be written, in a file beside
//! the segments (`unkept`, 8 bytes, little-endian microseconds since 1970; 0: it can be).
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
}

impl Unkept {
    /// Of the journal in `dir`, with what an earlier writer has left there.
    pub fn open(dir: &Path) -> Self {
        let open = || -> io::Result<(File, Option<Micros>)> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join(NAME))?;
            let mut bytes = [0; 8];
            let since = match file.read_exact_at(&mut bytes, 0) {
                Ok(()) => Micros::from_le_bytes(bytes),
                Err(_) => {
                    file.write_all_at(&bytes, 0)?;
                    0
                }
            };
            Ok((file, (since != 0).then_some(since)))
        };
        let (file, since) = match open() {
            Ok((file, since)) => (Some(file), since),
            Err(_) => (None, None),
        };
        Self { file, since }
    }

    /// Since when records are missing that nothing in the journal tells of.
    pub fn since(&self) -> Option<Micros> {
        self.since
    }

    /// An append failed at this time.
    pub fn begin(&mut self, now: Micros) {
        if self.since.is_none() {
            self.since = Some(now);
            self.write(now);
        }
    }

    /// The journal tells of it.
    pub fn end(&mut self) {
        if self.since.take().is_some() {
            self.write(0);
        }
    }

    fn write(&self, since: Micros) {
        if let Some(file) = &self.file {
            let _ = file.write_all_at(&since.to_le_bytes(), 0);
        }
    }
}
