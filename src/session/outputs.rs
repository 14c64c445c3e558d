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

use bytes::Bytes;

use crate::wire::Message;

mod asides;
mod cell;
mod content;
mod kept;
mod line;
mod nbformat;
mod notice;
mod replay;
mod text;

use asides::{About, Asides};
use cell::Cell;
pub use content::is_frame;
use content::{Comm, Kind};
pub use kept::Budget;
pub use nbformat::to_nbformat;
use notice::{Earlier, Notice};
use replay::merge;
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
            // No terminal and no progress bar has lines of this length; a `\b` near the start of one moves all of
            // it, which stays a matter of microseconds.
            line_units_max: 64 << 10,
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
    hint: String,
    /// Counts messages.
    order: u64,
    cell: Cell,
    asides: Asides<Replayed>,
    asides_earlier: Option<Earlier>,
    /// An Output widget has captured: nothing is merged any more.
    verbatim: bool,
}

/// Parts below this size are copied: they share memory with whatever was read beside them. Larger ones have their own,
/// at most with the rest of their message ([`zmtp::LARGE_FRAME_BYTES`], [`scan::OWN_BYTES`]).
///
/// [`zmtp::LARGE_FRAME_BYTES`]: crate::wire::zmtp::LARGE_FRAME_BYTES
/// [`scan::OWN_BYTES`]: crate::journal::scan::OWN_BYTES
const SHARED_BYTES_MIN: usize = 64 << 10;

/// The text of a stream message above this is taken in pieces. (It is far above what is kept as it came.)
const LONG_BYTES: usize = 1 << 20;

/// And so large are they, about.
const PIECE_BYTES: usize = 64 << 10;

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
            hint: hint.to_owned(),
            order: 0,
            cell: Cell::new(&limits),
            asides: Asides::new(limits.asides_head, limits.asides_tail),
            asides_earlier: None,
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
        if let Some(notice) = Notice::read(msg_type, message)
            && self.left_out(&notice)
        {
            return;
        }
        if msg_type == "stream"
            && message.content.len() >= LONG_BYTES
            && !self.verbatim
            && let Some(stream) = content::long_stream(&message.content)
        {
            let mut pieces = stream.pieces(PIECE_BYTES);
            let first = pieces.next().unwrap_or_default();
            (self.cell).stream(self.order, &stream.name, &first, message);
            pieces.for_each(|more| self.cell.stream_on(&more));
            return;
        }
        let kind = content::read(msg_type, &message.content, &message.buffers);
        if let Kind::Frame = kind {
            return;
        }
        if self.verbatim {
            self.aside(msg_type, message, About::Nothing);
            return;
        }
        match kind {
            Kind::Stream { name, text } => self.cell.stream(self.order, &name, &text, message),
            Kind::Display { id } | Kind::Result { id } => {
                self.cell
                    .output(self.order, msg_type, message, id.map(Cow::into_owned));
            }
            Kind::Error => self.cell.output(self.order, msg_type, message, None),
            Kind::Update { id: Some(id) } => {
                if !self.cell.update(msg_type, message, &id) {
                    let subject = format!("display {id}");
                    self.aside(
                        msg_type,
                        message,
                        About::Aspect {
                            subject,
                            aspect: String::new(),
                        },
                    );
                }
            }
            Kind::Clear { wait: false } => self.cell.clear_outputs(),
            Kind::Clear { wait: true } => {
                self.cell
                    .clear_at_next_output(self.order, Replayed::of(msg_type, message));
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
        // First of all, where it does not part a stream from its live continuation.
        let lost = self.asides.left_out();
        let note =
            (lost.messages > 0).then(|| Notice::new(notice::ASIDES, lost, &self.hint).write());
        let earlier = self.asides_earlier.as_ref();
        let earlier = earlier.map(|earlier| earlier.write(notice::ASIDES).1);
        let notes = earlier.into_iter().chain(note).map(|note| (0, note));
        let asides = self
            .asides
            .iter()
            .map(|(order, message)| (order, message.clone()));
        merge(self.cell.replay(&self.hint), notes.chain(asides))
    }

    /// What is held in memory, about.
    pub fn size_bytes(&self) -> usize {
        let asides: usize = self
            .asides
            .iter()
            .map(|(_, message)| message.size_bytes())
            .sum();
        self.cell.size_bytes() + asides
    }

    /// What was left out when these messages were compacted before. `false`: it is text like any other.
    fn left_out(&mut self, notice: &Notice<'_>) -> bool {
        let left_out = notice.left_out(self.order);
        let hint = (notice.hint != self.hint).then_some(&*notice.hint);
        match (&*notice.what, hint) {
            (notice::OUTPUTS, hint) => !self.verbatim && self.cell.left_out(left_out, hint),
            (notice::ASIDES, None) => {
                self.asides.leave_out(left_out);
                true
            }
            (notice::ASIDES, Some(hint)) => Earlier::add(&mut self.asides_earlier, hint, left_out),
            (_, hint) => match notice.one(hint) {
                Some(too_large) if !self.verbatim => {
                    self.cell.too_large(self.order, too_large);
                    true
                }
                Some(_) | None => false,
            },
        }
    }

    fn aside(&mut self, msg_type: &str, message: &Message, about: About) {
        let message = Replayed::of(msg_type, message);
        self.asides.push(self.order, message.cost(), message, about);
    }
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
