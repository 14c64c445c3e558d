//! What the commands that talk to a host share: a session that lives, a conversation with its host over any number
//! of broken links, one-word commands, and showing that something takes its time.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::runtime::LocalOptions;

use crate::journal::record::{Body, Note, Record};
use crate::launcher::reach::{self, ReachError, Stream};
use crate::launcher::{self};
use crate::link::{Frame, Hello, LinkError, Resume};
use crate::session::event::Command;
use crate::session::state::header_id;
use crate::session::view::Mirror;
use crate::state_dir::{Session, SessionState};
use crate::wire::message::HeaderFields;
use crate::wire::{Channel, Message};

/// How often a progress display moves on a terminal.
const TICK: Duration = Duration::from_millis(120);

/// Runs a command's conversation with a host, on this thread.
pub(super) fn block_on<T>(
    conversation: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    let result = runtime.block_on(conversation);
    runtime.shutdown_background();
    result
}

/// A line on the terminal that says what is being waited for; gone when it is dropped, and not there in a pipe.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub fn new(what: String) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Refuses a session of which nothing runs any more.
pub(super) fn require_live(session: &Session) -> anyhow::Result<()> {
    let facts = session.facts();
    let id = facts.id;
    match facts.state {
        SessionState::Retired | SessionState::Ended => {
            let reason = facts
                .end_reason
                .unwrap_or_else(|| "no reason is known".into());
            Err(ReachError::Ended { id, reason }.into())
        }
        SessionState::Lost => bail!(
            "session {id} is lost: {}; `farside logs {id}` shows its outputs, `farside new` starts another session",
            facts
                .end_reason
                .unwrap_or_default()
                .trim_start_matches("host_lost: ")
        ),
        SessionState::Starting
        | SessionState::Busy
        | SessionState::Idle
        | SessionState::WaitingInput => Ok(()),
    }
}

/// Gives the host one command and returns its answer, once it is a yes.
pub(super) fn command(session: &Session, kind: &str, command: Command) -> anyhow::Result<Value> {
    require_live(session)?;
    block_on(async {
        let mut stream = reach::open(session, &quiet_hello(kind)).await?;
        ask(&mut stream, session, command).await
    })
}

/// A client that wants nothing but answers.
pub(super) fn quiet_hello(kind: &str) -> Hello {
    launcher::hello(kind)
}

/// One command and its answer on an open stream.
pub(super) async fn ask(
    stream: &mut Stream,
    session: &Session,
    command: Command,
) -> anyhow::Result<Value> {
    const ID: u64 = 1;
    let id = &session.json.id;
    stream
        .writer
        .send(&Frame::Command { id: ID, command })
        .await?;
    loop {
        match stream.reader.next().await {
            Ok(Some(Frame::Answer { id: ID, answer })) if answer["ok"] == true => {
                return Ok(answer);
            }
            Ok(Some(Frame::Answer { id: ID, answer })) => match answer["error"].as_str() {
                Some(why) => bail!("{why}"),
                None => bail!("the host of session {id} gave no reason: {answer}"),
            },
            Ok(Some(Frame::Ended { reason })) => {
                let id = id.clone();
                return Err(ReachError::Ended { id, reason }.into());
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => bail!(
                "the link to session {id} broke before its answer came, so the command may or may not have been \
                 carried out; see `farside ls`"
            ),
        }
    }
}

/// What a host says in a [`Conversation`].
pub(super) enum Heard {
    Iopub(Message),
    Reply(Channel, Message),
    /// The requests up to this number are in the journal.
    Acknowledged(u64),
    /// The session has ended; nothing follows.
    Ended(String),
}

/// Requests to a host, and what it says, as one client that survives the death of a host.
pub(super) struct Conversation {
    session: Session,
    hello: Hello,
    stream: Stream,
    place: Resume,
    number: u64,
    unacknowledged: VecDeque<(u64, Record)>,
}

impl Conversation {
    /// Opens it; `iopub`: outputs are wanted too.
    pub async fn open(session: &Session, kind: &str, iopub: bool) -> anyhow::Result<Self> {
        let hello = Hello {
            iopub,
            ..quiet_hello(kind)
        };
        let stream = reach::open(session, &hello).await?;
        let place = Resume {
            seq: stream.welcome.seq,
            part: u32::MAX,
            mirrors: Vec::new(),
        };
        Ok(Self {
            session: session.clone(),
            hello,
            stream,
            place,
            number: 0,
            unacknowledged: VecDeque::new(),
        })
    }

    /// A message of this client's, with a fresh msg_id.
    pub fn message(&self, msg_type: &str, parent: &Message, content: &Value) -> Message {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let session_id = self.hello.client.to_string();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type,
            session_id: &session_id,
            username: "farside",
            date: crate::state_dir::now(),
        };
        Message::new(&header, &parent.header, content)
    }

    /// Sends a request; it is sent again for as long as it is not in the journal. Returns its number.
    pub async fn send(&mut self, channel: Channel, message: Message) -> u64 {
        self.number += 1;
        let body = Body::Request {
            channel,
            client: self.hello.client,
            execution: 0,
            message,
        };
        let record = Record {
            seq: self.number,
            time: 0,
            heard: 0,
            body,
        };
        self.stream.writer.push_record(0, &record);
        self.unacknowledged.push_back((self.number, record));
        // A link that broke shows itself at the next word of the host's.
        let _ = self.stream.writer.flush().await;
        self.number
    }

    /// The next word of the host's. Cancelled, it goes on where it was.
    pub async fn next(&mut self) -> anyhow::Result<Heard> {
        loop {
            let frame = match self.stream.writer.flush().await {
                Ok(()) => self.stream.reader.next().await,
                Err(error) => Err(error.into()),
            };
            if let Some(heard) = self.take(frame).await? {
                return Ok(heard);
            }
        }
    }

    /// One that has come already.
    pub async fn next_buffered(&mut self) -> anyhow::Result<Option<Heard>> {
        loop {
            match self.stream.reader.buffered() {
                Ok(None) => return Ok(None),
                frame => {
                    if let Some(heard) = self.take(frame).await? {
                        return Ok(Some(heard));
                    }
                }
            }
        }
    }

    async fn take(
        &mut self,
        frame: Result<Option<Frame>, LinkError>,
    ) -> anyhow::Result<Option<Heard>> {
        Ok(match frame {
            Ok(Some(Frame::Record { part, record })) => self.on_record(part, record),
            Ok(Some(Frame::Ack { number })) => {
                self.unacknowledged.retain(|(sent, _)| *sent > number);
                Some(Heard::Acknowledged(number))
            }
            Ok(Some(Frame::Ended { reason })) => Some(Heard::Ended(reason)),
            Ok(Some(_)) => None,
            Ok(None) | Err(_) => self.reconnect().await?,
        })
    }

    async fn reconnect(&mut self) -> anyhow::Result<Option<Heard>> {
        let hello = Hello {
            resume: Some(self.place.clone()),
            ..self.hello.clone()
        };
        self.stream = match reach::open(&self.session, &hello).await {
            Ok(stream) => stream,
            Err(ReachError::Ended { reason, .. }) => return Ok(Some(Heard::Ended(reason))),
            Err(error) => return Err(error.into()),
        };
        for (_, record) in &self.unacknowledged {
            self.stream.writer.push_record(1, record);
        }
        Ok(None)
    }

    fn on_record(&mut self, part: u32, record: Record) -> Option<Heard> {
        (self.place.seq, self.place.part) = (record.seq, part);
        match record.body {
            Body::Iopub { message, .. } => Some(Heard::Iopub(message)),
            Body::Reply {
                channel, message, ..
            } => Some(Heard::Reply(channel, message)),
            Body::Note(Note::Attach {
                parent, n, session, ..
            }) => {
                // Of an ended session nothing more comes.
                if session.is_empty() {
                    self.place.mirrors.push(Mirror { parent, n });
                }
                None
            }
            Body::Note(Note::AttachEnded { msg_id, .. }) => {
                self.place
                    .mirrors
                    .retain(|mirror| header_id(&mirror.parent) != msg_id);
                None
            }
            Body::Note(_) | Body::Request { .. } => None,
        }
    }
}
