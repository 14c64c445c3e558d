//! PURE. The sessions in Prometheus' text exposition format, version 0.0.4.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>. Every family is there at any time, also without a
//! sample, so that a scrape always says what there is to know. Samples have the label `id` only: names and keys are
//! in `farside_session_info`, to be joined.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::readings::Reading;
use crate::journal::record::Micros;
use crate::state_dir::{SessionState, Status};

/// The `Content-Type` of this format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Those of a session that lives.
const LIVE_STATES: [SessionState; 4] = [
    SessionState::Starting,
    SessionState::Busy,
    SessionState::Idle,
    SessionState::WaitingInput,
];
/// The first words of an `end_reason`; what is none of them counts as `other`.
const REASONS: [&str; 7] = [
    "idle",
    "lifetime",
    "budget",
    "stopped",
    "shutdown",
    "engine_died",
    "host_lost",
];

/// All metrics of these sessions, live and ended.
pub fn exposition(readings: &[Reading]) -> String {
    let mut page = Page::default();
    page.family(
        "farside_build_info",
        Kind::Gauge,
        "The farside that says this.",
    );
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    sessions(&mut page, readings);
    let live: Vec<&Reading> = readings
        .iter()
        .filter(|reading| reading.is_live())
        .collect();
    info(&mut page, &live);
    states(&mut page, &live);
    for metric in &METRICS {
        page.family(metric.name, metric.kind, metric.help);
        for reading in &live {
            if let Some(value) = (metric.value)(reading) {
                page.sample(&[("id", &reading.facts.id)], value);
            }
        }
    }
    page.text
}

/// How many there are.
fn sessions(page: &mut Page, readings: &[Reading]) {
    page.family(
        "farside_sessions",
        Kind::Gauge,
        "Live sessions, by their state.",
    );
    for state in LIVE_STATES {
        let count = readings.iter().filter(|r| r.facts.state == state).count();
        page.sample(&[("state", state.name())], count);
    }
    let mut ended: BTreeMap<&str, usize> = REASONS.into_iter().map(|reason| (reason, 0)).collect();
    for reading in readings.iter().filter(|reading| !reading.is_live()) {
        *ended.entry(reason(reading)).or_default() += 1;
    }
    page.family(
        "farside_sessions_ended",
        Kind::Gauge,
        "Ended sessions whose records are kept, by the reason of their end.",
    );
    for (reason, count) in ended {
        page.sample(&[("reason", reason)], count);
    }
}

/// The word of the contract that a reason begins with.
fn reason(reading: &Reading) -> &'static str {
    let text = reading.facts.end_reason.as_deref().unwrap_or_default();
    let word = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .next();
    let known = REASONS.into_iter().find(|known| Some(*known) == word);
    known.unwrap_or("other")
}

fn info(page: &mut Page, live: &[&Reading]) {
    page.family(
        "farside_session_info",
        Kind::Gauge,
        "A live session: its name, its engine, and the key (a notebook's path) that it is found by, where it has one.",
    );
    for reading in live {
        let facts = &reading.facts;
        let mut labels = vec![
            ("id", facts.id.as_str()),
            ("name", &facts.name),
            ("engine", &facts.engine),
        ];
        labels.extend(facts.key.as_deref().map(|key| ("key", key)));
        page.sample(&labels, 1);
    }
}

/// A state set: 1 for the state it is in, 0 for the others.
fn states(page: &mut Page, live: &[&Reading]) {
    page.family(
        "farside_session_state",
        Kind::Gauge,
        "1 for the state that a session is in, 0 for the others.",
    );
    for reading in live {
        for state in LIVE_STATES {
            let labels = [("id", reading.facts.id.as_str()), ("state", state.name())];
            page.sample(&labels, u8::from(reading.facts.state == state));
        }
    }
}

/// A metric with one sample a session, or none.
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&Reading) -> Option<Value>,
}

const METRICS: [Metric; 17] = [
    Metric {
        name: "farside_session_created_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When the session was created.",
        value: |reading| Some(Value::Time(reading.facts.created)),
    },
    Metric {
        name: "farside_session_attached",
        kind: Kind::Gauge,
        help: "Frontends and commands that are attached to it.",
        value: |reading| Some(Value::Count(reading.facts.attached.into())),
    },
    Metric {
        name: "farside_session_executions_total",
        kind: Kind::Counter,
        help: "Executions that it was asked for.",
        value: |reading| Some(Value::Count(reading.facts.executions)),
    },
    Metric {
        name: "farside_session_outputs_total",
        kind: Kind::Counter,
        help: "Messages of output.",
        value: |reading| of(reading, |status| Some(Value::Count(status.outputs))),
    },
    Metric {
        name: "farside_session_output_bytes_total",
        kind: Kind::Counter,
        help: "Bytes of output.",
        value: |reading| of(reading, |status| Some(Value::Count(status.output_bytes))),
    },
    Metric {
        name: "farside_session_cpu_seconds_total",
        kind: Kind::Counter,
        help: "CPU time of the engine and all that it started.",
        value: |reading| of(reading, |status| Some(Value::Number(status.cpu_seconds))),
    },
    Metric {
        name: "farside_session_cpu_budget_left_seconds",
        kind: Kind::Gauge,
        help: "CPU time that is left, where there is a budget.",
        value: |reading| of(reading, |status| status.cpu_seconds_left.map(Value::Number)),
    },
    Metric {
        name: "farside_session_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory of the engine and all that it started.",
        value: |reading| of(reading, |status| Some(Value::Count(status.memory_bytes))),
    },
    Metric {
        name: "farside_session_memory_peak_bytes",
        kind: Kind::Gauge,
        help: "The most memory that was seen.",
        value: |reading| {
            of(reading, |status| {
                Some(Value::Count(status.memory_peak_bytes))
            })
        },
    },
    Metric {
        name: "farside_session_gpu_memory_bytes",
        kind: Kind::Gauge,
        help: "GPU memory of the engine and all that it started, where the machine tells.",
        value: |reading| of(reading, |status| status.gpu_memory_bytes.map(Value::Count)),
    },
    Metric {
        name: "farside_session_last_activity_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When there was last a person's request, or output.",
        value: |reading| reading.facts.last_activity.map(Value::Time),
    },
    Metric {
        name: "farside_session_busy_since_timestamp_seconds",
        kind: Kind::Gauge,
        help: "Since when an execution runs, where one does.",
        value: |reading| of(reading, |status| status.busy_since.map(Value::Time)),
    },
    Metric {
        name: "farside_session_running_execution",
        kind: Kind::Gauge,
        help: "The number of the execution that runs, where one does.",
        value: |reading| of(reading, |status| status.running.map(Value::Count)),
    },
    Metric {
        name: "farside_session_ends_at_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When it ends if nothing more happens, where that is known.",
        value: |reading| reading.facts.ends_at.map(Value::Time),
    },
    Metric {
        name: "farside_session_unresponsive",
        kind: Kind::Gauge,
        help: "1 while the engine lives and its heartbeat does not answer.",
        value: |reading| {
            of(reading, |status| {
                Some(Value::Count(status.unresponsive_since.is_some().into()))
            })
        },
    },
    Metric {
        name: "farside_session_unresponsive_since_timestamp_seconds",
        kind: Kind::Gauge,
        help: "Since when that is so.",
        value: |reading| of(reading, |status| status.unresponsive_since.map(Value::Time)),
    },
    Metric {
        name: "farside_session_status_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When the session's host last wrote what is said here. It does so when something changes.",
        value: |reading| of(reading, |_| Some(Value::Time(reading.written))),
    },
];

/// Of the status, where the host has said something.
fn of(reading: &Reading, value: impl FnOnce(&Status) -> Option<Value>) -> Option<Value> {
    reading.status.as_ref().and_then(value)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Count(u64),
    Number(f64),
    /// In seconds, exactly: a float would lose the last digits.
    Time(Micros),
}

macro_rules! counts {
    ($($of:ty),*) => { $(impl From<$of> for Value {
        fn from(count: $of) -> Self {
            Self::Count(count as u64)
        }
    })* };
}
counts!(u8, i32, usize);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Gauge,
    Counter,
}

/// The text as it grows. Samples belong to the family that came last.
#[derive(Default)]
struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.family = name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        self.text.push_str(self.family);
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, text)| format!("{name}=\"{}\"", escaped(text)))
            .collect();
        let value = match value.into() {
            Value::Count(count) => count.to_string(),
            Value::Number(number) if number.is_infinite() => {
                if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
            }
            Value::Number(number) => number.to_string(),
            Value::Time(time) => format!("{}.{:06}", time / 1_000_000, time % 1_000_000),
        };
        let _ = writeln!(self.text, "{{{}}} {value}", labels.join(","));
    }
}

/// A label's value: backslash, quote and line feed have to be escaped, everything else is as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::state_dir::SessionFacts;

    const SECOND: Micros = 1_000_000;
    const NOON: Micros = 1_769_860_800 * SECOND;

    fn reading(id: &str, state: SessionState, end_reason: Option<&str>) -> Reading {
        Reading {
            facts: SessionFacts {
                id: id.to_owned(),
                name: format!("name-{id}"),
                engine: "python3".to_owned(),
                state,
                attached: 0,
                executions: 0,
                created: NOON,
                last_activity: None,
                ends_at: None,
                end_reason: end_reason.map(str::to_owned),
                host_pid: None,
                engine_pid: None,
                key: None,
            },
            status: None,
            written: 0,
        }
    }

    #[test]
    fn the_page_has_all_of_a_busy_session() {
        let mut busy = reading("aaaa1111", SessionState::Busy, None);
        busy.facts.key = Some("/home/me/a \"b\" \\ c\nd {é}.ipynb".to_owned());
        busy.facts.ends_at = Some(NOON + 3_600 * SECOND + 1);
        busy.written = NOON + 5 * SECOND;
        busy.status = Some(Status {
            state: SessionState::Busy,
            busy_since: Some(NOON - 7 * SECOND / 2),
            running: Some(7),
            outputs: 12,
            output_bytes: u64::MAX,
            cpu_seconds: 12.5,
            cpu_seconds_left: Some(0.0),
            memory_bytes: 84_000_000,
            memory_peak_bytes: 99_000_000,
            gpu_memory_bytes: Some(3 << 30),
            unresponsive_since: Some(NOON),
            ..Status::starting()
        });
        let all = [
            busy,
            reading("bbbb2222", SessionState::Starting, None),
            reading(
                "cccc3333",
                SessionState::Ended,
                Some("stopped: by `farside stop`"),
            ),
            reading(
                "dddd4444",
                SessionState::Retired,
                Some("idle: no request for 1h"),
            ),
            reading("eeee5555", SessionState::Lost, Some("host_lost: gone")),
            reading("ffff6666", SessionState::Ended, Some("idleness")),
        ];
        let page = exposition(&all);
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_snapshot!(samples.join("\n"));
    }

    #[test]
    fn no_session_leaves_the_families() {
        assert_snapshot!(exposition(&[]));
    }

    #[test]
    fn numbers_are_as_the_format_has_them() {
        let mut page = Page::default();
        page.family("x", Kind::Gauge, "a \\ b\nc");
        for value in [0.1, 1e21, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            page.sample(&[("id", "a")], Value::Number(value));
        }
        assert_snapshot!(page.text, @r#"
        # HELP x a \\ b\nc
        # TYPE x gauge
        x{id="a"} 0.1
        x{id="a"} 1000000000000000000000
        x{id="a"} +Inf
        x{id="a"} -Inf
        x{id="a"} NaN
        "#);
    }
}
