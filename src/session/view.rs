//! What one client's iopub subscribers see: a function of the journal's records, in their order.
//!
//! A record may stand for no message (another client's, a note), for one as it is, or for copies under another
//! parent as well, where the client has attached a request to the execution. The view holds no outputs: a replay is
//! an instruction to the reader, which takes them from the journal at its own pace.

use crate::journal::record::{Body, ClientId, ExecutionNumber, Extent, Note, Record};
use crate::wire::Message;
use crate::wire::message::HeaderFields;

/// See the module.
#[derive(Debug)]
pub struct View {
    client: ClientId,
    session_id: String,
    mirrors: Vec<Mirror>,
}

/// An attachment that is on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mirror {
    /// Header of the attaching request, JSON text.
    pub parent: String,
    /// The execution.
    pub n: ExecutionNumber,
}

/// What a reader does with a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing.
    Skip,
    /// Send it as it is.
    Deliver,
    /// Send it as it is, and then these, which the view made of it.
    DeliverWith(Vec<Message>),
    /// Send it as it is (the client keeps account of its attachments), and then the outputs so far.
    Replay(Replay),
}

/// A replay to be made by the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The session whose journal has it; empty: this one's.
    pub session: String,
    /// The execution.
    pub n: ExecutionNumber,
    /// Its outputs are in the records from here
    pub first_seq: u64,
    /// to before here.
    pub until_seq: u64,
    /// More exactly, where that is known.
    pub extent: Option<Extent>,
    /// The parent of what is sent.
    pub parent: String,
}

impl View {
    /// `session_id`: of the headers of what the view makes; `mirrors`: the attachments that are on already, where a
    /// client comes back after a lost link.
    pub fn new(client: ClientId, session_id: String, mirrors: Vec<Mirror>) -> Self {
        Self {
            client,
            session_id,
            mirrors,
        }
    }

    /// Takes the next record.
    pub fn handle(&mut self, record: &Record) -> Step {
        match &record.body {
            Body::Iopub {
                client: None,
                execution,
                message,
            } => self.broadcast(record, *execution, message),
            Body::Iopub {
                client: Some(client),
                ..
            } if *client == self.client => Step::Deliver,
            Body::Note(Note::Attach {
                client,
                parent,
                n,
                first_seq,
                session,
                extent,
            }) if *client == self.client => {
                if !session.is_empty() {
                    // That session is over: there is a replay, and nothing to come. Its numbers are not ours.
                    return Step::Replay(Replay {
                        session: session.clone(),
                        n: *n,
                        first_seq: *first_seq,
                        until_seq: u64::MAX,
                        extent: *extent,
                        parent: parent.clone(),
                    });
                }
                let mirror = Mirror {
                    parent: parent.clone(),
                    n: *n,
                };
                // A client that comes back to this very place has it already.
                if !self.mirrors.contains(&mirror) {
                    self.mirrors.push(mirror);
                }
                Step::Replay(Replay {
                    session: String::new(),
                    n: *n,
                    first_seq: *first_seq,
                    until_seq: record.seq,
                    extent: *extent,
                    parent: parent.clone(),
                })
            }
            Body::Note(Note::AttachEnded { client, msg_id }) if *client == self.client => {
                self.mirrors
                    .retain(|mirror| super::state::header_id(&mirror.parent) != *msg_id);
                Step::Deliver
            }
            Body::Iopub {
                client: Some(_), ..
            }
            | Body::Request { .. }
            | Body::Reply { .. }
            | Body::Note(_) => Step::Skip,
        }
    }

    /// A message made of a recorded one for another parent; `part` tells the copies of one record apart.
    pub fn copy(&self, record: &Record, message: &Message, parent: &str, part: usize) -> Message {
        let msg_type = message
            .header()
            .map(|header| header.msg_type.into_owned())
            .unwrap_or_default();
        self.made(record, message.clone(), &msg_type, parent, part)
    }

    /// A message that the reader made for an attachment at `record`; its parent_header is still the original one.
    pub fn made(
        &self,
        record: &Record,
        message: Message,
        msg_type: &str,
        parent: &str,
        part: usize,
    ) -> Message {
        let msg_id = self.copy_id(parent, record.seq, part);
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type,
            session_id: &self.session_id,
            username: "farside",
            date: record.time,
        };
        let content = match msg_type {
            "comm_open" | "comm_msg" => captured_by(&message, parent),
            _ => message.content.clone(),
        };
        Message {
            header: header.to_json(),
            parent_header: bytes::Bytes::copy_from_slice(parent.as_bytes()),
            content,
            ..message
        }
    }

    /// The id of a copy: the same whenever the same reader comes by again, and no other message's.
    fn copy_id(&self, parent: &str, seq: u64, part: usize) -> String {
        format!("{}_{seq}_{part}", super::state::header_id(parent))
    }

    fn broadcast(&self, record: &Record, execution: ExecutionNumber, message: &Message) -> Step {
        if execution == 0 || !self.mirrors.iter().any(|mirror| mirror.n == execution) {
            return Step::Deliver;
        }
        if message
            .header()
            .is_ok_and(|header| header.msg_type == "status")
        {
            // Busy and idle of an attachment are the core's: one pair, whatever the engine says.
            return Step::Deliver;
        }
        let copies = self
            .mirrors
            .iter()
            .filter(|mirror| mirror.n == execution)
            .enumerate()
            .map(|(part, mirror)| self.copy(record, message, &mirror.parent, part))
            .collect();
        Step::DeliverWith(copies)
    }
}

/// The content of a comm message for another parent. An Output widget names in its state the request whose outputs
/// it captures (ipywidgets, `msg_id` of OutputModel); under another parent that must be the attaching request, or
/// what the widget should show would land below it.
fn captured_by(message: &Message, parent: &str) -> bytes::Bytes {
    let content = message.content.clone();
    let Some(original) = message.parent().map(|parent| parent.msg_id.into_owned()) else {
        return content;
    };
    let capture = |id: &str| serde_json::to_string(id).unwrap_or_default();
    match std::str::from_utf8(&content) {
        Ok(text) if !original.is_empty() && text.contains(&capture(&original)) => {
            let id = super::state::header_id(parent);
            text.replace(&capture(&original), &capture(&id)).into()
        }
        Ok(_) | Err(_) => content,
    }
}
