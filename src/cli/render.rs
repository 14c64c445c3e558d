//! PURE. Tables and times for people.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Table, Width,
    presets,
};

use crate::config::format_duration;
use crate::journal::record::{ExecutionState, Micros};
use crate::state_dir::SessionState;

/// A wrapped column narrower than this (padding included) cannot be read; the line is then too long instead.
const WRAPPED_COLUMNS_MIN: u16 = 14;

/// Stands where there is nothing to say.
pub const NOTHING: &str = "-";

/// How text is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether to use ANSI colours.
    pub colour: bool,
    /// Columns to fit into; `None`: as wide as it comes (a pipe).
    pub width: Option<u16>,
}

/// How a cell is shown where there is colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Tone {
    Plain,
    Dim,
    Good,
    Active,
    Attention,
    Bad,
}

/// One cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    /// What it says. Control characters may be in it: [`visible`] is for who shows it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How it is shown.
    pub fn tone(&self) -> Tone {
        self.tone
    }
}

/// A cell in this tone.
pub fn field(text: impl Into<String>, tone: Tone) -> Field {
    Field {
        text: text.into(),
        tone,
    }
}

/// A plain cell.
pub fn plain(text: impl Into<String>) -> Field {
    field(text, Tone::Plain)
}

/// What is not there is a dash.
pub fn or_dash(text: Option<String>) -> Field {
    text.map_or_else(|| field(NOTHING, Tone::Dim), plain)
}

/// Rows in aligned columns, no frame. A heading that begins with `>` stands over a column aligned to the right, one
/// with `~` over one that is wrapped where the terminal is too narrow; the others keep their width.
pub fn table(headings: &[&str], rows: Vec<Vec<Field>>, style: Style) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    match style.width {
        Some(width) => table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    // Whether there is a terminal was decided by the caller.
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let heading =
        |text: &&str| Cell::new(text.trim_start_matches(['>', '~'])).add_attribute(Attribute::Bold);
    table.set_header(headings.iter().map(heading));
    for row in rows {
        table.add_row(Row::from(
            row.into_iter()
                .map(|field| cell(field, style))
                .collect::<Vec<_>>(),
        ));
    }
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        let may_wrap = heading.starts_with('~') && style.width.is_some();
        column.set_constraint(if may_wrap {
            ColumnConstraint::LowerBoundary(Width::Fixed(WRAPPED_COLUMNS_MIN))
        } else {
            ColumnConstraint::ContentWidth
        });
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // The blanks that fill the last column are of no use.
    table
        .to_string()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

fn cell(field: Field, style: Style) -> Cell {
    let cell = Cell::new(visible(&field.text));
    if !style.colour {
        return cell;
    }
    match field.tone {
        Tone::Plain => cell,
        Tone::Dim => cell.add_attribute(Attribute::Dim),
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Active => cell.fg(Color::DarkCyan),
        Tone::Attention => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed),
    }
}

/// Text that somebody else chose (a name, a line of code) cannot move the cursor or set a colour.
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The beginning of a text's first line with something on it, at most `chars_max` characters; `...` where there is
/// more.
pub fn first_line(text: &str, chars_max: usize) -> String {
    let mut lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty());
    let line = lines.next().unwrap_or_default();
    let more = lines.next().is_some();
    if line.chars().count() <= chars_max && !more {
        return visible(line);
    }
    let cut: String = line.chars().take(chars_max.saturating_sub(4)).collect();
    format!("{} ...", visible(cut.trim_end()))
}

/// `3m ago`, in the two largest units at most. A time in the future (another clock) is now.
pub fn ago(time: Micros, now: Micros) -> String {
    match span(time, now) {
        Some(span) => format!("{span} ago"),
        None => "now".to_owned(),
    }
}

/// The time from one moment to a later one, rounded to what a person wants to know; `None` below a second.
pub fn span(from: Micros, to: Micros) -> Option<String> {
    let secs = to.saturating_sub(from) / 1_000_000;
    let rounded = match secs {
        0 => return None,
        1..60 => secs,
        // `5m10s`, but no seconds beside hours, no minutes beside days.
        60..600 => secs,
        600..86_400 => secs - secs % 60,
        _ => secs - secs % 3_600,
    };
    Some(format_duration(std::time::Duration::from_secs(rounded)))
}

/// How long something took: milliseconds matter where it was short.
pub fn took(from: Micros, to: Micros) -> String {
    let micros = to.saturating_sub(from);
    match micros {
        0..10_000_000 => format!("{:.2}s", micros as f64 / 1e6),
        10_000_000..60_000_000 => format!("{:.1}s", micros as f64 / 1e6),
        _ => span(from, to).expect("a minute and more"),
    }
}

/// CPU time: fractions of a second matter where it is short.
pub fn cpu_time(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 9.95 {
        format!("{seconds:.1}s")
    } else {
        // A float's conversion to an integer saturates.
        span(0, ((seconds.round() * 1e6) as Micros).max(1_000_000)).unwrap_or_default()
    }
}

/// `1.3G`: bytes in the units in which settings take them (powers of 1000), two or three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit > 0 && value < 9.95 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.0}{}", UNITS[unit])
    }
}

/// The tone of a session's state.
pub fn session_tone(state: SessionState) -> Tone {
    match state {
        SessionState::Busy => Tone::Good,
        SessionState::Starting => Tone::Active,
        SessionState::Idle => Tone::Plain,
        SessionState::WaitingInput => Tone::Attention,
        SessionState::Retired | SessionState::Ended => Tone::Dim,
        SessionState::Lost => Tone::Bad,
    }
}

/// The tone of an execution's state.
pub fn execution_tone(state: ExecutionState) -> Tone {
    match state {
        ExecutionState::Running => Tone::Good,
        ExecutionState::Queued => Tone::Active,
        ExecutionState::WaitingInput => Tone::Attention,
        ExecutionState::Ok => Tone::Plain,
        ExecutionState::Error | ExecutionState::Lost => Tone::Bad,
        ExecutionState::Aborted | ExecutionState::Interrupted => Tone::Dim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    #[test]
    fn times_are_as_exact_as_a_person_needs() {
        let now = 1_000_000 * SECOND;
        for (secs, expected) in [
            (0, "now"),
            (59, "59s ago"),
            (90, "1m30s ago"),
            (3_599, "59m ago"),
            (3 * 3_600 + 125, "3h2m ago"),
            (2 * 86_400 + 3_700, "2d1h ago"),
        ] {
            assert_eq!(ago(now - secs * SECOND, now), expected);
        }
        assert_eq!(ago(now + SECOND, now), "now");
        assert_eq!(took(0, 1_234_567), "1.23s");
        assert_eq!(took(0, 12_345_678), "12.3s");
        assert_eq!(took(0, 125 * SECOND), "2m5s");
    }

    #[test]
    fn amounts_are_short() {
        for (count, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.0K"),
            (9_949, "9.9K"),
            (9_950, "10K"),
            (999_499, "999K"),
            (999_500, "1.0M"),
            (312_400_000, "312M"),
            (1_340_000_000, "1.3G"),
            (u64::MAX, "18447P"),
        ] {
            assert_eq!(bytes(count), expected);
        }
        for (seconds, expected) in [
            (-1.0, "0.0s"),
            (0.04, "0.0s"),
            (9.94, "9.9s"),
            (9.96, "10s"),
            (59.4, "59s"),
            (3_725.0, "1h2m"),
            (f64::INFINITY, "213503982d8h"),
        ] {
            assert_eq!(cpu_time(seconds), expected);
        }
    }

    #[test]
    fn a_line_of_code_is_cut_where_there_is_more() {
        assert_eq!(first_line("x = 1", 20), "x = 1");
        assert_eq!(first_line("\n\n  x = 1\n\n", 20), "  x = 1");
        assert_eq!(first_line("a\nb", 20), "a ...");
        assert_eq!(first_line("0123456789", 8), "0123 ...");
        assert_eq!(first_line("\u{1b}[2J", 20), "\u{fffd}[2J");
        assert_eq!(first_line("", 20), "");
    }

    fn rows() -> Vec<Vec<Field>> {
        vec![
            vec![plain("a"), field("busy", Tone::Good), plain("1")],
            vec![
                plain("rather long name"),
                field("lost", Tone::Bad),
                plain("12345"),
            ],
        ]
    }

    #[test]
    fn a_piped_table_is_aligned_and_plain() {
        insta::assert_snapshot!(table(&["NAME", "STATE", ">RUNS"], rows(), Style::default()), @r"
        NAME              STATE   RUNS
        a                 busy       1
        rather long name  lost   12345
        ");
    }

    #[test]
    fn a_table_on_a_terminal_has_colours_and_fits() {
        let style = Style {
            colour: true,
            width: Some(28),
        };
        insta::assert_snapshot!(table(&["~NAME", "STATE", ">RUNS"], rows(), style).replace('\u{1b}', "^"), @r"
        ^[1mNAME          ^[0m^[1mSTATE  ^[0m^[1m RUNS  ^[0m
        a             ^[38;5;2mbusy   ^[39m    1
        rather long   ^[38;5;1mlost   ^[39m12345
        name
        ");
    }
}
