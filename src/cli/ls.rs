//! `farside ls`: the sessions.

use super::columns::{Column, column, fit};
use super::readings::Reading;
use super::render::{Field, Style, Tone, ago, field, or_dash, plain, session_tone, span, table};
use super::top::view::{cpu, gpu, left, memory, unresponsive};
use super::{Exit, Output};
use crate::journal::record::Micros;
use crate::state_dir::{SessionFacts, Sessions, now};

/// List sessions: state, engine, who is attached, since when they are busy, what they use, how much time is left.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "CPU is the CPU time used (and left of the budget), LEFT the time left and what will end it. In a \
                        narrow terminal the less important columns are left out; `farside top` shows more."
)]
pub struct Args {
    /// Also those that have ended, and why
    #[arg(long, short)]
    pub all: bool,
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

/// From left to right; [`ENDED`] comes behind them for `--all`.
const COLUMNS: [Column; 13] = [
    column("ID", 0),
    column("~NAME", 0).at_least(20),
    column("ENGINE", 7),
    column("STATE", 0),
    column(">ATTACHED", 6),
    column(">RUNS", 8),
    column("BUSY", 2),
    column("ACTIVE", 5),
    column("CPU", 3),
    column(">MEMORY", 4),
    column(">PEAK", 9),
    column(">GPU", 4).where_known(),
    column("LEFT", 1),
];
/// The reason of an end takes a sentence.
const ENDED: Column = column("~ENDED", 0).at_least(30);

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let all = Reading::all(&Sessions::open()?)?;
    let total = all.len();
    let shown: Vec<Reading> = all
        .into_iter()
        .filter(|reading| args.all || reading.is_live())
        .collect();
    if args.json {
        let facts: Vec<&SessionFacts> = shown.iter().map(|reading| &reading.facts).collect();
        out.json(&facts)?;
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
fn render(readings: &[Reading], all: bool, now: Micros, style: Style) -> String {
    let mut columns = COLUMNS.to_vec();
    if all {
        columns.push(ENDED);
    }
    let row = |reading: &Reading| {
        let mut row = row(reading, now);
        if all {
            row.push(ended(reading, now));
        }
        row
    };
    let mut rows: Vec<Vec<Field>> = readings.iter().map(row).collect();
    fit(&mut columns, &mut rows, style.width);
    let headings: Vec<&str> = columns.iter().map(|column| column.heading).collect();
    table(&headings, rows, style)
}

/// A field for each of [`COLUMNS`].
fn row(reading: &Reading, now: Micros) -> Vec<Field> {
    let facts = &reading.facts;
    let status = reading.status.as_ref();
    let live = status.filter(|_| reading.is_live());
    let age = |time| span(time, now).unwrap_or_else(|| "0s".to_owned());
    let state = match live.map(|status| (status.unresponsive_since, status.unkept_since)) {
        Some((Some(since), _)) => unresponsive(since, now),
        Some((None, Some(_))) => field(format!("{}, not kept", facts.state.name()), Tone::Bad),
        Some((None, None)) | None => field(facts.state.name(), session_tone(facts.state)),
    };
    let ends_by = live.and_then(|status| status.ends_by.as_deref());
    vec![
        plain(&facts.id),
        plain(&facts.name),
        plain(&facts.engine),
        state,
        plain(facts.attached.to_string()),
        plain(facts.executions.to_string()),
        or_dash(live.and_then(|status| status.busy_since).map(age)),
        or_dash(facts.last_activity.map(age)),
        status.map_or_else(
            || or_dash(None),
            |status| cpu(status.cpu_seconds, live.and(status.cpu_seconds_left)),
        ),
        memory(live.map_or(0, |status| status.memory_bytes)),
        memory(status.map_or(0, |status| status.memory_peak_bytes)),
        gpu(live.and_then(|status| status.gpu_memory_bytes)),
        if reading.is_live() {
            left(facts.ends_at, ends_by, now)
        } else {
            or_dash(None)
        },
    ]
}

fn ended(reading: &Reading, now: Micros) -> Field {
    let facts = &reading.facts;
    let reason = facts.end_reason.clone().filter(|_| !reading.is_live());
    let ended_at = reading.status.as_ref().and_then(|status| status.ended_at);
    or_dash(reason.map(|reason| match ended_at {
        Some(time) => format!("{}, {reason}", ago(time, now)),
        None => reason,
    }))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::state_dir::{SessionState, Status};

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_769_860_800 * SECOND;

    fn reading(id: &str, name: &str, status: Status) -> Reading {
        Reading {
            facts: SessionFacts {
                id: id.to_owned(),
                name: name.to_owned(),
                engine: "python3".to_owned(),
                state: status.state,
                attached: status.attached,
                executions: status.executions,
                created: NOW - 86_400 * SECOND,
                last_activity: status.last_activity,
                ends_at: status.ends_at,
                end_reason: status.end_reason.clone(),
                host_pid: None,
                engine_pid: None,
                key: None,
            },
            written: NOW,
            status: Some(status),
        }
    }

    fn readings() -> Vec<Reading> {
        let train = Status {
            state: SessionState::Busy,
            attached: 1,
            executions: 12,
            busy_since: Some(NOW - 7_300 * SECOND),
            last_activity: Some(NOW - 5 * SECOND),
            ends_at: Some(NOW + 5_420 * SECOND),
            ends_by: Some("budget".to_owned()),
            cpu_seconds: 14_000.0,
            cpu_seconds_left: Some(5_400.0),
            memory_bytes: 1_340_000_000,
            memory_peak_bytes: 2_100_000_000,
            ..Status::starting()
        };
        let stuck = Status {
            state: SessionState::Busy,
            executions: 3,
            busy_since: Some(NOW - 330 * SECOND),
            last_activity: Some(NOW - 330 * SECOND),
            ends_at: Some(NOW + 130 * SECOND),
            ends_by: Some("lifetime".to_owned()),
            cpu_seconds: 3.21,
            memory_bytes: 84_000_000,
            unresponsive_since: Some(NOW - 300 * SECOND),
            ..Status::starting()
        };
        let over = Status {
            state: SessionState::Ended,
            executions: 3,
            last_activity: Some(NOW - 7_200 * SECOND),
            ended_at: Some(NOW - 3_600 * SECOND),
            end_reason: Some(
                "idle: no execution and no request for 1h (idle_timeout_detached)".to_owned(),
            ),
            cpu_seconds: 75.0,
            cpu_seconds_left: Some(1.0),
            memory_bytes: 84_000_000,
            memory_peak_bytes: 90_000_000,
            unresponsive_since: Some(NOW - 300 * SECOND),
            ..Status::starting()
        };
        vec![
            reading("aaaa1111", "train", train),
            reading("bbbb2222", "an-experiment", stuck),
            reading("cccc3333", "sweep", over),
        ]
    }

    fn shown(all: bool, width: Option<u16>) -> String {
        let mut readings = readings();
        readings.retain(|reading| all || reading.is_live());
        let colour = false;
        let text = render(&readings, all, NOW, Style { colour, width });
        for line in text.lines() {
            assert!(
                width.is_none_or(|width| line.chars().count() <= width.into()),
                "{line:?}"
            );
        }
        text
    }

    #[test]
    fn a_pipe_gets_every_column() {
        assert_snapshot!(shown(true, None), @r"
        ID        NAME           ENGINE   STATE            ATTACHED  RUNS  BUSY   ACTIVE  CPU                MEMORY  PEAK  LEFT            ENDED
        aaaa1111  train          python3  busy                    1    12  2h1m   5s      3h53m, 1h30m left    1.3G  2.1G  1h30m budget    -
        bbbb2222  an-experiment  python3  unresponsive 5m         0     3  5m30s  5m30s   3.2s                  84M     -  2m10s lifetime  -
        cccc3333  sweep          python3  ended                   0     3  -      2h      1m15s                   -   90M  -               1h ago, idle: no execution and no request for 1h (idle_timeout_detached)
        ");
    }

    #[test]
    fn a_hundred_columns_leave_out_the_least() {
        assert_snapshot!(shown(false, Some(100)), @r"
        ID        NAME          STATE            BUSY   ACTIVE  CPU                MEMORY  LEFT
        aaaa1111  train         busy             2h1m   5s      3h53m, 1h30m left    1.3G  1h30m budget
        bbbb2222  an-experimen  unresponsive 5m  5m30s  5m30s   3.2s                  84M  2m10s lifetime
                  t
        ");
    }

    #[test]
    fn eighty_columns_leave_out_more() {
        assert_snapshot!(shown(false, Some(80)), @r"
        ID        NAME           STATE            BUSY   LEFT
        aaaa1111  train          busy             2h1m   1h30m budget
        bbbb2222  an-experiment  unresponsive 5m  5m30s  2m10s lifetime
        ");
    }

    #[test]
    fn the_reason_of_an_end_has_room() {
        assert_snapshot!(shown(true, Some(100)), @r"
        ID        NAME           STATE            BUSY   LEFT            ENDED
        aaaa1111  train          busy             2h1m   1h30m budget    -
        bbbb2222  an-experiment  unresponsive 5m  5m30s  2m10s lifetime  -
        cccc3333  sweep          ended            -      -               1h ago, idle: no execution and no
                                                                         request for 1h
                                                                         (idle_timeout_detached)
        ");
    }
}
