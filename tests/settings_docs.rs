//! docs/settings.md says of every setting what the code says.

use farside::config::{COMMAND_VARIABLES, SETTINGS, Setting};

const PAGE: &str = include_str!("../docs/settings.md");

/// The cells of the first table, row by row, without the two lines of its head.
fn table() -> Vec<Vec<&'static str>> {
    let lines = PAGE.lines().skip_while(|line| !line.starts_with('|'));
    let rows = lines.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells = row.trim_matches('|').split(" | ");
        cells.map(str::trim).collect()
    })
    .collect()
}

#[test]
fn the_table_has_every_setting_as_it_is() {
    let rows = table();
    let keys: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let expected: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys, expected, "the same settings in the same order");
    for row in rows {
        let [key, default, form, of_session, about] = row[..] else {
            panic!("a row has five cells: {row:?}");
        };
        let key = key.trim_matches('`');
        let setting = Setting::find(key).unwrap();
        let shown = match setting.default {
            "" => "none given".to_owned(),
            default => format!("`{default}`"),
        };
        assert_eq!(default, shown, "{key}");
        let expected = if setting.of_session { "yes" } else { "no" };
        assert_eq!(of_session, expected, "{key}");
        assert!(!about.is_empty(), "{key}");
        let (good, bad): (&[&str], &[&str]) = match form {
            "duration" => (&["90m"], &["none", "10G"]),
            "duration or `none`" => (&["90m", "none"], &["10G", "2m,1m"]),
            "durations or `none`" => (&["2m,1m", "none"], &["10G"]),
            "size or `none`" => (&["10G", "none"], &["90m"]),
            "text" => (&["any `text`"], &["a\0b"]),
            "`auto`, `ipc`, `tcp`" => (&["auto", "ipc", "tcp"], &["udp"]),
            "`process`, `power`" => (&["process", "power"], &["disk"]),
            "level or targets" => (&["debug", "farside=debug"], &["a=b=c"]),
            other => panic!("{key}: say here what `{other}` takes"),
        };
        for value in good {
            assert_eq!(setting.check(value), Ok(()), "{key} = {value}");
        }
        for value in bad {
            assert!(setting.check(value).is_err(), "{key} = {value}");
        }
    }
}

#[test]
fn every_variable_of_a_command_is_named() {
    for name in COMMAND_VARIABLES {
        assert!(PAGE.contains(&format!("`{name}`")), "{name}");
    }
}
