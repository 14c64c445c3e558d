//! PURE. A multipart message of the wire, to and from a [`Message`].
//!
//! Owns the order of the parts, the signature check and the check that the dictionaries are JSON objects. Looks
//! no further into them. Total: every list of parts gives a message or a [`WireError`].
//!
//! Source: Jupyter messaging protocol, "The wire protocol": identities, `<IDS|MSG>`, signature, header,
//! parent_header, metadata, content, buffers.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Header, Key, Message, ReplayGuard};

/// Between the routing identities and the signature.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";

/// Signature and four dictionaries.
const PARTS_AFTER_DELIMITER_MIN: usize = 5;

/// One of the four dictionaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Header,
    ParentHeader,
    Metadata,
    Content,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::ParentHeader => "parent_header",
            Self::Metadata => "metadata",
            Self::Content => "content",
        }
    }
}

/// Why a multipart message is no Jupyter message, or not one to be trusted. Such a message is dropped; the next
/// one is not affected.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No `<IDS|MSG>`.
    #[error("message of {parts} parts without the delimiter <IDS|MSG>")]
    NoDelimiter {
        /// Parts it had.
        parts: usize,
    },
    /// Something is missing after the delimiter.
    #[error("message with {parts} parts after <IDS|MSG>; signature and four dictionaries are due")]
    TooShort {
        /// Parts after the delimiter.
        parts: usize,
    },
    /// Not signed with our key.
    #[error("{}: was it sent with the key of another connection file?", signature_problem(.length))]
    BadSignature {
        /// Bytes of the signature.
        length: usize,
    },
    /// The same message once more.
    #[error("message with a signature seen before: sent twice, or replayed by somebody")]
    Replayed,
    /// A dictionary is not one.
    #[error("{} is not {}: {source}", .part.name(), wanted(.part))]
    NotJson {
        /// Which.
        part: Part,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

fn signature_problem(length: &usize) -> &'static str {
    if *length == 0 {
        "message without a signature"
    } else {
        "message with a wrong signature"
    }
}

fn wanted(part: &Part) -> &'static str {
    match part {
        Part::Header => "a JSON object with msg_id and msg_type",
        Part::ParentHeader | Part::Metadata => "a JSON object",
        Part::Content => "JSON",
    }
}

/// A message from a frontend: the signature must be right, and header, parent_header and metadata JSON objects, the
/// content any JSON.
pub fn decode(parts: Vec<Bytes>, key: &Key) -> Result<Message, WireError> {
    let (message, _) = split(parts, key)?;
    check(&message)?;
    Ok(message)
}

/// As [`decode`], and refuses a signed message that `guard` has seen before.
pub fn decode_once(
    parts: Vec<Bytes>,
    key: &Key,
    guard: &mut ReplayGuard,
) -> Result<Message, WireError> {
    let (message, signature) = split(parts, key)?;
    if key.signs() && !guard.is_first(&signature) {
        return Err(WireError::Replayed);
    }
    check(&message)?;
    Ok(message)
}

/// A message from the engine: as [`decode`], but only the header is looked into. An output may have 200 MB of
/// content, which the engine's own JSON library made.
pub fn decode_trusted(parts: Vec<Bytes>, key: &Key) -> Result<Message, WireError> {
    let (message, _) = split(parts, key)?;
    check_header(&message)?;
    Ok(message)
}

/// The parts of `message` for the wire, signed. Payloads are shared, not copied.
pub fn encode(message: &Message, key: &Key) -> Vec<Bytes> {
    encode_signed(message, key.sign(dicts(message)))
}

/// As [`encode`], with a signature that was made before ([`Key::signing`]).
pub fn encode_signed(message: &Message, signature: Bytes) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(message.identities.len() + 6 + message.buffers.len());
    parts.extend_from_slice(&message.identities);
    parts.push(Bytes::from_static(DELIMITER));
    parts.push(signature);
    parts.extend_from_slice(&[
        message.header.clone(),
        message.parent_header.clone(),
        message.metadata.clone(),
        message.content.clone(),
    ]);
    parts.extend_from_slice(&message.buffers);
    parts
}

fn dicts(message: &Message) -> [&[u8]; 4] {
    [
        &message.header,
        &message.parent_header,
        &message.metadata,
        &message.content,
    ]
}

/// Takes the parts apart and checks the signature; gives the signature, too.
fn split(mut parts: Vec<Bytes>, key: &Key) -> Result<(Message, Bytes), WireError> {
    let count = parts.len();
    let Some(delimiter) = parts.iter().position(|p| p == DELIMITER) else {
        return Err(WireError::NoDelimiter { parts: count });
    };
    let after = count - delimiter - 1;
    if after < PARTS_AFTER_DELIMITER_MIN {
        return Err(WireError::TooShort { parts: after });
    }
    // The vector itself is kept for the identities; `split_off` of nothing allocates nothing.
    let buffers = parts.split_off(delimiter + 1 + PARTS_AFTER_DELIMITER_MIN);
    let mut take = || parts.pop().unwrap_or_default();
    let [content, metadata, parent_header, header, signature] =
        [take(), take(), take(), take(), take()];
    parts.truncate(delimiter);
    let message = Message {
        identities: parts,
        header,
        parent_header,
        metadata,
        content,
        buffers,
    };
    if !key.verify(dicts(&message), &signature) {
        return Err(WireError::BadSignature {
            length: signature.len(),
        });
    }
    Ok((message, signature))
}

fn check(message: &Message) -> Result<(), WireError> {
    check_header(message)?;
    for (part, json) in [
        (Part::ParentHeader, &message.parent_header),
        (Part::Metadata, &message.metadata),
    ] {
        check_object(json).map_err(|source| WireError::NotJson { part, source })?;
    }
    // What it should be is the engine's to say: ipykernel takes any JSON, and answers in its own way.
    check_json(&message.content).map_err(|source| WireError::NotJson {
        part: Part::Content,
        source,
    })
}

fn check_header(message: &Message) -> Result<(), WireError> {
    let not_json = |source| WireError::NotJson {
        part: Part::Header,
        source,
    };
    // A derived struct also reads a JSON list; a header is none.
    check_is_object(&message.header).map_err(not_json)?;
    let header: Header<'_> = message.header().map_err(not_json)?;
    if header.msg_id.is_empty() || header.msg_type.is_empty() {
        return Err(not_json(serde::de::Error::custom(
            "msg_id or msg_type is empty",
        )));
    }
    Ok(())
}

fn check_object(json: &[u8]) -> Result<(), serde_json::Error> {
    if json == b"{}" {
        return Ok(());
    }
    check_is_object(json)?;
    check_json(json)
}

fn check_json(json: &[u8]) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(json);
    IgnoredAny::deserialize(&mut json)?;
    json.end()
}

fn check_is_object(json: &[u8]) -> Result<(), serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') => Ok(()),
        Some(_) => Err(serde::de::Error::custom("it does not begin with {")),
        None => Err(serde::de::Error::custom("it is empty")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new("0123-key")
    }

    fn message() -> Message {
        Message {
            identities: vec!["id-1".into(), "".into()],
            header: r#"{"msg_id": "m1", "msg_type": "execute_request", "x": [1.0]}"#.into(),
            parent_header: "{}".into(),
            metadata: r#" {"a" : {}} "#.into(),
            content: r#"{"code": "1"}"#.into(),
            buffers: vec![Bytes::from_static(b"<IDS|MSG>"), Bytes::new()],
        }
    }

    fn with(edit: impl FnOnce(&mut Message)) -> Vec<Bytes> {
        let mut message = message();
        edit(&mut message);
        encode(&message, &key())
    }

    fn refusal(parts: Vec<Bytes>) -> String {
        decode(parts, &key()).unwrap_err().to_string()
    }

    #[test]
    fn a_message_comes_back_byte_for_byte() {
        for key in [key(), Key::none()] {
            let parts = encode(&message(), &key);
            assert_eq!(decode(parts.clone(), &key).unwrap(), message());
            assert_eq!(decode_trusted(parts, &key).unwrap(), message());
        }
    }

    #[test]
    fn payloads_are_shared() {
        let content = Bytes::from(vec![b' '; 1000]);
        let parts = encode(
            &Message {
                content: content.clone(),
                ..message()
            },
            &Key::none(),
        );
        assert_eq!(parts[7].as_ptr(), content.as_ptr());
        assert_eq!(
            decode_trusted(parts, &Key::none())
                .unwrap()
                .content
                .as_ptr(),
            content.as_ptr()
        );
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        assert_eq!(
            refusal(vec![]),
            "message of 0 parts without the delimiter <IDS|MSG>"
        );
        let parts = with(|_| {});
        assert!(
            refusal(parts[..2].to_vec()).starts_with("message of 2 parts without the delimiter")
        );
        assert!(refusal(parts[..7].to_vec()).starts_with("message with 4 parts after <IDS|MSG>"));
        let mut unsigned = parts.clone();
        unsigned[3] = Bytes::new();
        assert!(refusal(unsigned).starts_with("message without a signature: "));
        let mut other = parts.clone();
        other[7] = r#"{"code": "2"}"#.into();
        assert!(refusal(other).starts_with("message with a wrong signature: "));
        assert!(refusal(with(|m| m.content = "[".into())).starts_with("content is not JSON: "));
        assert!(
            refusal(with(|m| m.metadata = "".into()))
                .starts_with("metadata is not a JSON object: ")
        );
        assert!(
            refusal(with(|m| m.parent_header = "{} {}".into())).starts_with("parent_header is not")
        );
        for header in [
            "[\"m1\", \"execute_request\"]",
            r#"{"msg_id": "m1"}"#,
            r#"{"msg_id": "", "msg_type": "x"}"#,
            r#"{"msg_id": 1, "msg_type": "x"}"#,
            r#"{"msg_id": "m1", "msg_type": "x""#,
            "null",
        ] {
            let why = refusal(with(|m| m.header = header.into()));
            assert!(
                why.starts_with("header is not a JSON object with msg_id and msg_type: "),
                "{why}"
            );
        }
    }

    #[test]
    fn the_engine_is_trusted_but_for_signature_and_header() {
        let parts = with(|m| m.content = "no JSON".into());
        assert_eq!(decode_trusted(parts, &key()).unwrap().content, "no JSON");
        let parts = with(|m| m.header = "{}".into());
        assert!(matches!(
            decode_trusted(parts, &key()),
            Err(WireError::NotJson {
                part: Part::Header,
                ..
            })
        ));
        assert!(matches!(
            decode_trusted(with(|_| {}), &Key::new("other")),
            Err(WireError::BadSignature { .. })
        ));
    }

    #[test]
    fn strings_that_are_not_utf8_pass() {
        // jupyter_client packs with `surrogateescape`: a file name may bring bytes that are no UTF-8.
        let content = Bytes::from_static(b"{\"name\": \"\xff\xfe\"}");
        let parts = with(|m| m.content = content.clone());
        assert_eq!(decode(parts, &key()).unwrap().content, content);
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = format!(
            "{{\"a\": {}{}}}",
            "[".repeat(1_000_000),
            "]".repeat(1_000_000)
        );
        let _ = decode(with(|m| m.content = deep.into()), &key());
    }

    #[test]
    fn a_replay_is_refused_only_where_messages_are_signed() {
        let mut guard = ReplayGuard::default();
        let parts = with(|_| {});
        assert!(decode_once(parts.clone(), &key(), &mut guard).is_ok());
        assert!(matches!(
            decode_once(parts, &key(), &mut guard),
            Err(WireError::Replayed)
        ));
        let unsigned = encode(&message(), &Key::none());
        assert!(decode_once(unsigned.clone(), &Key::none(), &mut guard).is_ok());
        assert!(decode_once(unsigned, &Key::none(), &mut guard).is_ok());
    }

    fn any_parts() -> impl Strategy<Value = Vec<Bytes>> {
        let part = prop_oneof![
            Just(Bytes::from_static(DELIMITER)),
            Just(Bytes::from_static(b"{}")),
            Just(Bytes::from_static(br#"{"msg_id": "1", "msg_type": "t"}"#)),
            "[\\[\\]{}\":, a1]{0,12}".prop_map(Bytes::from),
            prop::collection::vec(any::<u8>(), 0..80).prop_map(Bytes::from),
        ];
        prop::collection::vec(part, 0..12)
    }

    fn any_object() -> impl Strategy<Value = Bytes> {
        prop::collection::btree_map(".*", ".*", 0..4)
            .prop_map(|map| serde_json::to_vec(&map).expect("strings are JSON").into())
    }

    proptest! {
        #[test]
        fn any_parts_are_a_message_or_an_error(parts in any_parts()) {
            for key in [Key::none(), key()] {
                if let Ok(message) = decode(parts.clone(), &key) {
                    let mut expected = parts.clone();
                    let signature = message.identities.len() + 1;
                    // Without a key whatever came as signature is left out.
                    expected[signature] = key.sign(dicts(&message));
                    prop_assert_eq!(encode(&message, &key), expected);
                }
                let _ = decode_trusted(parts.clone(), &key);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            identities in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8).prop_map(Bytes::from), 0..3),
            (parent_header, metadata, content) in (any_object(), any_object(), any_object()),
            buffers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from), 0..4),
            secret in ".{0,70}",
        ) {
            let key = Key::new(&secret);
            let message = Message { identities, parent_header, metadata, content, buffers, ..message() };
            prop_assert_eq!(decode(encode(&message, &key), &key).unwrap(), message);
        }
    }
}
