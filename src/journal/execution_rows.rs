//! From a journal's records to one row for each execution. The index in SQLite and the views in memory are made
//! by this one fold, so they cannot differ. Knows nothing of SQLite.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use super::codec::{self, Kind};
use super::record::{Body, ExecutionNumber, ExecutionState, Micros, Note, Record};
use super::scan::{HEADS_CHUNK_BYTES, Scanned, SegmentScan};
use super::segments::Position;
use crate::wire::message::ExecuteRequest;
use crate::wire::{Channel, Header};

/// One execution, as `history --json` and `farside_list_reply` show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExecutionInfo {
    /// The execute_request's id.
    pub msg_id: String,
    /// Its number in the session, from 1.
    pub n: ExecutionNumber,
    /// `metadata.cellId` of the request.
    pub cell_id: Option<String>,
    /// What was executed.
    pub code: String,
    /// See [`ExecuteRequest::is_by_person`].
    #[serde(skip)]
    pub by_person: bool,
    /// Where it stands.
    pub state: ExecutionState,
    /// When the engine took it up. ISO 8601 in JSON.
    #[serde(serialize_with = "iso_8601")]
    pub started: Option<Micros>,
    /// When it reached its final state.
    #[serde(serialize_with = "iso_8601")]
    pub ended: Option<Micros>,
    /// When it was asked for.
    #[serde(serialize_with = "iso_8601")]
    pub queued: Option<Micros>,
    /// Why it is in that state, where the outputs do not say.
    pub reason: Option<String>,
    /// `In [..]`.
    pub execution_count: Option<u64>,
    /// Messages that put something into the cell (stream, display_data, update_display_data, execute_result, error).
    pub outputs: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Where its records are.
    #[serde(skip)]
    pub places: Places,
}

/// Where the records of an execution are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The execute_request.
    pub request: Option<Position>,
    /// The first record that says that it runs: no iopub message of it is before.
    pub start: Option<Position>,
    /// The last record of it (so far).
    pub last: Option<Position>,
    /// Its execute_reply.
    pub reply: Option<Position>,
    /// Its latest input_request.
    pub input: Option<Position>,
    /// Seq of its first record.
    pub first_seq: u64,
    /// Seq of its last record.
    pub last_seq: u64,
}

/// What the journal says of the session itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRow {
    /// Session id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Kernelspec name of its engine.
    pub engine: String,
    /// When it began.
    pub started: Option<Micros>,
    /// When it ended.
    pub ended: Option<Micros>,
    /// Why.
    pub end_reason: Option<String>,
}

/// Which executions to list. The newest come first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this cell.
    pub cell_id: Option<String>,
    /// Only those that can still change.
    pub unfinished: bool,
    /// At most so many.
    pub limit: Option<usize>,
}

/// Which execution.
#[derive(Clone, Debug)]
pub enum Selector {
    /// By its execute_request's msg_id.
    ById(String),
    /// By its number.
    Number(ExecutionNumber),
    /// The one that a person asked for last ([`ExecuteRequest::is_by_person`]).
    Latest,
}

/// The fold. Rows that it does not hold are asked for where they are needed.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub executions: BTreeMap<ExecutionNumber, Tracked>,
    pub session: SessionRow,
    pub session_changed: bool,
}

#[derive(Debug)]
pub(super) struct Tracked {
    pub info: ExecutionInfo,
    pub changed: bool,
}

/// The parts of an execute_request that a row keeps.
#[derive(Deserialize)]
struct ExecuteMetadata {
    #[serde(rename = "cellId", default)]
    cell_id: Option<String>,
}

#[derive(Deserialize)]
struct InputContent {
    #[serde(default)]
    execution_count: Option<u64>,
}

impl Places {
    /// Some of the segments were replaced by one; `new`: what a fold over that one gives.
    pub(super) fn move_from(&mut self, replaced: &[u32], new: &Self) {
        let moved = |old: Option<Position>, new: Option<Position>| match old {
            Some(position) if replaced.contains(&position.segment) => new,
            other => other,
        };
        self.request = moved(self.request, new.request);
        self.start = moved(self.start, new.start);
        self.last = moved(self.last, new.last);
        self.reply = moved(self.reply, new.reply);
        self.input = moved(self.input, new.input);
    }
}

impl Rows {
    /// Takes one record in. `load` gives a row that was written before, if there is one.
    pub fn apply<E: From<io::Error>>(
        &mut self,
        found: &Scanned,
        segment: &mut SegmentScan,
        load: impl FnOnce(ExecutionNumber) -> Result<Option<ExecutionInfo>, E>,
    ) -> Result<(), E> {
        let head = found.head;
        let n = head.execution;
        match (head.kind, head.channel) {
            (Kind::Note, _) => {
                let record = segment.read(found)?.map(codec::decode);
                if let Some(Ok(Record {
                    body: Body::Note(note),
                    ..
                })) = record
                {
                    self.apply_note(found, note, load)?;
                }
            }
            (Kind::Request, Some(Channel::Shell)) if n != 0 => {
                if let Some(Ok(record)) = segment.read(found)?.map(codec::decode) {
                    let info = self.row(n, found, load)?;
                    apply_request(info, found, &record);
                }
            }
            (Kind::Reply, Some(Channel::Shell)) if n != 0 => {
                let places = &mut self.row(n, found, load)?.places;
                places.reply.get_or_insert(found.position);
            }
            (Kind::Reply, Some(Channel::Stdin)) if n != 0 => {
                self.row(n, found, load)?.places.input = Some(found.position);
            }
            (Kind::Iopub, _) if n != 0 && head.client.is_none() => {
                if let Some(output) = read_output(found, segment)? {
                    let info = self.row(n, found, load)?;
                    info.places.start.get_or_insert(found.position);
                    match output {
                        Output::Shown(bytes) => {
                            info.outputs += 1;
                            info.bytes += bytes;
                        }
                        Output::Input(count) => {
                            info.execution_count = count.or(info.execution_count)
                        }
                        Output::Other => {}
                    }
                }
            }
            (Kind::Request | Kind::Reply | Kind::Iopub, _) => {}
        }
        Ok(())
    }

    fn apply_note<E>(
        &mut self,
        found: &Scanned,
        note: Note,
        load: impl FnOnce(ExecutionNumber) -> Result<Option<ExecutionInfo>, E>,
    ) -> Result<(), E> {
        let time = found.head.time;
        match note {
            Note::SessionStarted { id, name, engine } => {
                self.session = SessionRow {
                    id,
                    name,
                    engine,
                    started: Some(time),
                    ..SessionRow::default()
                };
                self.session_changed = true;
            }
            Note::SessionEnded { reason } => {
                self.session.ended = Some(time);
                self.session.end_reason = Some(reason);
                self.session_changed = true;
            }
            Note::Execution {
                n,
                msg_id,
                state,
                reason,
            } => {
                let info = self.row(n, found, load)?;
                if info.msg_id.is_empty() {
                    info.msg_id = msg_id;
                }
                if state == ExecutionState::Running {
                    info.started.get_or_insert(time);
                    info.places.start.get_or_insert(found.position);
                }
                info.ended = state.is_final().then(|| info.ended.unwrap_or(time));
                info.state = state;
                info.reason = reason;
            }
            Note::Compacted {
                n, outputs, bytes, ..
            } if outputs != 0 || bytes != 0 => {
                // What it once had counts, not what was left of it.
                let info = &mut self.tracked(n, found, load)?.info;
                info.outputs = info.outputs.saturating_add_signed(outputs);
                info.bytes = info.bytes.saturating_add_signed(bytes);
            }
            Note::HostStarted { .. }
            | Note::Compacted { .. }
            | Note::EngineReady { .. }
            | Note::Interrupted
            | Note::Restarting
            | Note::EngineStarted { .. }
            | Note::EngineEnded { .. }
            | Note::Gap { .. }
            | Note::ClientAttached { .. }
            | Note::ClientDetached { .. }
            | Note::Attach { .. }
            | Note::AttachEnded { .. }
            | Note::Checkpoint { .. }
            | Note::Clock { .. }
            | Note::Set { .. }
            | Note::Extended { .. }
            | Note::Notice { .. }
            | Note::Ending { .. }
            | Note::EndStep { .. }
            | Note::Usage { .. }
            | Note::Health { .. }
            | Note::NotifyOf { .. }
            | Note::PredecessorTold { .. }
            | Note::SubshellDeleted { .. }
            | Note::Unknown => {}
        }
        Ok(())
    }

    /// The row of execution `n`, to be changed because of the record `found`.
    fn row<E>(
        &mut self,
        n: ExecutionNumber,
        found: &Scanned,
        load: impl FnOnce(ExecutionNumber) -> Result<Option<ExecutionInfo>, E>,
    ) -> Result<&mut ExecutionInfo, E> {
        let tracked = self.tracked(n, found, load)?;
        tracked.info.places.last = Some(found.position);
        tracked.info.places.last_seq = found.head.seq;
        Ok(&mut tracked.info)
    }

    fn tracked<E>(
        &mut self,
        n: ExecutionNumber,
        found: &Scanned,
        load: impl FnOnce(ExecutionNumber) -> Result<Option<ExecutionInfo>, E>,
    ) -> Result<&mut Tracked, E> {
        let tracked = match self.executions.entry(n) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let info = load(n)?.unwrap_or_else(|| new_row(n, found.head.seq));
                entry.insert(Tracked {
                    info,
                    changed: false,
                })
            }
        };
        tracked.changed = true;
        Ok(tracked)
    }

    pub fn list(&self, filter: &Filter) -> Vec<ExecutionInfo> {
        self.executions
            .values()
            .rev()
            .map(|tracked| &tracked.info)
            .filter(|info| filter.cell_id.is_none() || info.cell_id == filter.cell_id)
            .filter(|info| !filter.unfinished || !info.state.is_final())
            .take(filter.limit.unwrap_or(usize::MAX))
            .cloned()
            .collect()
    }

    pub fn select(&self, selector: &Selector) -> Option<ExecutionInfo> {
        let mut newest_first = self.executions.values().rev().map(|tracked| &tracked.info);
        match selector {
            Selector::ById(id) => newest_first.find(|info| info.msg_id == *id).cloned(),
            Selector::Number(n) => self.executions.get(n).map(|tracked| tracked.info.clone()),
            Selector::Latest => newest_first.find(|info| info.by_person).cloned(),
        }
    }
}

/// A row whose request is not known (yet): it stays so only where the request's record is damaged.
fn new_row(n: ExecutionNumber, first_seq: u64) -> ExecutionInfo {
    ExecutionInfo {
        msg_id: String::new(),
        n,
        cell_id: None,
        code: String::new(),
        by_person: true,
        state: ExecutionState::Queued,
        started: None,
        ended: None,
        queued: None,
        reason: None,
        execution_count: None,
        outputs: 0,
        bytes: 0,
        places: Places {
            first_seq,
            ..Places::default()
        },
    }
}

fn apply_request(info: &mut ExecutionInfo, found: &Scanned, record: &Record) {
    let Body::Request { message, .. } = &record.body else {
        return;
    };
    if info.places.request.is_some() {
        return;
    }
    info.places.request = Some(found.position);
    info.queued = Some(found.head.time);
    if let Ok(header) = message.header() {
        info.msg_id = header.msg_id.into_owned();
    }
    if let Some(content) = ExecuteRequest::read(&message.content) {
        info.by_person = content.is_by_person();
        info.code = content.code.into_owned();
    }
    if let Ok(metadata) = serde_json::from_slice::<ExecuteMetadata>(&message.metadata) {
        info.cell_id = metadata.cell_id;
    }
}

enum Output {
    /// Something in the cell, with its payload's bytes.
    Shown(u64),
    /// execute_input with its count.
    Input(Option<u64>),
    Other,
}

/// What an iopub record is, without reading a large content. `None`: damaged.
fn read_output(found: &Scanned, segment: &mut SegmentScan) -> io::Result<Option<Output>> {
    let table_bytes = u64::from(found.frame.head_bytes);
    let body = if found.position.length <= HEADS_CHUNK_BYTES as u64 {
        segment.read(found)?
    } else {
        segment.read_range(found, 0..table_bytes)?
    };
    let Some(body) = body else { return Ok(None) };
    let header_index = found.head.identities as usize;
    let Some(header) = read_part(found, segment, &body, header_index)? else {
        return Ok(None);
    };
    let Ok(header) = Header::read(&header) else {
        return Ok(Some(Output::Other));
    };
    Ok(Some(match &*header.msg_type {
        "stream" | "display_data" | "update_display_data" | "execute_result" | "error" => {
            Output::Shown(found.frame.body_bytes - table_bytes)
        }
        "execute_input" => {
            let content = read_part(found, segment, &body, header_index + 3)?.unwrap_or_default();
            let content = serde_json::from_slice::<InputContent>(&content).ok();
            Output::Input(content.and_then(|content| content.execution_count))
        }
        _ => Output::Other,
    }))
}

/// Part number `index` of a record, of which `body` is there already from its beginning.
fn read_part(
    found: &Scanned,
    segment: &mut SegmentScan,
    body: &Bytes,
    index: usize,
) -> io::Result<Option<Bytes>> {
    let range = match found
        .head
        .part_ranges(body)
        .map(|mut ranges| ranges.nth(index))
    {
        Ok(Some(Ok(range))) => range,
        _ => return Ok(None),
    };
    if range.end <= body.len() as u64 {
        return Ok(Some(body.slice(range.start as usize..range.end as usize)));
    }
    segment.read_range(found, range)
}

fn iso_8601<S: Serializer>(time: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
    let time = time.and_then(|micros| i64::try_from(micros).ok());
    match time.and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok()) {
        Some(time) => serializer.collect_str(&format_args!("{time:.6}")),
        None => serializer.serialize_none(),
    }
}
