//! `farside ls`: the sessions.

use super::render::{Field, Tone, ago, field, plain, session_tone, span, table};
use super::{Exit, Output};
use crate::journal::record::Micros;
use crate::state_dir::{SessionFacts, Sessions, now};

/// List sessions: state, engine, who is attached, since when they are busy, how much time is left.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also those that have ended
    #[arg(long, short)]
    pub all: bool,
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

/// One line of the table.
pub struct Line {
    /// The session.
    pub facts: SessionFacts,
    /// Since when an execution runs.
    pub busy_since: Option<Micros>,
    /// When it ended.
    pub ended_at: Option<Micros>,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let sessions = Sessions::open()?;
    let all: Vec<Line> = sessions
        .list()?
        .iter()
        .map(|session| {
            let facts = session.facts();
            let status = session
                .status()
                .filter(|_| facts.state.is_live() || facts.end_reason.is_some());
            let busy_since = status
                .as_ref()
                .and_then(|s| s.busy_since)
                .filter(|_| facts.state.is_live());
            Line {
                busy_since,
                ended_at: status.and_then(|s| s.ended_at),
                facts,
            }
        })
        .collect();
    let total = all.len();
    let shown: Vec<Line> = all
        .into_iter()
        .filter(|line| args.all || line.facts.state.is_live())
        .collect();
    if args.json {
        out.json(&shown.iter().map(|line| &line.facts).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    if shown.is_empty() {
        out.message(match total {
            0 => "no sessions; `farside new` starts one, and so does a notebook on a kernel from `farside install`",
            _ => "no session is running; `farside ls --all` shows those that have ended",
        });
        return Ok(Exit::Done);
    }
    let text = render(&shown, args.all, now(), out.style);
    out.line(&text)?;
    Ok(Exit::Done)
}

/// PURE. The table.
fn render(lines: &[Line], all: bool, now: Micros, style: super::render::Style) -> String {
    let mut headings = vec![
        "ID",
        "~NAME",
        "ENGINE",
        "STATE",
        ">ATTACHED",
        ">RUNS",
        "BUSY",
        "ACTIVE",
        "LEFT",
    ];
    if all {
        headings.push("~ENDED");
    }
    let rows = lines.iter().map(|line| {
        let facts = &line.facts;
        let mut row = vec![
            plain(&facts.id),
            plain(&facts.name),
            plain(&facts.engine),
            field(facts.state.name(), session_tone(facts.state)),
            plain(facts.attached.to_string()),
            plain(facts.executions.to_string()),
            or_dash(line.busy_since.map(|since| age(since, now))),
            or_dash(facts.last_activity.map(|time| age(time, now))),
            left(facts, now),
        ];
        if all {
            row.push(ended(line, now));
        }
        row
    });
    table(&headings, rows.collect(), style)
}

/// How long ago. Without the word, which nine columns have no room for.
fn age(time: Micros, now: Micros) -> String {
    span(time, now).unwrap_or_else(|| "0s".to_owned())
}

fn or_dash(text: Option<String>) -> Field {
    text.map_or_else(|| field("-", Tone::Dim), plain)
}

/// The time left. The last ten minutes ask for attention.
fn left(facts: &SessionFacts, now: Micros) -> Field {
    const SOON_MICROS: Micros = 600_000_000;
    match facts.ends_at {
        _ if !facts.state.is_live() => field("-", Tone::Dim),
        None => field("none", Tone::Dim),
        Some(end) => {
            let tone = if end.saturating_sub(now) < SOON_MICROS {
                Tone::Attention
            } else {
                Tone::Plain
            };
            field(span(now, end).unwrap_or_else(|| "0s".to_owned()), tone)
        }
    }
}

fn ended(line: &Line, now: Micros) -> Field {
    let reason = line
        .facts
        .end_reason
        .clone()
        .filter(|_| !line.facts.state.is_live());
    or_dash(reason.map(|reason| match line.ended_at {
        Some(time) => format!("{}, {reason}", ago(time, now)),
        None => reason,
    }))
}
