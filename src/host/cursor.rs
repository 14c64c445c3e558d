//! A reader's way through the journal: from the records in memory while it keeps up, from the files where it lags.
//!
//! A reader that stops reading costs one batch of memory and delays nobody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::elsewhere::journal_of;
use super::log::{Pin, Tail};
use crate::journal::record::{Body, ClientId, Note, Record};
use crate::journal::{self, Item};
use crate::link::{Hello, Resume};
use crate::session::outputs::{Compactor, Limits};
use crate::session::view::{Replay, Step, View};
use crate::wire::{Channel, Message};

/// What is read at once, from memory or from disk.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// So much later than its frontend's first request a subscription may come and still get the answer to it. Locally it
/// is a matter of milliseconds; a loaded machine makes more of them.
const LATE_SUBSCRIBER: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Cursor {
    client: ClientId,
    replies: bool,
    iopub: bool,
    view: View,
    tail: Tail,
    /// The last record that was handled.
    seq: u64,
    /// Up to here the client has everything already.
    skip: (u64, u32),
    /// Up to here it gets what is for it alone, and nothing of what was published to all.
    joined_at: u64,
    disk: Option<journal::Reader>,
    pin: Pin,
    session: String,
    /// The session's last record was handled: nothing follows.
    over: bool,
}

/// One message for the client.
pub(super) struct Delivery {
    /// See [`Resume::part`].
    pub part: u32,
    /// The record, or what was made of it.
    pub record: Arc<Record>,
}

impl Cursor {
    pub fn new(hello: &Hello, session_id: &str, session: &str, tail: Tail) -> Self {
        let last = tail.last_seq();
        if hello.resume.is_none() && !hello.replies {
            return Self::joining(hello, session_id, session, tail);
        }
        let now = Resume {
            seq: last,
            part: u32::MAX,
            mirrors: Vec::new(),
        };
        let mut place = hello.resume.clone().unwrap_or_else(|| now.clone());
        if place.seq > last {
            // It saw records of a host before, whose journal could not be written: their numbers are given anew.
            (place.seq, place.part) = (now.seq, now.part);
        }
        Self::from_place(hello, place, session_id, session, tail)
    }

    /// A subscriber that comes fresh. Its frontend connects all its sockets at once, so that farside may have
    /// answered on shell already when the subscription comes: what was said on iopub meanwhile to this client alone
    /// (the replay of an attachment, most of all) is still to come.
    fn joining(hello: &Hello, session_id: &str, session: &str, tail: Tail) -> Self {
        let joined_at = tail.last_seq();
        let since = crate::state_dir::now().saturating_sub(LATE_SUBSCRIBER.as_micros() as u64);
        let resume = Resume {
            seq: tail.last_before(since),
            part: u32::MAX,
            mirrors: Vec::new(),
        };
        Self {
            joined_at,
            ..Self::from_place(hello, resume, session_id, session, tail)
        }
    }

    fn from_place(
        hello: &Hello,
        place: Resume,
        session_id: &str,
        session: &str,
        tail: Tail,
    ) -> Self {
        let Resume { seq, part, mirrors } = place;
        // The last record seen is handled once more, for what it was not seen of.
        let handled = if part == u32::MAX {
            seq
        } else {
            seq.saturating_sub(1)
        };
        Self {
            client: hello.client,
            replies: hello.replies,
            iopub: hello.iopub,
            view: View::new(hello.client, session_id.to_owned(), mirrors),
            pin: tail.pin(handled),
            tail,
            seq: handled,
            skip: (seq, part),
            joined_at: 0,
            disk: None,
            session: session.to_owned(),
            over: false,
        }
    }

    /// What comes next; waits for it. `None`: the host ends. Cancelled, it may lose what it was about to give.
    pub async fn next(&mut self) -> Option<Vec<Delivery>> {
        loop {
            if self.over {
                return None;
            }
            if !self.tail.clone().wait_behind(self.seq).await {
                return None;
            }
            let records = match self.tail.behind(self.seq, BATCH_BYTES_MAX) {
                Some(records) => {
                    self.disk = None;
                    records
                }
                None => self.read_files().await,
            };
            let mut deliveries = Vec::with_capacity(records.len());
            for record in records {
                let seq = record.seq;
                let replay = self.handle(record, &mut deliveries);
                self.seq = seq;
                if let Some((record, replay)) = replay {
                    // What stands before it is on its way already when a long replay is made.
                    self.replay(&record, replay, &mut deliveries).await;
                }
            }
            self.pin.set(self.seq);
            if !deliveries.is_empty() {
                return Some(deliveries);
            }
        }
    }

    /// Of what it reads.
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    fn handle(
        &mut self,
        record: Arc<Record>,
        to: &mut Vec<Delivery>,
    ) -> Option<(Arc<Record>, Replay)> {
        self.over |= matches!(record.body, Body::Note(Note::SessionEnded { .. }));
        if let Body::Reply {
            client, channel, ..
        } = &record.body
        {
            debug_assert_ne!(*channel, Channel::Iopub);
            if self.replies && *client == self.client {
                self.deliver(0, record, to);
            }
            return None;
        }
        if !self.iopub {
            return None;
        }
        match self.view.handle(&record) {
            Step::Skip => None,
            Step::Deliver => {
                self.deliver(0, record, to);
                None
            }
            Step::DeliverWith(copies) => {
                self.deliver(0, record.clone(), to);
                for (part, copy) in (1..).zip(copies) {
                    self.deliver(part, made_of(&record, copy), to);
                }
                None
            }
            Step::Replay(replay) => {
                self.deliver(0, record.clone(), to);
                Some((record, replay))
            }
        }
    }

    async fn replay(&mut self, record: &Arc<Record>, replay: Replay, to: &mut Vec<Delivery>) {
        let dir = self.tail.dir().to_owned();
        let wanted = replay.clone();
        // What it reads stays as it is until it has it.
        let _pin = (replay.session.is_empty()).then(|| self.tail.pin(replay.first_seq));
        let session = match replay.session.as_str() {
            "" => &self.session,
            other => other,
        };
        let hint = format!("`farside logs {session} {}` shows them all", replay.n);
        let made = tokio::task::spawn_blocking(move || outputs_so_far(dir, &wanted, &hint)).await;
        let messages = match made {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => vec![unreadable(&error)],
            Err(error) => vec![unreadable(&error)],
        };
        for (part, (msg_type, message)) in messages.into_iter().enumerate() {
            let copy = self
                .view
                .made(record, message, &msg_type, &replay.parent, part);
            self.deliver(part as u32 + 1, made_of(record, copy), to);
        }
    }

    fn deliver(&self, part: u32, record: Arc<Record>, to: &mut Vec<Delivery>) {
        let published_before = part == 0
            && record.seq <= self.joined_at
            && matches!(record.body, Body::Iopub { client: None, .. });
        if (record.seq, part) > self.skip && !published_before {
            to.push(Delivery { part, record });
        }
    }

    async fn read_files(&mut self) -> Vec<Arc<Record>> {
        let (reader, dir, seq) = (self.disk.take(), self.tail.dir().to_owned(), self.seq);
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let mut reader = match reader {
                Some(reader) => reader,
                None => journal::Reader::open(&dir, seq + 1)?,
            };
            let items = reader.next_batch(BATCH_BYTES_MAX)?;
            Ok((reader, items))
        });
        let items = match read.await {
            Ok(Ok((reader, items))) => {
                self.disk = Some(reader);
                items
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a reader that lags cannot read the journal");
                Vec::new()
            }
            Err(error) => {
                tracing::error!(%error, "a reader that lags cannot read the journal");
                Vec::new()
            }
        };
        let mut records = Vec::new();
        let in_memory = self.tail.first_in_memory().unwrap_or(u64::MAX);
        for item in items {
            match item {
                // Behind a hole that the journal has, memory may have what the journal has not.
                Item::Record(record, _) if record.seq >= in_memory => self.disk = None,
                Item::Record(record, _) => records.push(record),
                Item::Gap(gap) => tracing::warn!(?gap, "a reader came to a gap in the journal"),
            }
        }
        if records.is_empty() {
            // Nothing of what lies behind us can be read: what is in memory is the next there is.
            self.disk = None;
            self.seq = self
                .tail
                .first_in_memory()
                .map_or(self.seq, |first| first.saturating_sub(1))
                .max(self.seq);
        }
        records
    }
}

fn made_of(record: &Record, message: Message) -> Arc<Record> {
    let body = Body::Iopub {
        client: None,
        execution: 0,
        message,
    };
    Arc::new(Record {
        seq: record.seq,
        time: record.time,
        heard: 0,
        body,
    })
}

fn unreadable(error: &dyn std::fmt::Display) -> (String, Message) {
    let text = format!("[farside] the outputs so far cannot be read from the journal: {error}\n");
    let content = serde_json::json!({ "name": "stderr", "text": text });
    let message = Message {
        metadata: Bytes::from_static(b"{}"),
        content: content.to_string().into(),
        ..Message::default()
    };
    ("stream".into(), message)
}

/// The execution's input and compacted outputs; blocks on the journal's files.
fn outputs_so_far(
    dir: PathBuf,
    replay: &Replay,
    hint: &str,
) -> std::io::Result<Vec<(String, Message)>> {
    let dir = match replay.session.as_str() {
        "" => dir,
        other => journal_of(&dir, other)?,
    };
    let mut input = None;
    let mut parent = Bytes::new();
    let mut compactor = Compactor::new(Limits::default(), hint);
    let outputs = journal::Outputs::from_seq(
        &dir,
        replay.n,
        replay.first_seq,
        replay.until_seq.saturating_sub(1),
    )?;
    for item in outputs {
        match item? {
            Item::Record(record, _) => {
                let Body::Iopub { message, .. } = &record.body else {
                    continue;
                };
                let Ok(header) = message.header() else {
                    continue;
                };
                let msg_type = header.msg_type.into_owned();
                if parent.is_empty() {
                    parent = Bytes::copy_from_slice(&message.parent_header);
                }
                match msg_type.as_str() {
                    "execute_input" => input = Some((msg_type, message.clone())),
                    _ => compactor.push_as(&msg_type, message),
                }
            }
            Item::Gap(_) => {
                let (_, message) = unreadable(&"a part of it is damaged and left out here");
                compactor.push_as("stream", &message);
            }
        }
    }
    let replayed = compactor.replay().into_iter().map(|output| {
        let msg_type = output.msg_type.to_string();
        (msg_type, output.into_message(Bytes::new(), parent.clone()))
    });
    Ok(input.into_iter().chain(replayed).collect())
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
