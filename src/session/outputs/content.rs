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
        data: Option<&'a serde_json::value::RawValue>,
    }
    #[derive(Deserialize)]
    struct Update<'a> {
        #[serde(borrow)]
        method: Cow<'a, str>,
        #[serde(borrow)]
        state: BTreeMap<Cow<'a, str>, &'a serde_json::value::RawValue>,
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
