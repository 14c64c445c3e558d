//! PURE. The visible line in place of what was left out. Its metadata say the same for who compacts again: what went
//! in several rounds is one line with the sum, and a hint that was true stays so.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::kept::{Budget, LeftOut};
use super::{Replayed, content, known};
use crate::wire::Message;

/// What the line in place of a message costs.
pub(super) const NOTICE_COST: Budget = Budget {
    text_bytes: 0,
    rich_bytes: 256,
    messages: 1,
};

/// The words in a line, all together: what is read from a cell's metadata is held in memory.
const NAMES_BYTES_MAX: usize = 1 << 10;

/// What is said of outputs of the cell.
pub(super) const OUTPUTS: &str = "outputs";

/// What is said of messages that are no outputs of the cell.
pub(super) const ASIDES: &str = "widget messages";

/// So the metadata of all of them begin.
const MARK: &[u8] = br#"{"farside":{"left_out":"#;

/// See the module.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Notice<'a> {
    #[serde(borrow)]
    pub what: Cow<'a, str>,
    pub bytes: u64,
    pub messages: u64,
    /// How to see it, or why nobody can.
    #[serde(borrow)]
    pub hint: Cow<'a, str>,
    /// Of one display that was too large, and that a smaller update can bring back.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub display_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Serialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    farside: Farside<'a>,
}

#[derive(Deserialize, Serialize)]
struct Farside<'a> {
    #[serde(borrow)]
    left_out: Notice<'a>,
}

impl<'a> Notice<'a> {
    pub fn new(what: &'a str, left_out: LeftOut, hint: &'a str) -> Self {
        Self {
            what: what.into(),
            bytes: left_out.bytes,
            messages: left_out.messages,
            hint: hint.into(),
            display_id: None,
        }
    }

    /// Of one message that was larger than the limits.
    pub fn of_one(too_large: &'a TooLarge, hint: &'a str) -> Self {
        Self {
            what: (&*too_large.msg_type).into(),
            bytes: too_large.bytes,
            messages: 1,
            hint: too_large.hint.as_deref().unwrap_or(hint).into(),
            display_id: too_large.id.as_deref().map(Cow::Borrowed),
        }
    }

    /// `None`: it is none.
    pub fn read(msg_type: &str, message: &'a Message) -> Option<Self> {
        if msg_type != "stream" || !message.metadata.starts_with(MARK) {
            return None;
        }
        let metadata: Metadata = serde_json::from_slice(&message.metadata).ok()?;
        Some(metadata.farside.left_out)
    }

    /// As it was said, of one message, and with this hint where it is another one than ours. `None`: whoever wrote it was
    /// none of us.
    pub fn one(&self, hint: Option<&str>) -> Option<TooLarge> {
        let id = self.display_id.as_deref().unwrap_or_default();
        if self.what.len() + self.hint.len() + id.len() > NAMES_BYTES_MAX {
            return None;
        }
        Some(TooLarge {
            id: self.display_id.as_deref().map(str::to_owned),
            msg_type: known(&self.what),
            bytes: self.bytes,
            hint: hint.map(str::to_owned),
        })
    }

    pub fn left_out(&self, order: u64) -> LeftOut {
        LeftOut {
            bytes: self.bytes,
            messages: self.messages,
            order,
        }
    }

    pub fn write(self) -> Replayed {
        let (bytes, messages) = (grouped(self.bytes), grouped(self.messages));
        let Self { what, hint, .. } = &self;
        // A line of its own, also after a stderr that did not end its line.
        let text =
            format!("\n[farside: {bytes} bytes ({messages} {what}) left out here; {hint}]\n");
        let left_out = self;
        let farside = Farside { left_out };
        // Strings and numbers: there is nothing in them that serde_json refuses to write.
        let metadata = serde_json::to_vec(&Metadata { farside }).expect("strings serialise");
        Replayed {
            msg_type: Cow::Borrowed("stream"),
            identities: vec![Bytes::from_static(b"stream.stderr")],
            metadata: metadata.into(),
            content: content::write_stream("stderr", &text),
            buffers: Vec::new(),
        }
    }
}

/// One message that was larger than the limits: what there is of it.
#[derive(Debug)]
pub(super) struct TooLarge {
    /// Its display_id.
    pub id: Option<String>,
    pub msg_type: Cow<'static, str>,
    pub bytes: u64,
    /// How to see it, where somebody else has left it out.
    pub hint: Option<String>,
}

/// What was left out before, by somebody with another hint.
#[derive(Debug)]
pub(super) struct Earlier {
    hint: String,
    left_out: LeftOut,
}

impl Earlier {
    /// Adds to it. `false`: there is one with yet another hint.
    pub fn add(earlier: &mut Option<Self>, hint: &str, left_out: LeftOut) -> bool {
        let known = earlier.get_or_insert_with(|| Self {
            hint: hint.to_owned(),
            left_out: LeftOut::default(),
        });
        if known.hint != hint {
            return false;
        }
        known.left_out += left_out;
        true
    }

    /// The line, and its place.
    pub fn write(&self, what: &str) -> (u64, Replayed) {
        let notice = Notice::new(what, self.left_out, &self.hint);
        (self.left_out.order, notice.write())
    }
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
