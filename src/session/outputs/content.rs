//! PURE. Reads of an iopub message what compaction acts on, and writes stream contents.
//! Refuses to judge: what does not parse is [`Kind::Aside`] and passes unchanged.
//!
//! Source: Jupyter messaging protocol 5.4, "Messages on the IOPub (PUB/SUB) channel".

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// What a message is to a cell.
pub(super) enum Kind<'a> {
    Stream {
        name: Cow<'a, str>,
        text: Cow<'a, str>,
    },
    /// display_data with the id it can be updated by.
    Display {
        id: Option<Cow<'a, str>>,
    },
    Result {
        id: Option<Cow<'a, str>>,
    },
    Update {
        id: Option<Cow<'a, str>>,
    },
    Error,
    Clear {
        wait: bool,
    },
    Comm(Comm),
    /// [`is_frame`]: the sender of a replay makes its own.
    Frame,
    /// Anything else.
    Aside,
}

pub(super) enum Comm {
    /// An ipywidgets Output widget begins or ends to capture the outputs of a msg_id.
    Capture {
        comm_id: String,
        begins: bool,
    },
    /// ipywidgets' `update` of these traits, without buffers.
    Update {
        comm_id: String,
        traits: String,
    },
    Other {
        comm_id: String,
    },
}

#[derive(Deserialize, Serialize)]
pub(super) struct StreamContent<'a> {
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(borrow)]
    pub text: Cow<'a, str>,
}

/// Whether messages of this type are no outputs, but say that an execution begins and ends.
pub fn is_frame(msg_type: &str) -> bool {
    matches!(msg_type, "status" | "execute_input")
}

pub(super) fn read<'a>(msg_type: &str, content: &'a [u8], buffers: &[Bytes]) -> Kind<'a> {
    match msg_type {
        "stream" => match stream(content) {
            Some(StreamContent { name, text }) => Kind::Stream { name, text },
            None => Kind::Aside,
        },
        "display_data" => Kind::Display {
            id: display_id(content),
        },
        "execute_result" => Kind::Result {
            id: display_id(content),
        },
        "update_display_data" => Kind::Update {
            id: display_id(content),
        },
        "error" => Kind::Error,
        "clear_output" => Kind::Clear {
            wait: clear_waits(content),
        },
        "comm_open" | "comm_msg" | "comm_close" => {
            comm(msg_type, content, buffers).map_or(Kind::Aside, Kind::Comm)
        }
        frame if is_frame(frame) => Kind::Frame,
        _ => Kind::Aside,
    }
}

pub(super) fn stream(content: &[u8]) -> Option<StreamContent<'_>> {
    match serde_json::from_slice(content) {
        Ok(stream) => Some(stream),
        Err(_) => {
            #[derive(Deserialize)]
            struct Lossy {
                name: LossyString,
                text: LossyString,
            }
            let Lossy { name, text } = serde_json::from_slice(content).ok()?;
            Some(StreamContent {
                name: Cow::Owned(name.0),
                text: Cow::Owned(text.0),
            })
        }
    }
}

/// A stream's text as it stands in the JSON: 200 MB of it are not to be held once more for the sake of the two that stay.
#[derive(Deserialize)]
pub(super) struct LongStream<'a> {
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(borrow)]
    text: &'a RawValue,
}

/// Reads a stream whose text is wanted in pieces. `None`: as [`stream`].
pub(super) fn long_stream(content: &[u8]) -> Option<LongStream<'_>> {
    let stream: LongStream = serde_json::from_slice(content).ok()?;
    stream.text.get().starts_with('"').then_some(stream)
}

impl<'a> LongStream<'a> {
    /// The text, in pieces of about so many bytes of JSON.
    pub fn pieces(&self, bytes: usize) -> impl Iterator<Item = Cow<'a, str>> {
        let text = self.text.get();
        let mut rest = text.get(1..text.len() - 1).unwrap_or_default();
        std::iter::from_fn(move || {
            let (piece, behind) = rest.split_at(escaped_prefix(rest, bytes));
            rest = behind;
            (!piece.is_empty()).then(|| unescaped(piece))
        })
    }
}

/// How much of the inside of a JSON string makes a piece of about `bytes` that ends between two characters of its text.
fn escaped_prefix(text: &str, bytes: usize) -> usize {
    let mut at = 0;
    while at < bytes && at < text.len() {
        let within = &text.as_bytes()[at..text.len().min(bytes)];
        let Some(plain) = memchr::memchr(b'\\', within) else {
            let mut end = text.len().min(bytes);
            while !text.is_char_boundary(end) {
                end += 1;
            }
            return end;
        };
        at += plain;
        at += match &text.as_bytes()[at..] {
            [
                _,
                b'u',
                b'd' | b'D',
                b'8' | b'9' | b'a' | b'b' | b'A' | b'B',
                _,
                _,
                b'\\',
                b'u',
                b'd' | b'D',
                ..,
            ] => 12,
            [_, b'u', ..] => 6,
            _ => 2,
        };
    }
    // Of what a parser has accepted an escape is never cut off.
    at.min(text.len())
}

/// The text that the inside of a JSON string stands for.
fn unescaped(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\\', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let quoted = format!("\"{text}\"");
    let text = serde_json::from_str(&quoted)
        .or_else(|_| serde_json::from_str(&quoted).map(|LossyString(text)| text));
    Cow::Owned(text.unwrap_or_default())
}

pub(super) fn write_stream(name: &str, text: &str) -> Bytes {
    let content = StreamContent {
        name: Cow::Borrowed(name),
        text: Cow::Borrowed(text),
    };
    // Two strings: there is nothing in them that serde_json refuses to write.
    Bytes::from(serde_json::to_vec(&content).expect("strings serialise"))
}

/// `transient.display_id`.
pub(super) fn display_id(content: &[u8]) -> Option<Cow<'_, str>> {
    // Most have none, and reading JSON takes twenty times as long as looking for its name in it. Only an escaped
    // name would not be found so.
    let may_have = |what: &[u8]| memchr::memmem::find(content, what).is_some();
    if !may_have(b"display_id") && !may_have(b"\\u") {
        return None;
    }
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default)]
        transient: Option<Transient<'a>>,
    }
    #[derive(Deserialize)]
    struct Transient<'a> {
        #[serde(borrow, default)]
        display_id: Option<Cow<'a, str>>,
    }
    let content: Content = serde_json::from_slice(content).ok()?;
    // Frontends take an empty id for none.
    content.transient?.display_id.filter(|id| !id.is_empty())
}

fn clear_waits(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        wait: Value,
    }
    match serde_json::from_slice(content).map(|content: Content| content.wait) {
        Ok(Value::Bool(wait)) => wait,
        // As JavaScript and Python take it.
        Ok(Value::Number(n)) => n.as_f64() != Some(0.0),
        Ok(Value::String(s)) => !s.is_empty(),
        Ok(Value::Null | Value::Array(_) | Value::Object(_)) | Err(_) => false,
    }
}

fn comm(msg_type: &str, content: &[u8], buffers: &[Bytes]) -> Option<Comm> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        comm_id: Cow<'a, str>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Update<'a> {
        #[serde(borrow)]
        method: Cow<'a, str>,
        #[serde(borrow)]
        state: BTreeMap<Cow<'a, str>, &'a RawValue>,
        #[serde(default)]
        buffer_paths: Vec<IgnoredAny>,
    }
    let Content { comm_id, data } = serde_json::from_slice(content).ok()?;
    let comm_id = comm_id.into_owned();
    if msg_type != "comm_msg" {
        return Some(Comm::Other { comm_id });
    }
    let update = data.and_then(|data| serde_json::from_str::<Update>(data.get()).ok());
    Some(match update {
        Some(Update {
            method,
            state,
            buffer_paths,
        }) if method == "update" => {
            if let Some(msg_id) = state.get("msg_id") {
                // `""` ends it.
                Comm::Capture {
                    comm_id,
                    begins: msg_id.get().len() > 2,
                }
            } else if buffer_paths.is_empty() && buffers.is_empty() {
                let traits = state.keys().map(|name| format!("{name:?}")).collect();
                Comm::Update { comm_id, traits }
            } else {
                Comm::Other { comm_id }
            }
        }
        _ => Comm::Other { comm_id },
    })
}

/// A string that may hold halves of surrogate pairs (`"\ud83d"` is valid JSON, and Python prints it). They become
/// U+FFFD, which is what a browser shows for them.
struct LossyString(String);

impl<'de> Deserialize<'de> for LossyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wtf8;
        impl Visitor<'_> for Wtf8 {
            type Value = LossyString;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<LossyString, E> {
                let mut text = String::with_capacity(bytes.len());
                let mut rest = bytes;
                while let Some(chunk) = rest.utf8_chunks().next() {
                    text.push_str(chunk.valid());
                    let bad = &rest[chunk.valid().len()..];
                    if bad.is_empty() {
                        break;
                    }
                    text.push('\u{FFFD}');
                    let surrogate = bad.len() >= 3 && bad[0] == 0xED && bad[1] >= 0xA0;
                    rest = &bad[if surrogate { 3 } else { chunk.invalid().len() }..];
                }
                Ok(LossyString(text))
            }
        }
        deserializer.deserialize_bytes(Wtf8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_is_one_replacement_character() {
        let read = stream(br#"{"text":"a\ud83d b\ude00\ud83d\ude00","name":"stdout"}"#).unwrap();
        assert_eq!(read.text, "a\u{FFFD} b\u{FFFD}😀");
    }

    fn in_pieces(content: &[u8], bytes: usize) -> String {
        let stream = long_stream(content).unwrap();
        assert_eq!(stream.name, "stdout");
        stream.pieces(bytes).collect()
    }

    #[test]
    fn pieces_end_between_characters() {
        let content =
            r#"{"text":"a\ud83d b\ude00\ud83d\uDE00\u00e9\n\\\\né","name":"stdout"}"#.as_bytes();
        for bytes in 1..40 {
            let text = in_pieces(content, bytes);
            assert_eq!(text, stream(content).unwrap().text, "{bytes}");
        }
        assert_eq!(in_pieces(br#"{"name":"stdout","text":""}"#, 1), "");
        for odd in [
            r#"{"name":"stdout"}"#,
            r#"{"name":"stdout","text":7}"#,
            "",
            "[]",
        ] {
            assert!(long_stream(odd.as_bytes()).is_none(), "{odd}");
        }
    }

    proptest::proptest! {
        #[test]
        fn pieces_are_the_text(text in "[a-z\n\"\\\\\u{e9}\u{1f600}\u{1}]{0,40}", ascii: bool, bytes in 1..30usize) {
            let plain = serde_json::to_string(&text).unwrap();
            let written = if ascii {
                // As Python's json does it.
                let unit = |c: char| {
                    let mut units = [0; 2];
                    let units = c.encode_utf16(&mut units).iter();
                    units.map(|unit| format!("\\u{unit:04x}")).collect::<String>()
                };
                plain.chars().map(|c| if c.is_ascii() { c.to_string() } else { unit(c) }).collect()
            } else {
                plain
            };
            let content = format!(r#"{{"name":"stdout","text":{written}}}"#);
            proptest::prop_assert_eq!(in_pieces(content.as_bytes(), bytes), text);
        }
    }

    #[test]
    fn a_display_id_is_found_however_it_is_written() {
        for (content, id) in [
            (r#"{"transient": {"display_id": "a"}}"#, Some("a")),
            (r#"{"transient": {"disp\u006cay_id": "a"}}"#, Some("a")),
            (r#"{"data": {"display_id": "b"}, "transient": {}}"#, None),
            (r#"{"data": {"text/plain": "b"}}"#, None),
            (r#"{"transient": {"display_id": ""}}"#, None),
        ] {
            assert_eq!(display_id(content.as_bytes()).as_deref(), id, "{content}");
        }
    }

    #[test]
    fn truth_is_as_frontends_see_it() {
        for (content, wait) in [
            (r#"{"wait":true}"#, true),
            (r#"{"wait":false}"#, false),
            (r#"{"wait":1}"#, true),
            (r#"{"wait":0}"#, false),
            (r#"{"wait":null}"#, false),
            ("{}", false),
            ("nonsense", false),
        ] {
            assert_eq!(clear_waits(content.as_bytes()), wait, "{content}");
        }
    }
}
