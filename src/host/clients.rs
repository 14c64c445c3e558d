//! The host's end of the link: accepts streams, and serves each with its cursor.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::cursor::Cursor;
use super::driver::Input;
use super::inbox::Inbox;
use crate::journal::record::{Body, ClientId};
use crate::link::{
    Frame, Hello, LinkReader, LinkWriter, OLDEST_VERSION, Refusal, VERSION, Welcome,
};
use crate::process;
use crate::session::event::Event;
use crate::unix_stream::{ReadHalf, UnixStream, WriteHalf};

/// How long a client may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A launcher's acknowledgement goes with what else is to be sent within this: alone it would wake the launcher for nothing
/// that anybody waits for. A command may have nothing else to wait for.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// How long the last frames of a stream may take when the host ends.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream that a client wants to open.
#[derive(Debug)]
pub(super) struct Opening {
    pub hello: Hello,
    pub answer: oneshot::Sender<Result<Admission, Refusal>>,
}

/// What the driver gives a stream.
pub(super) struct Admission {
    pub stream: StreamId,
    pub welcome: Welcome,
    pub cursor: Cursor,
    /// Acknowledgements, answers, the end.
    pub side: mpsc::UnboundedReceiver<Frame>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Admission({:?})", self.stream)
    }
}

/// Names a stream in this host.
pub(super) type StreamId = u64;

/// Accepts until it is aborted.
pub(super) async fn accept(listener: UnixListener, inbox: Inbox<Input>) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match UnixStream::new(stream) {
                    Ok(stream) => drop(streams.spawn_local(serve(stream, inbox.clone()))),
                    Err(error) => tracing::warn!(%error, "a link that was accepted is of no use"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: those that end give some back.
                    tracing::warn!(%error, "a link could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, inbox: Inbox<Input>) {
    match process::peer_credentials(&stream) {
        Ok(peer) if peer.uid == process::effective_uid() => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid, "another user knocked at the link; refused");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "a link's peer is not known; refused");
            return;
        }
    }
    let (reader, writer) = stream.into_split();
    let (mut reader, mut writer) = (LinkReader::new(reader), LinkWriter::new(writer));
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(Frame::Hello(hello)))) => hello,
        Ok(Ok(_)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::warn!(%error, "something knocked at the link that does not speak its protocol");
            return;
        }
    };
    if !(OLDEST_VERSION..=VERSION).contains(&hello.version) {
        let _ = writer
            .send(&Frame::Refused(Refusal::Version { host: VERSION }))
            .await;
        return;
    }
    let (client, (answer, answered)) = (hello.client, oneshot::channel());
    let ack_delay = if hello.claim {
        ACK_DELAY
    } else {
        Duration::ZERO
    };
    inbox.send_now(Input::Open(Opening { hello, answer }));
    let admission = match answered.await {
        Ok(Ok(admission)) => admission,
        Ok(Err(refusal)) => {
            let _ = writer.send(&Frame::Refused(refusal)).await;
            return;
        }
        Err(_) => return,
    };
    let stream = admission.stream;
    tokio::select! {
        () = read(&mut reader, client, stream, &inbox) => {}
        () = write(&mut writer, admission, ack_delay) => {}
    }
    inbox.send_now(Input::Closed { client, stream });
}

async fn read(
    reader: &mut LinkReader<ReadHalf>,
    client: ClientId,
    stream: StreamId,
    inbox: &Inbox<Input>,
) {
    loop {
        match reader.next().await {
            Ok(Some(Frame::Record { part, record })) => {
                let Body::Request {
                    channel, message, ..
                } = record.body
                else {
                    tracing::warn!("a client sent a record that is no request; ignored");
                    continue;
                };
                let bytes = message.queue_bytes();
                let input = Input::Request {
                    client,
                    stream,
                    number: record.seq,
                    channel,
                    message,
                    again: part > 0,
                };
                if !inbox.send(input, bytes).await {
                    return;
                }
            }
            Ok(Some(Frame::Command { id, command })) => {
                inbox.send_now(Input::Command {
                    client,
                    stream,
                    id,
                    command,
                });
            }
            Ok(Some(Frame::Frontends { identities })) => {
                inbox.send_now(Input::Event(Event::Frontends { client, identities }));
            }
            Ok(Some(other)) => {
                tracing::warn!(?other, "a client sent what only a host sends; ignored")
            }
            Ok(None) => return,
            Err(error) => {
                tracing::info!(%error, "a client's link ended");
                return;
            }
        }
    }
}

async fn write(writer: &mut LinkWriter<WriteHalf>, admission: Admission, ack_delay: Duration) {
    let Admission {
        welcome,
        mut cursor,
        mut side,
        ..
    } = admission;
    if writer.send(&Frame::Welcome(welcome)).await.is_err() {
        return;
    }
    let mut tail = cursor.tail();
    // The session's end is said after its last record.
    let mut last_word = None;
    let mut ack = Alarm::new();
    loop {
        // Never cancelled: a replay that is being made must not be made again for each acknowledgement.
        let mut next = std::pin::pin!(cursor.next());
        let deliveries = loop {
            tokio::select! {
                biased;
                frame = side.recv() => match frame {
                    Some(frame @ Frame::Ended { .. }) => last_word = Some(frame),
                    Some(frame @ Frame::Ack { .. }) if !ack_delay.is_zero() => {
                        writer.push(&frame);
                        ack.set_first(|| Instant::now() + ack_delay);
                    }
                    Some(frame) => {
                        if writer.send(&frame).await.is_err() {
                            return;
                        }
                        ack.set(None);
                    }
                    None => return,
                },
                () = ack.rings() => {
                    if writer.flush().await.is_err() {
                        return;
                    }
                }
                deliveries = &mut next => break deliveries,
            }
        };
        let Some(deliveries) = deliveries else { break };
        for delivery in deliveries {
            writer.push_record(delivery.part, &delivery.record);
            let seq = delivery.record.seq;
            if seq > tail.last_seq() {
                // Not in the journal yet: it is no frame before it is.
                if writer.flush_but(1).await.is_err() || !tail.wait_tried(seq).await {
                    return;
                }
            }
        }
        if writer.flush().await.is_err() {
            return;
        }
        ack.set(None);
    }
    // The host ends: its last words.
    let goodbye = async {
        while last_word.is_none() {
            match side.recv().await {
                Some(frame @ Frame::Ended { .. }) => last_word = Some(frame),
                Some(frame) => writer.send(&frame).await?,
                None => return Ok(()),
            }
        }
        match &last_word {
            Some(frame) => writer.send(frame).await,
            None => Ok(()),
        }
    };
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::host::digest::Digester;
    use crate::host::log::appending::{self, Held, is_pending};
    use crate::host::log::{Appended, Log};
    use crate::journal::record::Record;
    use crate::journal::{Writer, WriterOptions};
    use crate::wire::Message;

    /// Above what is appended on another thread, and what a socket takes at once.
    const LARGE_BYTES: usize = 2 << 20;

    fn large() -> Record {
        Record {
            seq: 1,
            time: 0,
            heard: 0,
            body: Body::Iopub {
                client: None,
                execution: 0,
                message: Message {
                    header: r#"{"msg_id":"1","msg_type":"stream"}"#.into(),
                    parent_header: "{}".into(),
                    metadata: "{}".into(),
                    content: vec![b'x'; LARGE_BYTES].into(),
                    ..Message::default()
                },
            },
        }
    }

    fn admission(log: &Log) -> (Admission, mpsc::UnboundedSender<Frame>) {
        let hello = Hello {
            version: VERSION,
            client: ClientId::from_u128(1),
            kind: "iopub".into(),
            pid: 1,
            parent_pid: None,
            claim: false,
            connection_file: None,
            replies: false,
            iopub: true,
            resume: None,
        };
        let welcome = Welcome {
            version: VERSION,
            session: "id".into(),
            name: "name".into(),
            session_id: "s".into(),
            seq: 0,
            farside: "0".into(),
        };
        let (sender, side) = mpsc::unbounded_channel();
        let digester = Digester::start("id", log.tail(), 0).unwrap();
        let cursor = Cursor::new(&hello, "s", log.tail(), digester.digests());
        let admission = Admission {
            stream: 1,
            welcome,
            cursor,
            side,
        };
        (admission, sender)
    }

    #[test]
    fn the_last_byte_of_a_record_waits_for_its_append() {
        appending::block_on(it_waits_for_its_append);
    }

    async fn it_waits_for_its_append(held: Held) {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
        let mut log = Log::new(journal, dir.path(), 0, None);
        let (admission, _side) = admission(&log);
        let mut expected = Vec::new();
        let mut encoder = LinkWriter::new(&mut expected);
        encoder.push(&Frame::Welcome(admission.welcome.clone()));
        encoder.push_record(0, &large());
        encoder.flush().await.unwrap();

        let (host, client) = UnixStream::pair().unwrap();
        let (mut client, _writer) = client.into_split();
        let (_reader, writer) = host.into_split();
        let mut writer = LinkWriter::new(writer);
        let writing = write(&mut writer, admission, ACK_DELAY);
        let conversation = async {
            let mut appending = pin!(log.append_apart(vec![Arc::new(large())]));
            assert!(is_pending(appending.as_mut()).await);
            let mut came = vec![0; expected.len() - 1];
            client.read_exact(&mut came).await.unwrap();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(is_pending(pin!(client.read_u8())).await);
            drop(held);
            assert!(matches!(appending.await, Appended::Kept));
            came.push(client.read_u8().await.unwrap());
            assert!(came == expected);
        };
        tokio::select! {
            () = writing => panic!("the stream ended"),
            () = conversation => (),
        }
    }
}
