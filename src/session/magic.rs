//! `%farside ...` in a cell: parsing and help.

use super::event::{Selector, Target};
use crate::duration::{DURATION_FORM, parse_duration};
use crate::journal::record::ExecutionNumber;

/// What `%farside help` prints.
pub const HELP: &str = "\
%farside status                what runs here, and how to come back to it
%farside attach [N|MSG_ID]     show the outputs of an execution in this cell, and follow it to its end
                               (no argument: the running one, else the last one)
%farside attach SESSION:N      the same of a session that has ended (SESSION: its last one)
%farside history [SESSION]     the executions of this session, or of another
%farside extend DURATION       give the session more time, as in `%farside extend 2h`
%farside set [KEY VALUE]       change a setting for this session, as in `%farside set idle_timeout 8h`
                               (nothing: show the settings)
%farside notify [on|off]       tell me when what runs (or runs next) is over, or do not
%farside retire                end this session and its engine; the outputs stay readable
%farside help                  this text
";

/// A command to farside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Magic {
    /// Show the session.
    Status,
    /// Show an execution's outputs here.
    Attach(Target),
    /// List executions, of this session or the one that is named.
    History(Option<String>),
    /// Move the end by so many seconds.
    Extend(u64),
    /// Show what `set` can change.
    ShowSettings,
    /// Change a setting.
    Set {
        /// Which.
        key: String,
        /// To what.
        value: String,
    },
    /// Whether to tell of the end of what runs.
    Notify(bool),
    /// End the session.
    Retire,
    /// Show the help.
    Help,
}

/// The farside command in a cell. `None`: the cell is not farside's. `Some(Err)`: it is, and cannot be carried
/// out; the text says what to do.
pub fn command_in(code: &str) -> Option<Result<Magic, String>> {
    let mut lines = code.lines().filter(|line| !line.trim().is_empty());
    let words = lines.next()?.trim().strip_prefix("%farside")?;
    if !words.is_empty() && !words.starts_with(char::is_whitespace) {
        return None;
    }
    if lines.next().is_some() {
        return Some(Err("a %farside command must be alone in its cell; nothing of this cell was run. Put the rest \
                         into a cell of its own."
            .into()));
    }
    Some(parse(words))
}

/// Whether this is how a person leaves a console. (`exit` is code to jupyter console: the engine is to say that it be
/// left, and ipykernel ends itself with it.)
pub fn leaves_console(code: &str) -> bool {
    matches!(code.trim(), "exit" | "exit()" | "quit" | "quit()")
}

fn parse(line: &str) -> Result<Magic, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [] | ["help"] => Ok(Magic::Help),
        ["status"] => Ok(Magic::Status),
        ["history"] => Ok(Magic::History(None)),
        ["history", session] => Ok(Magic::History(Some((*session).to_owned()))),
        ["retire"] => Ok(Magic::Retire),
        ["attach"] => Ok(Magic::Attach(Selector::Latest.into())),
        ["attach", which] => Ok(Magic::Attach(target(which))),
        ["extend", duration] => parse_duration(duration)
            .map(|duration| Magic::Extend(duration.as_secs()))
            .ok_or_else(|| format!("%farside extend takes {DURATION_FORM}, not `{duration}`")),
        ["notify"] | ["notify", "on"] => Ok(Magic::Notify(true)),
        ["notify", "off"] => Ok(Magic::Notify(false)),
        ["notify", other] => Err(format!(
            "%farside notify takes `on`, `off` or nothing, not `{other}`."
        )),
        ["set"] => Ok(Magic::ShowSettings),
        ["set", _] => Err(
            "%farside set takes a setting and its value, such as `%farside set idle_timeout 8h`."
                .into(),
        ),
        // A command is a value too: the rest of the line as it is, or nothing ('') to take it away.
        ["set", key, ..] => {
            let value = line.split_once(key).map_or("", |(_, value)| value).trim();
            let value = if matches!(value, "''" | "\"\"") {
                ""
            } else {
                value
            };
            Ok(Magic::Set {
                key: (*key).to_owned(),
                value: value.to_owned(),
            })
        }
        ["extend"] => Err("%farside extend takes a duration, such as `%farside extend 2h`.".into()),
        [
            command @ ("help" | "status" | "history" | "retire" | "attach" | "extend" | "notify"),
            ..,
        ] => Err(format!(
            "too many words after `%farside {command}`. `%farside help` shows how it is used."
        )),
        [unknown, ..] => Err(format!(
            "there is no `%farside {unknown}`. `%farside help` lists the commands."
        )),
    }
}

/// `7`, a msg_id, `k3f9x2a1:7`, or `k3f9x2a1:`.
fn target(word: &str) -> Target {
    if let Some((session, which)) = word.rsplit_once(':')
        && !session.is_empty()
        && let Some(selector) = match which {
            "" => Some(Selector::Latest),
            n => n.parse().ok().map(Selector::Number),
        }
    {
        return Target {
            session: Some(session.to_owned()),
            selector,
        };
    }
    match word.parse::<ExecutionNumber>() {
        Ok(n) => Selector::Number(n).into(),
        Err(_) => Selector::MsgId(word.to_owned()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cells_that_begin_with_farside_are_farsides() {
        assert_eq!(command_in("print(1)"), None);
        assert_eq!(command_in(""), None);
        assert_eq!(command_in("%farsideways"), None);
        assert_eq!(command_in("x = 1\n%farside status"), None);
        assert_eq!(
            command_in("\n  %farside status  \n\n"),
            Some(Ok(Magic::Status))
        );
        assert_eq!(command_in("%farside"), Some(Ok(Magic::Help)));
    }

    #[test]
    fn attach_takes_a_number_a_msg_id_or_nothing() {
        assert_eq!(
            command_in("%farside attach"),
            Some(Ok(Magic::Attach(Selector::Latest.into())))
        );
        assert_eq!(
            command_in("%farside attach 7"),
            Some(Ok(Magic::Attach(Selector::Number(7).into())))
        );
        assert_eq!(
            command_in("%farside attach a-b_1"),
            Some(Ok(Magic::Attach(Selector::MsgId("a-b_1".into()).into())))
        );
    }

    #[test]
    fn attach_and_history_take_a_session() {
        let of = |session: &str, selector| {
            Some(Ok(Magic::Attach(Target {
                session: Some(session.to_owned()),
                selector,
            })))
        };
        assert_eq!(
            command_in("%farside attach k3f9x2a1:14"),
            of("k3f9x2a1", Selector::Number(14))
        );
        assert_eq!(
            command_in("%farside attach k3f:"),
            of("k3f", Selector::Latest)
        );
        assert_eq!(
            command_in("%farside attach a:b:2"),
            of("a:b", Selector::Number(2))
        );
        // No session: a msg_id may have what it likes in it.
        for msg_id in ["a:b", ":3", ":"] {
            assert_eq!(
                command_in(&format!("%farside attach {msg_id}")),
                Some(Ok(Magic::Attach(Selector::MsgId(msg_id.into()).into())))
            );
        }
        assert_eq!(
            command_in("%farside history k3f9x2a1"),
            Some(Ok(Magic::History(Some("k3f9x2a1".into()))))
        );
        assert_eq!(
            command_in("%farside history"),
            Some(Ok(Magic::History(None)))
        );
    }

    #[test]
    fn what_cannot_be_carried_out_says_what_to_do() {
        for (code, expected) in [
            ("%farside status\nprint(1)", "alone in its cell"),
            ("%farside attach 1 2", "too many words"),
            ("%farside sing", "there is no"),
            ("%farside notify maybe", "takes `on`, `off` or nothing"),
            ("%farside extend soon", "extend"),
            ("%farside extend", "takes a duration"),
        ] {
            let error = command_in(code).unwrap().unwrap_err();
            assert!(error.contains(expected), "{code}: {error}");
        }
    }
}
