//! Following one execution in a terminal or a pipe: its outputs as text, its input(), its end. What `farside exec`
//! and `farside attach` have in common.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Deserialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Conversation, Heard};
use super::terminal::Prompts;
use super::{Exit, Output};
use crate::session::outputs::{Ansi, TextWriter};
use crate::session::state::is_idle;
use crate::wire::{Channel, Message};

/// How following ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The execution is over, without an error.
    Ok,
    /// It raised an error, which was shown.
    Raised {
        /// The error's name.
        ename: String,
    },
    /// It was never run, since one before it raised an error.
    Aborted,
    /// The session ended first.
    SessionEnded(String),
    /// The person left (Ctrl-C), or was made to; the code runs on.
    Left,
}

/// Writes an execution's iopub messages: what it printed to stdout and what it showed to stdout, its stderr and its
/// traceback to stderr.
pub(super) struct Printer {
    out: Side,
    err: Side,
    /// stdout and stderr are shown on the same screen.
    one_screen: bool,
    shown_error: bool,
}

struct Side {
    writer: TextWriter,
    line_open: bool,
}

impl Side {
    fn new(keep_ansi: bool) -> Self {
        let ansi = if keep_ansi { Ansi::Keep } else { Ansi::Strip };
        Self {
            writer: TextWriter::new(ansi),
            line_open: false,
        }
    }
}

impl Printer {
    pub fn new(out: &Output) -> Self {
        Self {
            out: Side::new(out.style.colour),
            err: Side::new(out.colours_messages()),
            one_screen: io::stdout().is_terminal() && io::stderr().is_terminal(),
            shown_error: false,
        }
    }

    /// Writes what the message shows.
    pub fn message(&mut self, msg_type: &str, content: &[u8], out: &mut Output) -> io::Result<()> {
        let is_error = msg_type == "error";
        let to_stderr = is_error || (msg_type == "stream" && is_stderr(content));
        let (side, other) = if to_stderr {
            (&mut self.err, &mut self.out)
        } else {
            (&mut self.out, &mut self.err)
        };
        let mut text = String::new();
        side.writer.write(msg_type, content, &mut text);
        if text.is_empty() {
            return Ok(());
        }
        self.shown_error |= is_error;
        if self.one_screen && other.line_open && msg_type != "stream" {
            // A traceback has a line of its own, also behind a progress bar.
            other.line_open = false;
            text.insert(0, '\n');
        }
        side.line_open = !text.ends_with('\n');
        if to_stderr {
            out.stderr_text(&text)
        } else {
            out.data().write_all(text.as_bytes())
        }
    }

    /// Ends a line that was left open on a terminal, where a prompt or a message comes next.
    pub fn end_line(&mut self, out: &mut Output) -> io::Result<()> {
        let open = [
            (&mut self.out.line_open, io::stdout().is_terminal()),
            (&mut self.err.line_open, io::stderr().is_terminal()),
        ]
        .into_iter()
        .any(|(open, is_terminal)| std::mem::take(open) && is_terminal);
        if open {
            out.stderr_text("\n")?;
        }
        Ok(())
    }
}

fn is_stderr(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Stream<'a> {
        #[serde(borrow)]
        name: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Stream<'_>>(content).is_ok_and(|stream| stream.name == "stderr")
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Reply {
    status: String,
    ename: String,
    evalue: String,
}

/// Follows what `request` (already sent) brings, to its end.
pub(super) async fn follow(
    conversation: &mut Conversation,
    request: &Message,
    printer: &mut Printer,
    out: &mut Output,
) -> anyhow::Result<End> {
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let [interrupt, terminate, hang_up] = &mut signals;
    let msg_id = crate::session::state::header_id(&String::from_utf8_lossy(&request.header));
    let mut follower = Follower {
        msg_id,
        reply: None,
        idle: false,
        input: None,
    };
    let mut prompts = Prompts::new();
    loop {
        out.flush()?;
        tokio::select! {
            heard = conversation.next() => {
                let mut next = Some(heard?);
                while let Some(heard) = next {
                    if let Some(end) = follower.take(heard, printer, &mut prompts, out)? {
                        out.flush()?;
                        return Ok(end);
                    }
                    next = conversation.next_buffered().await?;
                }
            }
            line = prompts.answer() => match (line, follower.input.take()) {
                (Some(line), Some(asked)) => {
                    let reply = conversation.message("input_reply", &asked, &json!({ "value": line, "status": "ok" }));
                    conversation.send(Channel::Stdin, reply).await;
                }
                // Somebody else had answered.
                (Some(_), None) | (None, None) => {}
                (None, Some(_)) => out.message(
                    "the code waits for input(), and there is none on stdin; `farside attach` in a terminal answers it",
                ),
            },
            _ = interrupt.recv() => return Ok(End::Left),
            _ = terminate.recv() => return Ok(End::Left),
            _ = hang_up.recv() => return Ok(End::Left),
        }
    }
}

struct Follower {
    msg_id: String,
    reply: Option<Reply>,
    idle: bool,
    /// The input_request that waits for an answer.
    input: Option<Message>,
}

impl Follower {
    fn take(
        &mut self,
        heard: Heard,
        printer: &mut Printer,
        prompts: &mut Prompts,
        out: &mut Output,
    ) -> anyhow::Result<Option<End>> {
        match heard {
            Heard::Iopub(message) => {
                if !self.is_ours(&message) {
                    return Ok(None);
                }
                let Ok(header) = message.header() else {
                    return Ok(None);
                };
                match header.msg_type.as_ref() {
                    "status" => self.idle |= is_idle(&message.content),
                    msg_type => printer.message(msg_type, &message.content, out)?,
                }
            }
            Heard::Reply(Channel::Stdin, message) => self.prompt(message, prompts, out),
            Heard::Reply(_, message) if self.is_ours(&message) => {
                self.reply = Some(serde_json::from_slice(&message.content).unwrap_or_default());
            }
            Heard::Reply(..) | Heard::Acknowledged(_) => {}
            Heard::Ended(reason) => return Ok(Some(End::SessionEnded(reason))),
        }
        let Some(reply) = &self.reply else {
            return Ok(None);
        };
        Ok(match reply.status.as_str() {
            "aborted" | "abort" => Some(End::Aborted),
            _ if !self.idle => None,
            "ok" => Some(End::Ok),
            _ => {
                if !printer.shown_error {
                    printer.end_line(out)?;
                    out.message(&format!("{}: {}", reply.ename, reply.evalue));
                }
                Some(End::Raised {
                    ename: reply.ename.clone(),
                })
            }
        })
    }

    fn is_ours(&self, message: &Message) -> bool {
        message
            .parent()
            .is_some_and(|parent| parent.msg_id == self.msg_id)
    }

    fn prompt(&mut self, message: Message, prompts: &mut Prompts, out: &mut Output) {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Input {
            prompt: String,
            password: bool,
        }
        let input: Input = serde_json::from_slice(&message.content).unwrap_or_default();
        // What was printed before the prompt is seen before it.
        let _ = out.flush();
        prompts.ask(&input.prompt, input.password);
        if prompts.is_closed() {
            out.message(
                "\nthe code waits for input() again; `farside attach` in a terminal answers it",
            );
        } else {
            self.input = Some(message);
        }
    }
}

impl End {
    /// The exit code, and a word to the person where the outputs do not say it all.
    pub fn tell(self, session: &str, printer: &mut Printer, out: &mut Output) -> Exit {
        // A stderr that is closed leaves nobody to tell.
        let _ = printer.end_line(out);
        match self {
            Self::Ok => Exit::Done,
            Self::Raised { .. } => Exit::Raised,
            Self::Aborted => {
                out.message("this code was not run: what ran before it raised an error");
                Exit::Raised
            }
            Self::SessionEnded(reason) => {
                out.message(&format!("session {session} has ended: {reason}"));
                Exit::Raised
            }
            Self::Left => {
                out.message(&format!(
                    "left; the code runs on in session {session}: `farside attach {session}` comes back, `farside \
                     interrupt {session}` stops it"
                ));
                Exit::Done
            }
        }
    }
}
