//! A reader's way through the journal, and what its client gets of it.
//!
//! A reader that stops reading costs one batch of memory and delays nobody.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::digest::Digests;
use super::log::Tail;
use super::source::Source;
use crate::journal::record::{Body, ClientId, Note, Record};
use crate::link::{Hello, Resume};
use crate::session::view::{Replay, Step, View};
use crate::wire::{Channel, Message};

/// So much later than its frontend's first request a subscription may come and still get the answer to it. Locally it
/// is a matter of milliseconds; a loaded machine makes more of them.
const LATE_SUBSCRIBER: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Cursor {
    client: ClientId,
    replies: bool,
    iopub: bool,
    view: View,
    source: Source,
    digests: Digests,
    /// Seqs that the client can have no more, which it has not been told yet.
    missing: Option<Range<u64>>,
    /// Up to here the client has everything already.
    skip: (u64, u32),
    /// Up to here it gets what is for it alone, and nothing of what was published to all.
    joined_at: u64,
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
    pub fn new(hello: &Hello, session_id: &str, tail: Tail, digests: Digests) -> Self {
        let last = tail.last_seq();
        if hello.resume.is_none() && !hello.replies {
            return Self::joining(hello, session_id, tail, digests);
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
        Self::from_place(hello, place, session_id, tail, digests)
    }

    /// A subscriber that comes fresh. Its frontend connects all its sockets at once, so that farside may have
    /// answered on shell already when the subscription comes: what was said on iopub meanwhile to this client alone
    /// (the replay of an attachment, most of all) is still to come.
    fn joining(hello: &Hello, session_id: &str, tail: Tail, digests: Digests) -> Self {
        let joined_at = tail.last_seq();
        let since = crate::state_dir::now().saturating_sub(LATE_SUBSCRIBER.as_micros() as u64);
        let resume = Resume {
            seq: tail.last_before(since),
            part: u32::MAX,
            mirrors: Vec::new(),
        };
        Self {
            joined_at,
            ..Self::from_place(hello, resume, session_id, tail, digests)
        }
    }

    fn from_place(
        hello: &Hello,
        place: Resume,
        session_id: &str,
        tail: Tail,
        digests: Digests,
    ) -> Self {
        let Resume { seq, part, mirrors } = place;
        // The last record seen is handled once more, for what it was not seen of.
        let behind = if part == u32::MAX {
            seq
        } else {
            seq.saturating_sub(1)
        };
        Self {
            client: hello.client,
            replies: hello.replies,
            iopub: hello.iopub,
            view: View::new(hello.client, session_id.to_owned(), mirrors),
            source: Source::new(tail, behind),
            digests,
            missing: None,
            skip: (seq, part),
            joined_at: 0,
            over: false,
        }
    }

    /// What comes next; waits for it. `None`: the host ends. Cancelled, it may lose what it was about to give.
    pub async fn next(&mut self) -> Option<Vec<Delivery>> {
        loop {
            if self.over {
                return None;
            }
            if !self.source.wait().await {
                return None;
            }
            let records = match self.source.memory() {
                Some(records) => records,
                None => match tokio::task::spawn_blocking(self.source.files()).await {
                    Ok(batch) => self.source.take(batch),
                    Err(error) => {
                        // It panicked, or the host ends.
                        tracing::error!(%error, "a reader that lags cannot read the journal");
                        return None;
                    }
                },
            };
            let mut deliveries = Vec::with_capacity(records.len());
            for record in records {
                if let Some(missing) = self.source.missing_before(record.seq) {
                    let from = self
                        .missing
                        .take()
                        .map_or(missing.start, |known| known.start);
                    self.missing = Some(from..missing.end);
                }
                if let Some((record, replay)) = self.handle(record, &mut deliveries) {
                    // What stands before it is on its way already when a long replay is made.
                    self.replay(&record, replay, &mut deliveries).await;
                }
            }
            if !deliveries.is_empty() {
                return Some(deliveries);
            }
        }
    }

    /// Of what it reads.
    pub fn tail(&self) -> Tail {
        self.source.tail().clone()
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
                self.tell_missing(&record, &[], to);
                self.deliver(0, record, to);
                None
            }
            Step::DeliverWith(copies) => {
                self.tell_missing(&record, &copies, to);
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

    /// A visible line in place of what the client can have no more, in the execution that goes on with `record`, and in
    /// whose `copies` show it too.
    fn tell_missing(&mut self, record: &Record, copies: &[Message], to: &mut Vec<Delivery>) {
        let Body::Iopub {
            client: None,
            execution: 1..,
            message,
        } = &record.body
        else {
            return;
        };
        let Some(missing) = self.missing.take() else {
            return;
        };
        let first = Record {
            seq: missing.start,
            ..record.clone()
        };
        let text = format!(
            "\n[farside] up to {} messages are missing here: this frontend was so far behind that they are not kept any \
             more. What is kept of them, %farside attach shows.\n",
            missing.end - missing.start
        );
        let content = json!({ "name": "stderr", "text": text });
        for (part, shown) in std::iter::once(message).chain(copies).enumerate() {
            let line = Message {
                identities: shown.identities.clone(),
                metadata: Bytes::from_static(b"{}"),
                content: content.to_string().into(),
                ..Message::default()
            };
            let parent = String::from_utf8_lossy(&shown.parent_header);
            let line = self.view.made(&first, line, "stream", &parent, part);
            self.deliver(part as u32, made_of(&first, line), to);
        }
    }

    async fn replay(&mut self, record: &Arc<Record>, replay: Replay, to: &mut Vec<Delivery>) {
        let messages = self.digests.outputs(record.seq, &replay).await;
        for (part, (msg_type, message)) in messages.iter().enumerate() {
            let copy = self
                .view
                .made(record, message.clone(), msg_type, &replay.parent, part);
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

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
