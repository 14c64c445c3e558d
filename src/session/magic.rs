//! `%farside ...` in a cell: parsing and help.

use super::event::Selector;
use crate::duration::{DURATION_FORM, parse_duration};
use crate::journal::record::ExecutionNumber;

/// What `%farside help` prints.
pub const HELP: &str = "\
%farside status                what runs here, and how to come back to it
%farside attach [N|MSG_ID]     show the outputs of an execution in this cell, and follow it to its end
                               (no argument: the running one, else the last one)
%farside history               the executions of this session
%farside extend DURATION       move the session's end, where it has one (today: none has)
%farside retire                end this session and its engine; the outputs stay readable
%farside help                  this text
";

/// A command to farside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Magic {
    /// Show the session.
    Status,
    /// Show an execution's outputs here.
    Attach(Selector),
    /// List executions.
    History,
    /// Move the end by so many seconds.
    Extend(u64),
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

fn parse(words: &str) -> Result<Magic, String> {
    let words: Vec<&str> = words.split_whitespace().collect();
    match words.as_slice() {
        [] | ["help"] => Ok(Magic::Help),
        ["status"] => Ok(Magic::Status),
        ["history"] => Ok(Magic::History),
        ["retire"] => Ok(Magic::Retire),
        ["attach"] => Ok(Magic::Attach(Selector::Latest)),
        ["attach", which] => Ok(Magic::Attach(selector(which))),
        ["extend", duration] => parse_duration(duration)
            .map(|duration| Magic::Extend(duration.as_secs()))
            .ok_or_else(|| format!("%farside extend takes {DURATION_FORM}, not `{duration}`")),
        ["extend"] => Err("%farside extend takes a duration, such as `%farside extend 2h`.".into()),
        [
            command @ ("help" | "status" | "history" | "retire" | "attach" | "extend"),
            ..,
        ] => Err(format!(
            "too many words after `%farside {command}`. `%farside help` shows how it is used."
        )),
        [unknown, ..] => Err(format!(
            "there is no `%farside {unknown}`. `%farside help` lists the commands."
        )),
    }
}

fn selector(word: &str) -> Selector {
    match word.parse::<ExecutionNumber>() {
        Ok(n) => Selector::Number(n),
        Err(_) => Selector::MsgId(word.to_owned()),
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
            Some(Ok(Magic::Attach(Selector::Latest)))
        );
        assert_eq!(
            command_in("%farside attach 7"),
            Some(Ok(Magic::Attach(Selector::Number(7))))
        );
        assert_eq!(
            command_in("%farside attach a-b_1"),
            Some(Ok(Magic::Attach(Selector::MsgId("a-b_1".into()))))
        );
    }

    #[test]
    fn what_cannot_be_carried_out_says_what_to_do() {
        for (code, expected) in [
            ("%farside status\nprint(1)", "alone in its cell"),
            ("%farside attach 1 2", "too many words"),
            ("%farside sing", "there is no"),
            ("%farside extend soon", "extend"),
            ("%farside extend", "takes a duration"),
        ] {
            let error = command_in(code).unwrap().unwrap_err();
            assert!(error.contains(expected), "{code}: {error}");
        }
    }
}
