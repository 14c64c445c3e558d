//! One frontend's iopub socket: a stream of its own from the host, so that each subscriber has its own flow control
//! and none holds up another.

use std::rc::Rc;

use bytes::Bytes;
use serde_json::json;

use super::Shared;
use super::ahead::Ahead;
use super::reach::{self, ReachError, Stream};
use crate::journal::record::{Body, Note, Record};
use crate::link::{Frame, Hello, Resume};
use crate::session::state::header_id;
use crate::session::view::Mirror;
use crate::transport::{Incoming, Reader, TransportError, Writer};
use crate::wire::message::HeaderFields;
use crate::wire::{Message, frame};

/// So much is encoded and signed before it is written.
const WRITE_BYTES: usize = 256 << 10;

struct Subscriber {
    shared: Rc<Shared>,
    topics: Vec<Bytes>,
    place: Resume,
}

/// Serves the connection until the subscriber leaves.
pub(super) async fn serve(shared: Rc<Shared>, mut reader: Reader, mut writer: Writer) {
    let first = loop {
        match reader.recv().await {
            Ok(Some(Incoming::Subscribe(topic))) => break topic,
            Ok(Some(Incoming::Unsubscribe(_) | Incoming::Message(_))) => {}
            Ok(None) | Err(_) => return,
        }
    };
    let hello = Hello {
        iopub: true,
        replies: false,
        claim: false,
        kind: "iopub".into(),
        ..shared.hello.clone()
    };
    let mut subscriber = Subscriber {
        shared,
        topics: Vec::new(),
        place: Resume::default(),
    };
    let Ok(mut stream) = reach::open(&subscriber.shared.session, &hello).await else {
        return;
    };
    subscriber.place = Resume {
        seq: stream.welcome.seq,
        part: u32::MAX,
        mirrors: Vec::new(),
    };
    if subscriber.subscribe(first, &mut writer).await.is_err() {
        return;
    }
    loop {
        match subscriber
            .follow(&mut stream, &mut reader, &mut writer)
            .await
        {
            Follow::LinkBroke => {}
            Follow::SubscriberGone => return,
            // Nothing more will come; the socket stays until the frontend closes it.
            Follow::SessionEnded => std::future::pending().await,
        }
        let hello = Hello {
            resume: Some(subscriber.place.clone()),
            ..hello.clone()
        };
        stream = match reach::open(&subscriber.shared.session, &hello).await {
            Ok(stream) => stream,
            Err(ReachError::Ended { .. }) => std::future::pending().await,
            Err(error) => {
                tracing::error!(%error, "a subscriber lost the host");
                return;
            }
        };
    }
}

enum Follow {
    LinkBroke,
    SubscriberGone,
    SessionEnded,
}

impl Subscriber {
    async fn follow(
        &mut self,
        stream: &mut Stream,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Follow {
        let mut ahead = Ahead::new(self.shared.key.clone());
        loop {
            tokio::select! {
                incoming = reader.recv() => match incoming {
                    Ok(Some(Incoming::Subscribe(topic))) => {
                        if self.subscribe(topic, writer).await.is_err() {
                            return Follow::SubscriberGone;
                        }
                    }
                    Ok(Some(Incoming::Unsubscribe(topic))) => {
                        if let Some(at) = self.topics.iter().position(|known| *known == topic) {
                            self.topics.swap_remove(at);
                        }
                    }
                    Ok(Some(Incoming::Message(_))) => {}
                    Ok(None) | Err(_) => return Follow::SubscriberGone,
                },
                frame = stream.reader.next_watched(|partial| ahead.see(partial)) => {
                    let mut next = frame;
                    loop {
                        match next {
                            Ok(Some(Frame::Record { part, record })) => {
                                self.on_record(part, record, &mut ahead, writer);
                            }
                            Ok(Some(Frame::Ended { .. })) => {
                                let _ = writer.flush().await;
                                return Follow::SessionEnded;
                            }
                            Ok(Some(_)) => {}
                            Ok(None) | Err(_) => {
                                // What was taken from the link counts as seen: it must be on its way.
                                return match writer.flush().await {
                                    Ok(()) => Follow::LinkBroke,
                                    Err(_) => Follow::SubscriberGone,
                                };
                            }
                        }
                        ahead.pass();
                        if writer.queued_bytes() > WRITE_BYTES {
                            break;
                        }
                        match stream.reader.buffered() {
                            Ok(None) => break,
                            more => next = more,
                        }
                    }
                    if writer.flush().await.is_err() {
                        return Follow::SubscriberGone;
                    }
                }
            }
        }
    }

    fn on_record(&mut self, part: u32, record: Record, ahead: &mut Ahead, writer: &mut Writer) {
        (self.place.seq, self.place.part) = (record.seq, part);
        match record.body {
            Body::Iopub { message, .. } => self.send(&message, ahead, writer),
            Body::Note(Note::Attach {
                parent, n, session, ..
            }) => {
                // Of an ended session nothing more comes.
                if session.is_empty() {
                    self.place.mirrors.push(Mirror { parent, n });
                }
            }
            Body::Note(Note::AttachEnded { msg_id, .. }) => {
                self.place
                    .mirrors
                    .retain(|mirror| header_id(&mirror.parent) != msg_id);
            }
            Body::Note(_) | Body::Request { .. } | Body::Reply { .. } => {}
        }
    }

    fn send(&self, message: &Message, ahead: &mut Ahead, writer: &mut Writer) {
        let topic: &[u8] = message
            .identities
            .first()
            .map_or(frame::DELIMITER, |topic| topic);
        if self
            .topics
            .iter()
            .any(|subscribed| topic.starts_with(subscribed))
        {
            writer.enqueue(&frame::encode_signed(message, ahead.sign(message)));
        }
    }

    /// JEP 65: each subscription is welcomed, on its own topic, once what is published reaches the subscriber.
    async fn subscribe(&mut self, topic: Bytes, writer: &mut Writer) -> Result<(), TransportError> {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type: "iopub_welcome",
            session_id: &self.shared.session_id,
            username: "farside",
            date: crate::state_dir::now(),
        };
        let content = json!({ "subscription": String::from_utf8_lossy(&topic) });
        let mut welcome = Message::new(&header, &Bytes::new(), &content);
        if !topic.is_empty() {
            welcome.identities.push(topic.clone());
        }
        self.topics.push(topic);
        writer
            .send(&frame::encode(&welcome, &self.shared.key))
            .await
    }
}
