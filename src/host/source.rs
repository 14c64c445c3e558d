//! A reader's place in the journal, and what comes next there: from the records in memory while it keeps up, from the
//! files where it lags. How to wait, and on which thread to read files, is the reader's business.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::log::{Pin, Tail};
use crate::journal::record::{Body, Note, Record};
use crate::journal::{Item, Reader};

/// What is read at once, from memory or from disk.
pub(super) const BATCH_BYTES_MAX: usize = 512 << 10;

/// Where the files cannot be read (no descriptor is left, say) it is tried again after this, then after twice that, and
/// so on: for 5 s in all. Then what is in them counts as missing.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(10);
const READ_TRIES: u32 = 10;

/// See the module.
pub(super) struct Source {
    tail: Tail,
    /// The last record that was given, or passed over.
    seq: u64,
    disk: Option<Reader>,
    /// From here on something may be missing, up to the next record.
    gap_from: Option<u64>,
    /// The log has the first gap since it last kept up.
    is_told: bool,
    /// Up to here records were taken out of the journal: what stands for them was given, and they are not missing.
    taken_out: u64,
    /// What is missing before a record that was given.
    missing: VecDeque<(u64, Range<u64>)>,
    /// What is behind the place is not compacted away.
    pin: Pin,
}

/// What was read of the files, as it was read.
pub(super) struct FromFiles(io::Result<(Reader, Vec<Item>)>);

impl Source {
    /// What lies behind record `seq`.
    pub fn new(tail: Tail, seq: u64) -> Self {
        Self {
            pin: tail.pin(seq),
            tail,
            seq,
            disk: None,
            gap_from: None,
            is_told: false,
            taken_out: 0,
            missing: VecDeque::new(),
        }
    }

    /// Seqs that cannot be had any more, just before a record that was given; asked in the order of the records.
    pub fn missing_before(&mut self, seq: u64) -> Option<Range<u64>> {
        let (at, missing) = self.missing.front()?;
        let missing = (*at == seq).then(|| missing.clone())?;
        self.missing.pop_front();
        Some(missing)
    }

    /// Of what it reads.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Whether it lags, and is in the files.
    #[cfg(test)]
    pub fn is_behind(&self) -> bool {
        self.disk.is_some()
    }

    /// The last record that was given, or passed over.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits until there is a record behind this place. `false`: there will be none, the host ends.
    pub async fn wait(&mut self) -> bool {
        // All that was given is handled.
        self.pin.set(self.seq);
        self.tail.wait_behind(self.seq).await
    }

    /// The next records, if they are in memory; empty: there are none yet. Else it is for [`Source::files`].
    pub fn memory(&mut self) -> Option<Vec<Arc<Record>>> {
        let records = self.tail.behind(self.seq, BATCH_BYTES_MAX)?;
        self.disk = None;
        self.is_told = false;
        Some(self.given(records))
    }

    /// What reads the next batch from the files; it blocks. Its result is for [`Source::take`].
    pub fn files(&mut self) -> impl FnOnce() -> FromFiles + Send + 'static {
        let (mut reader, dir, seq) = (self.disk.take(), self.tail.dir().to_owned(), self.seq);
        move || {
            let mut read = || -> io::Result<(Reader, Vec<Item>)> {
                let mut reader = match reader.take() {
                    Some(reader) => reader,
                    None => Reader::open(&dir, seq + 1)?,
                };
                let items = reader.next_batch(BATCH_BYTES_MAX)?;
                Ok((reader, items))
            };
            let mut pauses = (0..READ_TRIES - 1).map(|tries| READ_AGAIN_AFTER * (1 << tries));
            loop {
                match (read(), pauses.next()) {
                    // What is not the log's form will not be it later.
                    (Err(error), Some(pause)) if error.kind() != io::ErrorKind::InvalidData => {
                        tracing::debug!(%error, "a reader that lags cannot read the journal now");
                        std::thread::sleep(pause);
                    }
                    (result, _) => return FromFiles(result),
                }
            }
        }
    }

    /// The records of a batch; an empty one: what comes next is in memory.
    pub fn take(&mut self, batch: FromFiles) -> Vec<Arc<Record>> {
        let items = match batch.0 {
            Ok((reader, items)) => {
                self.disk = Some(reader);
                items
            }
            Err(error) => {
                tracing::error!(%error, "a reader that lags cannot read the journal");
                Vec::new()
            }
        };
        let mut records = Vec::new();
        let in_memory = self.tail.first_in_memory().unwrap_or(u64::MAX);
        for item in items {
            match item {
                // Behind a hole that the journal has, memory may have what the journal has not.
                Item::Record(record, _) if record.seq >= in_memory => self.disk = None,
                Item::Record(record, _) => {
                    self.gap_ends(&record);
                    if let Body::Note(Note::Compacted { until, .. }) = record.body {
                        self.taken_out = until;
                    }
                    records.push(record);
                }
                Item::Gap(gap) => {
                    // Who lags behind what was compacted comes to one for each record that is still there.
                    if !std::mem::replace(&mut self.is_told, true) {
                        tracing::warn!(?gap, "a reader came to a gap in the journal");
                    }
                    self.gap_from.get_or_insert(gap.missing.start);
                }
            }
        }
        if records.is_empty() {
            // Nothing of what lies behind us can be read: what is in memory is the next there is.
            self.disk = None;
            let known = self.seq.max(self.taken_out);
            self.gap_from.get_or_insert(known + 1);
            self.seq = self
                .tail
                .first_in_memory()
                .map_or(self.seq, |first| first.saturating_sub(1))
                .max(self.seq);
        }
        self.given(records)
    }

    fn given(&mut self, records: Vec<Arc<Record>>) -> Vec<Arc<Record>> {
        // What was given before was handled.
        self.pin.set(self.seq);
        if let Some(first) = records.first() {
            self.gap_ends(first);
        }
        if let Some(last) = records.last() {
            self.seq = last.seq;
        }
        records
    }

    /// This is the next record there is. (Memory may have what the journal has not: then nothing was missing.)
    fn gap_ends(&mut self, record: &Record) {
        if let Some(from) = self.gap_from.take()
            && from < record.seq
        {
            self.missing.push_back((record.seq, from..record.seq));
        }
    }
}
