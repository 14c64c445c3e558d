//! PURE. Owns what the cell of one execution shows. Refuses to know messages that show nothing.
//!
//! Invariant: everything in [`Kept`] is final but for displays, which updates replace; the one stream that can
//! still grow is the [`Run`].

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::kept::{Budget, Kept, LeftOut};
use super::line::{self, OpenLine};
use super::notice::{self, Earlier, NOTICE_COST, TooLarge};
use super::replay::CellWriter;
use super::{Limits, Replayed, content};
use crate::wire::Message;

#[derive(Debug)]
pub(super) struct Cell {
    line_units_max: usize,
    single_bytes_max: usize,
    piece_bytes: usize,
    outputs: Kept<Output>,
    earlier: Option<Earlier>,
    run: Option<Run>,
    /// The clear_output(wait=True) that the next output will carry out, and its place.
    clear: Option<(u64, Replayed)>,
    /// For each display_id the ids in `outputs`, oldest first.
    displays: Displays,
}

type Displays = HashMap<String, VecDeque<u64>>;

/// One thing in the cell. What follows in the cell can change only displays.
#[derive(Debug)]
pub(super) enum Output {
    /// Finished text of a run of stream messages; a run has one or more of these.
    Text { run: Arc<RunInfo>, text: String },
    /// As it came.
    Whole(Replayed),
    /// As it came, and can be updated.
    Display { id: String, message: Replayed },
    /// Larger than the limits.
    TooLarge(TooLarge),
}

/// The stream messages at the end of the outputs that a further one joins.
#[derive(Debug)]
enum Run {
    /// One message without `\r` and `\b`, not yet in `outputs`.
    Single {
        order: u64,
        name: String,
        message: Replayed,
    },
    /// Finished lines are in `outputs`. `begun`: there were such lines.
    Merged {
        info: Arc<RunInfo>,
        line: OpenLine,
        begun: bool,
    },
}

#[derive(Debug)]
pub(super) struct RunInfo {
    pub order: u64,
    pub name: String,
    pub identities: Vec<Bytes>,
    pub metadata: Bytes,
}

/// Text is kept and left out in pieces of about this size: large beside an allocation. Where the limits are small, so
/// are they: one that does not fit into the head is the end of it.
const PIECE_BYTES: usize = 8 << 10;
const PIECE_BYTES_MIN: usize = 64;

/// Up to this size a message that needs no change is kept as it came instead of as text; where the limits are small, less.
const SINGLE_BYTES_MAX: usize = 64 << 10;

/// Each of these, in a head or a tail, takes at most such a part of it.
const PART_OF_LIMITS: usize = 8;

/// Displays of one display_id that an update is applied to. The older ones are updated by the frontend itself when
/// it gets the newer ones (see the module's text), so this is for frontends that do not.
const UPDATED_MAX: usize = 16;

impl Cell {
    pub fn new(limits: &Limits) -> Self {
        let part = limits.head.text_bytes.min(limits.tail.text_bytes) / PART_OF_LIMITS;
        Self {
            line_units_max: limits.line_units_max,
            single_bytes_max: SINGLE_BYTES_MAX.min(part),
            piece_bytes: part.clamp(PIECE_BYTES_MIN, PIECE_BYTES),
            outputs: Kept::new(limits.head, limits.tail),
            earlier: None,
            run: None,
            clear: None,
            displays: HashMap::new(),
        }
    }

    pub fn stream(&mut self, order: u64, name: &str, text: &str, message: &Message) {
        self.clear_if_pending();
        match self.run.take() {
            Some(Run::Merged { info, line, begun }) if info.name == name => {
                self.extend(info, line, begun, text)
            }
            Some(Run::Single {
                order,
                name: run_name,
                message: first,
            }) if run_name == name => {
                // It was read before it was kept.
                let first_text = content::stream(&first.content)
                    .map(|s| s.text.into_owned())
                    .unwrap_or_default();
                self.begin_run(order, name, first, &[&first_text, text]);
            }
            other => {
                self.run = other;
                self.end_run();
                let first = Replayed::of("stream", message);
                if first.size_bytes() <= self.single_bytes_max && !line::has_controls(text) {
                    self.run = Some(Run::Single {
                        order,
                        name: name.to_owned(),
                        message: first,
                    });
                } else {
                    self.begin_run(order, name, first, &[text]);
                }
            }
        }
    }

    /// More text of the message that [`stream`](Self::stream) got the beginning of.
    pub fn stream_on(&mut self, text: &str) {
        match self.run.take() {
            Some(Run::Merged { info, line, begun }) => self.extend(info, line, begun, text),
            other => self.run = other,
        }
    }

    /// A display, result or error.
    pub fn output(
        &mut self,
        order: u64,
        msg_type: &str,
        message: &Message,
        display_id: Option<String>,
    ) {
        self.clear_if_pending();
        self.end_run();
        let message = Replayed::of(msg_type, message);
        let cost = message.cost();
        let output = match display_id {
            None => Output::Whole(message),
            Some(id) => Output::Display { id, message },
        };
        self.keep_sized(order, cost, output);
    }

    /// `false`: the update is (also) for the frontend to apply, or not to.
    pub fn update(&mut self, msg_type: &str, message: &Message, display_id: &str) -> bool {
        let places: Vec<u64> = match self.displays.get(display_id) {
            Some(places) => places.iter().rev().take(UPDATED_MAX).copied().collect(),
            None => return false,
        };
        let new = Replayed {
            msg_type: Cow::Borrowed("display_data"),
            ..Replayed::of(msg_type, message)
        };
        let mut done = true;
        for place in places {
            done &= self.update_one(place, &new);
        }
        done
    }

    /// Here something was left out already, and that was said with this hint (`None`: as is done here). `false`: with a
    /// hint that was not expected, and it is text like any other.
    pub fn left_out(&mut self, left_out: LeftOut, hint: Option<&str>) -> bool {
        self.clear_if_pending();
        let own = match hint {
            None => left_out,
            Some(hint) if Earlier::add(&mut self.earlier, hint, left_out) => LeftOut::default(),
            Some(_) => return false,
        };
        self.end_run();
        let displays = &mut self.displays;
        self.outputs
            .leave_out(own, |id, output| forget(displays, id, &output));
        true
    }

    /// One message was too large already.
    pub fn too_large(&mut self, order: u64, too_large: TooLarge) {
        self.clear_if_pending();
        self.end_run();
        self.keep(order, NOTICE_COST, Output::TooLarge(too_large));
    }

    /// clear_output(wait=False).
    pub fn clear_outputs(&mut self) {
        self.clear = None;
        self.run = None;
        self.outputs.clear();
        self.earlier = None;
        self.displays.clear();
    }

    /// clear_output(wait=True).
    pub fn clear_at_next_output(&mut self, order: u64, message: Replayed) {
        self.clear = Some((order, message));
    }

    /// What makes a fresh cell like this one, each message with its place.
    pub fn replay(&self, hint: &str) -> Vec<(u64, Replayed)> {
        let mut cell = CellWriter::default();
        for slot in self.outputs.head() {
            cell.output(slot.order, &slot.item, hint);
        }
        if let Some(earlier) = &self.earlier {
            let (order, message) = earlier.write(notice::OUTPUTS);
            cell.message(order, message);
        }
        cell.left_out(self.outputs.left_out(), hint);
        for slot in self.outputs.tail() {
            cell.output(slot.order, &slot.item, hint);
        }
        match &self.run {
            None => {}
            Some(Run::Single { order, message, .. }) => cell.message(*order, message.clone()),
            Some(Run::Merged { info, line, .. }) => cell.text(info, &line.replay()),
        }
        let mut cell = cell.finish();
        // A cell with nothing in it has nothing to clear.
        if let (Some(clear), false) = (&self.clear, cell.is_empty()) {
            cell.push(clear.clone());
        }
        cell
    }

    /// What is held in memory, about.
    pub fn size_bytes(&self) -> usize {
        let kept = self.outputs.head().iter().chain(self.outputs.tail());
        let kept: usize = kept
            .map(|slot| slot.cost.text_bytes + slot.cost.rich_bytes)
            .sum();
        kept + match &self.run {
            None => 0,
            Some(Run::Single { message, .. }) => message.size_bytes(),
            Some(Run::Merged { line, .. }) => line.size_bytes(),
        }
    }

    fn begin_run(&mut self, order: u64, name: &str, first: Replayed, texts: &[&str]) {
        let Replayed {
            identities,
            metadata,
            ..
        } = first;
        let info = Arc::new(RunInfo {
            order,
            name: name.to_owned(),
            identities,
            metadata,
        });
        let mut line = OpenLine::new(self.line_units_max);
        let mut begun = false;
        for text in texts {
            line.push(text, |lines| begun = self.keep_text(&info, begun, lines));
        }
        self.run = Some(Run::Merged { info, line, begun });
    }

    /// Applies `text` to the run and puts what is final of it into `outputs`.
    fn extend(&mut self, info: Arc<RunInfo>, mut line: OpenLine, mut begun: bool, text: &str) {
        line.push(text, |lines| begun = self.keep_text(&info, begun, lines));
        self.run = Some(Run::Merged { info, line, begun });
    }

    /// Returns whether the run has begun, for the next call.
    fn keep_text(&mut self, info: &Arc<RunInfo>, mut begun: bool, text: &str) -> bool {
        let piece_bytes = self.piece_bytes;
        for piece in pieces(text, piece_bytes) {
            let cost = Budget {
                text_bytes: piece.len(),
                rich_bytes: 0,
                messages: 0,
            };
            let displays = &mut self.displays;
            let join = |output: &mut Output| match output {
                Output::Text { run, text }
                    if Arc::ptr_eq(run, info) && text.len() + piece.len() <= piece_bytes =>
                {
                    text.push_str(piece);
                    true
                }
                _ => false,
            };
            if begun
                && self
                    .outputs
                    .grow_last(cost, join, |id, output| forget(displays, id, &output))
            {
                continue;
            }
            // The run counts as one message, with its first piece.
            let cost = Budget {
                messages: usize::from(!begun),
                ..cost
            };
            self.keep(
                info.order,
                cost,
                Output::Text {
                    run: info.clone(),
                    text: piece.to_owned(),
                },
            );
            begun = true;
        }
        begun
    }

    /// The open line becomes final: something else follows it.
    fn end_run(&mut self) {
        match self.run.take() {
            None => {}
            Some(Run::Single { order, message, .. }) => {
                let cost = Budget {
                    text_bytes: message.size_bytes(),
                    rich_bytes: 0,
                    messages: 1,
                };
                self.keep_sized(order, cost, Output::Whole(message));
            }
            Some(Run::Merged { info, line, begun }) => {
                let begun = self.keep_text(&info, begun, &line.visible());
                if !begun {
                    // An empty output, but it stands between its neighbours.
                    let cost = Budget {
                        messages: 1,
                        ..Budget::default()
                    };
                    self.keep(
                        info.order,
                        cost,
                        Output::Text {
                            run: info,
                            text: String::new(),
                        },
                    );
                }
            }
        }
    }

    fn update_one(&mut self, place: u64, new: &Replayed) -> bool {
        let (id, identities) = match self.outputs.get_mut(place) {
            Some(Output::Display { id, message }) if message.msg_type == "display_data" => {
                (id.clone(), message.identities.clone())
            }
            Some(Output::TooLarge(TooLarge {
                id: Some(id),
                msg_type,
                ..
            })) if msg_type == "display_data" => (id.clone(), new.identities.clone()),
            Some(Output::Display { .. }) => return false,
            Some(Output::TooLarge(_) | Output::Text { .. } | Output::Whole(_)) | None => {
                return true;
            }
        };
        let message = Replayed {
            identities,
            ..new.clone()
        };
        let (cost, bytes) = (message.cost(), message.size_bytes());
        let displays = &mut self.displays;
        let mut gone = |id, output| forget(displays, id, &output);
        let item = if self.outputs.resize(place, cost, &mut gone) {
            Output::Display { id, message }
        } else {
            self.outputs.resize(place, NOTICE_COST, &mut gone);
            Output::TooLarge(TooLarge {
                id: Some(id),
                msg_type: message.msg_type,
                bytes: bytes as u64,
                hint: None,
            })
        };
        if let Some(output) = self.outputs.get_mut(place) {
            *output = item;
        }
        true
    }

    fn clear_if_pending(&mut self) {
        if self.clear.is_some() {
            self.clear_outputs();
        }
    }

    /// [`keep`](Self::keep), or a line in its place where it is larger than the limits.
    fn keep_sized(&mut self, order: u64, cost: Budget, output: Output) {
        if self.outputs.could_hold(cost) {
            self.keep(order, cost, output);
            return;
        }
        let bytes = cost.text_bytes + cost.rich_bytes;
        let (id, msg_type) = match output {
            Output::Display { id, message } => (Some(id), message.msg_type),
            Output::Whole(message) => (None, message.msg_type),
            Output::Text { .. } => (None, Cow::Borrowed("stream")),
            Output::TooLarge(too_large) => (too_large.id, too_large.msg_type),
        };
        let too_large = TooLarge {
            id,
            msg_type,
            bytes: bytes as u64,
            hint: None,
        };
        self.keep(order, NOTICE_COST, Output::TooLarge(too_large));
    }

    fn keep(&mut self, order: u64, cost: Budget, output: Output) {
        let id = output.display_id().map(str::to_owned);
        let displays = &mut self.displays;
        let place = self.outputs.push(order, cost, output, |id, output| {
            forget(displays, id, &output)
        });
        if let Some(id) = id {
            self.displays.entry(id).or_default().push_back(place);
        }
    }
}

impl Output {
    /// By which an update names it.
    fn display_id(&self) -> Option<&str> {
        match self {
            Self::Display { id, .. } => Some(id),
            Self::TooLarge(too_large) => too_large.id.as_deref(),
            Self::Text { .. } | Self::Whole(_) => None,
        }
    }
}

/// An output was left out: there is nothing to update any more.
fn forget(displays: &mut Displays, id: u64, output: &Output) {
    let Some(display_id) = output.display_id() else {
        return;
    };
    if let Some(places) = displays.get_mut(display_id) {
        // The oldest goes first.
        while places.front().is_some_and(|&place| place <= id) {
            places.pop_front();
        }
        if places.is_empty() {
            displays.remove(display_id);
        }
    }
}

/// `text` in pieces of at most `bytes_max`, cut after line ends where there are some.
fn pieces(mut text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = match text.len() {
            0 => return None,
            len if len <= bytes_max => len,
            _ => match text.as_bytes()[..bytes_max]
                .iter()
                .rposition(|&b| b == b'\n')
            {
                Some(newline) => newline + 1,
                None => line::char_boundary(text, bytes_max),
            },
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        Some(piece)
    })
}
