//! PURE. Journal records as a person reads them, and as JSON.

use std::time::Duration;

use serde::Serialize;
use serde::ser::SerializeMap as _;
use serde_json::value::RawValue;

use crate::duration::format_duration;
use crate::journal::record::{Body, ClientId, ExecutionNumber, Micros, Note, Record};
use crate::journal::{Gap, Item};
use crate::session::outputs::{Ansi, TextWriter};
use crate::state_dir::iso;
use crate::wire::{Channel, Message};

/// Turns a journal's records into text, one by one: outputs as they were printed, and a line in brackets for each
/// thing that whoever reads them must know.
#[derive(Debug)]
pub struct RecordText {
    writer: TextWriter,
    ansi: Ansi,
    /// The execution whose text is being written.
    execution: ExecutionNumber,
    timestamps: bool,
    line_open: bool,
}

impl RecordText {
    /// At the start of a line. `timestamps`: each line begins with the time of the record that began it.
    pub fn new(ansi: Ansi, timestamps: bool) -> Self {
        Self {
            writer: TextWriter::new(ansi),
            ansi,
            execution: 0,
            timestamps,
            line_open: false,
        }
    }

    /// Whether the text so far does not end a line.
    pub fn is_line_open(&self) -> bool {
        self.line_open
    }

    /// What an item adds to the text.
    pub fn item(&mut self, item: &Item) -> String {
        match item {
            Item::Gap(gap) => self.notice(None, &describe_gap(gap)),
            Item::Record(record, _) => self.record(record),
        }
    }

    fn record(&mut self, record: &Record) -> String {
        match &record.body {
            // What farside says to one client (a replay, a status) is no output of the session.
            Body::Iopub {
                client: None,
                execution,
                message,
            } => self.output(record.time, *execution, message),
            Body::Note(note) => match describe_note(note, record.time) {
                Some(text) => self.notice(Some(record.time), &text),
                None => String::new(),
            },
            Body::Iopub {
                client: Some(_), ..
            }
            | Body::Request { .. }
            | Body::Reply { .. } => String::new(),
        }
    }

    fn output(&mut self, time: Micros, execution: ExecutionNumber, message: &Message) -> String {
        let Ok(header) = message.header() else {
            return String::new();
        };
        let mut text = String::new();
        if execution == self.execution {
            self.writer
                .write(&header.msg_type, &message.content, &mut text);
            return self.stamped(Some(time), &text);
        }
        // Two executions never share a line, and an escape sequence that one left open is not the other's.
        let mut writer = TextWriter::new(self.ansi);
        writer.write(&header.msg_type, &message.content, &mut text);
        if text.is_empty() {
            return text;
        }
        let ended = self.end_line();
        (self.writer, self.execution) = (writer, execution);
        ended + &self.stamped(Some(time), &text)
    }

    fn notice(&mut self, time: Option<Micros>, text: &str) -> String {
        let ended = self.end_line();
        self.writer = TextWriter::new(self.ansi);
        ended + &self.stamped(time, &format!("[farside: {text}]\n"))
    }

    fn end_line(&mut self) -> String {
        if std::mem::take(&mut self.line_open) {
            "\n".to_owned()
        } else {
            String::new()
        }
    }

    fn stamped(&mut self, time: Option<Micros>, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        let begins_in_line = std::mem::replace(&mut self.line_open, !text.ends_with('\n'));
        if !self.timestamps {
            return text.to_owned();
        }
        let stamp = time.map_or_else(
            || " ".repeat(iso::format(0).len() + 1),
            |time| iso::format(time) + " ",
        );
        let mut out = String::new();
        for (i, line) in text.split_inclusive('\n').enumerate() {
            if i > 0 || !begins_in_line {
                out.push_str(&stamp);
            }
            out.push_str(line);
        }
        out
    }
}

fn describe_gap(gap: &Gap) -> String {
    let missing = gap.missing.end.saturating_sub(gap.missing.start);
    match missing {
        0 => format!("{} damaged bytes in the journal here", gap.damaged_bytes),
        1 => format!(
            "record {} of the journal is missing here",
            gap.missing.start
        ),
        _ => format!(
            "records {} to {} of the journal are missing here",
            gap.missing.start,
            gap.missing.end - 1
        ),
    }
}

/// What a reader of the outputs must know; `None` for what only farside itself needs. `time`: of its record.
fn describe_note(note: &Note, time: Micros) -> Option<String> {
    /// A loss is noticed some time after, and the lines that came meanwhile stand before its note.
    const LATE: Micros = 500_000;
    Some(match note {
        Note::Gap {
            from,
            until,
            why,
            said: false,
        } => {
            let secs = until.saturating_sub(*from) as f64 / 1e6;
            match time.saturating_sub(*until) {
                late @ LATE.. => {
                    let late = late as f64 / 1e6;
                    format!(
                        "output of {secs:.1} s may be missing, {late:.1} s before this line: {why}"
                    )
                }
                _ => format!("output of {secs:.1} s may be missing here: {why}"),
            }
        }
        Note::EngineStarted { generation, .. } if *generation > 1 => {
            "a fresh engine starts here; variables are gone".to_owned()
        }
        Note::EngineEnded { why, .. } => format!("the engine ended: {why}"),
        Note::SessionEnded { reason } => format!("the session ended: {reason}"),
        Note::Notice {
            text, said: false, ..
        } => text.clone(),
        Note::Ending { reason, .. } => format!("the session ends: {reason}"),
        Note::EndStep { step, outcome } if outcome.is_empty() => format!("at the end: {step}"),
        Note::EndStep { step, outcome } => format!("at the end: {step}: {}", outcome.trim_end()),
        Note::Set { key, value } => format!("{key} = {value} from here on"),
        Note::Extended { seconds } => {
            format!(
                "extended by {}",
                format_duration(Duration::from_secs(*seconds))
            )
        }
        Note::Health { responsive: true } => "the engine's heartbeat answers again".to_owned(),
        Note::Health { responsive: false } => {
            "the engine's heartbeat does not answer; its process lives".to_owned()
        }
        Note::Notice { said: true, .. }
        | Note::Gap { said: true, .. }
        | Note::Clock { .. }
        | Note::Usage { .. }
        | Note::NotifyOf { .. }
        | Note::PredecessorTold { .. }
        | Note::SubshellDeleted { .. }
        | Note::Compacted { .. }
        | Note::SessionStarted { .. }
        | Note::HostStarted { .. }
        | Note::EngineStarted { .. }
        | Note::EngineReady { .. }
        | Note::Interrupted
        | Note::Restarting
        | Note::ClientAttached { .. }
        | Note::ClientDetached { .. }
        | Note::Execution { .. }
        | Note::Attach { .. }
        | Note::AttachEnded { .. }
        | Note::Checkpoint { .. }
        | Note::Unknown => return None,
    })
}

/// An item as `farside logs --json` shows it, one object a line:
///
/// - `{"seq", "time", "kind": "request" | "reply" | "iopub", "channel", "client", "execution", "identities",
///   "header", "parent_header", "metadata", "content", "buffers"}`: identities and buffers in base64, `client` and
///   `execution` null where there is none;
/// - `{"seq", "time", "kind": "note", "note": {"note": ..., ...}}`;
/// - `{"kind": "gap", "missing": [first, last] | null, "damaged_bytes"}`.
pub fn record_json(item: &Item) -> impl Serialize {
    RecordJson(item)
}

struct RecordJson<'a>(&'a Item);

impl Serialize for RecordJson<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            Item::Gap(gap) => {
                let missing =
                    (!gap.missing.is_empty()).then(|| [gap.missing.start, gap.missing.end - 1]);
                map.serialize_entry("kind", "gap")?;
                map.serialize_entry("missing", &missing)?;
                map.serialize_entry("damaged_bytes", &gap.damaged_bytes)?;
            }
            Item::Record(record, _) => {
                map.serialize_entry("seq", &record.seq)?;
                map.serialize_entry("time", &iso::format(record.time))?;
                match &record.body {
                    Body::Note(note) => {
                        map.serialize_entry("kind", "note")?;
                        map.serialize_entry("note", note)?;
                    }
                    Body::Request {
                        channel,
                        client,
                        execution,
                        message,
                    } => {
                        message_entries::<S>(
                            &mut map,
                            "request",
                            *channel,
                            Some(*client),
                            *execution,
                            message,
                        )?;
                    }
                    Body::Reply {
                        channel,
                        client,
                        execution,
                        message,
                    } => {
                        message_entries::<S>(
                            &mut map,
                            "reply",
                            *channel,
                            Some(*client),
                            *execution,
                            message,
                        )?;
                    }
                    Body::Iopub {
                        client,
                        execution,
                        message,
                    } => {
                        message_entries::<S>(
                            &mut map,
                            "iopub",
                            Channel::Iopub,
                            *client,
                            *execution,
                            message,
                        )?;
                    }
                }
            }
        }
        map.end()
    }
}

fn message_entries<S: serde::Serializer>(
    map: &mut S::SerializeMap,
    kind: &str,
    channel: Channel,
    client: Option<ClientId>,
    execution: ExecutionNumber,
    message: &Message,
) -> Result<(), S::Error> {
    map.serialize_entry("kind", kind)?;
    map.serialize_entry("channel", channel.name())?;
    map.serialize_entry("client", &client)?;
    map.serialize_entry("execution", &(execution != 0).then_some(execution))?;
    map.serialize_entry(
        "identities",
        &message
            .identities
            .iter()
            .map(|part| base64(part))
            .collect::<Vec<_>>(),
    )?;
    map.serialize_entry("header", &json_on_one_line(&message.header))?;
    map.serialize_entry("parent_header", &json_on_one_line(&message.parent_header))?;
    map.serialize_entry("metadata", &json_on_one_line(&message.metadata))?;
    map.serialize_entry("content", &json_on_one_line(&message.content))?;
    map.serialize_entry(
        "buffers",
        &message
            .buffers
            .iter()
            .map(|part| base64(part))
            .collect::<Vec<_>>(),
    )
}

/// JSON text as it came, but for line ends between its values; what is no JSON becomes a string.
fn json_on_one_line(part: &[u8]) -> Box<RawValue> {
    let text = String::from_utf8_lossy(part);
    let one_line = text.replace(['\n', '\r'], " ");
    // A line end inside a JSON string is always escaped, so this changes blanks only.
    RawValue::from_string(one_line).unwrap_or_else(|_| {
        let quoted = serde_json::to_string(&text).expect("a string");
        RawValue::from_string(quoted).expect("a JSON string")
    })
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (group >> (18 - 6 * i)) & 63;
            out.push(if i <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::journal::segments::Position;

    const NOWHERE: Position = Position {
        segment: 1,
        offset: 0,
        length: 0,
    };

    fn item(seq: u64, body: Body) -> Item {
        Item::Record(
            Arc::new(Record {
                seq,
                time: seq * 1_000_000,
                heard: 0,
                body,
            }),
            NOWHERE,
        )
    }

    fn stream(seq: u64, execution: u64, text: &str) -> Item {
        let message = Message {
            header: Bytes::from_static(br#"{"msg_id":"m","msg_type":"stream"}"#),
            parent_header: Bytes::from_static(b"{}"),
            metadata: Bytes::from_static(b"{\n}"),
            content: serde_json::to_vec(&serde_json::json!({ "name": "stdout", "text": text }))
                .unwrap()
                .into(),
            ..Message::default()
        };
        item(
            seq,
            Body::Iopub {
                client: None,
                execution,
                message,
            },
        )
    }

    fn text(items: &[Item], timestamps: bool) -> String {
        let mut text = RecordText::new(Ansi::Strip, timestamps);
        items.iter().map(|item| text.item(item)).collect()
    }

    #[test]
    fn executions_and_notices_have_lines_of_their_own() {
        let why = "the host was killed".to_owned();
        let items = [
            stream(1, 1, "a"),
            stream(2, 1, "b"),
            stream(3, 2, "\u{1b}[31mc\u{1b}["),
            stream(4, 1, "1md\n"),
            item(
                5,
                Body::Note(Note::Gap {
                    from: 2_500_000,
                    until: 5_000_000,
                    why: why.clone(),
                    said: false,
                }),
            ),
            item(
                6,
                Body::Note(Note::Gap {
                    from: 0,
                    until: 2_500_000,
                    why,
                    said: false,
                }),
            ),
            Item::Gap(Gap {
                missing: 6..9,
                damaged_bytes: 7,
            }),
            Item::Gap(Gap {
                missing: 6..7,
                damaged_bytes: 7,
            }),
            Item::Gap(Gap {
                missing: 6..6,
                damaged_bytes: 7,
            }),
            stream(9, 1, "e"),
        ];
        let expected = "ab\nc\n1md\n[farside: output of 2.5 s may be missing here: the host was killed]\n\
                        [farside: output of 2.5 s may be missing, 3.5 s before this line: the host was killed]\n\
                        [farside: records 6 to 8 of the journal are missing here]\n\
                        [farside: record 6 of the journal is missing here]\n\
                        [farside: 7 damaged bytes in the journal here]\ne";
        assert_eq!(text(&items, false), expected);
    }

    #[test]
    fn each_line_has_the_time_it_began() {
        let items = [
            stream(1, 1, "a\nb"),
            stream(2, 1, "c\nd\n"),
            Item::Gap(Gap {
                missing: 3..4,
                damaged_bytes: 0,
            }),
        ];
        insta::assert_snapshot!(text(&items, true), @r"
        1970-01-01T00:00:01.000000Z a
        1970-01-01T00:00:01.000000Z bc
        1970-01-01T00:00:02.000000Z d
                                    [farside: record 3 of the journal is missing here]
        ");
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        let request = Body::Request {
            channel: Channel::Shell,
            client: uuid::Uuid::nil(),
            execution: 0,
            message: Message {
                identities: vec![Bytes::from_static(b"\xff\x00")],
                header: Bytes::from_static(b"{\r\n  \"a\": \"\\n\"}"),
                content: Bytes::from_static(b"no json\n"),
                buffers: vec![Bytes::from_static(b"abc"), Bytes::new()],
                ..Message::default()
            },
        };
        let note = Note::SessionEnded {
            reason: "stopped".to_owned(),
        };
        let items = [
            stream(1, 2, "x"),
            item(2, request),
            item(3, Body::Note(note)),
            Item::Gap(Gap {
                missing: 4..6,
                damaged_bytes: 10,
            }),
            Item::Gap(Gap {
                missing: 4..4,
                damaged_bytes: 10,
            }),
        ];
        let lines: Vec<String> = items
            .iter()
            .map(|i| serde_json::to_string(&record_json(i)).unwrap())
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"seq":1,"time":"1970-01-01T00:00:01.000000Z","kind":"iopub","channel":"iopub","client":null,"execution":2,"identities":[],"header":{"msg_id":"m","msg_type":"stream"},"parent_header":{},"metadata":{ },"content":{"name":"stdout","text":"x"},"buffers":[]}
        {"seq":2,"time":"1970-01-01T00:00:02.000000Z","kind":"request","channel":"shell","client":"00000000-0000-0000-0000-000000000000","execution":null,"identities":["/wA="],"header":{    "a": "\n"},"parent_header":"","metadata":"","content":"no json\n","buffers":["YWJj",""]}
        {"seq":3,"time":"1970-01-01T00:00:03.000000Z","kind":"note","note":{"note":"session_ended","reason":"stopped"}}
        {"kind":"gap","missing":[4,5],"damaged_bytes":10}
        {"kind":"gap","missing":null,"damaged_bytes":10}
        "#);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
