//! A frontend that executes each line of its stdin and counts what comes, without looking at more than it must: it
//! checks no signatures. For each line it prints one of JSON: seconds to the first output, to the reply, to the idle
//! and to the end (reply, and idle at every subscriber), outputs and their bytes. A line that begins with `?` is done with
//! its first output.

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside::transport::{Incoming, Limits, Reader, Writer, connect, handshake};
use farside::wire::connection_file::{ConnectionFile, Endpoint, Socket};
use farside::wire::message::HeaderFields;
use farside::wire::zmtp::SocketType;
use farside::wire::{Key, Message, frame};
use serde_json::{Value, json};

use super::Result;

/// A kernel that is just starting binds within this.
const START_TIMEOUT: Duration = Duration::from_secs(60);

const RETRY_EVERY: Duration = Duration::from_millis(5);

/// How long to wait for the idle of a kernel_info_request before it is asked again: the subscription may not have
/// been there yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// No content of a status is as long as this.
const STATUS_BYTES_MAX: usize = 64;

struct Frontend {
    key: Key,
    session_id: String,
    asked: u64,
    shell: (Reader, Writer),
    subscribers: Vec<(Reader, Writer)>,
}

/// What one subscriber saw of a request.
#[derive(Default)]
struct Seen {
    first: Option<Duration>,
    idle: Duration,
    outputs: u64,
    bytes: u64,
}

/// `subscribers`: so many iopub connections. What is printed is of the first one, but for the end.
pub async fn run(path: &str, subscribers: usize) -> Result<()> {
    let file = ConnectionFile::parse(&std::fs::read_to_string(path)?)?;
    let identity = uuid::Uuid::new_v4().simple().to_string();
    let mut frontend = Frontend {
        key: file.key(),
        shell: join(
            &file.endpoint(Socket::Shell),
            SocketType::Dealer,
            identity.as_bytes(),
        )
        .await?,
        session_id: identity,
        asked: 0,
        subscribers: Vec::new(),
    };
    for _ in 0..subscribers {
        let (reader, mut writer) =
            join(&file.endpoint(Socket::Iopub), SocketType::Sub, b"").await?;
        writer.subscribe(b"").await?;
        frontend.subscribers.push((reader, writer));
    }
    frontend.be_ready().await?;
    say(&json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let measured = match line.strip_prefix('?') {
            Some(code) => frontend.first_output(code).await?,
            None => frontend.execute(&line).await?,
        };
        say(&measured)?;
    }
    Ok(())
}

fn say(value: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()?;
    Ok(())
}

async fn join(endpoint: &Endpoint, kind: SocketType, identity: &[u8]) -> Result<(Reader, Writer)> {
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let stream = match connect(endpoint).await {
            Ok(stream) => stream,
            Err(_) if Instant::now() < until => {
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(error) => return Err(format!("{endpoint}: {error}").into()),
        };
        let (reader, writer, _) =
            handshake(stream, kind, identity, Limits::default(), START_TIMEOUT).await?;
        return Ok((reader, writer));
    }
}

impl Frontend {
    async fn ask(&mut self, msg_type: &str, content: &Value) -> Result<String> {
        self.asked += 1;
        let msg_id = format!("{}_{}", self.session_id, self.asked);
        let header = HeaderFields {
            msg_id: &msg_id,
            msg_type,
            session_id: &self.session_id,
            username: "bench",
            date: 0,
        };
        let request = Message::new(&header, &Bytes::new(), content);
        self.shell
            .1
            .send(&frame::encode(&request, &self.key))
            .await?;
        Ok(msg_id)
    }

    /// Until a kernel_info_request was answered, and its idle seen by every subscriber.
    async fn be_ready(&mut self) -> Result<()> {
        let until = Instant::now() + START_TIMEOUT;
        while Instant::now() < until {
            let msg_id = self.ask("kernel_info_request", &json!({})).await?;
            let answered = async {
                reply(&mut self.shell.0, &msg_id).await?;
                for (reader, _) in &mut self.subscribers {
                    follow(reader, &msg_id, Instant::now(), u64::MAX).await?;
                }
                Result::Ok(())
            };
            if let Ok(done) = tokio::time::timeout(ASK_AGAIN, answered).await {
                return done;
            }
        }
        Err("the kernel did not get ready".into())
    }

    async fn ask_to_execute(&mut self, code: &str) -> Result<String> {
        let content = json!({ "code": code, "silent": false, "store_history": true, "user_expressions": {},
            "allow_stdin": false, "stop_on_error": true });
        self.ask("execute_request", &content).await
    }

    /// What comes after it is passed over by whoever reads next.
    async fn first_output(&mut self, code: &str) -> Result<Value> {
        let begun = Instant::now();
        let msg_id = self.ask_to_execute(code).await?;
        let seen = follow(&mut self.subscribers[0].0, &msg_id, begun, 1).await?;
        Ok(json!({ "first": seen.first.map(|first| first.as_secs_f64()) }))
    }

    async fn execute(&mut self, code: &str) -> Result<Value> {
        let begun = Instant::now();
        let msg_id = self.ask_to_execute(code).await?;
        // The first one beside the reply, and each of the others in a task of its own.
        let mut others = tokio::task::JoinSet::new();
        for (mut reader, writer) in self.subscribers.drain(1..) {
            let msg_id = msg_id.clone();
            others.spawn_local(async move {
                let seen = follow(&mut reader, &msg_id, begun, u64::MAX).await;
                (seen.map_err(|error| error.to_string()), reader, writer)
            });
        }
        let replied = async {
            let status = reply(&mut self.shell.0, &msg_id).await?;
            Result::Ok((begun.elapsed(), status))
        };
        let seen = follow(&mut self.subscribers[0].0, &msg_id, begun, u64::MAX);
        let ((replied, status), seen) = tokio::try_join!(replied, seen)?;
        let mut outputs_of_all = seen.outputs;
        while let Some(done) = others.join_next().await {
            let (other, reader, writer) = done?;
            outputs_of_all += other?.outputs;
            self.subscribers.push((reader, writer));
        }
        Ok(json!({
            "first": seen.first.map(|first| first.as_secs_f64()), "reply": replied.as_secs_f64(),
            "idle": seen.idle.as_secs_f64(), "end": begun.elapsed().as_secs_f64(), "outputs": seen.outputs,
            "bytes": seen.bytes, "outputs_of_all": outputs_of_all, "status": status,
        }))
    }
}

/// Reads until the reply to `msg_id`, and gives its status.
async fn reply(reader: &mut Reader, msg_id: &str) -> Result<Value> {
    let mut of = Of::new(msg_id);
    loop {
        let message = next(reader).await?;
        if of.is_parent(&message.parent_header) {
            let content: Value = serde_json::from_slice(&message.content)?;
            return Ok(content["status"].clone());
        }
    }
}

/// Reads until the idle of `msg_id`, or until so many outputs of it have come.
async fn follow(
    reader: &mut Reader,
    msg_id: &str,
    begun: Instant,
    outputs_max: u64,
) -> Result<Seen> {
    let mut of = Of::new(msg_id);
    let mut seen = Seen::default();
    while seen.outputs < outputs_max {
        let message = next(reader).await?;
        if !of.is_parent(&message.parent_header) {
            continue;
        }
        if message.content.len() < STATUS_BYTES_MAX && has(&message.header, b"\"status\"") {
            if has(&message.content, b"\"idle\"") {
                seen.idle = begun.elapsed();
                return Ok(seen);
            }
        } else if seen.first.is_some() || !has(&message.header, b"\"execute_input\"") {
            seen.first.get_or_insert_with(|| begun.elapsed());
            seen.outputs += 1;
            seen.bytes += message.content.len() as u64;
        }
    }
    Ok(seen)
}

/// The next message; of what it is made of nothing is checked.
async fn next(reader: &mut Reader) -> Result<Message> {
    loop {
        let parts = match reader.recv().await? {
            Some(Incoming::Message(parts)) => parts,
            Some(Incoming::Subscribe(_) | Incoming::Unsubscribe(_)) => continue,
            None => return Err("the kernel closed the connection".into()),
        };
        let delimiter = parts.iter().position(|part| part == frame::DELIMITER);
        let after = &parts[delimiter.ok_or("no message")? + 1..];
        let [_signature, header, parent_header, _metadata, content, ..] = after else {
            return Err("a message that is too short".into());
        };
        return Ok(Message {
            header: header.clone(),
            parent_header: parent_header.clone(),
            content: content.clone(),
            ..Message::default()
        });
    }
}

/// Knows the parent_headers of one request.
struct Of {
    id: String,
    /// Where it was found last: they are all alike.
    at: usize,
}

impl Of {
    fn new(msg_id: &str) -> Self {
        Self {
            id: format!("\"{msg_id}\""),
            at: 0,
        }
    }

    fn is_parent(&mut self, header: &[u8]) -> bool {
        let id = self.id.as_bytes();
        let here = |at: usize| header.get(at..at + id.len()) == Some(id);
        if here(self.at) {
            return true;
        }
        match (0..header.len()).find(|at| here(*at)) {
            Some(at) => {
                self.at = at;
                true
            }
            None => false,
        }
    }
}

fn has(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
