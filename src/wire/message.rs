//! A Jupyter message as it travels: raw bytes in the order of the wire, parsed only where farside acts on it.
//!
//! Source: Jupyter messaging protocol 5.4, "The wire protocol" and "General message format".

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::plain;

/// The sockets of a kernel that carry messages (the heartbeat carries none).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Channel {
    Shell = 1,
    Control = 2,
    Stdin = 3,
    Iopub = 4,
}

impl Channel {
    /// The channel of a number that [`Channel`]`as u8` gave.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Shell),
            2 => Some(Self::Control),
            3 => Some(Self::Stdin),
            4 => Some(Self::Iopub),
            _ => None,
        }
    }

    /// The name of the channel in connection files and in Jupyter Server's websocket protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
            Self::Iopub => "iopub",
        }
    }
}

/// One message without its delimiter and signature. The four dictionaries are JSON text, byte for byte as they
/// came; cloning shares the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Routing identities (ROUTER) or the topic (iopub), before `<IDS|MSG>`.
    pub identities: Vec<Bytes>,
    /// Header, JSON object.
    pub header: Bytes,
    /// Header of the message that caused this one, or `{}`.
    pub parent_header: Bytes,
    /// Metadata, JSON object.
    pub metadata: Bytes,
    /// Content, JSON object.
    pub content: Bytes,
    /// Binary buffers (widgets, comms).
    pub buffers: Vec<Bytes>,
}

/// What farside reads of a header. Unknown fields are ignored here and kept in the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Header<'a> {
    /// Unique id of the message.
    #[serde(borrow)]
    pub msg_id: Cow<'a, str>,
    /// E.g. `execute_request`.
    #[serde(borrow)]
    pub msg_type: Cow<'a, str>,
    /// The `session` field: the id of the process that sent it, called `session_id` here since `session` is
    /// farside's own word.
    #[serde(borrow, rename = "session", default)]
    pub session_id: Cow<'a, str>,
    /// JEP 91: the subshell a shell request is for.
    #[serde(borrow, default)]
    pub subshell_id: Option<Cow<'a, str>>,
}

/// What farside reads of an execute_request's content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExecuteRequest<'a> {
    /// What to run.
    #[serde(borrow)]
    pub code: Cow<'a, str>,
    /// Nothing of it is to be shown.
    #[serde(default)]
    pub silent: bool,
    /// It takes a number and is remembered.
    #[serde(default = "yes")]
    pub store_history: bool,
}

fn yes() -> bool {
    true
}

impl<'a> ExecuteRequest<'a> {
    /// `None` where the content is not what the protocol says.
    pub fn read(content: &'a [u8]) -> Option<Self> {
        // A derived struct also reads a JSON list.
        let is_object = content.trim_ascii_start().first() == Some(&b'{');
        let request = is_object.then(|| serde_json::from_slice(content));
        request?.ok()
    }

    /// A person asked for it, not a frontend by itself: it is neither silent nor kept out of the history.
    pub fn is_by_person(&self) -> bool {
        !self.silent && self.store_history
    }
}

impl<'a> Header<'a> {
    /// Reads the JSON text of a header.
    pub fn read(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        match plain::header(json) {
            Some(header) => Ok(header),
            None => serde_json::from_slice(json),
        }
    }
}

impl Message {
    /// A message that farside makes itself: no identities, empty metadata, no buffers.
    pub fn new(
        header: &HeaderFields<'_>,
        parent_header: &Bytes,
        content: &serde_json::Value,
    ) -> Self {
        // Display of a Value cannot fail: its keys are strings.
        Self::with_content(header, parent_header, content.to_string().into())
    }

    /// The same, of content that is JSON text already.
    pub fn with_content(header: &HeaderFields<'_>, parent_header: &Bytes, content: Bytes) -> Self {
        let empty = || Bytes::from_static(b"{}");
        Self {
            identities: Vec::new(),
            header: header.to_json(),
            parent_header: if parent_header.is_empty() {
                empty()
            } else {
                parent_header.clone()
            },
            metadata: empty(),
            content,
            buffers: Vec::new(),
        }
    }

    /// Parses what farside needs of the header.
    pub fn header(&self) -> Result<Header<'_>, serde_json::Error> {
        Header::read(&self.header)
    }

    /// The parent's header; `None` where the message has no (readable) parent.
    pub fn parent(&self) -> Option<Header<'_>> {
        Header::read(&self.parent_header).ok()
    }

    /// Bytes of all parts together.
    pub fn size_bytes(&self) -> usize {
        self.parts().map(Bytes::len).sum()
    }

    /// What the message costs in a queue, about: a tiny one is mostly what holds its parts.
    pub fn queue_bytes(&self) -> usize {
        /// This structure and the lists in it.
        const HOLDER_BYTES: usize = 256;
        self.size_bytes() + HOLDER_BYTES
    }

    /// All parts in wire order: identities, header, parent_header, metadata, content, buffers.
    pub fn parts(&self) -> impl Iterator<Item = &Bytes> {
        self.identities
            .iter()
            .chain([
                &self.header,
                &self.parent_header,
                &self.metadata,
                &self.content,
            ])
            .chain(&self.buffers)
    }
}

/// The version of the messaging protocol in the headers that farside makes: what jupyter_client 8, and through it
/// ipykernel 7, puts there.
pub const PROTOCOL_VERSION: &str = "5.4";

/// The fields of a fresh header. Ids are made by the caller; a msg_id must never be used twice.
#[derive(Clone, Copy, Debug)]
pub struct HeaderFields<'a> {
    /// Unique id of the message.
    pub msg_id: &'a str,
    /// E.g. `status`.
    pub msg_type: &'a str,
    /// The `session` field.
    pub session_id: &'a str,
    /// The `username` field.
    pub username: &'a str,
    /// When it is made: microseconds since the Unix epoch.
    pub date: u64,
}

impl HeaderFields<'_> {
    /// The header, with its fields in ipykernel's order.
    pub fn to_json(&self) -> Bytes {
        #[derive(Serialize)]
        struct Fields<'a> {
            msg_id: &'a str,
            msg_type: &'a str,
            username: &'a str,
            session: &'a str,
            date: &'a str,
            version: &'a str,
        }
        let fields = Fields {
            msg_id: self.msg_id,
            msg_type: self.msg_type,
            username: self.username,
            session: self.session_id,
            date: &iso8601(self.date),
            version: PROTOCOL_VERSION,
        };
        let json = serde_json::to_vec(&fields).expect("strings in a struct are always JSON");
        json.into()
    }
}

/// `2026-11-22T08:31:49.486375Z`: UTC with microseconds, as jupyter_client writes dates. A time past the year
/// 9999 gives the last one there is.
pub fn iso8601(micros: u64) -> String {
    let time = i64::try_from(micros)
        .ok()
        .and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    format!("{:.6}", time.unwrap_or(jiff::Timestamp::MAX))
}

/// When a message was made, by its header's `date`: ISO 8601 with its offset from UTC. Microseconds since the Unix epoch.
pub fn sent_at(header: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Date<'a> {
        #[serde(borrow)]
        date: Cow<'a, str>,
    }
    let date = serde_json::from_slice::<Date<'_>>(header).ok()?.date;
    let at: jiff::Timestamp = date.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok()
}

/// `header` with another `session`; every other byte stays. A header without one gets it as its first field. What
/// is no JSON object is given back as it is.
pub fn with_session_id(header: &Bytes, session_id: &str) -> Bytes {
    if let Some(range) = plain::session(header)
        && !session_id.contains(|c: char| c == '"' || c == '\\' || c.is_control())
    {
        // The one usual case of what follows: a text for a text.
        let (value, text) = (range.start + 1..range.end - 1, session_id.as_bytes());
        if header[value.clone()] == *text {
            return header.clone();
        }
        return [&header[..value.start], text, &header[value.end..]]
            .concat()
            .into();
    }
    let Ok(SessionValues(values)) = serde_json::from_slice(header) else {
        return header.clone();
    };
    // Where each value lies: serde lent us slices of `header` itself.
    let start = header.as_ptr() as usize;
    let ranges: Vec<Range<usize>> = (values.iter())
        .map(|v| v.get().as_ptr() as usize - start)
        .zip(&values)
        .map(|(at, v)| at..at + v.get().len())
        .collect();
    let session = serde_json::to_string(session_id).expect("a string is always JSON");
    if !values.is_empty() && values.iter().all(|v| v.get() == session) {
        return header.clone();
    }
    let mut out = Vec::with_capacity(header.len() + session.len() + 16);
    let mut done = 0;
    if ranges.is_empty() {
        // `SessionValues` was read from an object, so there is a brace, and only white space before it.
        done = header
            .iter()
            .position(|&b| b == b'{')
            .map_or(0, |at| at + 1);
        let is_empty = header[done..].trim_ascii_start().first() == Some(&b'}');
        out.extend_from_slice(&header[..done]);
        out.extend_from_slice(b"\"session\": ");
        out.extend_from_slice(session.as_bytes());
        out.extend_from_slice(if is_empty { b"" } else { b", " });
    }
    for range in ranges {
        out.extend_from_slice(&header[done..range.start]);
        out.extend_from_slice(session.as_bytes());
        done = range.end;
    }
    out.extend_from_slice(&header[done..]);
    out.into()
}

/// `header` without its subshell: for the main shell. What is no JSON object is given back as it is.
pub fn for_main_shell(header: &Bytes) -> Bytes {
    type Fields = serde_json::Map<String, serde_json::Value>;
    let Ok(mut fields) = serde_json::from_slice::<Fields>(header) else {
        return header.clone();
    };
    fields.insert("subshell_id".into(), serde_json::Value::Null);
    // Display of a Value cannot fail: its keys are strings.
    serde_json::Value::Object(fields).to_string().into()
}

/// The values of the top-level `session` fields of an object: one, in any sane header.
struct SessionValues<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for SessionValues<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = SessionValues<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(IsSession(is_session)) = map.next_key()? {
                    if is_session {
                        values.push(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(SessionValues(values))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Whether a field's name, once unescaped, is `session`.
struct IsSession(bool);

impl<'de> Deserialize<'de> for IsSession {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = IsSession;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_str<E>(self, name: &str) -> Result<IsSession, E> {
                Ok(IsSession(name == "session"))
            }
        }
        deserializer.deserialize_identifier(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(header: &str) -> String {
        let out = with_session_id(&Bytes::copy_from_slice(header.as_bytes()), "n\"ew");
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_plain_session_is_replaced_by_a_plain_one() {
        let header = Bytes::from_static(br#"{"msg_id": "session", "session":  "old", "z" :"1"}"#);
        let expected = r#"{"msg_id": "session", "session":  "new", "z" :"1"}"#;
        assert_eq!(with_session_id(&header, "new"), expected);
        assert_eq!(with_session_id(&header, "old").as_ptr(), header.as_ptr());
    }

    #[test]
    fn only_the_session_is_replaced() {
        for (header, expected) in [
            (
                r#"{"msg_id": "session", "session":  "old", "x": {"session": "in"}, "z" :1.50}"#,
                r#"{"msg_id": "session", "session":  "n\"ew", "x": {"session": "in"}, "z" :1.50}"#,
            ),
            (r#"{"session":"a\"b\u0000"}"#, r#"{"session":"n\"ew"}"#),
            (
                r#"{"sess\u0069on":null,"a":1}"#,
                r#"{"sess\u0069on":"n\"ew","a":1}"#,
            ),
            (
                r#"{"session":1,"a":[],"session":2}"#,
                r#"{"session":"n\"ew","a":[],"session":"n\"ew"}"#,
            ),
            (r#" { "a": 1}"#, r#" {"session": "n\"ew",  "a": 1}"#),
            ("{ }", r#"{"session": "n\"ew" }"#),
            (
                "{\"session\": [1,\n {}] }\n",
                "{\"session\": \"n\\\"ew\" }\n",
            ),
        ] {
            assert_eq!(replaced(header), expected);
        }
    }

    #[test]
    fn what_is_no_object_stays() {
        for header in [
            "",
            "[]",
            "{",
            "nul",
            r#"{"session": "a""#,
            r#"{"session": "a"} x"#,
            "\"session\"",
        ] {
            assert_eq!(replaced(header), header);
        }
    }

    #[test]
    fn the_same_session_costs_no_copy() {
        let header = Bytes::from_static(br#"{"session": "s1"}"#);
        assert_eq!(with_session_id(&header, "s1").as_ptr(), header.as_ptr());
    }

    #[test]
    fn a_header_for_the_main_shell_names_no_subshell() {
        let header = Bytes::from_static(br#"{"msg_id": "a", "subshell_id": "s", "x": [1, {}]}"#);
        let expected = r#"{"msg_id":"a","subshell_id":null,"x":[1,{}]}"#;
        assert_eq!(for_main_shell(&header), expected);
        let odd = Bytes::from_static(b"[1");
        assert_eq!(for_main_shell(&odd), odd);
    }

    #[test]
    fn a_fresh_header_looks_like_ipykernels() {
        let fields = HeaderFields {
            msg_id: "id_1",
            msg_type: "status",
            session_id: "s",
            username: "u\n",
            date: 1_700_000_000_000_000,
        };
        let expected = r#"{"msg_id":"id_1","msg_type":"status","username":"u\n","session":"s","date":"2023-11-14T22:13:20.000000Z","version":"5.4"}"#;
        assert_eq!(fields.to_json(), expected);
        let content = serde_json::json!({"z": 1, "a": "ä"});
        let message = Message::new(&fields, &Bytes::new(), &content);
        assert_eq!(message.parent_header, "{}");
        assert_eq!(message.content, r#"{"z":1,"a":"ä"}"#);
        assert_eq!(message.header().unwrap().session_id, "s");
    }

    #[test]
    fn every_time_has_a_date() {
        assert_eq!(iso8601(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(iso8601(1), "1970-01-01T00:00:00.000001Z");
        assert!(iso8601(u64::MAX).starts_with("9999-12-3"));
    }
}
