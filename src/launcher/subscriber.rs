//! One frontend's iopub socket: a stream of its own from each host in turn, so that each subscriber has its own flow control
//! and none holds up another.

use std::rc::Rc;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::Shared;
use super::ahead::Ahead;
use super::reach::{self, ReachError, Stream};
use super::succession::Served;
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
    sessions: watch::Receiver<Option<Served>>,
    /// What the launcher itself says while there is no session.
    words: broadcast::Receiver<Message>,
    hello: Hello,
    /// The session that it hears, or heard last.
    served: Option<Served>,
    topics: Vec<Bytes>,
    place: Resume,
}

/// Serves the connection until the subscriber leaves, through all sessions that the launcher has.
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
        sessions: shared.served.subscribe(),
        words: shared.own_words.subscribe(),
        shared,
        hello,
        served: None,
        topics: Vec::new(),
        place: Resume::default(),
    };
    subscriber.served = subscriber.sessions.borrow_and_update().clone();
    let Ok(mut stream) = subscriber.open(None).await else {
        return;
    };
    if let Some(stream) = &stream {
        subscriber.place = Resume {
            seq: stream.welcome.seq,
            part: u32::MAX,
            mirrors: Vec::new(),
        };
    }
    if subscriber.subscribe(first, &mut writer).await.is_err() {
        return;
    }
    loop {
        let opened = match stream {
            Some(mut open) => match subscriber.follow(&mut open, &mut reader, &mut writer).await {
                Follow::SubscriberGone => return,
                Follow::SessionEnded => Ok(None),
                Follow::LinkBroke => {
                    let place = subscriber.place.clone();
                    subscriber.open(Some(place)).await
                }
            },
            None => {
                let next = subscriber.next_session(&mut reader, &mut writer);
                let Some(served) = next.await else { return };
                // All that it says: the launcher has asked nothing of it before.
                subscriber.place = Resume {
                    seq: served.since,
                    part: u32::MAX,
                    mirrors: Vec::new(),
                };
                subscriber.served = Some(served);
                let place = subscriber.place.clone();
                subscriber.open(Some(place)).await
            }
        };
        let Ok(opened) = opened else { return };
        stream = opened;
    }
}

enum Follow {
    LinkBroke,
    SubscriberGone,
    SessionEnded,
}

impl Subscriber {
    /// `None`: the session has ended. Nothing of it will come; maybe another one does. The same where there is none.
    async fn open(&self, resume: Option<Resume>) -> Result<Option<Stream>, ReachError> {
        let Some(served) = &self.served else {
            return Ok(None);
        };
        let hello = Hello {
            resume,
            ..self.hello.clone()
        };
        match reach::open(&served.session, &hello).await {
            Ok(stream) => Ok(Some(stream)),
            Err(ReachError::Ended { .. }) => Ok(None),
            Err(error) => {
                tracing::error!(%error, "a subscriber does not reach the host");
                Err(error)
            }
        }
    }

    /// Waits for the session after this one, and says what the launcher says meanwhile. `None`: the subscriber has left.
    async fn next_session(&mut self, reader: &mut Reader, writer: &mut Writer) -> Option<Served> {
        let known = self.served.as_ref().map_or(0, |served| served.number);
        let mut sessions = self.sessions.clone();
        loop {
            tokio::select! {
                biased;
                word = self.words.recv() => match word {
                    Ok(word) if !self.has_topic_of(&word) => {}
                    Ok(word) => writer.send(&frame::encode(&word, &self.shared.key)).await.ok()?,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                served = sessions.wait_for(|served| served.as_ref().is_some_and(|served| served.number > known)) => {
                    return served.ok()?.clone();
                }
                incoming = reader.recv() => {
                    if !self.on_incoming(incoming, writer).await {
                        return None;
                    }
                }
            }
        }
    }

    /// `false`: the subscriber has left.
    async fn on_incoming(
        &mut self,
        incoming: Result<Option<Incoming>, TransportError>,
        writer: &mut Writer,
    ) -> bool {
        match incoming {
            Ok(Some(Incoming::Subscribe(topic))) => self.subscribe(topic, writer).await.is_ok(),
            Ok(Some(Incoming::Unsubscribe(topic))) => {
                if let Some(at) = self.topics.iter().position(|known| *known == topic) {
                    self.topics.swap_remove(at);
                }
                true
            }
            Ok(Some(Incoming::Message(_))) => true,
            Ok(None) | Err(_) => false,
        }
    }

    async fn follow(
        &mut self,
        stream: &mut Stream,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Follow {
        let mut ahead = Ahead::new(self.shared.key.clone());
        loop {
            tokio::select! {
                incoming = reader.recv() => {
                    if !self.on_incoming(incoming, writer).await {
                        return Follow::SubscriberGone;
                    }
                }
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
        if self.has_topic_of(message) {
            writer.enqueue(&frame::encode_signed(message, ahead.sign(message)));
        }
    }

    fn has_topic_of(&self, message: &Message) -> bool {
        let topic: &[u8] = message
            .identities
            .first()
            .map_or(frame::DELIMITER, |topic| topic);
        self.topics
            .iter()
            .any(|subscribed| topic.starts_with(subscribed))
    }

    /// JEP 65: each subscription is welcomed, on its own topic, once what is published reaches the subscriber.
    async fn subscribe(&mut self, topic: Bytes, writer: &mut Writer) -> Result<(), TransportError> {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let session_id = self.shared.session_id.borrow().clone();
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type: "iopub_welcome",
            session_id: &session_id,
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
