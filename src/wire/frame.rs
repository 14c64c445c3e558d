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
    #[error("{} is not a JSON object{}: {source}", .part.name(), needs(.part))]
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

fn needs(part: &Part) -> &'static str {
    match part {
        Part::Header => " with msg_id and msg_type",
        Part::ParentHeader | Part::Metadata | Part::Content => "",
    }
}

/// A message from a frontend: the signature must be right, and all four dictionaries JSON objects.
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
    let mut parts = Vec::with_capacity(message.identities.len() + 6 + message.buffers.len());
    parts.extend_from_slice(&message.identities);
    parts.push(Bytes::from_static(DELIMITER));
    parts.push(key.sign(dicts(message)));
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
        (Part::Content, &message.content),
    ] {
        check_object(json).map_err(|source| WireError::NotJson { part, source })?;
    }
    Ok(())
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
