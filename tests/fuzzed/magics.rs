//! `%farside` commands. Input: a cell's code.

use farside::duration::{format_duration, parse_duration};
use farside::session::magic::{Magic, command_in, leaves_console};

pub fn check(bytes: &[u8]) {
    let code = String::from_utf8_lossy(bytes);
    let command = command_in(&code);
    assert_eq!(command.is_some(), is_farsides(&code), "{code:?}");
    assert!(command.is_none() || !leaves_console(&code));
    // Blank lines around it make no difference.
    assert_eq!(command_in(&format!("\n \t\n{code}\n\n  ")), command);
    if let Some(command) = command {
        // What else stands in the cell is not run, and not passed over either.
        let more = command_in(&format!("{code}\nprint(1)"));
        assert!(matches!(more, Some(Err(_))), "{code:?}");
        match command {
            Ok(magic) => check_magic(&magic, &code),
            Err(why) => {
                assert!(!why.is_empty() && why.len() <= code.len() + 300, "{why}");
            }
        }
    }
    if let Some(duration) = parse_duration(&code) {
        assert!(!duration.is_zero());
        assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
    }
}

fn check_magic(magic: &Magic, code: &str) {
    match magic {
        Magic::Extend(seconds) => assert!(*seconds > 0),
        Magic::Set { key, value } => {
            assert!(!key.is_empty() && !key.contains(char::is_whitespace));
            assert!(code.contains(key.as_str()) && code.contains(value.as_str()));
            assert_eq!(value, value.trim());
        }
        Magic::Attach(target) => {
            if let Some(session) = &target.session {
                assert!(!session.is_empty() && code.contains(session.as_str()));
            }
        }
        Magic::History(session) => {
            assert!(
                session
                    .as_ref()
                    .is_none_or(|session| code.contains(session.as_str()))
            );
        }
        Magic::Status | Magic::ShowSettings | Magic::Notify(_) | Magic::Retire | Magic::Help => {}
    }
}

/// The rule in its plainest form: the first line that is not blank begins with the word `%farside`.
fn is_farsides(code: &str) -> bool {
    for line in code.split('\n') {
        if let Some(word) = line.split_whitespace().next() {
            return word == "%farside";
        }
    }
    false
}
