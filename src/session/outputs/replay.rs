//! PURE. Writes what is kept as messages: pieces of one stream joined, a visible line for what was left out.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::cell::{Output, RunInfo};
use super::kept::{Budget, LeftOut};
use super::{Replayed, content};

/// What the line in place of a message costs.
pub(super) const NOTICE_COST: Budget = Budget {
    text_bytes: 0,
    rich_bytes: 256,
    messages: 1,
};

/// Puts the outputs of a cell into messages: pieces of one run into one.
#[derive(Default)]
pub(super) struct CellWriter {
    messages: Vec<(u64, Replayed)>,
    open: Option<(Arc<RunInfo>, String)>,
}

impl CellWriter {
    pub fn output(&mut self, order: u64, output: &Output, hint: &str) {
        match output {
            Output::Text { run, text } => self.text(run, text),
            Output::Whole(message) | Output::Display { message, .. } => {
                self.message(order, message.clone())
            }
            Output::TooLarge {
                msg_type, bytes, ..
            } => self.message(order, notice(msg_type, *bytes as u64, 1, hint)),
        }
    }

    pub fn text(&mut self, run: &Arc<RunInfo>, more: &str) {
        match &mut self.open {
            Some((open, text)) if Arc::ptr_eq(open, run) => text.push_str(more),
            _ => {
                self.close();
                self.open = Some((run.clone(), more.to_owned()));
            }
        }
    }

    pub fn message(&mut self, order: u64, message: Replayed) {
        self.close();
        self.messages.push((order, message));
    }

    pub fn left_out(&mut self, left_out: LeftOut, hint: &str) {
        if left_out != LeftOut::default() {
            self.message(
                left_out.order,
                notice("outputs", left_out.bytes, left_out.messages, hint),
            );
        }
    }

    fn close(&mut self) {
        if let Some((run, text)) = self.open.take() {
            let message = Replayed {
                msg_type: Cow::Borrowed("stream"),
                identities: run.identities.clone(),
                metadata: run.metadata.clone(),
                content: content::write_stream(&run.name, &text),
                buffers: Vec::new(),
            };
            self.messages.push((run.order, message));
        }
    }

    pub fn finish(mut self) -> Vec<(u64, Replayed)> {
        self.close();
        self.messages
    }
}

/// The visible line in place of what was left out.
pub(super) fn notice(what: &str, bytes: u64, messages: u64, hint: &str) -> Replayed {
    let (bytes, messages) = (grouped(bytes), grouped(messages));
    // A line of its own, also after a stderr that did not end its line.
    let text = format!("\n[farside: {bytes} bytes ({messages} {what}) left out here; {hint}]\n");
    Replayed {
        msg_type: Cow::Borrowed("stream"),
        identities: vec![Bytes::from_static(b"stream.stderr")],
        metadata: Bytes::from_static(b"{}"),
        content: content::write_stream("stderr", &text),
        buffers: Vec::new(),
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

/// Both are in order.
pub(super) fn merge(
    cell: Vec<(u64, Replayed)>,
    asides: impl Iterator<Item = (u64, Replayed)>,
) -> Vec<Replayed> {
    let mut asides = asides.peekable();
    let mut messages = Vec::with_capacity(cell.len());
    for (order, message) in cell {
        while let Some((_, aside)) = asides.next_if(|(at, _)| *at < order) {
            messages.push(aside);
        }
        messages.push(message);
    }
    messages.extend(asides.map(|(_, aside)| aside));
    messages
}
