//! PURE. Writes outputs as plain text, for a terminal or a pipe (`farside logs`, `exec`, `attach`).
//! Refuses to know which: that is the caller's [`Ansi`].

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Replayed;
use super::content;

/// What becomes of escape sequences (colours) in the engine's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ansi {
    /// They stay, for a terminal.
    Keep,
    /// They go, for a file or a pipe.
    Strip,
}

/// The outputs as text.
pub fn to_text(messages: &[Replayed], ansi: Ansi) -> String {
    let mut text = String::new();
    let mut writer = TextWriter::new(ansi);
    for message in messages {
        writer.write(&message.msg_type, &message.content, &mut text);
    }
    text
}

/// Turns iopub messages into text one by one. Stream texts pass with their `\r` and `\b`, for the terminal to
/// apply; results and displays stand on lines of their own.
#[derive(Debug)]
pub struct TextWriter {
    ansi: Ansi,
    escape: Escape,
    line_open: bool,
}

/// Where in an escape sequence the text so far ends (ECMA-48, 5.4 and 8.3.89).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Csi,
    /// OSC, DCS and the like, up to BEL or ST.
    Text,
    TextEnding,
}

impl TextWriter {
    /// At the start of a line.
    pub fn new(ansi: Ansi) -> Self {
        Self {
            ansi,
            escape: Escape::None,
            line_open: false,
        }
    }

    /// Appends what the message shows to `out`: nothing for those that show nothing.
    pub fn write(&mut self, msg_type: &str, content: &[u8], out: &mut String) {
        match msg_type {
            "stream" => {
                if let Some(stream) = content::stream(content) {
                    self.text(&stream.text, out);
                }
            }
            "display_data" | "execute_result" => self.block(&bundle(content), out),
            "error" => self.block(&error(content), out),
            _ => {}
        }
    }

    fn block(&mut self, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        if self.line_open {
            self.text("\n", out);
        }
        self.text(text, out);
        if self.line_open {
            self.text("\n", out);
        }
    }

    fn text(&mut self, text: &str, out: &mut String) {
        if let Some(last) = text.bytes().last() {
            self.line_open = last != b'\n';
        }
        match self.ansi {
            Ansi::Keep => out.push_str(text),
            Ansi::Strip => out.extend(text.chars().filter(|&c| self.shown(c))),
        }
    }

    fn shown(&mut self, c: char) -> bool {
        let was = self.escape;
        self.escape = match (was, c) {
            (Escape::TextEnding, '\\') => Escape::None,
            (Escape::Text, '\x1b') => Escape::TextEnding,
            (_, '\x1b') => Escape::Begun,
            (Escape::None, _) => Escape::None,
            (Escape::Begun | Escape::TextEnding, '[') => Escape::Csi,
            (Escape::Begun | Escape::TextEnding, ']' | 'P' | 'X' | '^' | '_') => Escape::Text,
            (Escape::Begun | Escape::TextEnding, ' '..='/') => Escape::Begun,
            (Escape::Begun | Escape::TextEnding, _) => Escape::None,
            (Escape::Csi, ' '..='?') => Escape::Csi,
            (Escape::Csi, _) => Escape::None,
            (Escape::Text, '\x07') => Escape::None,
            (Escape::Text, _) => Escape::Text,
        };
        was == Escape::None && self.escape == Escape::None
    }
}

fn error(content: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Error {
        ename: String,
        evalue: String,
        traceback: Vec<String>,
    }
    match serde_json::from_slice(content) {
        Ok(Error {
            ename,
            evalue,
            traceback,
        }) if traceback.is_empty() => format!("{ename}: {evalue}"),
        Ok(Error { traceback, .. }) => traceback.join("\n"),
        Err(_) => String::new(),
    }
}

/// text/plain where there is some, and a placeholder for each thing that a terminal cannot show.
fn bundle(content: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        data: Map<String, Value>,
    }
    let Ok(Content { data }) = serde_json::from_slice(content) else {
        return String::new();
    };
    let plain = data.get("text/plain").map(multiline);
    let mut text = plain.clone().unwrap_or_default();
    for (mime, value) in &data {
        let binary = ["image/", "audio/", "video/", "application/pdf"]
            .iter()
            .any(|kind| mime.starts_with(kind));
        if binary || plain.is_none() {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("[{mime} {}]", size(bytes_of(mime, value))));
        }
    }
    text
}

/// nbformat and some engines write texts as lists of lines.
fn multiline(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        other => other.to_string(),
    }
}

fn bytes_of(mime: &str, value: &Value) -> usize {
    match value {
        // Base64, but for XML.
        Value::String(text) if !mime.starts_with("text/") && !mime.ends_with("+xml") => {
            text.bytes()
                .filter(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
                .count()
                * 3
                / 4
        }
        Value::String(text) => text.len(),
        other => other.to_string().len(),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes.div_ceil(1_000)),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ansi: Ansi, messages: &[(&'static str, &str)]) -> String {
        let mut out = String::new();
        let mut writer = TextWriter::new(ansi);
        for (msg_type, content) in messages {
            writer.write(msg_type, content.as_bytes(), &mut out);
        }
        out
    }

    #[test]
    fn everything_has_a_text() {
        let messages = [
            ("stream", r#"{"name":"stdout","text":"epoch 1"}"#),
            (
                "display_data",
                r#"{"data":{"image/png":"QUJDREVGR0g=","text/plain":"<Figure>"},"metadata":{}}"#,
            ),
            (
                "execute_result",
                r#"{"data":{"text/plain":"42","text/html":"<b>42</b>"},"execution_count":1}"#,
            ),
            (
                "display_data",
                r#"{"data":{"text/html":"<b>no plain</b>"}}"#,
            ),
            ("status", r#"{"execution_state":"idle"}"#),
            (
                "error",
                r#"{"ename":"E","evalue":"v","traceback":["\u001b[31mE\u001b[0m","  v"]}"#,
            ),
            ("error", r#"{"ename":"E","evalue":"v","traceback":[]}"#),
            ("stream", "not json"),
        ];
        let expected = "epoch 1\n<Figure>\n[image/png 8 B]\n42\n[text/html 15 B]\nE\n  v\nE: v\n";
        assert_eq!(text(Ansi::Strip, &messages), expected);
        assert_eq!(
            text(Ansi::Keep, &messages),
            expected.replace("E\n  v", "\x1b[31mE\x1b[0m\n  v")
        );
    }

    #[test]
    fn escape_sequences_go_wherever_they_are_cut() {
        let shown = "a\x1b[1;31mb\x1b]8;;http://x\x1b\\c\x1b]0;t\x07d\x1b(Be\x1b[0K\x1bMf";
        for at in 0..=shown.len() {
            let parts =
                [&shown[..at], &shown[at..]].map(|part| content::write_stream("stdout", part));
            let mut out = String::new();
            let mut writer = TextWriter::new(Ansi::Strip);
            parts
                .iter()
                .for_each(|part| writer.write("stream", part, &mut out));
            assert_eq!(out, "abcdef", "cut at {at}");
        }
    }
}
