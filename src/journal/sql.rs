//! The index's schema, and the statements on it. Knows nothing of the log.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params, types::Type};

use super::execution_rows::{ExecutionInfo, Filter, Places, Rows, Selector, SessionRow, Tracked};
use super::index::Place;
use super::record::ExecutionState;
use super::segments::Position;

/// Version of the schema, in `user_version`. An index of any other is rebuilt.
const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = "
    CREATE TABLE session (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL, name TEXT NOT NULL, engine TEXT NOT NULL,
        started INTEGER, ended INTEGER, end_reason TEXT
    );
    CREATE TABLE indexed (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        position TEXT NOT NULL, seq INTEGER NOT NULL, head_crc INTEGER NOT NULL
    );
    CREATE TABLE executions (
        n INTEGER PRIMARY KEY,
        msg_id TEXT NOT NULL, cell_id TEXT, code TEXT NOT NULL, by_person INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT,
        queued INTEGER, started INTEGER, ended INTEGER, execution_count INTEGER,
        outputs INTEGER NOT NULL, bytes INTEGER NOT NULL,
        first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
        request_at TEXT, start_at TEXT, last_at TEXT, reply_at TEXT, input_at TEXT
    );
    CREATE INDEX executions_msg_id ON executions (msg_id);
    CREATE INDEX executions_cell_id ON executions (cell_id) WHERE cell_id IS NOT NULL;
";

const COLUMNS: &str = "n, msg_id, cell_id, code, by_person, state, reason, queued, started, ended, execution_count, outputs, \
                       bytes, first_seq, last_seq, request_at, start_at, last_at, reply_at, input_at";

/// How long a statement waits for another process that is at the file: far longer than any of our transactions.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A power cut may take the last transactions, never the file's soundness.
const SYNCHRONOUS: &str = "NORMAL";

/// Sets a writing connection up.
pub fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", SYNCHRONOUS)
}

pub fn create_schema(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    ))
}

pub fn has_schema(connection: &Connection) -> rusqlite::Result<bool> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(version == SCHEMA_VERSION)
}

pub fn is_sound(connection: &Connection) -> rusqlite::Result<bool> {
    let answer: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    Ok(answer == "ok")
}

/// Whether the error says that the file is of no use.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        rusqlite::Error::SqliteFailure(error, _) => {
            matches!(error.code, DatabaseCorrupt | NotADatabase)
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

/// Writes all changed rows and the place they go up to, in one transaction. Rows that will hardly change again
/// are then let go.
pub fn write(connection: &mut Connection, rows: &mut Rows, place: Place) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    if rows.session_changed {
        let s = &rows.session;
        transaction.execute(
            "INSERT OR REPLACE INTO session VALUES (1, ?, ?, ?, ?, ?, ?)",
            params![
                s.id,
                s.name,
                s.engine,
                to_sql(s.started),
                to_sql(s.ended),
                s.end_reason
            ],
        )?;
    }
    {
        let mut insert = transaction.prepare_cached(&format!(
            "INSERT OR REPLACE INTO executions ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
        ))?;
        for Tracked { info, .. } in rows.executions.values().filter(|tracked| tracked.changed) {
            let at = info.places;
            insert.execute(params![
                info.n as i64,
                info.msg_id,
                info.cell_id,
                info.code,
                info.by_person,
                info.state.name(),
                info.reason,
                to_sql(info.queued),
                to_sql(info.started),
                to_sql(info.ended),
                to_sql(info.execution_count),
                info.outputs as i64,
                info.bytes as i64,
                at.first_seq as i64,
                at.last_seq as i64,
                position_text(at.request),
                position_text(at.start),
                position_text(at.last),
                position_text(at.reply),
                position_text(at.input),
            ])?;
        }
    }
    transaction.execute(
        "INSERT OR REPLACE INTO indexed VALUES (1, ?, ?, ?)",
        params![
            position_text(Some(place.position)),
            place.seq as i64,
            place.head_crc
        ],
    )?;
    transaction.commit()?;
    rows.session_changed = false;
    rows.executions
        .retain(|_, tracked| !tracked.info.state.is_final());
    rows.executions
        .values_mut()
        .for_each(|tracked| tracked.changed = false);
    Ok(())
}

pub fn list(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<ExecutionInfo>> {
    let limit = filter
        .limit
        .map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM executions WHERE (?1 IS NULL OR cell_id = ?1)
             AND (NOT ?2 OR state IN ('queued', 'running', 'waiting_input')) ORDER BY n DESC LIMIT ?3"
        ))?
        .query_map(params![filter.cell_id, filter.unfinished, limit], read_row)?
        .collect()
}

pub fn select(
    connection: &Connection,
    selector: &Selector,
) -> rusqlite::Result<Option<ExecutionInfo>> {
    let query = |condition: &str, parameters: &[&dyn rusqlite::ToSql]| {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM executions {condition} ORDER BY n DESC LIMIT 1"
            ))?
            .query_row(parameters, read_row)
            .optional()
    };
    match selector {
        Selector::ById(id) => query("WHERE msg_id = ?", &[id]),
        Selector::Number(n) => query("WHERE n = ?", &[&(*n as i64)]),
        Selector::Latest => query("WHERE by_person", &[]),
    }
}

pub fn session(connection: &Connection) -> rusqlite::Result<SessionRow> {
    let row = connection
        .query_row(
            "SELECT id, name, engine, started, ended, end_reason FROM session",
            [],
            |row| {
                Ok(SessionRow {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    engine: row.get(2)?,
                    started: number(row, 3)?,
                    ended: number(row, 4)?,
                    end_reason: row.get(5)?,
                })
            },
        )
        .optional()?;
    Ok(row.unwrap_or_default())
}

pub fn place(connection: &Connection) -> rusqlite::Result<Option<Place>> {
    connection
        .query_row("SELECT position, seq, head_crc FROM indexed", [], |row| {
            let position = position(row, 0)?.ok_or_else(|| conversion_error(0, "no position"))?;
            Ok(Place {
                position,
                seq: row.get::<_, i64>(1)? as u64,
                head_crc: row.get(2)?,
            })
        })
        .optional()
}

/// Nothing counts as taken in until the next [`write()`].
/// On the disk when this returns: what is done to the files then may be there before it, and a power cut must not leave
/// an index that takes them for what they were.
pub fn forget_place(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let forgotten = connection.execute("DELETE FROM indexed", []);
    connection.pragma_update(None, "synchronous", SYNCHRONOUS)?;
    forgotten.map(drop)
}

/// Whether anything was taken in.
pub fn has_rows(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM executions) OR EXISTS (SELECT 1 FROM session)",
        [],
        |row| row.get(0),
    )
}

/// Reads a whole index that another process may be writing. `None`: there is none, or it has nothing yet.
///
/// Without a `-wal` file nobody has the index open, so it can be read as it lies there, also in a folder that
/// cannot be written (SQLite would make `-wal` and `-shm` files in it otherwise).
pub fn read_all(path: &Path) -> rusqlite::Result<Option<(Rows, Place)>> {
    let wal = path.with_extension("sqlite-wal");
    if !path.exists() {
        return Ok(None);
    }
    if !wal.exists() {
        let lying = read_with(path, "mode=ro&immutable=1");
        if !wal.exists() {
            return lying;
        }
    }
    read_with(path, "mode=ro")
}

fn read_with(path: &Path, parameters: &str) -> rusqlite::Result<Option<(Rows, Place)>> {
    let uri = format!("file:{}?{parameters}", percent_encode(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let snapshot = connection.transaction()?;
    if !has_schema(&snapshot)? {
        return Ok(None);
    }
    let Some(place) = place(&snapshot)? else {
        return Ok(None);
    };
    let executions = list(&snapshot, &Filter::default())?
        .into_iter()
        .map(|info| {
            (
                info.n,
                Tracked {
                    info,
                    changed: false,
                },
            )
        })
        .collect();
    Ok(Some((
        Rows {
            executions,
            session: session(&snapshot)?,
            session_changed: false,
        },
        place,
    )))
}

fn percent_encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(String::new(), |mut out, &byte| {
            if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
            out
        })
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<ExecutionInfo> {
    Ok(ExecutionInfo {
        n: row.get::<_, i64>(0)? as u64,
        msg_id: row.get(1)?,
        cell_id: row.get(2)?,
        code: row.get(3)?,
        by_person: row.get(4)?,
        state: state(&row.get::<_, String>(5)?)
            .ok_or_else(|| conversion_error(5, "unknown state"))?,
        reason: row.get(6)?,
        queued: number(row, 7)?,
        started: number(row, 8)?,
        ended: number(row, 9)?,
        execution_count: number(row, 10)?,
        outputs: row.get::<_, i64>(11)? as u64,
        bytes: row.get::<_, i64>(12)? as u64,
        places: Places {
            first_seq: row.get::<_, i64>(13)? as u64,
            last_seq: row.get::<_, i64>(14)? as u64,
            request: position(row, 15)?,
            start: position(row, 16)?,
            last: position(row, 17)?,
            reply: position(row, 18)?,
            input: position(row, 19)?,
        },
    })
}

fn state(name: &str) -> Option<ExecutionState> {
    use ExecutionState::{Aborted, Error, Interrupted, Lost, Ok, Queued, Running, WaitingInput};
    [
        Queued,
        Running,
        WaitingInput,
        Ok,
        Error,
        Aborted,
        Interrupted,
        Lost,
    ]
    .into_iter()
    .find(|state| state.name() == name)
}

/// SQLite's integers are signed; ours go through by their bits.
fn to_sql(value: Option<u64>) -> Option<i64> {
    value.map(|value| value as i64)
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|value| value as u64))
}

/// `segment:offset:length`
fn position_text(position: Option<Position>) -> Option<String> {
    position.map(|p| format!("{}:{}:{}", p.segment, p.offset, p.length))
}

fn position(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Position>> {
    let Some(text) = row.get::<_, Option<String>>(column)? else {
        return Ok(None);
    };
    let mut fields = text.splitn(3, ':');
    let parsed = (|| {
        Some(Position {
            segment: fields.next()?.parse().ok()?,
            offset: fields.next()?.parse().ok()?,
            length: fields.next()?.parse().ok()?,
        })
    })();
    parsed
        .map(Some)
        .ok_or_else(|| conversion_error(column, "not a position"))
}

fn conversion_error(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}
