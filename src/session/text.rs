//! What `%farside status` and `%farside history` print, and the JSON of lists.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::core::{Core, Predecessor};
use super::event::ExecutionSummary;
use crate::duration::format_duration;
use crate::journal::record::Micros;
use crate::wire::message::iso8601;

/// How much of an execution's code a table shows.
const CODE_CHARS_MAX: usize = 60;

/// `%farside status`.
pub(super) fn status(core: &Core) -> String {
    let (facts, state) = (&core.facts, core.state());
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "session    {} ({})", facts.name, facts.id);
    let _ = writeln!(
        text,
        "engine     {}{}",
        facts.engine,
        match state.engine_pid {
            Some(pid) => format!(", process {pid}"),
            None => ", not running".into(),
        }
    );
    let _ = writeln!(text, "state      {}", core.session_state());
    if let Some(since) = state.lifetime.unresponsive_since {
        let _ = writeln!(
            text,
            "           its heartbeat does not answer, since {}",
            clock_time(since, core.now)
        );
    }
    for (i, end) in core.describe_ends().lines().enumerate() {
        let label = if i == 0 { "ends" } else { "" };
        let _ = writeln!(text, "{label:<10} {end}");
    }
    if core.cpu() > 0 {
        let _ = writeln!(
            text,
            "used       {} of CPU time, {} of memory now, {} at most",
            span(core.cpu()),
            size(core.memory_bytes()),
            size(state.lifetime.used.peak_bytes.max(core.memory_bytes()))
        );
    }
    if let Some(bytes) = core.gpu_memory_bytes() {
        let _ = writeln!(text, "           {} of GPU memory", size(bytes));
    }
    let _ = writeln!(text, "executions {}", state.last_n);
    for (n, execution) in &state.live {
        let since = execution
            .started
            .map(|started| format!(" for {}", span(core.now.saturating_sub(started))));
        let _ = writeln!(
            text,
            "  {n:>4}     {}{}",
            execution.state.name(),
            since.unwrap_or_default()
        );
    }
    let _ = writeln!(
        text,
        "come back  farside attach {}   (in a terminal), or open the notebook again",
        facts.id
    );
    text
}

/// `%farside history`, oldest first as a person reads it.
pub(super) fn history(executions: &[ExecutionSummary]) -> String {
    if executions.is_empty() {
        return "nothing was executed in this session yet\n".into();
    }
    let mut text = format!(
        "{:>4}  {:<13}  {:<19}  {:>8}  code\n",
        "n", "state", "started (UTC)", "took"
    );
    for execution in executions.iter().rev() {
        let started = execution
            .started
            .map(|started| iso8601(started)[..19].replace('T', " "))
            .unwrap_or_default();
        let took = match (execution.started, execution.ended) {
            (Some(started), Some(ended)) => span(ended.saturating_sub(started)),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "{:>4}  {:<13}  {started:<19}  {took:>8}  {}",
            execution.n,
            execution.state.name(),
            first_line(&execution.code)
        );
    }
    text
}

/// What a session's first output says of the one before it.
pub(super) fn predecessor(before: &Predecessor, now: Micros) -> String {
    let Predecessor {
        id,
        of_notebook,
        executions,
        ended_at,
        lost,
        reason,
    } = before;
    let which = if *of_notebook {
        "The last session of this notebook"
    } else {
        "The session before this one"
    };
    let (plural, verb) = (
        if *executions == 1 { "" } else { "s" },
        if *lost { "was last heard of" } else { "ended" },
    );
    let at = clock_time(*ended_at, now);
    let reason = reason.trim_end_matches('.');
    format!(
        "[farside] {which} ({id}, {executions} execution{plural}) {verb} at {at} ({reason}). Its variables are \
         gone; its outputs are kept: `%farside attach {id}:{executions}` shows the last one here, `%farside history \
         {id}` lists them.\n"
    )
}

/// An execution in `farside_list_reply`, with the contract's names.
pub(super) fn execution_json(execution: &ExecutionSummary) -> Value {
    json!({
        "msg_id": execution.msg_id,
        "n": execution.n,
        "cell_id": execution.cell_id,
        "code": execution.code,
        "state": execution.state.name(),
        "started": execution.started.map(iso8601),
        "ended": execution.ended.map(iso8601),
    })
}

fn first_line(code: &str) -> String {
    let line = code
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("")
        .trim_end();
    let more = code.lines().filter(|line| !line.trim().is_empty()).count() > 1;
    match line.char_indices().nth(CODE_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if more => format!("{line} ..."),
        None => line.to_owned(),
    }
}

/// `14:05 UTC`; with the day where that is another one.
pub(super) fn clock_time(time: Micros, now: Micros) -> String {
    let (at, today) = (iso8601(time), iso8601(now));
    let from = if at[..10] == today[..10] { 11 } else { 0 };
    format!("{} UTC", at[from..16].replace('T', " "))
}

/// As a limit is written: `1h30m`, `45s`, `24h`. Minutes and more to the minute, two days and more in days.
pub(super) fn span_long(micros: Micros) -> String {
    const DAY: u64 = 86_400;
    let seconds = micros.saturating_add(500_000) / 1_000_000;
    let shown = if seconds < 120 {
        seconds
    } else {
        seconds.saturating_add(30) / 60 * 60
    };
    let format = |seconds| format_duration(Duration::from_secs(seconds));
    match shown {
        DAY..172_800 => {
            let hours = format!("{}h", shown / 3600);
            match shown % 3600 {
                0 => hours,
                rest => hours + &format(rest),
            }
        }
        _ => format(shown),
    }
}

/// `12.3 MB`.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `3 h 12 min`.
pub(super) fn span(micros: Micros) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0 => format!("{} ms", micros / 1000),
        1..60 => format!("{:.1} s", micros as f64 / 1e6),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}
