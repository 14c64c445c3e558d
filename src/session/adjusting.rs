//! What a person may change in a running session: its end, its settings, and what is to be told of.

use serde_json::{Value, json};

use super::core::Core;
use super::lifetime::micros;
use super::text::span_long;
use crate::journal::record::{Micros, Note};
use crate::settings::{Config, SETTINGS, Setting};

impl Core {
    /// Moves the end. The answer says where to; an error why not.
    pub(super) fn extend(&mut self, seconds: u64) -> Result<String, String> {
        if let Some(ending) = &self.state.lifetime.ending {
            return Err(format!("the session is ending already ({})", ending.reason));
        }
        let by = seconds.saturating_mul(1_000_000);
        self.check_extension(by)?;
        self.note(Note::Extended { seconds });
        Ok(self.describe_ends())
    }

    /// No extension goes past the cap.
    fn check_extension(&self, by: Micros) -> Result<(), String> {
        let most = self.state.lifetime.can_extend_by(&self.limits);
        let Some(most) = most.filter(|most| by > *most) else {
            return Ok(());
        };
        let cap = span_long(micros(self.limits.max_lifetime_cap.unwrap_or_default()));
        Err(match most {
            0 => format!(
                "this session cannot be extended: its lifetime is as long as max_lifetime_cap allows ({cap}). To keep \
                 it from ending idle before that, run something in it, or `%farside set idle_timeout {cap}`."
            ),
            most => format!(
                "this session can be extended by {} at most: max_lifetime_cap is {cap}",
                span_long(most)
            ),
        })
    }

    /// Changes a setting of this session. The answer says what holds now; an error what is allowed.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<String, String> {
        let keys = || {
            let keys = SETTINGS.iter().filter(|setting| setting.of_session);
            keys.map(|setting| setting.key)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let setting = match Setting::find(key) {
            Some(setting) if setting.of_session => setting,
            Some(_) => {
                return Err(format!(
                    "{key} cannot be changed in a session that runs; these can: {}",
                    keys()
                ));
            }
            None => {
                return Err(format!(
                    "no setting is called `{key}`; those of a session are: {}",
                    keys()
                ));
            }
        };
        setting
            .check(value)
            .map_err(|form| format!("`{value}` is no value for {key}; it takes {form}"))?;
        let mut state = self.state.lifetime.settings.clone();
        state.insert(key.to_owned(), value.to_owned());
        let mut values = self.facts.settings.clone();
        values.extend(state);
        let config = Config::from_values(&values);
        if key == "max_lifetime"
            && let Some(cap) = config.max_lifetime_cap
            && config.max_lifetime.is_none_or(|asked| asked > cap)
        {
            return Err(format!(
                "max_lifetime can be {} at most: that is max_lifetime_cap",
                span_long(micros(cap))
            ));
        }
        self.note(Note::Set {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        self.limits = config;
        Ok(format!("{key} = {value}, in this session\n"))
    }

    /// What `%farside set` shows.
    pub(super) fn describe_settings(&self) -> String {
        let mut text = String::new();
        for setting in SETTINGS.iter().filter(|setting| setting.of_session) {
            let of_session = self.state.lifetime.settings.get(setting.key);
            let value = of_session
                .or_else(|| self.facts.settings.get(setting.key))
                .map_or(setting.default, String::as_str);
            let mark = if of_session.is_some() {
                "  (set in this session)"
            } else {
                ""
            };
            text.push_str(&format!("{:<22} {value}{mark}\n", setting.key));
        }
        text
    }

    /// `%farside notify`: whether the end of what runs, or of what runs next, is to be told of.
    pub(super) fn set_notify(&mut self, on: bool) -> Result<String, String> {
        if on && self.limits.notify.is_empty() {
            return Err(
                "nothing says how to tell you: `%farside set notify COMMAND` or `%farside set notify URL` first".into(),
            );
        }
        let (n, which) = match self.state.running() {
            Some((n, _)) => (n, format!("execution {n}, which runs,")),
            None => (self.state.last_n + 1, "the next execution".to_owned()),
        };
        self.note(Note::NotifyOf { n, on });
        let not = if on { "" } else { "not " };
        Ok(format!("the end of {which} will {not}be told of\n"))
    }

    /// What `extend` answers on the command line.
    pub(super) fn extend_answer(&mut self, seconds: u64) -> Value {
        match self.extend(seconds) {
            Ok(text) => {
                let ends_at = self
                    .ends_at(self.clocks)
                    .map(|(at, _)| crate::wire::message::iso8601(at));
                json!({ "ok": true, "ends_at": ends_at, "text": text })
            }
            Err(error) => json!({ "ok": false, "error": error }),
        }
    }
}
