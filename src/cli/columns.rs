//! PURE. Which columns of a table there is room for.

use ratatui::text::Span;

use super::render::{Field, NOTHING};

/// Blanks between two columns.
pub const GAP: u16 = 2;
/// What a column that can be cut or wrapped keeps at least, if it does not say.
const FLEXIBLE_COLUMNS_MIN: u16 = 12;

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// As [`super::render::table`] takes it: `>` in front for a column of numbers, `~` for one that can be narrower
    /// than its text.
    pub heading: &'static str,
    /// Where there is not room for all, the column with the highest number goes first; 0 stays always.
    pub expendable: u8,
    /// What it keeps at least, where it can be narrower than its text.
    least: u16,
    /// Whether it goes where no row has anything in it.
    where_known: bool,
}

/// A column.
pub const fn column(heading: &'static str, expendable: u8) -> Column {
    Column {
        heading,
        expendable,
        least: FLEXIBLE_COLUMNS_MIN,
        where_known: false,
    }
}

impl Column {
    /// The same, but not to be made narrower than this.
    pub const fn at_least(self, least: u16) -> Self {
        Self { least, ..self }
    }

    /// The same, but only where some row has something in it.
    pub const fn where_known(self) -> Self {
        Self {
            where_known: true,
            ..self
        }
    }

    /// The heading as it is shown.
    pub fn title(&self) -> &'static str {
        self.heading.trim_start_matches(['>', '~'])
    }

    /// Whether it can be narrower than its text.
    pub fn is_flexible(&self) -> bool {
        self.heading.starts_with('~')
    }

    /// Whether its text stands at the right.
    pub fn is_number(&self) -> bool {
        self.heading.starts_with('>')
    }
}

/// Takes columns away: those of which nothing is known, and then as many as it takes for the rest to fit into `width`
/// (`None`: all fit). Each row has a field for each column.
pub fn fit(columns: &mut Vec<Column>, rows: &mut [Vec<Field>], width: Option<u16>) {
    for at in (0..columns.len()).rev() {
        if columns[at].where_known && rows.iter().all(|row| row[at].text() == NOTHING) {
            remove(columns, rows, at);
        }
    }
    let Some(width) = width else { return };
    while needed(columns, rows) > u32::from(width) {
        let last = (0..columns.len())
            .filter(|&at| columns[at].expendable > 0)
            .max_by_key(|&at| columns[at].expendable);
        let Some(last) = last else { return };
        remove(columns, rows, last);
    }
}

fn remove(columns: &mut Vec<Column>, rows: &mut [Vec<Field>], at: usize) {
    columns.remove(at);
    for row in rows.iter_mut() {
        row.remove(at);
    }
}

/// The columns' widths where the table gets `width`: those that can be cut share what the others leave, each the
/// same until it has enough.
pub fn widths(columns: &[Column], rows: &[Vec<Field>], width: Option<u16>) -> Vec<u16> {
    let natural = natural(columns, rows);
    let Some(width) = width else { return natural };
    let mut spare = u32::from(width).saturating_sub(needed(columns, rows));
    let least = columns.iter().zip(&natural);
    let mut given: Vec<u16> = least
        .map(|(column, natural)| self::least(column, *natural))
        .collect();
    while spare > 0 && given != natural {
        for (given, natural) in given.iter_mut().zip(&natural) {
            if *given < *natural && spare > 0 {
                *given += 1;
                spare -= 1;
            }
        }
    }
    given
}

/// As much of a text as fits into `width` columns; `…` at its end where something is missing.
pub fn cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if columns_of(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += columns_of(c.encode_utf8(&mut [0; 4]));
        if used > width {
            break;
        }
        kept.push(c);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// What a text takes on a terminal.
fn columns_of(text: &str) -> usize {
    Span::raw(text).width()
}

fn natural(columns: &[Column], rows: &[Vec<Field>]) -> Vec<u16> {
    let of = |(at, column): (usize, &Column)| {
        let cells = rows.iter().map(|row| columns_of(row[at].text()));
        let most = cells.chain([columns_of(column.title())]).max();
        most.unwrap_or(0).min(usize::from(u16::MAX)) as u16
    };
    columns.iter().enumerate().map(of).collect()
}

fn least(column: &Column, natural: u16) -> u16 {
    if column.is_flexible() {
        natural.min(column.least)
    } else {
        natural
    }
}

fn needed(columns: &[Column], rows: &[Vec<Field>]) -> u32 {
    let gaps = u32::from(GAP) * (columns.len().saturating_sub(1) as u32);
    let each = columns.iter().zip(natural(columns, rows));
    gaps + each
        .map(|(column, natural)| u32::from(least(column, natural)))
        .sum::<u32>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::render::plain;
    use super::*;

    fn example() -> (Vec<Column>, Vec<Vec<Field>>) {
        let columns = vec![
            column("~NAME", 0),
            column(">CPU", 1),
            column("ENGINE", 9),
            column("~CODE", 5),
        ];
        let row = [
            "a-rather-long-name",
            "99%",
            "python3",
            "for i in range(100): pass",
        ];
        (columns, vec![row.map(plain).to_vec()])
    }

    fn titles(width: Option<u16>) -> Vec<&'static str> {
        let (mut columns, mut rows) = example();
        fit(&mut columns, &mut rows, width);
        assert!(rows.iter().all(|row| row.len() == columns.len()));
        columns.iter().map(Column::title).collect()
    }

    #[test]
    fn the_least_important_columns_go_first() {
        let all = ["NAME", "CPU", "ENGINE", "CODE"];
        assert_eq!(titles(None), all);
        assert_eq!(titles(Some(12 + 2 + 3 + 2 + 7 + 2 + 12)), all);
        assert_eq!(titles(Some(39)), ["NAME", "CPU", "CODE"]);
        assert_eq!(titles(Some(30)), ["NAME", "CPU"]);
        assert_eq!(titles(Some(3)), ["NAME"]);
        let (mut columns, mut rows) = example();
        columns[3] = columns[3].at_least(20);
        fit(&mut columns, &mut rows, Some(12 + 2 + 3 + 2 + 20));
        assert_eq!(columns.len(), 3);
        fit(&mut columns, &mut rows, Some(12 + 2 + 3 + 2 + 19));
        assert_eq!(columns.len(), 2);
    }

    #[test]
    fn a_column_of_which_nothing_is_known_goes_at_any_width() {
        for (value, expected) in [(NOTHING, 3), ("8G", 4)] {
            let (mut columns, mut rows) = example();
            columns[1] = column(">GPU", 0).where_known();
            rows[0][1] = plain(value);
            fit(&mut columns, &mut rows, None);
            assert_eq!((columns.len(), rows[0].len()), (expected, expected));
        }
    }

    #[test]
    fn what_is_left_over_goes_to_the_columns_that_can_use_it() {
        let (columns, rows) = example();
        assert_eq!(widths(&columns, &rows, None), [18, 3, 7, 25]);
        assert_eq!(widths(&columns, &rows, Some(40)), [12, 3, 7, 12]);
        assert_eq!(widths(&columns, &rows, Some(47)), [16, 3, 7, 15]);
        assert_eq!(widths(&columns, &rows, Some(500)), [18, 3, 7, 25]);
    }

    #[test]
    fn text_is_cut_by_what_it_takes_on_the_terminal() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("abc", 0), "");
    }

    proptest! {
        #[test]
        fn a_cut_text_fits(text in "\\PC{0,30}", width in 0u16..40) {
            prop_assert!(columns_of(&cut(&text, width)) <= usize::from(width));
        }
    }
}
