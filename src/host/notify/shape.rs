//! What a notification looks like outside: the JSON, and the same as variables.

use serde::Serialize;

use crate::session::event::Notification;
use crate::state_dir::iso;

/// Of a text or of code, so many characters go out: a line or two is meant, and an environment has a bound.
const TEXT_CHARS_MAX: usize = 4000;

/// What is posted. Its fields are documented in docs/settings.md; they may become more, and keep their meaning.
#[derive(Debug, Serialize)]
pub(super) struct Shape {
    event: &'static str,
    text: String,
    time: String,
    session_id: String,
    session_name: String,
    engine: String,
    execution: Option<u64>,
    state: Option<String>,
    seconds: Option<f64>,
    code: Option<String>,
    reason: Option<String>,
    machine: Option<String>,
    farside: &'static str,
}

impl Shape {
    pub fn of(told: &Notification) -> Self {
        let state = told.state.map(serde_json::to_value);
        Self {
            event: told.event.name(),
            text: cut(&told.text, TEXT_CHARS_MAX),
            time: iso::format(told.time),
            session_id: told.session.clone(),
            session_name: told.name.clone(),
            engine: told.engine.clone(),
            execution: told.execution,
            state: state.and_then(|state| state.ok()?.as_str().map(str::to_owned)),
            seconds: told
                .seconds
                .map(|seconds| (seconds * 1000.0).round() / 1000.0),
            code: told.code.as_ref().map(|code| cut(code, TEXT_CHARS_MAX)),
            reason: told
                .reason
                .as_ref()
                .map(|reason| cut(reason, TEXT_CHARS_MAX)),
            machine: machine(),
            farside: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The same for a command: `session_id` is `FARSIDE_SESSION_ID`, and so on. What is null is not there.
    pub fn variables(&self) -> Vec<(String, String)> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        let text = |value: serde_json::Value| match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text),
            other => Some(other.to_string()),
        };
        fields
            .into_iter()
            .filter(|(key, _)| key != "farside")
            .filter_map(|(key, value)| {
                Some((format!("FARSIDE_{}", key.to_uppercase()), text(value)?))
            })
            .collect()
    }
}

/// Which machine this is.
pub(super) fn machine() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// At most so many characters; what is left out shows as dots.
pub(super) fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
