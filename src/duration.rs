//! Durations as people write them: `90m`, `2h30m`, `1d`, `45s`.

use std::time::Duration;

/// The units, largest first, in seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Reads a duration. The error says what form is allowed.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a duration: write it like 90m, 2h30m, 1d or 45s");
    let mut seconds: u64 = 0;
    let mut units = UNITS.iter();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
        let unit = rest[digits..].chars().next().ok_or_else(refuse)?;
        // Each unit once, the larger before the smaller: `30m2h` is more likely a slip than a wish.
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let part = number.checked_mul(*factor).ok_or_else(refuse)?;
        seconds = seconds.checked_add(part).ok_or_else(refuse)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, seconds) in [("90m", 5400), ("2h30m", 9000), ("1d", 86_400), ("45s", 45), (" 1h ", 3600)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_form() {
        for text in ["", "soon", "5", "h", "-1h", "30m2h", "1h1h", "1.5h", "99999999999999999999d", "5 m"] {
            assert!(parse(text).unwrap_err().contains("2h30m"), "{text}");
        }
    }
}
