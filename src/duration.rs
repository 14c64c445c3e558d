//! PURE. Durations as people write them: `90m`, `2h30m`, `1d`.

use std::time::Duration;

/// What a duration looks like, for error messages.
pub const DURATION_FORM: &str = "a duration like 45s, 90m, 2h30m or 1d";

/// Units from large to small, with their seconds.
const UNITS: [(char, u64); 5] = [
    ('w', 604_800),
    ('d', 86_400),
    ('h', 3_600),
    ('m', 60),
    ('s', 1),
];
/// A hundred years: far beyond any limit of a session, and far from where adding it to a time could overflow.
const SECS_MAX: u64 = 100 * 365 * 86_400;

/// `2h30m`: numbers with units, large units first, each at most once. `None` for anything else, for nothing
/// (`0s`) included, which as a limit would end everything at once, and for more than a hundred years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut secs: u64 = 0;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, secs_each) = units.find(|(name, _)| *name == unit)?;
        secs = secs.checked_add(number.checked_mul(*secs_each)?)?;
        rest = &rest[digits + 1..];
    }
    (1..=SECS_MAX)
        .contains(&secs)
        .then(|| Duration::from_secs(secs))
}

/// The same the other way: `2h30m`. Fractions of a second are left out.
pub fn format_duration(duration: Duration) -> String {
    let mut secs = duration.as_secs();
    let mut out = String::new();
    // Weeks are read, but not written: `14d` is what people say.
    for (unit, each) in &UNITS[1..] {
        if secs >= *each {
            out.push_str(&(secs / each).to_string());
            out.push(*unit);
            secs %= each;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, secs) in [
            ("90m", 5400),
            ("2h30m", 9000),
            ("1d", 86400),
            ("1w2d3h4m5s", 788_645),
            ("45s", 45),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_secs(secs)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "h",
            "2h2h",
            "30m2h",
            "-1h",
            "1.5h",
            "1 h",
            "1H",
            "0s",
            "none",
            "9999999w",
            "99999999999999999999s",
            "1é",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(secs in 1..=SECS_MAX) {
            let duration = Duration::from_secs(secs);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[0-9wdhmsé ]{0,10}") {
            parse_duration(&text);
        }
    }
}
