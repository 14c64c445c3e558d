//! PURE. Owns the one line of a stream output that can still change: `\r` and `\b` as JupyterLab applies them.
//! Refuses to know messages and JSON.
//!
//! Source: `processText` in @jupyterlab/outputarea 4.6 (lib/model.js). What it does, quirks included:
//! - positions are UTF-16 code units; text overwrites from the cursor on;
//! - `\r` moves the cursor to the start of the line and deletes nothing;
//! - `\b` deletes the unit before the cursor *and the one under it*, and stops at the start of the line;
//! - `\n` goes to the end of the text wherever the cursor was, so `\r\n` is a plain newline.
//!
//! Invariant: a line that got its `\n` never changes again, so only one line has to be held back.

/// The open last line of a stream, with its cursor.
#[derive(Debug)]
pub(super) struct OpenLine {
    units: Vec<u16>,
    cursor: usize,
    units_max: usize,
}

impl OpenLine {
    /// `units_max`: past this length the front of the line counts as finished and `\r` no longer gets there.
    pub fn new(units_max: usize) -> Self {
        Self {
            units: Vec::new(),
            cursor: 0,
            units_max: units_max.max(1),
        }
    }

    /// Applies `text`. Finished pieces go to `done` in order; joined they are the text before the open line.
    pub fn push(&mut self, mut text: &str, mut done: impl FnMut(&str)) {
        while !text.is_empty() {
            if self.cursor == self.units.len() {
                text = self.append(text, &mut done);
            }
            text = self.control(text, &mut done);
            text = self.overwrite(text, &mut done);
        }
    }

    /// The line as it is seen.
    pub fn visible(&self) -> String {
        to_string(&self.units)
    }

    /// Text that brings an empty line into this state, cursor included, so that what follows live has the same
    /// effect as it had on the original.
    pub fn replay(&self) -> String {
        let (left, right) = self.units.split_at(self.cursor);
        let mut text = to_string(&self.units);
        match (left.last(), right.first()) {
            (_, None) => {}
            // `\b` can leave the cursor within a pair, and only `\b` gets it there: one that joins the halves of two.
            (Some(&high @ 0xD800..0xDC00), Some(&low @ 0xDC00..0xE000)) => {
                let to_pair = to_string(left[..left.len() - 1].iter().chain(&[high, low]));
                text = to_pair.clone() + &to_string([high, low].iter().chain(&right[1..]));
                text.push('\r');
                text.push_str(&to_pair);
                text.push('\x08');
            }
            _ => {
                text.push('\r');
                text.push_str(&to_string(left));
            }
        }
        text
    }

    /// What the line costs in memory.
    pub fn size_bytes(&self) -> usize {
        self.units.len() * 2
    }

    /// The cursor is at the end: everything up to the next control character is text after text.
    fn append<'a>(&mut self, text: &'a str, done: &mut impl FnMut(&str)) -> &'a str {
        let end = find2(text.as_bytes(), b'\r', b'\x08').unwrap_or(text.len());
        let (plain, rest) = text.split_at(end);
        let tail = match plain.as_bytes().iter().rposition(|&b| b == b'\n') {
            Some(newline) => {
                let (lines, tail) = plain.split_at(newline + 1);
                if !self.units.is_empty() {
                    done(&to_string(&self.units));
                    self.units.clear();
                    self.cursor = 0;
                }
                done(lines);
                tail
            }
            None => plain,
        };
        let tail = self.skip_front(tail, done);
        self.write(tail, done);
        rest
    }

    /// The part of `text` that can be in the line when all of it has come; what is before that is finished.
    fn skip_front<'a>(&mut self, text: &'a str, done: &mut impl FnMut(&str)) -> &'a str {
        // At most three bytes a unit.
        let reach = self.units_max.saturating_mul(3);
        if text.len() <= reach.saturating_mul(2) {
            return text;
        }
        let (front, reached) = text.split_at(char_boundary(text, text.len() - reach));
        done(&to_string(&self.units));
        done(front);
        self.units.clear();
        self.cursor = 0;
        reached
    }

    /// Control characters at the start of `text`.
    fn control<'a>(&mut self, text: &'a str, done: &mut impl FnMut(&str)) -> &'a str {
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\r' => self.cursor = 0,
                b'\x08' if self.cursor > 0 => {
                    let end = (self.cursor + 1).min(self.units.len());
                    self.units.drain(self.cursor - 1..end);
                    self.cursor -= 1;
                }
                b'\x08' => {}
                b'\n' => {
                    let mut line = to_string(&self.units);
                    line.push('\n');
                    done(&line);
                    self.units.clear();
                    self.cursor = 0;
                }
                _ => break,
            }
            at += 1;
        }
        &text[at..]
    }

    /// Plain text with the cursor within the line.
    fn overwrite<'a>(&mut self, text: &'a str, done: &mut impl FnMut(&str)) -> &'a str {
        if self.cursor == self.units.len() {
            return text;
        }
        let end = text
            .as_bytes()
            .iter()
            .position(|b| matches!(b, b'\r' | b'\n' | 8))
            .unwrap_or(text.len());
        let (plain, rest) = text.split_at(end);
        self.write(plain, done);
        rest
    }

    fn write(&mut self, text: &str, done: &mut impl FnMut(&str)) {
        for piece in pieces(text, self.units_max) {
            let mut units = piece.encode_utf16();
            for slot in &mut self.units[self.cursor..] {
                match units.next() {
                    Some(unit) => *slot = unit,
                    None => break,
                }
                self.cursor += 1;
            }
            if self.cursor == self.units.len() {
                self.units.extend(units);
                self.cursor = self.units.len();
            }
            if self.units.len() > self.units_max.saturating_mul(2) {
                self.give_up_front(done);
            }
        }
    }

    fn give_up_front(&mut self, done: &mut impl FnMut(&str)) {
        let mut cut = self.units.len() - self.units_max;
        // Not through the middle of a surrogate pair.
        if (0xDC00..0xE000).contains(&self.units[cut]) {
            cut -= 1;
        }
        done(&to_string(&self.units[..cut]));
        self.units.drain(..cut);
        self.cursor = self.cursor.saturating_sub(cut);
    }
}

/// A half of a surrogate pair, left behind where `\b` or an overwrite took its other half, is shown as U+FFFD by
/// browsers, and has no place in UTF-8.
fn to_string<'a>(units: impl IntoIterator<Item = &'a u16>) -> String {
    let chars = char::decode_utf16(units.into_iter().copied());
    chars
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// `text` in pieces of at most `bytes_max` bytes (or one character), cut between characters.
fn pieces(mut text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (piece, rest) = text.split_at(char_boundary(text, bytes_max));
        text = rest;
        Some(piece)
    })
}

/// The last place at or before `bytes_max` that is no middle of a character; behind the first character at least.
pub(super) fn char_boundary(text: &str, bytes_max: usize) -> usize {
    if bytes_max >= text.len() {
        return text.len();
    }
    let before = (1..=bytes_max).rev().find(|&at| text.is_char_boundary(at));
    before.unwrap_or_else(|| text.chars().next().map_or(0, char::len_utf8))
}

/// Whether applying `text` needs more than appending it.
pub(super) fn has_controls(text: &str) -> bool {
    find2(text.as_bytes(), b'\r', b'\x08').is_some()
}

/// Place of the first `a` or `b`. In blocks, which the compiler turns into vector code: this scan is most of what
/// compaction does with plain output.
fn find2(bytes: &[u8], a: u8, b: u8) -> Option<usize> {
    const BLOCK: usize = 64;
    let mut at = 0;
    for block in bytes.chunks(BLOCK) {
        if block
            .iter()
            .fold(false, |hit, &byte| hit | (byte == a) | (byte == b))
        {
            return block
                .iter()
                .position(|&byte| byte == a || byte == b)
                .map(|i| at + i);
        }
        at += block.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (text, what JupyterLab shows). The expectations were taken from running its `processText` itself.
    const SHOWN: &[(&str, &str)] = &[
        ("abc\rX", "Xbc"),
        ("abc\r\n", "abc\n"),
        ("abc\rX\nd", "Xbc\nd"),
        ("abc\r", "abc"),
        ("abc\r\rde\n", "dec\n"),
        ("ab\x08c", "ac"),
        ("\x08\x08ab\x08\x08\x08c", "c"),
        ("ab\n\x08c", "ab\nc"),
        ("abcd\rxy\x08z", "xz"),
        ("10%\r\x1b[32m100%\x1b[0m", "\x1b[32m100%\x1b[0m"),
        ("😀b\rx", "x\u{FFFD}b"),
        ("😀\x08", "\u{FFFD}"),
        ("a\r\r\nb", "a\nb"),
    ];

    fn shown(parts: &[&str]) -> (String, OpenLine) {
        let mut line = OpenLine::new(1 << 20);
        let mut text = String::new();
        for part in parts {
            line.push(part, |done| text.push_str(done));
        }
        text.push_str(&line.visible());
        (text, line)
    }

    #[test]
    fn shows_what_jupyterlab_shows_however_it_is_cut() {
        for (text, expected) in SHOWN {
            assert_eq!(shown(&[text]).0, *expected, "{text:?}");
            for at in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
                assert_eq!(
                    shown(&[&text[..at], &text[at..]]).0,
                    *expected,
                    "{text:?} cut at {at}"
                );
            }
        }
    }

    #[test]
    fn an_open_line_is_replayed_with_its_cursor() {
        for (text, replay) in [
            ("abc\r", "abc\r"),
            ("abc\rX", "Xbc\rX"),
            ("ab", "ab"),
            ("a\r\n", ""),
            ("\r", ""),
            // The cursor between the halves of the second emoji.
            ("x😀😁y\rx😀\x08", "x😁😁y\rx😁\x08"),
        ] {
            assert_eq!(shown(&[text]).1.replay(), replay, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut line = OpenLine::new(100);
        let mut text = String::new();
        for _ in 0..100 {
            line.push("äöü and so on, ", |done| text.push_str(done));
            assert!(line.units.len() <= 200 + 15);
        }
        line.push(&"x".repeat(10_000), |done| text.push_str(done));
        assert!(line.units.len() <= 200);
        assert_eq!(
            text + &line.visible(),
            "äöü and so on, ".repeat(100) + &"x".repeat(10_000)
        );
    }
}
