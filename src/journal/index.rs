//! The index beside a journal, in SQLite: what the session is, its executions, and where their records lie. Written
//! behind the log by one thread of the host; it can be rebuilt from the log at any time, and is, where it is
//! missing, damaged, of another schema or ahead of the log. Holds no payloads.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::execution_rows::{ExecutionInfo, Filter, Rows, Selector, SessionRow, Tracked};
use super::rewrite::Prepared;
use super::scan::{Found, HEADS_CHUNK_BYTES, LogScan, Scanned, SegmentScan, Step};
use super::segments::{Position, remove_if_there};
use super::sql;

/// The index's file, beside the segments.
pub const FILE_NAME: &str = "index.sqlite";

/// Records that one transaction takes in: bounds the memory of a rebuild, and what a crash has to do again.
const BATCH_RECORDS: usize = 100_000;

/// Why the index cannot be used now. The journal itself is not concerned.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Reading the log, or making the file.
    #[error("cannot index the journal: {0}")]
    Io(#[from] io::Error),
    /// SQLite's own.
    #[error("the journal's index: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// The host's end of the index: one at a time for a folder.
pub struct Index {
    dir: PathBuf,
    connection: Connection,
    rows: Rows,
    /// Where the log is read on; `None`: from the place in the index.
    scan: Option<LogScan>,
}

/// The last record that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub position: Position,
    pub seq: u64,
    pub head_crc: u32,
}

impl Place {
    pub fn of(found: &Scanned) -> Self {
        Self {
            position: found.position,
            seq: found.head.seq,
            head_crc: found.frame.head_crc,
        }
    }

    /// A scan of what follows this record; `None` if it is not in the log (any more).
    pub fn follow(&self, dir: &Path) -> io::Result<Option<LogScan>> {
        let mut scan = match LogScan::open_at(dir, self.position, false, HEADS_CHUNK_BYTES) {
            Ok(scan) => scan,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match scan.next()? {
            Found::Record(found) if Self::of(&found) == *self => Ok(Some(scan)),
            _ => Ok(None),
        }
    }
}

impl Index {
    /// Opens the index in a session's folder, or makes a new one (0600). Call [`Index::catch_up`] before queries.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let connection = match open_existing(dir) {
            Ok(Some(connection)) => connection,
            Ok(None) | Err(_) => create(dir)?,
        };
        Ok(Self {
            dir: dir.to_owned(),
            connection,
            rows: Rows::default(),
            scan: None,
        })
    }

    /// Takes in what the log has beyond the last indexed record, and returns how many records that were. After an
    /// error the index is as it was before; the next call tries again.
    pub fn catch_up(&mut self) -> Result<u64, IndexError> {
        match self.try_catch_up() {
            Err(IndexError::Sqlite(error)) if sql::is_damage(&error) => {
                self.rebuild()?;
                self.try_catch_up()
            }
            result => result,
        }
        .inspect_err(|_| {
            self.scan = None;
            self.rows = Rows::default();
        })
    }

    /// Puts a compacted segment in its place, and says where the records in it are now. Dying in between, it leaves an
    /// index that has no place in the log, and is rebuilt.
    pub fn replace(
        &mut self,
        prepared: &Prepared,
        commit: impl FnOnce(&Prepared) -> io::Result<()>,
    ) -> Result<(), IndexError> {
        self.catch_up()?;
        let Some(place) = sql::place(&self.connection)? else {
            return Ok(commit(prepared)?);
        };
        let (segment, replaced) = (prepared.segment(), prepared.replaced());
        sql::forget_place(&self.connection)?;
        if let Err(error) = commit(prepared) {
            sql::write(&mut self.connection, &mut Rows::default(), place)?;
            return Err(error.into());
        }
        if replaced.contains(&place.position.segment) {
            return self.rebuild();
        }
        let mut moved = Rows::default();
        let (mut scan, _) = SegmentScan::open(&self.dir, segment, HEADS_CHUNK_BYTES)?;
        loop {
            match scan.step()? {
                Step::Record(found) => {
                    moved.apply(&found, &mut scan, |_| Ok::<_, io::Error>(None))?;
                }
                Step::Damaged(_) => {}
                Step::End => break,
            }
        }
        let mut rows = Rows {
            session: self.rows.session.clone(),
            ..Rows::default()
        };
        for (n, new) in moved.executions {
            if let Some(mut info) = sql::select(&self.connection, &Selector::Number(n))? {
                info.places.move_from(replaced, &new.info.places);
                rows.executions.insert(
                    n,
                    Tracked {
                        info,
                        changed: true,
                    },
                );
            }
        }
        sql::write(&mut self.connection, &mut rows, place)?;
        // The rows that it held are read again when they are wanted.
        self.rows = Rows {
            session: rows.session,
            ..Rows::default()
        };
        Ok(())
    }

    /// Executions, the newest first.
    pub fn executions(&self, filter: &Filter) -> Result<Vec<ExecutionInfo>, IndexError> {
        Ok(sql::list(&self.connection, filter)?)
    }

    /// One execution.
    pub fn execution(&self, selector: &Selector) -> Result<Option<ExecutionInfo>, IndexError> {
        Ok(sql::select(&self.connection, selector)?)
    }

    /// What the log says of the session.
    pub fn session(&self) -> Result<SessionRow, IndexError> {
        Ok(sql::session(&self.connection)?)
    }

    fn try_catch_up(&mut self) -> Result<u64, IndexError> {
        let mut scan = match self.scan.take() {
            Some(scan) => scan,
            None => self.open_scan()?,
        };
        let mut total = 0;
        loop {
            let taken = self.take_batch(&mut scan)?;
            total += taken;
            if taken < BATCH_RECORDS as u64 {
                self.scan = Some(scan);
                return Ok(total);
            }
        }
    }

    fn open_scan(&mut self) -> Result<LogScan, IndexError> {
        self.rows = Rows {
            session: sql::session(&self.connection)?,
            ..Rows::default()
        };
        match sql::place(&self.connection)? {
            Some(place) => match place.follow(&self.dir)? {
                Some(scan) => return Ok(scan),
                // The index is ahead of the log: a power cut took the log's tail.
                None => self.rebuild()?,
            },
            // A host died while it put a compacted segment in its place.
            None if sql::has_rows(&self.connection)? => self.rebuild()?,
            None => {}
        }
        Ok(LogScan::open(&self.dir, 1, HEADS_CHUNK_BYTES)?)
    }

    fn take_batch(&mut self, scan: &mut LogScan) -> Result<u64, IndexError> {
        let mut place = None;
        let mut taken = 0;
        while taken < BATCH_RECORDS as u64 {
            match scan.next()? {
                Found::End => break,
                Found::Gap(_) => {}
                Found::Record(found) => {
                    let Some(segment) = scan.segment() else { break };
                    let connection = &self.connection;
                    self.rows.apply(&found, segment, |n| {
                        Ok::<_, IndexError>(sql::select(connection, &Selector::Number(n))?)
                    })?;
                    place = Some(Place::of(&found));
                    taken += 1;
                }
            }
        }
        if let Some(place) = place {
            sql::write(&mut self.connection, &mut self.rows, place)?;
        }
        Ok(taken)
    }

    fn rebuild(&mut self) -> Result<(), IndexError> {
        // The files cannot be replaced under an open connection.
        self.connection = Connection::open_in_memory()?;
        self.connection = create(&self.dir)?;
        self.rows = Rows::default();
        self.scan = None;
        Ok(())
    }
}

/// `None`: there is no index, or one that is of no use.
fn open_existing(dir: &Path) -> Result<Option<Connection>, rusqlite::Error> {
    let path = dir.join(FILE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    let connection = Connection::open(path)?;
    // Before anything else: a reader that is at it just now must not look like damage.
    sql::prepare(&connection)?;
    let usable = sql::has_schema(&connection)? && sql::is_sound(&connection)?;
    Ok(usable.then_some(connection))
}

/// Removes the index of a folder; it is made anew from the log.
pub fn remove(dir: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        remove_if_there(&dir.join(format!("{FILE_NAME}{suffix}")))?;
    }
    Ok(())
}

fn create(dir: &Path) -> Result<Connection, IndexError> {
    let path = dir.join(FILE_NAME);
    remove(dir)?;
    // SQLite gives its other files the mode of this one.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let connection = Connection::open(&path)?;
    sql::prepare(&connection)?;
    sql::create_schema(&connection)?;
    Ok(connection)
}

/// A read-only look at a session, for the CLI: what the index has, and the log's tail that it has not. Never writes to
/// the session's folder, and needs no host.
pub struct View {
    rows: Rows,
    scan: LogScan,
}

impl View {
    /// Reads everything up to the log's end. An index that is missing, damaged or cannot be read is done
    /// without.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let indexed = match sql::read_all(&dir.join(FILE_NAME)) {
            Ok(Some((rows, place))) => place.follow(dir)?.map(|scan| (rows, scan)),
            Ok(None) | Err(_) => None,
        };
        let (rows, scan) = match indexed {
            Some(indexed) => indexed,
            None => (Rows::default(), LogScan::open(dir, 1, HEADS_CHUNK_BYTES)?),
        };
        let mut view = Self { rows, scan };
        view.refresh()?;
        Ok(view)
    }

    /// Takes in what was appended since.
    pub fn refresh(&mut self) -> io::Result<()> {
        loop {
            match self.scan.next()? {
                Found::End => return Ok(()),
                Found::Gap(_) => {}
                Found::Record(found) => {
                    if let Some(segment) = self.scan.segment() {
                        self.rows
                            .apply(&found, segment, |_| Ok::<_, io::Error>(None))?;
                    }
                }
            }
        }
    }

    /// Executions, the newest first.
    pub fn executions(&self, filter: &Filter) -> Vec<ExecutionInfo> {
        self.rows.list(filter)
    }

    /// One execution.
    pub fn execution(&self, selector: &Selector) -> Option<ExecutionInfo> {
        self.rows.select(selector)
    }

    /// What the log says of the session.
    pub fn session(&self) -> &SessionRow {
        &self.rows.session
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
