//! PURE. Writes what is kept as messages: pieces of one stream joined, a line ([`Notice`]) for what was left out.

use std::borrow::Cow;
use std::sync::Arc;

use super::cell::{Output, RunInfo};
use super::kept::LeftOut;
use super::notice::{self, Notice};
use super::{Replayed, content};

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
            Output::TooLarge(too_large) => {
                self.message(order, Notice::of_one(too_large, hint).write());
            }
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
            let notice = Notice::new(notice::OUTPUTS, left_out, hint);
            self.message(left_out.order, notice.write());
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
