//! The signature of a large message, made while the message is still arriving: it stands before the message on the
//! frontend's socket, so without this all that hashing would come between the last byte in and the first one out.
//!
//! Nothing of an unfinished frame goes further than into its signature.

use std::ops::Range;

use bytes::Bytes;

use crate::link::Frame;
use crate::wire::signature::Signing;
use crate::wire::{Key, Message};

/// Frames below this are signed when they are there: a matter of microseconds.
const FROM_BYTES: usize = 256 << 10;

/// Of one stream of the link.
pub(super) struct Ahead {
    key: Key,
    begun: Option<Begun>,
}

/// What is done of the frame under way.
struct Begun {
    /// Where in the frame the bytes to be signed lie.
    range: Range<u64>,
    /// Up to here they are.
    done: u64,
    signing: Signing,
}

impl Ahead {
    pub fn new(key: Key) -> Self {
        Self { key, begun: None }
    }

    /// What has come so far of the next frame.
    pub fn see(&mut self, frame: &[u8]) {
        if frame.len() < FROM_BYTES {
            return;
        }
        if self.begun.is_none() {
            let Some(range) = Frame::dictionaries(frame) else {
                return;
            };
            self.begun = Some(Begun {
                done: range.start,
                range,
                signing: self.key.signing(),
            });
        }
        let Some(begun) = &mut self.begun else { return };
        let until = begun.range.end.min(frame.len() as u64);
        if begun.done < until {
            // Both are at most the frame's length.
            begun
                .signing
                .update(&frame[begun.done as usize..until as usize]);
            begun.done = until;
        }
    }

    /// The next frame has come whole, and has no message to be signed.
    pub fn pass(&mut self) {
        self.begun = None;
    }

    /// The next frame has come whole: the signature of its message.
    pub fn sign(&mut self, message: &Message) -> Bytes {
        let dicts = [
            &message.header,
            &message.parent_header,
            &message.metadata,
            &message.content,
        ];
        let mut bytes: u64 = 0;
        for dict in dicts {
            bytes += dict.len() as u64;
        }
        let begun = (self.begun.take())
            // Always so: frames come in order.
            .filter(|begun| begun.range.end - begun.range.start == bytes);
        let (mut signing, mut done) = match begun {
            Some(begun) => (begun.signing, (begun.done - begun.range.start) as usize),
            None => (self.key.signing(), 0),
        };
        for dict in dicts {
            let here = done.min(dict.len());
            signing.update(&dict[here..]);
            done -= here;
        }
        signing.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::record::{Body, Record};
    use crate::link::{LinkReader, LinkWriter};

    fn message(content: usize) -> Message {
        Message {
            identities: vec!["topic".into()],
            header: r#"{"msg_id":"1"}"#.into(),
            parent_header: "{}".into(),
            metadata: r#"{"m":1}"#.into(),
            content: (0..content)
                .map(|at| b'a' + (at % 23) as u8)
                .collect::<Vec<_>>()
                .into(),
            buffers: vec![vec![7; 1000].into()],
        }
    }

    async fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        let record = Record {
            seq: 1,
            time: 2,
            heard: 0,
            body: Body::Iopub {
                client: None,
                execution: 3,
                message: message.clone(),
            },
        };
        let frame = Frame::Record { part: 0, record };
        LinkWriter::new(&mut bytes).send(&frame).await.unwrap();
        bytes
    }

    fn signed_at_once(message: &Message, key: &Key) -> Bytes {
        key.sign([
            &message.header,
            &message.parent_header,
            &message.metadata,
            &message.content,
        ])
    }

    #[tokio::test]
    async fn a_signature_made_on_the_way_is_that_of_the_whole() {
        let key = Key::new("k");
        let message = message(3 * FROM_BYTES);
        let frame = encoded(&message).await;
        let cuts = [
            vec![],
            vec![1, 9, 70, 200],
            vec![FROM_BYTES],
            vec![FROM_BYTES, FROM_BYTES, 2 * FROM_BYTES + 1],
            // All that is signed, and the buffers not quite; the last byte is what a host holds back.
            vec![frame.len() - 500, frame.len() - 1],
            (1..frame.len()).step_by(50_000).collect(),
        ];
        for cuts in cuts {
            let mut ahead = Ahead::new(key.clone());
            for cut in &cuts {
                ahead.see(&frame[..*cut]);
            }
            assert_eq!(
                ahead.sign(&message),
                signed_at_once(&message, &key),
                "{cuts:?}"
            );
            assert!(ahead.begun.is_none());
        }
    }

    #[tokio::test]
    async fn the_work_is_done_before_the_last_byte() {
        let message = message(3 * FROM_BYTES);
        let frame = encoded(&message).await;
        let mut ahead = Ahead::new(Key::new("k"));
        ahead.see(&frame[..frame.len() - 1]);
        let begun = ahead.begun.as_ref().unwrap();
        assert_eq!(begun.done, begun.range.end);
    }

    #[tokio::test]
    async fn the_next_frame_begins_anew() {
        let key = Key::new("k");
        let (first, second) = (message(2 * FROM_BYTES), message(3 * FROM_BYTES));
        let mut ahead = Ahead::new(key.clone());
        ahead.see(&encoded(&first).await[..FROM_BYTES]);
        ahead.pass();
        ahead.see(&encoded(&second).await[..FROM_BYTES]);
        assert_eq!(ahead.sign(&second), signed_at_once(&second, &key));
        let small = message(10);
        assert_eq!(ahead.sign(&small), signed_at_once(&small, &key));
    }

    #[tokio::test]
    async fn through_a_link_every_message_gets_its_signature() {
        let key = Key::new("k");
        let messages = [10, 3 * FROM_BYTES, 0, FROM_BYTES, 5 * FROM_BYTES, 20].map(message);
        let (host, launcher) = tokio::net::UnixStream::pair().unwrap();
        let sending = async {
            let (_reader, writer) = host.into_split();
            let mut writer = LinkWriter::new(writer);
            for (seq, message) in (1..).zip(&messages) {
                let record = Record {
                    seq,
                    time: 0,
                    heard: 0,
                    body: Body::Iopub {
                        client: None,
                        execution: 0,
                        message: message.clone(),
                    },
                };
                writer.push_record(0, &record);
                writer.flush_but(1).await.unwrap();
                tokio::task::yield_now().await;
            }
            writer.flush().await.unwrap();
        };
        let receiving = async {
            let (reader, _writer) = launcher.into_split();
            let mut reader = LinkReader::new(reader);
            let mut ahead = Ahead::new(key.clone());
            let mut seen_ahead = 0;
            for message in &messages {
                let frame = reader.next_watched(|partial| ahead.see(partial)).await;
                let Ok(Some(Frame::Record { record, .. })) = frame else {
                    panic!("{frame:?}");
                };
                let Body::Iopub { message: came, .. } = record.body else {
                    panic!("no iopub");
                };
                seen_ahead += usize::from(ahead.begun.is_some());
                assert!(came == *message);
                assert_eq!(ahead.sign(&came), signed_at_once(message, &key));
            }
            seen_ahead
        };
        let ((), seen_ahead) = tokio::join!(sending, receiving);
        assert!(seen_ahead >= 2, "the large ones were seen on their way");
    }
}
