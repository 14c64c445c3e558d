//! `farside status`: all that is known of one session, also of one that has ended. Reads its files, and asks nobody.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::readings::Reading;
use super::render::{ago, bytes, cpu_time, span, visible};
use super::{Exit, Output, find_session};
use crate::journal::record::Micros;
use crate::state_dir::{Session, SessionFacts, iso, now};

/// Show all that is known of a session: what it does or how it ended, what it has used, where its records are.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of a session that has ended this is what is left beside its outputs, which `farside history` and \
                        `farside logs` show.\n\nExample:\n  farside status train"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
    /// Print a JSON object: that of `farside ls --json`, and more
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    let all = All::of(&session);
    if args.json {
        out.json(&all)?;
    } else {
        out.line(render(&all, now()).trim_end())?;
    }
    Ok(Exit::Done)
}

/// The object of `--json`, with these names.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct All {
    #[serde(flatten)]
    facts: SessionFacts,
    /// `null`: it lives, or nobody saw its end.
    #[serde(with = "iso::option")]
    ended_at: Option<Micros>,
    /// How the last engine ended: its exit code, or the signal that killed it.
    engine_end: Option<String>,
    /// `idle`, `lifetime` or `budget`.
    ends_by: Option<String>,
    #[serde(with = "iso::option")]
    unresponsive_since: Option<Micros>,
    /// `null`: all that is printed is kept.
    #[serde(with = "iso::option")]
    unkept_since: Option<Micros>,
    running: Option<u64>,
    #[serde(with = "iso::option")]
    busy_since: Option<Micros>,
    outputs: u64,
    output_bytes: u64,
    cpu_seconds: f64,
    /// `null`: no budget.
    cpu_seconds_left: Option<f64>,
    /// 0 of a session that has ended.
    memory_bytes: u64,
    memory_peak_bytes: u64,
    /// `null`: nobody can tell.
    gpu_memory_bytes: Option<u64>,
    cwd: PathBuf,
    /// What it was given by flags and environment.
    settings: BTreeMap<String, String>,
    /// The session of the same notebook before it.
    predecessor: Option<String>,
    records: PathBuf,
}

impl All {
    fn of(session: &Session) -> Self {
        let reading = Reading::of(session);
        let is_live = reading.is_live();
        let json = &session.json;
        let status = reading.status.as_ref();
        let live = status.filter(|_| is_live);
        Self {
            ended_at: status.and_then(|status| status.ended_at),
            engine_end: status.and_then(|status| status.engine_end.clone()),
            ends_by: live.and_then(|status| status.ends_by.clone()),
            unresponsive_since: live.and_then(|status| status.unresponsive_since),
            unkept_since: live.and_then(|status| status.unkept_since),
            running: live.and_then(|status| status.running),
            busy_since: live.and_then(|status| status.busy_since),
            outputs: status.map_or(0, |status| status.outputs),
            output_bytes: status.map_or(0, |status| status.output_bytes),
            cpu_seconds: status.map_or(0.0, |status| status.cpu_seconds),
            cpu_seconds_left: status.and_then(|status| status.cpu_seconds_left),
            memory_bytes: live.map_or(0, |status| status.memory_bytes),
            memory_peak_bytes: status.map_or(0, |status| status.memory_peak_bytes),
            gpu_memory_bytes: live.and_then(|status| status.gpu_memory_bytes),
            cwd: json.cwd.clone(),
            settings: json.settings.clone(),
            predecessor: json.predecessor.clone(),
            records: session.dir.root().to_owned(),
            facts: reading.facts,
        }
    }
}

/// PURE. One line for each thing.
fn render(all: &All, now: Micros) -> String {
    let mut text = String::new();
    for (label, value) in lines(all, now) {
        text.push_str(&format!("{label:<12}{}\n", visible(&value)));
    }
    text
}

fn lines(all: &All, now: Micros) -> Vec<(&'static str, String)> {
    let facts = &all.facts;
    let at = |time: Micros| format!("{} ({})", ago(time, now), day_and_time(time));
    let for_long = |since: Micros| span(since, now).unwrap_or_else(|| "0s".to_owned());
    let mut lines = vec![("session", format!("{} ({})", facts.name, facts.id))];
    let engine = match (facts.engine_pid, &all.engine_end) {
        (Some(pid), _) => format!(", process {pid}"),
        (None, Some(end)) => format!(", {end}"),
        (None, None) => String::new(),
    };
    lines.push(("engine", format!("{}{engine}", facts.engine)));
    lines.push(("state", facts.state.name().to_owned()));
    if let Some(since) = all.unresponsive_since {
        let text = format!("its heartbeat has not answered for {}", for_long(since));
        lines.push(("", text));
    }
    if let Some(since) = all.unkept_since {
        let text = format!(
            "what it prints has not been kept for {}: its journal cannot be written (host.log says why)",
            for_long(since)
        );
        lines.push(("", text));
    }
    if facts.state.is_live() {
        let host = facts.host_pid.map(|pid| format!("process {pid}"));
        lines.extend(host.map(|host| ("host", host)));
        lines.push(("attached", facts.attached.to_string()));
    }
    lines.push(("created", at(facts.created)));
    match (facts.state.is_live(), facts.ends_at) {
        (true, Some(ends_at)) => {
            let by = all.ends_by.as_ref().map(|by| format!(" ({by})"));
            let left = span(now, ends_at).unwrap_or_else(|| "0s".to_owned());
            lines.push(("ends", format!("in {left}{}", by.unwrap_or_default())));
        }
        (true, None) => lines.push(("ends", "when it is stopped".to_owned())),
        (false, _) => {
            let when = all.ended_at.map_or_else(|| "?".to_owned(), at);
            lines.push(("ended", when));
        }
    }
    lines.extend(facts.end_reason.clone().map(|reason| ("because", reason)));
    lines.extend(all.predecessor.clone().map(|id| ("follows", id)));
    let running = all.running.map(|n| {
        let since = all
            .busy_since
            .map(|since| format!(" for {}", for_long(since)));
        format!(", #{n} runs{}", since.unwrap_or_default())
    });
    let executions = format!("{}{}", facts.executions, running.unwrap_or_default());
    lines.push(("executions", executions));
    lines.push((
        "outputs",
        format!("{} ({})", all.outputs, bytes(all.output_bytes)),
    ));
    let left = all
        .cpu_seconds_left
        .map(|left| format!(", {} left", cpu_time(left)));
    lines.push((
        "CPU time",
        cpu_time(all.cpu_seconds) + &left.unwrap_or_default(),
    ));
    let most = format!("{} at most", bytes(all.memory_peak_bytes));
    lines.push((
        "memory",
        match all.memory_bytes {
            0 => most,
            now => format!("{}, {most}", bytes(now)),
        },
    ));
    lines.extend(
        all.gpu_memory_bytes
            .map(|count| ("GPU memory", bytes(count))),
    );
    lines.push(("folder", all.cwd.display().to_string()));
    lines.extend(facts.key.clone().map(|key| ("key", key)));
    for (at, (key, value)) in all.settings.iter().enumerate() {
        let label = if at == 0 { "settings" } else { "" };
        lines.push((label, format!("{key} = {value}")));
    }
    lines.push(("records", all.records.display().to_string()));
    lines
}

/// `2026-01-31 12:00:00 UTC`.
fn day_and_time(time: Micros) -> String {
    let text = iso::format(time);
    let (day, rest) = text.split_once('T').unwrap_or((&text, ""));
    format!("{day} {} UTC", rest.split('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::state_dir::SessionState;

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_769_860_800 * SECOND;

    fn all() -> All {
        All {
            facts: SessionFacts {
                id: "aaaa1111".to_owned(),
                name: "train".to_owned(),
                engine: "python3".to_owned(),
                state: SessionState::Busy,
                attached: 1,
                executions: 12,
                created: NOW - 7_000 * SECOND,
                last_activity: Some(NOW),
                ends_at: Some(NOW + 5_420 * SECOND),
                end_reason: None,
                host_pid: Some(41),
                engine_pid: Some(42),
                key: Some("/home/me/train.ipynb".to_owned()),
            },
            ended_at: None,
            engine_end: None,
            ends_by: Some("lifetime".to_owned()),
            unresponsive_since: Some(NOW - 300 * SECOND),
            unkept_since: None,
            running: Some(12),
            busy_since: Some(NOW - 400 * SECOND),
            outputs: 120,
            output_bytes: 33_000,
            cpu_seconds: 75.0,
            cpu_seconds_left: Some(525.0),
            memory_bytes: 1_100_000_000,
            memory_peak_bytes: 1_340_000_000,
            gpu_memory_bytes: Some(3_000_000_000),
            cwd: "/home/me".into(),
            settings: BTreeMap::from([
                ("cpu_budget".to_owned(), "10m".to_owned()),
                ("notices".to_owned(), "5m".to_owned()),
            ]),
            predecessor: Some("bbbb2222".to_owned()),
            records: "/home/me/.local/state/farside/aaaa1111".into(),
        }
    }

    #[test]
    fn one_that_lives() {
        assert_snapshot!(render(&all(), NOW));
    }

    #[test]
    fn one_that_has_retired() {
        let mut all = all();
        all.facts.state = SessionState::Retired;
        all.facts.ends_at = None;
        all.facts.end_reason = Some("budget: 10m of CPU time are used up".to_owned());
        all.facts.engine_pid = None;
        all.engine_end = Some("exited with code 0".to_owned());
        all.ended_at = Some(NOW - 60 * SECOND);
        all.unresponsive_since = None;
        all.running = None;
        all.memory_bytes = 0;
        all.gpu_memory_bytes = None;
        all.settings.clear();
        all.predecessor = None;
        assert_snapshot!(render(&all, NOW));
    }
}
