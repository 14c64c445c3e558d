//! PURE. Output compaction: of the iopub messages of one execution, the messages that a replay sends.
//!
//! Owns what a cell shows: streams of one name that follow each other are one, `\r` and `\b` are applied,
//! clear_output and update_display_data have taken effect, and past [`Limits`] head and tail stay, with a line
//! that says what is missing. Refuses to know who gets the replay, its headers and its parent.
//!
//! Invariants, for every sequence of messages `x` below the limits (tests/outputs.rs):
//! - a frontend shows the same after `compact(x)` as after `x`;
//! - it shows the same after `compact(a)` and then `b`, live, as after `a` and then `b`;
//! - `compact(compact(x)) == compact(x)`;
//! - memory and result are bounded by the limits, whatever comes.
//!
//! Where frontends differ, the messages that make the difference are passed on, so that each does as it would
//! have done: an update of an execute_result (nbclient applies it, JupyterLab does not), a second display_data
//! with the same display_id (it updates the first one in both). What stands in an ipywidgets Output widget, from
//! its first capture on, passes unmerged and in order.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::wire::Message;

mod asides;
mod content;
mod kept;
mod line;
mod nbformat;
mod text;

use asides::{About, Asides};
use content::{Comm, Kind};
pub use kept::Budget;
use kept::{Kept, LeftOut};
use line::OpenLine;
pub use nbformat::to_nbformat;
pub use text::{Ansi, TextWriter, to_text};

/// How much of one execution's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the outputs, from the first on.
    pub head: Budget,
    /// Of the outputs, up to the last. A single message larger than this is left out, with a line in its place.
    pub tail: Budget,
    /// As `head`, for messages that are no outputs of the cell (comms). Their `text_bytes` count for nothing.
    pub asides_head: Budget,
    /// As `tail`, for the same.
    pub asides_tail: Budget,
    /// UTF-16 units of a line that `\r` and `\b` still reach; the part of a longer line before that is final.
    pub line_units_max: usize,
}

impl Default for Limits {
    /// Jupyter Server drops output above 1 MB/s of streams or 1,000 messages/s, averaged over 3 s: 2 MiB of text
    /// and 2,800 messages get through it in one go. Rich data is not limited there; 12 MiB are some hundred plots,
    /// and leave a host with several replays under way below its 64 MB.
    fn default() -> Self {
        Self {
            head: Budget {
                text_bytes: 512 << 10,
                rich_bytes: 4 << 20,
                messages: 500,
            },
            tail: Budget {
                text_bytes: 1536 << 10,
                rich_bytes: 8 << 20,
                messages: 1500,
            },
            asides_head: Budget {
                text_bytes: 0,
                rich_bytes: 1 << 20,
                messages: 200,
            },
            asides_tail: Budget {
                text_bytes: 0,
                rich_bytes: 3 << 20,
                messages: 600,
            },
            // No terminal and no progress bar has lines of this length; twice this many units are 1 MiB.
            line_units_max: 256 << 10,
        }
    }
}

/// A message of a replay: what the sender puts under a header and a parent_header of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// `msg_type` for the header.
    pub msg_type: Cow<'static, str>,
    /// The topic, as the engine sent it.
    pub identities: Vec<Bytes>,
    /// Metadata, JSON object.
    pub metadata: Bytes,
    /// Content, JSON object.
    pub content: Bytes,
    /// Binary buffers.
    pub buffers: Vec<Bytes>,
}

impl Replayed {
    /// The message under these two headers (JSON text). `header` must have this [`msg_type`](Self::msg_type).
    pub fn into_message(self, header: Bytes, parent_header: Bytes) -> Message {
        let Self {
            msg_type: _,
            identities,
            metadata,
            content,
            buffers,
        } = self;
        Message {
            identities,
            header,
            parent_header,
            metadata,
            content,
            buffers,
        }
    }

    fn of(msg_type: &str, message: &Message) -> Self {
        Self {
            msg_type: known(msg_type),
            identities: message.identities.iter().map(own).collect(),
            metadata: own(&message.metadata),
            content: own(&message.content),
            buffers: message.buffers.iter().map(own).collect(),
        }
    }

    fn size_bytes(&self) -> usize {
        let parts = self
            .identities
            .iter()
            .chain([&self.metadata, &self.content])
            .chain(&self.buffers);
        parts.map(Bytes::len).sum()
    }

    /// As anything but stream text.
    fn cost(&self) -> Budget {
        Budget {
            text_bytes: 0,
            rich_bytes: self.size_bytes(),
            messages: 1,
        }
    }
}

/// Takes the iopub messages of one execution one by one; [`replay`](Self::replay) tells at any time what to send
/// to somebody who saw none of them, before the messages still to come.
#[derive(Debug)]
pub struct Compactor {
    limits: Limits,
    hint: String,
    /// Counts messages.
    order: u64,
    outputs: Kept<Output>,
    run: Option<Run>,
    /// The clear_output(wait=True) that the next output will carry out.
    clear: Option<(u64, Replayed)>,
    /// For each display_id the ids in `outputs`, oldest first.
    displays: Displays,
    asides: Asides<Replayed>,
    /// An Output widget has captured: nothing is merged any more.
    verbatim: bool,
}

type Displays = HashMap<String, VecDeque<u64>>;

/// One thing in the cell. What follows in the cell can change only displays.
#[derive(Debug)]
enum Output {
    /// Finished text of a run of stream messages; a run has one or more of these.
    Text { run: Arc<RunInfo>, text: String },
    /// As it came.
    Whole(Replayed),
    /// As it came, and can be updated.
    Display { id: String, message: Replayed },
    /// Larger than the limits.
    TooLarge {
        id: Option<String>,
        msg_type: Cow<'static, str>,
        bytes: usize,
    },
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
struct RunInfo {
    order: u64,
    name: String,
    identities: Vec<Bytes>,
    metadata: Bytes,
}

/// Text is kept and left out in pieces of about this size: small beside the limits, large beside an allocation.
const PIECE_BYTES: usize = 8 << 10;

/// Up to this size a message that needs no change is kept as it came instead of as text.
const SINGLE_BYTES_MAX: usize = 64 << 10;

/// Parts below this size are copied, so that a small part does not hold a large read buffer in memory.
const SHARED_BYTES_MIN: usize = 256 << 10;

/// What the line in place of a message costs.
const NOTICE_COST: Budget = Budget {
    text_bytes: 0,
    rich_bytes: 256,
    messages: 1,
};

/// Displays of one display_id that an update is applied to. The older ones are updated by the frontend itself when
/// it gets the newer ones (see the module's text), so this is for frontends that do not.
const UPDATED_MAX: usize = 16;

/// What a host's replay is made of, at once.
pub fn compact<'a>(
    messages: impl IntoIterator<Item = &'a Message>,
    limits: Limits,
    hint: &str,
) -> Vec<Replayed> {
    let mut compactor = Compactor::new(limits, hint);
    for message in messages {
        compactor.push(message);
    }
    compactor.replay()
}

impl Compactor {
    /// `hint`: how to see what was left out, e.g. `` `farside logs SESSION 7` shows them all``.
    pub fn new(limits: Limits, hint: &str) -> Self {
        Self {
            limits,
            hint: hint.to_owned(),
            order: 0,
            outputs: Kept::new(limits.head, limits.tail),
            run: None,
            clear: None,
            displays: HashMap::new(),
            asides: Asides::new(limits.asides_head, limits.asides_tail),
            verbatim: false,
        }
    }

    /// Takes the next iopub message of the execution.
    pub fn push(&mut self, message: &Message) {
        // Without a header nobody can tell what it is: it is nobody's output.
        if let Ok(header) = message.header() {
            self.push_as(&header.msg_type, message);
        }
    }

    /// [`push`](Self::push) for a caller that has read the header already.
    pub fn push_as(&mut self, msg_type: &str, message: &Message) {
        self.order += 1;
        let kind = content::read(msg_type, &message.content, &message.buffers);
        if let Kind::Frame = kind {
            return;
        }
        if self.verbatim {
            self.aside(msg_type, message, About::Nothing);
            return;
        }
        match kind {
            Kind::Stream { name, text } => self.stream(&name, &text, message),
            Kind::Display { id } | Kind::Result { id } => {
                self.output(msg_type, message, id.map(Cow::into_owned))
            }
            Kind::Error => self.output(msg_type, message, None),
            Kind::Update { id: Some(id) } => self.update(msg_type, message, &id),
            Kind::Clear { wait: false } => self.clear_outputs(),
            Kind::Clear { wait: true } => {
                self.clear = Some((self.order, Replayed::of(msg_type, message)))
            }
            Kind::Comm(Comm::Update { comm_id, traits }) => {
                let about = About::Aspect {
                    subject: comm_subject(&comm_id),
                    aspect: traits,
                };
                self.aside(msg_type, message, about);
            }
            Kind::Comm(Comm::Other { comm_id }) => {
                self.aside(
                    msg_type,
                    message,
                    About::Event {
                        subject: comm_subject(&comm_id),
                    },
                );
            }
            Kind::Comm(Comm::Capture { .. }) => {
                self.verbatim = true;
                self.aside(msg_type, message, About::Nothing);
            }
            Kind::Update { id: None } | Kind::Aside => {
                self.aside(msg_type, message, About::Nothing)
            }
            Kind::Frame => {}
        }
    }

    /// The messages that make a fresh cell show what the messages so far would have made it show.
    pub fn replay(&self) -> Vec<Replayed> {
        let mut cell = CellWriter::default();
        for slot in self.outputs.head() {
            cell.output(slot.order, &slot.item, &self.hint);
        }
        cell.left_out(self.outputs.left_out(), &self.hint);
        for slot in self.outputs.tail() {
            cell.output(slot.order, &slot.item, &self.hint);
        }
        match &self.run {
            None => {}
            Some(Run::Single { order, message, .. }) => cell.message(*order, message.clone()),
            Some(Run::Merged { info, line, .. }) => cell.text(info, &line.replay()),
        }
        let mut cell = cell.finish();
        // A cell with nothing in it has nothing to clear.
        if let (Some((order, clear)), false) = (&self.clear, cell.is_empty()) {
            cell.push((*order, clear.clone()));
        }

        // First of all, where it does not part a stream from its live continuation.
        let lost = self.asides.left_out();
        let note = (lost.messages > 0).then(|| {
            (
                0,
                notice("widget messages", lost.bytes, lost.messages, &self.hint),
            )
        });
        let asides = self
            .asides
            .iter()
            .map(|(order, message)| (order, message.clone()));
        merge(cell, note.into_iter().chain(asides))
    }

    /// What is held in memory, about.
    pub fn size_bytes(&self) -> usize {
        let kept = self.outputs.head().iter().chain(self.outputs.tail());
        let kept: usize = kept
            .map(|slot| slot.cost.text_bytes + slot.cost.rich_bytes)
            .sum();
        let asides: usize = self
            .asides
            .iter()
            .map(|(_, message)| message.size_bytes())
            .sum();
        kept + asides
            + match &self.run {
                None => 0,
                Some(Run::Single { message, .. }) => message.size_bytes(),
                Some(Run::Merged { line, .. }) => line.size_bytes(),
            }
    }

    fn stream(&mut self, name: &str, text: &str, message: &Message) {
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
                if first.size_bytes() <= SINGLE_BYTES_MAX && !line::has_controls(text) {
                    self.run = Some(Run::Single {
                        order: self.order,
                        name: name.to_owned(),
                        message: first,
                    });
                } else {
                    self.begin_run(self.order, name, first, &[text]);
                }
            }
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
        let mut line = OpenLine::new(self.limits.line_units_max);
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
        for piece in pieces(text) {
            let cost = Budget {
                text_bytes: piece.len(),
                rich_bytes: 0,
                messages: 0,
            };
            let displays = &mut self.displays;
            let join = |output: &mut Output| match output {
                Output::Text { run, text }
                    if Arc::ptr_eq(run, info) && text.len() + piece.len() <= PIECE_BYTES =>
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

    fn output(&mut self, msg_type: &str, message: &Message, display_id: Option<String>) {
        self.clear_if_pending();
        self.end_run();
        let message = Replayed::of(msg_type, message);
        let cost = message.cost();
        match display_id {
            None => {
                self.keep_sized(self.order, cost, Output::Whole(message));
            }
            Some(id) => {
                let place = self.keep_sized(
                    self.order,
                    cost,
                    Output::Display {
                        id: id.clone(),
                        message,
                    },
                );
                self.displays.entry(id).or_default().push_back(place);
            }
        }
    }

    fn update(&mut self, msg_type: &str, message: &Message, display_id: &str) {
        let places: Vec<u64> = match self.displays.get(display_id) {
            Some(places) => places.iter().rev().take(UPDATED_MAX).copied().collect(),
            None => Vec::new(),
        };
        let mut pass_on = places.is_empty();
        if !places.is_empty() {
            let new = Replayed {
                msg_type: Cow::Borrowed("display_data"),
                ..Replayed::of(msg_type, message)
            };
            for place in places {
                pass_on |= !self.update_one(place, &new);
            }
        }
        if pass_on {
            let about = About::Aspect {
                subject: format!("display {display_id}"),
                aspect: String::new(),
            };
            self.aside(msg_type, message, about);
        }
    }

    /// `false`: it is for the frontend to do, or not to do.
    fn update_one(&mut self, place: u64, new: &Replayed) -> bool {
        let (id, identities) = match self.outputs.get_mut(place) {
            Some(Output::Display { id, message }) if message.msg_type == "display_data" => {
                (id.clone(), message.identities.clone())
            }
            Some(Output::TooLarge {
                id: Some(id),
                msg_type,
                ..
            }) if msg_type == "display_data" => (id.clone(), new.identities.clone()),
            Some(Output::Display { .. }) => return false,
            Some(Output::TooLarge { .. } | Output::Text { .. } | Output::Whole(_)) | None => {
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
            Output::TooLarge {
                id: Some(id),
                msg_type: message.msg_type,
                bytes,
            }
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

    fn clear_outputs(&mut self) {
        self.clear = None;
        self.run = None;
        self.outputs.clear();
        self.displays.clear();
    }

    fn aside(&mut self, msg_type: &str, message: &Message, about: About) {
        let message = Replayed::of(msg_type, message);
        self.asides.push(self.order, message.cost(), message, about);
    }

    /// [`keep`](Self::keep), or a line in its place where it is larger than the limits.
    fn keep_sized(&mut self, order: u64, cost: Budget, output: Output) -> u64 {
        if self.outputs.could_hold(cost) {
            return self.keep(order, cost, output);
        }
        let bytes = cost.text_bytes + cost.rich_bytes;
        let (id, msg_type) = match output {
            Output::Display { id, message } => (Some(id), message.msg_type),
            Output::Whole(message) => (None, message.msg_type),
            Output::Text { .. } => (None, Cow::Borrowed("stream")),
            Output::TooLarge { id, msg_type, .. } => (id, msg_type),
        };
        self.keep(
            order,
            NOTICE_COST,
            Output::TooLarge {
                id,
                msg_type,
                bytes,
            },
        )
    }

    fn keep(&mut self, order: u64, cost: Budget, output: Output) -> u64 {
        let displays = &mut self.displays;
        self.outputs.push(order, cost, output, |id, output| {
            forget(displays, id, &output)
        })
    }
}

/// An output was left out: there is nothing to update any more.
fn forget(displays: &mut Displays, id: u64, output: &Output) {
    let display_id = match output {
        Output::Display { id, .. } | Output::TooLarge { id: Some(id), .. } => id,
        Output::Text { .. } | Output::Whole(_) | Output::TooLarge { id: None, .. } => return,
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

/// Puts the outputs of a cell into messages: pieces of one run into one.
#[derive(Default)]
struct CellWriter {
    messages: Vec<(u64, Replayed)>,
    open: Option<(Arc<RunInfo>, String)>,
}

impl CellWriter {
    fn output(&mut self, order: u64, output: &Output, hint: &str) {
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

    fn text(&mut self, run: &Arc<RunInfo>, more: &str) {
        match &mut self.open {
            Some((open, text)) if Arc::ptr_eq(open, run) => text.push_str(more),
            _ => {
                self.close();
                self.open = Some((run.clone(), more.to_owned()));
            }
        }
    }

    fn message(&mut self, order: u64, message: Replayed) {
        self.close();
        self.messages.push((order, message));
    }

    fn left_out(&mut self, left_out: LeftOut, hint: &str) {
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

    fn finish(mut self) -> Vec<(u64, Replayed)> {
        self.close();
        self.messages
    }
}

/// The visible line in place of what was left out.
fn notice(what: &str, bytes: u64, messages: u64, hint: &str) -> Replayed {
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
fn merge(
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

/// `text` in pieces of at most [`PIECE_BYTES`], cut after line ends where there are some.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = match text.len() {
            0 => return None,
            len if len <= PIECE_BYTES => len,
            _ => match text.as_bytes()[..PIECE_BYTES]
                .iter()
                .rposition(|&b| b == b'\n')
            {
                Some(newline) => newline + 1,
                None => line::char_boundary(text, PIECE_BYTES),
            },
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        Some(piece)
    })
}

fn own(part: &Bytes) -> Bytes {
    if part.len() < SHARED_BYTES_MIN {
        Bytes::copy_from_slice(part)
    } else {
        part.clone()
    }
}

fn known(msg_type: &str) -> Cow<'static, str> {
    const KNOWN: [&str; 9] = [
        "stream",
        "display_data",
        "execute_result",
        "update_display_data",
        "error",
        "clear_output",
        "comm_open",
        "comm_msg",
        "comm_close",
    ];
    match KNOWN.into_iter().find(|known| *known == msg_type) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(msg_type.to_owned()),
    }
}

fn comm_subject(comm_id: &str) -> String {
    format!("comm {comm_id}")
}
