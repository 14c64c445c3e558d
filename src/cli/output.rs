//! Where a command's words go: data to stdout, messages to stderr, colour only where it can be seen.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use super::render::Style;

/// stdout and stderr of a command.
pub struct Output {
    data: BufWriter<Stdout>,
    /// How tables and texts on stdout look.
    pub style: Style,
    colour_messages: bool,
}

impl Output {
    /// stdout and stderr of this process.
    pub fn of_process() -> Self {
        let colour_wanted = colour_wanted();
        let is_terminal = io::stdout().is_terminal();
        let style = Style {
            colour: colour_wanted && is_terminal,
            width: is_terminal
                .then(|| terminal_columns(libc::STDOUT_FILENO))
                .flatten(),
        };
        let colour_messages = colour_wanted && io::stderr().is_terminal();
        Self {
            data: BufWriter::new(io::stdout()),
            style,
            colour_messages,
        }
    }

    /// A line of data.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.data, "{text}")
    }

    /// Data as it is.
    pub fn data(&mut self) -> &mut impl Write {
        &mut self.data
    }

    /// A value as JSON, for `--json`.
    pub fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.data, value)?;
        writeln!(self.data)
    }

    /// Makes all data so far visible.
    pub fn flush(&mut self) -> io::Result<()> {
        self.data.flush()
    }

    /// A message for the person. Data written before it is seen before it.
    pub fn message(&mut self, text: &str) {
        // A closed stdout shows itself at the next write of data; a closed stderr leaves nobody to tell.
        let _ = self.data.flush();
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Whether messages may be coloured.
    pub fn colours_messages(&self) -> bool {
        self.colour_messages
    }

    /// Text of the engine's for stderr, as it is. Data written before it is seen before it.
    pub fn stderr_text(&mut self, text: &str) -> io::Result<()> {
        self.data.flush()?;
        io::stderr().write_all(text.as_bytes())
    }

    /// What went wrong, on one line.
    pub fn error(&mut self, error: &anyhow::Error) {
        let label = if self.colour_messages {
            "\u{1b}[1;31merror:\u{1b}[0m"
        } else {
            "error:"
        };
        self.message(&format!("{label} {}", with_causes(error)));
    }
}

/// An error and what it came of, where that is not in its own words already.
fn with_causes(error: &anyhow::Error) -> String {
    error
        .chain()
        .fold(String::new(), |said, cause| match cause.to_string() {
            cause if said.is_empty() => cause,
            cause if said.ends_with(&cause) => said,
            cause => format!("{said}: {cause}"),
        })
}

/// NO_COLOR (no-color.org): set and not empty means no colour. So does a terminal that cannot show it.
fn colour_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal behind a descriptor.
fn terminal_columns(fd: libc::c_int) -> Option<u16> {
    if let Some(columns) = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Some(columns);
    }
    // SAFETY: winsize is a plain C struct of integers, for which all zeros is a valid value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize to the pointer, which is valid for the call; a bad descriptor gives an error.
    let answered = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) } == 0;
    (answered && size.ws_col > 0).then_some(size.ws_col)
}
