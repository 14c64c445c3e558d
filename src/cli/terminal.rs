//! Answers to input(): a line from stdin, without echo where it is a secret.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc as std_mpsc;

use tokio::sync::mpsc;

/// What an engine takes for the end of its input (ipykernel's `raw_input`): EOFError there.
const END_OF_INPUT: &str = "\u{4}";

/// Reads lines from stdin in a thread of its own, one for each that is asked for: what nobody asks for stays
/// there.
pub(super) struct Prompts {
    asked: Option<std_mpsc::Sender<()>>,
    lines: mpsc::UnboundedReceiver<io::Result<Option<String>>>,
    answers: mpsc::UnboundedSender<io::Result<Option<String>>>,
    /// A line was asked for and has not come.
    is_reading: bool,
    is_terminal: bool,
    /// stdin has come to its end.
    is_closed: bool,
    hidden: Option<NoEcho>,
}

impl Prompts {
    pub fn new() -> Self {
        let (answers, lines) = mpsc::unbounded_channel();
        Self {
            asked: None,
            lines,
            answers,
            is_reading: false,
            is_terminal: io::stdin().is_terminal(),
            is_closed: false,
            hidden: None,
        }
    }

    /// Whether nobody can answer: stdin was no terminal, and is at its end.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Shows the prompt and asks for a line.
    pub fn ask(&mut self, prompt: &str, secret: bool) {
        // stderr: the prompt is no data.
        let _ = write!(io::stderr(), "{prompt}");
        self.hidden = if secret && self.is_terminal {
            NoEcho::new()
        } else {
            None
        };
        if self.is_reading || self.is_closed {
            // A line that was meant for an earlier prompt, which somebody else answered, is for this one.
            return;
        }
        if self.asked.is_none() {
            self.asked = self.start();
        }
        self.is_reading = self
            .asked
            .as_ref()
            .is_some_and(|asked| asked.send(()).is_ok());
    }

    fn start(&self) -> Option<std_mpsc::Sender<()>> {
        let (asked, asks) = std_mpsc::channel::<()>();
        let answers = self.answers.clone();
        let read = move || {
            for () in asks {
                let mut line = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut line);
                let answer = read.map(|bytes| (bytes > 0).then(|| as_line(&line)));
                if answers.send(answer).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(read)
            .ok()
            .map(|_| asked)
    }

    /// The line that was asked for. `None`: there is none to come.
    pub async fn answer(&mut self) -> Option<String> {
        // We hold a sender, so this ends with a line only.
        let line = self.lines.recv().await?;
        self.is_reading = false;
        if self.hidden.take().is_some() {
            let _ = writeln!(io::stderr());
        }
        match line {
            Ok(Some(line)) => Some(line),
            // Ctrl-D: the next prompt can be answered again.
            Ok(None) if self.is_terminal => {
                let _ = writeln!(io::stderr());
                Some(END_OF_INPUT.to_owned())
            }
            Ok(None) | Err(_) => {
                self.is_closed = true;
                None
            }
        }
    }
}

fn as_line(bytes: &[u8]) -> String {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

/// The terminal shows nothing of what is typed, until this is dropped.
struct NoEcho(libc::termios);

impl NoEcho {
    fn new() -> Option<Self> {
        // SAFETY: termios is a plain C struct of integers, for which all zeros is a valid value.
        let mut shown: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: writes a termios to the pointer, which is valid for the call.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut shown) } != 0 {
            return None;
        }
        let mut hidden = shown;
        hidden.c_lflag &= !libc::ECHO;
        // SAFETY: reads a termios from the pointer, which is valid for the call.
        let done = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &hidden) } == 0;
        done.then_some(Self(shown))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        // SAFETY: reads a termios from the pointer, which is valid for the call.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_without_its_end() {
        for (bytes, line) in [
            (&b"17\n"[..], "17"),
            (b"17\r\n", "17"),
            (b"17", "17"),
            (b"\n", ""),
            (b"a\n\n", "a\n"),
            (b"\xff", "\u{fffd}"),
        ] {
            assert_eq!(as_line(bytes), line);
        }
    }
}
