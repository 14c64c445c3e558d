//! PURE. What `farside top` looks like: the columns, on a screen or as a plain table.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Look};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::super::columns::{Column, GAP, column, cut, fit, widths};
use super::super::render::{
    Field, Style, Tone, bytes, cpu_time, field, first_line, or_dash, plain, session_tone, span,
    table, visible,
};
use super::model::{Execution, Order, Sample};
use crate::journal::record::Micros;
use crate::state_dir::SessionState;

/// From left to right. What a person looks for when something is wrong stays longest where there is little room.
const COLUMNS: [Column; 15] = [
    column("ID", 8),
    column("~NAME", 0),
    column("STATE", 0),
    column("ENGINE", 11),
    column(">ATT", 10),
    column("~RUNNING", 6),
    column(">AGE", 4),
    column(">CPU%", 1),
    column("CPU", 7),
    column(">MEM", 2),
    column(">PEAK", 12),
    column(">GPU", 3).where_known(),
    column(">MSG/S", 9),
    column(">OUT/S", 5),
    column("LEFT", 3),
];
/// Characters of the running execution's code that are of use in one line.
const CODE_CHARS_MAX: usize = 60;
/// The last ten minutes of anything ask for attention.
const SOON_MICROS: Micros = 600_000_000;
/// The same for a budget.
const SOON_SECONDS: f64 = 600.0;
const KEYS: &str = "q quit   sort by: c cpu  m memory  o output  t time left  a age";

/// All that is shown at one moment.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    /// The live sessions, sorted.
    pub samples: Vec<Sample>,
    /// What they are sorted by.
    pub order: Order,
    /// The time.
    pub now: Micros,
    /// Whether there may be colours.
    pub colour: bool,
}

/// Draws the screen.
pub fn draw(frame: &mut Frame, screen: &Screen) {
    let [title, body, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let bold = Look::new().add_modifier(Modifier::BOLD);
    frame.render_widget(
        Paragraph::new(Span::styled(summary(&screen.samples), bold)),
        title,
    );
    let dim = Look::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Span::styled(KEYS, dim)), keys);
    if screen.samples.is_empty() {
        let text = "No session is running. `farside new` starts one, and so does a notebook on a kernel from `farside \
                    install`.";
        let wrapped = Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true });
        frame.render_widget(wrapped, body);
    } else {
        draw_table(frame, body, screen);
    }
}

fn draw_table(frame: &mut Frame, area: Rect, screen: &Screen) {
    // A line for the headings; and where not all sessions have a line, one that says so.
    let lines = usize::from(area.height.saturating_sub(1));
    let total = screen.samples.len();
    let shown = if total > lines {
        lines.saturating_sub(1)
    } else {
        total
    };
    let (mut columns, mut rows) = (COLUMNS.to_vec(), rows(&screen.samples[..shown], screen.now));
    fit(&mut columns, &mut rows, Some(area.width));
    let widths = widths(&columns, &rows, Some(area.width));
    let heading = |column: &Column| {
        let look = if screen.order.heading() == Some(column.title()) {
            Look::new().add_modifier(Modifier::REVERSED)
        } else {
            Look::new().add_modifier(Modifier::BOLD)
        };
        aligned(column, Span::styled(column.title(), look))
    };
    let header = Row::new(columns.iter().map(heading));
    let cell = |(field, (column, width)): (&Field, (&Column, &u16))| {
        let text = cut(&visible(field.text()), *width);
        aligned(
            column,
            Span::styled(text, look(field.tone(), screen.colour)),
        )
    };
    let line = |row: &Vec<Field>| Row::new(row.iter().zip(columns.iter().zip(&widths)).map(cell));
    let lines = rows.iter().map(line);
    if shown < total {
        let last = Rect {
            y: area.bottom().saturating_sub(1),
            height: area.height.min(1),
            ..area
        };
        frame.render_widget(format!("+{} more", total - shown), last);
    }
    let table = Table::new(lines, widths.iter().map(|width| Constraint::Length(*width)))
        .header(header)
        .column_spacing(GAP);
    frame.render_widget(table, area);
}

fn aligned<'a>(column: &Column, text: Span<'a>) -> Cell<'a> {
    let line = Line::from(text);
    Cell::from(if column.is_number() {
        line.right_aligned()
    } else {
        line
    })
}

fn look(tone: Tone, colour: bool) -> Look {
    let look = Look::new();
    match tone {
        _ if !colour => look,
        Tone::Plain => look,
        Tone::Dim => look.add_modifier(Modifier::DIM),
        Tone::Good => look.fg(Color::Green),
        Tone::Active => look.fg(Color::Cyan),
        Tone::Attention => look.fg(Color::Yellow),
        Tone::Bad => look.fg(Color::Red),
    }
}

/// The same as a table for `--once`.
pub fn text(samples: &[Sample], now: Micros, style: Style) -> String {
    let (mut columns, mut rows) = (COLUMNS.to_vec(), rows(samples, now));
    fit(&mut columns, &mut rows, style.width);
    // Cut here, so that nothing is left to be wrapped.
    let widths = widths(&columns, &rows, style.width);
    for row in &mut rows {
        for (at, width) in widths
            .iter()
            .enumerate()
            .filter(|(at, _)| columns[*at].is_flexible())
        {
            row[at] = field(cut(row[at].text(), *width), row[at].tone());
        }
    }
    let headings: Vec<&str> = columns
        .iter()
        .map(|column| column.heading.trim_start_matches('~'))
        .collect();
    let style = Style {
        width: None,
        ..style
    };
    table(&headings, rows, style)
}

/// The line on top.
fn summary(samples: &[Sample]) -> String {
    let count = |what: &dyn Fn(&Sample) -> bool| samples.iter().filter(|s| what(s)).count();
    let mut text = format!(
        "farside: {} session{}",
        samples.len(),
        if samples.len() == 1 { "" } else { "s" }
    );
    for (name, n) in [
        ("busy", count(&|s| s.state == SessionState::Busy)),
        (
            "waiting for input",
            count(&|s| s.state == SessionState::WaitingInput),
        ),
        ("unresponsive", count(&|s| s.unresponsive_since.is_some())),
    ] {
        if n > 0 {
            text.push_str(&format!(", {n} {name}"));
        }
    }
    if !samples.is_empty() {
        // Not `sum`, which begins at -0.
        let cpu = samples
            .iter()
            .filter_map(|s| s.cpu_percent)
            .fold(0.0, |all, percent| all + percent);
        let memory = samples
            .iter()
            .fold(0u64, |all, s| all.saturating_add(s.memory_bytes));
        text.push_str(&format!("   cpu {cpu:.0}%   memory {}", bytes(memory)));
    }
    text
}

/// A field for each of [`COLUMNS`].
fn rows(samples: &[Sample], now: Micros) -> Vec<Vec<Field>> {
    let row =
        |sample: &Sample| {
            vec![
                plain(&sample.id),
                plain(visible(&sample.name)),
                state(sample, now),
                plain(visible(&sample.engine)),
                plain(sample.attached.to_string()),
                or_dash(sample.execution.as_ref().map(running)),
                or_dash(sample.execution.as_ref().map(|execution| {
                    span(execution.started, now).unwrap_or_else(|| "0s".to_owned())
                })),
                or_dash(sample.cpu_percent.map(|percent| format!("{percent:.0}"))),
                cpu(sample.cpu_seconds, sample.cpu_seconds_left),
                memory(sample.memory_bytes),
                memory(sample.memory_peak_bytes),
                gpu(sample.gpu_memory_bytes),
                or_dash(sample.outputs_per_second.map(rate)),
                or_dash(
                    sample
                        .output_bytes_per_second
                        .map(|rate| bytes(rate.round() as u64)),
                ),
                left(sample.ends_at, sample.ends_by.as_deref(), now),
            ]
        };
    samples.iter().map(row).collect()
}

/// The state; an engine that does not answer is what counts, whatever it was doing.
fn state(sample: &Sample, now: Micros) -> Field {
    match sample.unresponsive_since {
        Some(since) => unresponsive(since, now),
        None => field(sample.state.name(), session_tone(sample.state)),
    }
}

/// Since when the engine does not answer, in place of its state.
pub fn unresponsive(since: Micros, now: Micros) -> Field {
    let since = span(since, now).unwrap_or_else(|| "0s".to_owned());
    field(format!("unresponsive {since}"), Tone::Bad)
}

/// CPU time used, and what is left of a budget.
pub fn cpu(used: f64, left: Option<f64>) -> Field {
    match left {
        None if used <= 0.0 => field("-", Tone::Dim),
        None => plain(cpu_time(used)),
        Some(left) => {
            let tone = if left < SOON_SECONDS {
                Tone::Attention
            } else {
                Tone::Plain
            };
            field(format!("{}, {} left", cpu_time(used), cpu_time(left)), tone)
        }
    }
}

/// An amount of memory; none at all means that nobody has looked yet.
pub fn memory(count: u64) -> Field {
    or_dash((count > 0).then(|| bytes(count)))
}

/// An amount of GPU memory. Most machines have none to tell of.
pub fn gpu(count: Option<u64>) -> Field {
    or_dash(count.map(bytes))
}

/// The time left, and what will end it. `none`: nothing will.
pub fn left(ends_at: Option<Micros>, by: Option<&str>, now: Micros) -> Field {
    let Some(end) = ends_at else {
        return field("none", Tone::Dim);
    };
    let tone = if end.saturating_sub(now) < SOON_MICROS {
        Tone::Attention
    } else {
        Tone::Plain
    };
    let time = span(now, end).unwrap_or_else(|| "0s".to_owned());
    let text = by.map_or_else(|| time.clone(), |by| format!("{time} {by}"));
    field(text, tone)
}

/// Below ten a second the first decimal matters.
fn rate(per_second: f64) -> String {
    if per_second == 0.0 || per_second >= 9.95 {
        format!("{per_second:.0}")
    } else {
        format!("{per_second:.1}")
    }
}

/// `#3 for epoch in range(9): ...`
fn running(execution: &Execution) -> String {
    let code = execution.code.as_deref().unwrap_or_default();
    let code = first_line(code, CODE_CHARS_MAX);
    match execution.n {
        Some(n) => format!("#{n} {}", code.trim_start()).trim_end().to_owned(),
        None => code,
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_769_860_800 * SECOND;

    fn idle(id: &str, name: &str) -> Sample {
        Sample {
            id: id.to_owned(),
            name: name.to_owned(),
            engine: "python3".to_owned(),
            state: SessionState::Idle,
            attached: 0,
            execution: None,
            cpu_percent: None,
            cpu_seconds: 0.0,
            cpu_seconds_left: None,
            memory_bytes: 0,
            memory_peak_bytes: 0,
            gpu_memory_bytes: None,
            outputs: 0,
            output_bytes: 0,
            outputs_per_second: None,
            output_bytes_per_second: None,
            ends_at: None,
            ends_by: None,
            unresponsive_since: None,
        }
    }

    fn samples() -> Vec<Sample> {
        let train = Sample {
            state: SessionState::Busy,
            attached: 1,
            execution: Some(Execution {
                n: Some(12),
                code: Some("for epoch in range(90):\n    train(epoch)".to_owned()),
                started: NOW - 7_300 * SECOND,
            }),
            cpu_percent: Some(198.6),
            cpu_seconds: 14_000.0,
            cpu_seconds_left: Some(5_400.0),
            memory_bytes: 1_340_000_000,
            memory_peak_bytes: 2_100_000_000,
            outputs_per_second: Some(2.24),
            output_bytes_per_second: Some(1_234.0),
            ends_at: Some(NOW + 5_420 * SECOND),
            ends_by: Some("budget".to_owned()),
            ..idle("aaaa1111", "train")
        };
        let stuck = Sample {
            state: SessionState::Busy,
            execution: Some(Execution {
                n: Some(3),
                code: Some("lib.never_returns()".to_owned()),
                started: NOW - 330 * SECOND,
            }),
            cpu_percent: Some(0.0),
            cpu_seconds: 3.21,
            memory_bytes: 84_000_000,
            memory_peak_bytes: 84_000_000,
            outputs_per_second: Some(0.0),
            output_bytes_per_second: Some(0.0),
            ends_at: Some(NOW + 130 * SECOND),
            ends_by: Some("lifetime".to_owned()),
            unresponsive_since: Some(NOW - 300 * SECOND),
            ..idle("bbbb2222", "a-name-that-somebody-made-rather-long")
        };
        let asks = Sample {
            state: SessionState::WaitingInput,
            execution: Some(Execution {
                n: Some(1),
                code: Some("name = input('\u{1b}[31mwho? ')".to_owned()),
                started: NOW,
            }),
            ..idle("cccc3333", "日本")
        };
        vec![train, stuck, asks, idle("dddd4444", "fresh")]
    }

    fn terminal(columns: u16, lines: u16, screen: &Screen) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        terminal
    }

    fn shown(columns: u16, lines: u16, samples: Vec<Sample>) -> String {
        let screen = Screen {
            samples,
            now: NOW,
            ..Screen::default()
        };
        terminal(columns, lines, &screen).backend().to_string()
    }

    #[test]
    fn eighty_columns_show_what_matters_most() {
        assert_snapshot!(shown(80, 8, samples()));
    }

    #[test]
    fn a_wide_terminal_shows_all() {
        assert_snapshot!(shown(170, 8, samples()));
    }

    #[test]
    fn gpu_memory_has_a_column_where_there_is_any() {
        let mut samples = samples();
        samples[0].gpu_memory_bytes = Some(3_100_000_000);
        assert_snapshot!(shown(190, 8, samples));
    }

    #[test]
    fn a_hundred_and_ten_columns_show_the_code() {
        assert_snapshot!(shown(110, 8, samples()));
    }

    #[test]
    fn no_session_is_said_in_words() {
        assert_snapshot!(shown(60, 6, Vec::new()));
    }

    #[test]
    fn what_has_no_line_is_counted() {
        let many = (0..30)
            .map(|n| idle(&format!("aaaa{n:04}"), &format!("s{n}")))
            .collect();
        assert_snapshot!(shown(80, 8, many));
    }

    #[test]
    fn no_size_is_too_small() {
        for columns in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
            for lines in [1, 2, 3, 4, 5, 9] {
                shown(columns, lines, samples());
            }
        }
        assert_snapshot!(shown(20, 4, samples()));
    }

    #[test]
    fn colours_are_there_where_they_are_wanted() {
        for (colour, expected) in [(true, Color::Red), (false, Color::Reset)] {
            let screen = Screen {
                samples: samples(),
                now: NOW,
                order: Order::Memory,
                colour,
            };
            let terminal = terminal(80, 8, &screen);
            let buffer = terminal.backend().buffer();
            let at = |text: &str| {
                let lines = terminal.backend().to_string();
                let (y, line) = lines
                    .lines()
                    .enumerate()
                    .find(|(_, line)| line.contains(text))
                    .unwrap();
                // The first character of each line is a quote.
                let x = line[..line.find(text).unwrap()].chars().count() - 1;
                &buffer[(x as u16, y as u16)]
            };
            assert_eq!(at("unresponsive 5m").fg, expected);
            assert!(
                at("MEM").modifier.contains(Modifier::REVERSED),
                "what it is sorted by"
            );
            assert!(!at("STATE").modifier.contains(Modifier::REVERSED));
        }
    }

    #[test]
    fn rows_are_sorted_by_what_was_asked_for() {
        let order = |order: Order| {
            let mut samples = samples();
            order.sort(&mut samples);
            samples
                .iter()
                .map(|s| s.id[..1].to_owned())
                .collect::<String>()
        };
        assert_eq!(order(Order::Age), "abcd");
        assert_eq!(order(Order::Left), "bacd");
        let mut turned = samples();
        turned.reverse();
        for by in [Order::Cpu, Order::Memory, Order::Output] {
            let mut samples = turned.clone();
            by.sort(&mut samples);
            assert_eq!(samples[0].id, "aaaa1111", "{by:?}");
        }
    }

    #[test]
    fn once_is_a_plain_table() {
        assert_snapshot!(text(&samples(), NOW, Style::default()));
        let narrow = text(
            &samples(),
            NOW,
            Style {
                colour: false,
                width: Some(80),
            },
        );
        assert!(
            narrow.lines().all(|line| Span::raw(line).width() <= 80),
            "{narrow}"
        );
        assert_snapshot!(narrow);
    }
}
