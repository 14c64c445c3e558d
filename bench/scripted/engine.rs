//! An engine that publishes what its code says, as fast as its subscribers take it. Unlike a real PUB socket it waits
//! for them, so that nothing is lost and what is measured is the slowest of them.
//!
//! Code is statements with `;` between them:
//!
//! - `stream COUNT BYTES`: so many stdout messages of so many bytes of text, a line each;
//! - `display COUNT BYTES`: display_data;
//! - `progress COUNT`: a bar on stderr, a message for each step, each with `\r`;
//! - `wait`: until an interrupt_request comes.

use std::cell::Cell;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use farside::transport::{Incoming, Limits, Listener, Reader, Stream, Writer, handshake};
use farside::wire::connection_file::{ConnectionFile, Socket};
use farside::wire::message::HeaderFields;
use farside::wire::zmtp::SocketType;
use farside::wire::{Key, Message, frame};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};

use super::Result;

/// What gathers before it is written.
const BATCH_BYTES: usize = 256 << 10;

/// A content without its line is shorter.
const ROOM_BYTES: usize = 128;

/// Enough for anybody on this machine.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

struct Engine {
    key: Key,
    session_id: String,
    subscribers: Mutex<Vec<(u64, Writer)>>,
    /// Of the next message, subscriber or execution.
    next: Cell<u64>,
    execution_count: Cell<u64>,
    interrupted: Notify,
    ends: Notify,
}

/// Binds the sockets of the connection file and serves until a shutdown_request.
pub async fn run(path: &str) -> Result<()> {
    let file = ConnectionFile::parse(&std::fs::read_to_string(path)?)?;
    let engine = Rc::new(Engine {
        key: file.key(),
        session_id: uuid::Uuid::new_v4().to_string(),
        subscribers: Mutex::default(),
        next: Cell::new(0),
        execution_count: Cell::new(0),
        interrupted: Notify::new(),
        ends: Notify::new(),
    });
    for socket in Socket::ALL {
        let listener = Listener::bind(&file.endpoint(socket)).await?;
        tokio::task::spawn_local(accept(socket, listener, engine.clone()));
    }
    engine.ends.notified().await;
    // The reply is on its way.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

async fn accept(socket: Socket, listener: Listener, engine: Rc<Engine>) {
    while let Ok(stream) = listener.accept().await {
        tokio::task::spawn_local(serve(socket, stream, engine.clone()));
    }
}

async fn serve(socket: Socket, stream: Stream, engine: Rc<Engine>) {
    let kind = match socket {
        Socket::Shell | Socket::Control | Socket::Stdin => SocketType::Router,
        Socket::Iopub => SocketType::Xpub,
        Socket::Heartbeat => SocketType::Rep,
    };
    let shaken = handshake(stream, kind, b"", Limits::default(), HANDSHAKE_TIMEOUT).await;
    let Ok((reader, writer, _)) = shaken else {
        return;
    };
    match socket {
        Socket::Shell | Socket::Control | Socket::Stdin => engine.converse(reader, writer).await,
        Socket::Iopub => engine.publish_to(reader, writer).await,
        Socket::Heartbeat => echo(reader, writer).await,
    }
}

async fn echo(mut reader: Reader, mut writer: Writer) {
    while let Ok(Some(incoming)) = reader.recv().await {
        if let Incoming::Message(parts) = incoming
            && writer.send(&parts).await.is_err()
        {
            return;
        }
    }
}

impl Engine {
    fn next(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    async fn publish_to(&self, mut reader: Reader, writer: Writer) {
        let number = self.next();
        let mut writer = Some(writer);
        while let Ok(Some(incoming)) = reader.recv().await {
            if let (Incoming::Subscribe(_), Some(writer)) = (incoming, writer.take()) {
                self.subscribers.lock().await.push((number, writer));
            }
        }
        self.subscribers
            .lock()
            .await
            .retain(|(other, _)| *other != number);
    }

    async fn converse(&self, mut reader: Reader, mut writer: Writer) {
        while let Ok(Some(incoming)) = reader.recv().await {
            let Incoming::Message(parts) = incoming else {
                continue;
            };
            let Ok(request) = frame::decode(parts, &self.key) else {
                continue;
            };
            let Ok(header) = request.header() else {
                continue;
            };
            let msg_type = header.msg_type.clone().into_owned();
            let Some(kind) = msg_type.strip_suffix("_request") else {
                continue;
            };
            self.status(&request, "busy").await;
            let content = self.answer(kind, &request).await;
            let mut reply = self.message(&format!("{kind}_reply"), &request, &content);
            reply.identities.clear();
            if writer
                .send(&frame::encode(&reply, &self.key))
                .await
                .is_err()
            {
                return;
            }
            self.status(&request, "idle").await;
            if kind == "shutdown" {
                self.ends.notify_one();
            }
        }
    }

    async fn answer(&self, kind: &str, request: &Message) -> Value {
        match kind {
            "kernel_info" => json!({
                "status": "ok", "protocol_version": "5.4", "implementation": "scripted", "implementation_version": "1",
                "banner": "scripted", "help_links": [], "debugger": false,
                "language_info": { "name": "script", "version": "1", "mimetype": "text/plain", "file_extension": ".txt" },
            }),
            "execute" => self.execute(request).await,
            "interrupt" => {
                self.interrupted.notify_one();
                json!({ "status": "ok" })
            }
            "shutdown" => json!({ "status": "ok", "restart": false }),
            _ => json!({ "status": "ok" }),
        }
    }

    async fn execute(&self, request: &Message) -> Value {
        let content: Value = serde_json::from_slice(&request.content).unwrap_or_default();
        let code = content["code"].as_str().unwrap_or_default();
        let count = self.execution_count.get() + 1;
        self.execution_count.set(count);
        let input = json!({ "code": code, "execution_count": count });
        let input = self.message("execute_input", request, &input);
        self.send(vec![input]).await;
        for statement in code.split(';') {
            let words: Vec<&str> = statement.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok());
            let done = match (words.first().copied(), number(1), number(2)) {
                (None, ..) | (Some("pass"), ..) => Ok(()),
                (Some("stream"), Some(count), Some(bytes)) => {
                    let content = |at| stream("stdout", |text| line(text, at, bytes));
                    self.flood(request, "stream", count, content).await
                }
                (Some("display"), Some(count), Some(bytes)) => {
                    let content = |at| display(|text| line(text, at, bytes));
                    self.flood(request, "display_data", count, content).await
                }
                (Some("progress"), Some(count), _) => {
                    let content = |at| stream("stderr", |text| bar(text, at + 1, count));
                    self.flood(request, "stream", count, content).await
                }
                (Some("wait"), ..) => {
                    self.interrupted.notified().await;
                    Ok(())
                }
                _ => Err(format!("no statement: {statement}")),
            };
            if let Err(evalue) = done {
                return json!({ "status": "error", "ename": "ScriptError", "evalue": evalue, "traceback": [],
                    "execution_count": count });
            }
        }
        json!({ "status": "ok", "execution_count": count, "payload": [], "user_expressions": {} })
    }

    async fn flood(
        &self,
        request: &Message,
        msg_type: &str,
        count: usize,
        content: impl Fn(usize) -> Vec<u8>,
    ) -> std::result::Result<(), String> {
        let template = self.message(msg_type, request, &json!({}));
        // Made by hand, as the content is: an engine that is to be no bottleneck has a microsecond for a message.
        let header = String::from_utf8_lossy(&template.header).into_owned();
        let id_end = header.find(&self.session_id).unwrap_or(0) + self.session_id.len();
        let (id, rest) = header.split_at(id_end);
        let rest = &rest[rest.find('"').unwrap_or(0)..];
        let mut batch = Vec::new();
        let mut bytes = 0;
        for at in 0..count {
            let message = Message {
                header: format!("{id}_{}_{}{rest}", std::process::id(), self.next()).into(),
                content: content(at).into(),
                ..template.clone()
            };
            bytes += message.size_bytes();
            batch.push(message);
            if bytes >= BATCH_BYTES {
                self.send(std::mem::take(&mut batch)).await;
                bytes = 0;
            }
        }
        self.send(batch).await;
        Ok(())
    }

    async fn status(&self, request: &Message, state: &str) {
        let message = self.message("status", request, &json!({ "execution_state": state }));
        self.send(vec![message]).await;
    }

    async fn send(&self, messages: Vec<Message>) {
        let encoded: Vec<Vec<Bytes>> = (messages.iter())
            .map(|message| frame::encode(message, &self.key))
            .collect();
        let mut subscribers = self.subscribers.lock().await;
        let mut gone = Vec::new();
        for (number, writer) in subscribers.iter_mut() {
            if writer.send_many(&encoded).await.is_err() {
                gone.push(*number);
            }
        }
        subscribers.retain(|(number, _)| !gone.contains(number));
    }

    fn message(&self, msg_type: &str, request: &Message, content: &Value) -> Message {
        Message {
            identities: vec![format!("kernel.scripted.{msg_type}").into()],
            header: self.header(msg_type),
            parent_header: request.header.clone(),
            metadata: Bytes::from_static(b"{}"),
            content: content.to_string().into(),
            buffers: Vec::new(),
        }
    }

    /// In about the length of ipykernel's.
    fn header(&self, msg_type: &str) -> Bytes {
        let fields = HeaderFields {
            msg_id: &format!("{}_{}_{}", self.session_id, std::process::id(), self.next()),
            msg_type,
            session_id: &self.session_id,
            username: "username",
            date: 1_800_000_000_000_000,
        };
        fields.to_json()
    }
}

/// A line of `bytes` bytes that tells its number, as JSON has it.
fn line(text: &mut Vec<u8>, at: usize, bytes: usize) {
    let begun = text.len();
    text.reserve(bytes + ROOM_BYTES);
    let _ = write!(text, "{at} ");
    text.resize(text.len().max(begun + bytes.saturating_sub(1)), b'x');
    text.extend_from_slice(b"\\n");
}

/// A progress bar, as tqdm draws it.
fn bar(text: &mut Vec<u8>, at: usize, count: usize) {
    let done = 30 * at / count;
    let _ = write!(
        text,
        "\\r{:3}%|{:#<done$}{:<left$}| {at}/{count}",
        100 * at / count,
        "",
        "",
        left = 30 - done
    );
}

fn stream(name: &str, text: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    content(&format!(r#"{{"name": "{name}", "text": ""#), text, "\"}")
}

fn display(text: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let after = r#""}, "metadata": {}, "transient": {}}"#;
    content(r#"{"data": {"text/plain": ""#, text, after)
}

/// In one piece from the beginning: large ones are not copied.
fn content(before: &str, text: impl Fn(&mut Vec<u8>), after: &str) -> Vec<u8> {
    let mut content = Vec::with_capacity(ROOM_BYTES);
    content.extend_from_slice(before.as_bytes());
    text(&mut content);
    content.extend_from_slice(after.as_bytes());
    content
}
