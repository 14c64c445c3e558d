//! PURE. The settings there are: keys, defaults, forms, and their values as types.
//!
//! Owns: the list ([`SETTINGS`]) and what a good value is. Refuses to know where values come from (that is
//! [`crate::config`]) and what they do.
//! Invariant: a [`Config`] holds valid values only.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::duration::{DURATION_FORM, parse_duration};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in config.toml; `FARSIDE_` and upper case in the environment.
    pub key: &'static str,
    /// `key` as a flag, without its `--`.
    pub flag: &'static str,
    /// What holds when nobody says anything.
    pub default: &'static str,
    /// What it does, for `--help`.
    pub about: &'static str,
    /// Whether a session that runs can change it for itself (`%farside set`).
    pub of_session: bool,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Duration,
    DurationOrNone,
    Notices,
    BytesOrNone,
    /// Of a journal: less than this has no room for its segments.
    JournalBytesOrNone,
    Text,
    Transport,
    Durability,
    LogFilter,
}

/// The least that a journal can be bounded to.
const JOURNAL_BYTES_MIN: u64 = 1_000_000;

impl Setting {
    /// The setting with this key.
    pub fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Whether this is a value of it; else the form that it should have.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let good = match self.form {
            Form::Duration => parse_duration(value).is_some(),
            Form::DurationOrNone => value == "none" || parse_duration(value).is_some(),
            Form::Notices => notices(value).is_some(),
            Form::BytesOrNone => value == "none" || parse_bytes(value).is_some(),
            Form::JournalBytesOrNone => {
                value == "none"
                    || parse_bytes(value).is_some_and(|bytes| bytes >= JOURNAL_BYTES_MIN)
            }
            Form::Text => !value.contains('\0'),
            Form::Transport => transport(value).is_some(),
            Form::Durability => durability(value).is_some(),
            Form::LogFilter => is_log_filter(value),
        };
        if good { Ok(()) } else { Err(self.form()) }
    }

    /// The form of its values, for people.
    pub fn form(&self) -> String {
        match self.form {
            Form::Duration => DURATION_FORM.to_owned(),
            Form::DurationOrNone => format!("{DURATION_FORM}, or none"),
            Form::Notices => "durations from long to short, like 30m,10m,1m, or none".to_owned(),
            Form::BytesOrNone => "a size like 500M, 10G or 1T, or none".to_owned(),
            Form::JournalBytesOrNone => "a size from 1M on, like 500M or 10G, or none".to_owned(),
            Form::Text => "a text in one piece".to_owned(),
            Form::Transport => "auto, ipc or tcp".to_owned(),
            Form::Durability => "process or power".to_owned(),
            Form::LogFilter => {
                "error, warn, info, debug, trace, or targets like farside=debug".to_owned()
            }
        }
    }

    /// Its value's name in `--help`.
    pub fn value_name(&self) -> &'static str {
        match self.form {
            Form::Duration | Form::DurationOrNone => "DURATION",
            Form::Notices => "DURATIONS",
            Form::BytesOrNone | Form::JournalBytesOrNone => "SIZE",
            Form::Text => "TEXT",
            Form::Transport => "TRANSPORT",
            Form::Durability => "DURABILITY",
            Form::LogFilter => "FILTER",
        }
    }

    const fn of_session(self) -> Self {
        Self {
            of_session: true,
            ..self
        }
    }
}

const fn setting(
    key: &'static str,
    flag: &'static str,
    default: &'static str,
    form: Form,
    about: &'static str,
) -> Setting {
    Setting {
        key,
        flag,
        default,
        about,
        of_session: false,
        form,
    }
}

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    setting(
        "idle_timeout",
        "idle-timeout",
        "4h",
        Form::DurationOrNone,
        "End an idle session that has a frontend after this long",
    )
    .of_session(),
    setting(
        "idle_timeout_detached",
        "idle-timeout-detached",
        "1h",
        Form::DurationOrNone,
        "End an idle session that has no frontend after this long",
    )
    .of_session(),
    setting(
        "input_timeout",
        "input-timeout",
        "12h",
        Form::DurationOrNone,
        "End a session that waits for input() with no frontend after this long",
    )
    .of_session(),
    setting(
        "subshell_timeout",
        "subshell-timeout",
        "1h",
        Form::DurationOrNone,
        "Delete an idle subshell when the frontends that use it have been gone for this long",
    )
    .of_session(),
    setting(
        "max_lifetime",
        "max-lifetime",
        "24h",
        Form::DurationOrNone,
        "End a session this long after its start, busy or not",
    )
    .of_session(),
    setting(
        "max_lifetime_cap",
        "max-lifetime-cap",
        "none",
        Form::DurationOrNone,
        "The longest lifetime that can be asked for, extensions included; the smallest one given counts",
    ),
    setting(
        "cpu_budget",
        "cpu-budget",
        "none",
        Form::DurationOrNone,
        "End a session when its engine and all that it started have used this much CPU time",
    )
    .of_session(),
    setting(
        "notices",
        "notices",
        "30m,10m,1m",
        Form::Notices,
        "How long before its end a session says so",
    )
    .of_session(),
    setting(
        "retire_grace",
        "retire-grace",
        "30s",
        Form::Duration,
        "How long interrupted code has to finish when its session ends",
    )
    .of_session(),
    setting(
        "before_retire",
        "before-retire",
        "",
        Form::Text,
        "Shell command to run before a session retires (its engine lives still)",
    )
    .of_session(),
    setting(
        "before_retire_code",
        "before-retire-code",
        "",
        Form::Text,
        "Code to run in the engine before a session retires",
    )
    .of_session(),
    setting(
        "before_retire_timeout",
        "before-retire-timeout",
        "1m",
        Form::Duration,
        "How long each of the two may take",
    )
    .of_session(),
    setting(
        "notify",
        "notify",
        "",
        Form::Text,
        "Shell command to run, or http(s) URL to post JSON to, when something happens that you want to know of",
    )
    .of_session(),
    setting(
        "notify_after",
        "notify-after",
        "10m",
        Form::Duration,
        "Tell of an execution's end if it took longer, or if nobody was attached",
    )
    .of_session(),
    setting(
        "keep_records",
        "keep-records",
        "14d",
        Form::DurationOrNone,
        "How long the records of an ended session are kept",
    ),
    setting(
        "keep_records_bytes",
        "keep-records-bytes",
        "10G",
        Form::BytesOrNone,
        "How much all sessions' records may take; those of the longest ended sessions go first",
    ),
    setting(
        "journal_bytes_max",
        "journal-bytes-max",
        "2G",
        Form::JournalBytesOrNone,
        "How much a session's journal may take; past half of it, outputs of finished executions are compacted, the oldest first",
    ),
    setting(
        "durability",
        "durability",
        "process",
        Form::Durability,
        "What an output survives from the moment a frontend has it: the death of any process, or a power cut too",
    ),
    setting(
        "engine_start_timeout",
        "engine-start-timeout",
        "60s",
        Form::Duration,
        "How long an engine may take to answer for the first time",
    ),
    setting(
        "engine_transport",
        "engine-transport",
        "auto",
        Form::Transport,
        "How farside talks to the engine (auto: ipc where the engine can)",
    ),
    setting(
        "log",
        "log",
        "info",
        Form::LogFilter,
        "What goes to the log",
    ),
];

/// How farside talks to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineTransport {
    /// `ipc`, and `tcp` for an engine that is known not to speak it.
    Auto,
    /// Unix sockets in a 0700 folder.
    Ipc,
    /// Loopback ports.
    Tcp,
}

/// What a record survives once its append has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process.
    Process,
    /// A power cut, too.
    Power,
}

/// All settings, valid. `None` is a limit that was switched off (`none`); an empty text is one that was not given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Config {
    pub idle_timeout: Option<Duration>,
    pub idle_timeout_detached: Option<Duration>,
    pub input_timeout: Option<Duration>,
    pub subshell_timeout: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    pub max_lifetime_cap: Option<Duration>,
    pub cpu_budget: Option<Duration>,
    /// From long to short.
    pub notices: Vec<Duration>,
    pub retire_grace: Duration,
    pub before_retire: String,
    pub before_retire_code: String,
    pub before_retire_timeout: Duration,
    pub notify: String,
    pub notify_after: Duration,
    pub keep_records: Option<Duration>,
    pub keep_records_bytes: Option<u64>,
    pub journal_bytes_max: Option<u64>,
    pub durability: Durability,
    pub engine_start_timeout: Duration,
    pub engine_transport: EngineTransport,
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self::from_values(&BTreeMap::new())
    }
}

impl Config {
    /// The settings of which some have another value than the default one. What is no setting, or no value of it, is
    /// passed over: values are checked where they come in.
    pub fn from_values(values: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| {
            let setting = Setting::find(key).expect("a key of the list above");
            match values.get(key) {
                Some(value) if setting.check(value).is_ok() => value.as_str(),
                Some(_) | None => setting.default,
            }
        };
        let limit = |key: &str| parse_duration(text(key));
        let duration = |key: &str| limit(key).expect("was checked");
        Self {
            idle_timeout: limit("idle_timeout"),
            idle_timeout_detached: limit("idle_timeout_detached"),
            input_timeout: limit("input_timeout"),
            subshell_timeout: limit("subshell_timeout"),
            max_lifetime: limit("max_lifetime"),
            max_lifetime_cap: limit("max_lifetime_cap"),
            cpu_budget: limit("cpu_budget"),
            notices: notices(text("notices")).expect("was checked"),
            retire_grace: duration("retire_grace"),
            before_retire: text("before_retire").to_owned(),
            before_retire_code: text("before_retire_code").to_owned(),
            before_retire_timeout: duration("before_retire_timeout"),
            notify: text("notify").to_owned(),
            notify_after: duration("notify_after"),
            keep_records: limit("keep_records"),
            keep_records_bytes: parse_bytes(text("keep_records_bytes")),
            journal_bytes_max: parse_bytes(text("journal_bytes_max")),
            durability: durability(text("durability")).expect("was checked"),
            engine_start_timeout: duration("engine_start_timeout"),
            engine_transport: transport(text("engine_transport")).expect("was checked"),
            log: text("log").to_owned(),
        }
    }
}

/// `30m,10m,1m`, each shorter than the one before; `none` is no notice.
fn notices(text: &str) -> Option<Vec<Duration>> {
    if text == "none" {
        return Some(Vec::new());
    }
    let notices: Option<Vec<Duration>> = text
        .split(',')
        .map(|part| parse_duration(part.trim()))
        .collect();
    notices.filter(|notices| notices.is_sorted_by(|longer, shorter| longer > shorter))
}

/// `10G`: a whole number with K, M, G or T (powers of 1000), or of bytes. `None` for anything else.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "K" | "kB" | "KB" => 1000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        _ => return None,
    };
    digits
        .bytes()
        .all(|digit| digit.is_ascii_digit())
        .then(|| digits.parse::<u64>().ok()?.checked_mul(unit))?
}

fn transport(text: &str) -> Option<EngineTransport> {
    match text {
        "auto" => Some(EngineTransport::Auto),
        "ipc" => Some(EngineTransport::Ipc),
        "tcp" => Some(EngineTransport::Tcp),
        _ => None,
    }
}

fn durability(text: &str) -> Option<Durability> {
    match text {
        "process" => Some(Durability::Process),
        "power" => Some(Durability::Power),
        _ => None,
    }
}

/// A word alone is a level here: to the library it may be a target as well, and a level with a typing error would let
/// nothing through.
fn is_log_filter(value: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    let mut parts = value.split(',').map(str::trim);
    parts.all(|part| !is_word(part) || is_level(part) || part == "farside")
        && tracing_subscriber::EnvFilter::try_new(value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_setting() {
        for setting in SETTINGS {
            assert_eq!(setting.check(setting.default), Ok(()), "{}", setting.key);
            assert_eq!(setting.flag, setting.key.replace('_', "-"));
        }
    }

    #[test]
    fn values_are_read_as_written_and_bad_ones_refused() {
        for (key, good, bad) in [
            ("notices", "5m", "1m,5m"),
            ("notices", "none", ""),
            ("notices", "2h, 3s", "2h,2h"),
            ("keep_records_bytes", "500M", "5 apples"),
            ("keep_records_bytes", "none", "99999999T"),
            ("keep_records_bytes", "12", "-1"),
            ("cpu_budget", "none", "0s"),
            ("retire_grace", "5s", "none"),
            ("notify", "mail -s done me", "a\0b"),
            ("log", "INFO", "inof"),
            ("log", "warn,farside::host=debug", "loud"),
        ] {
            let setting = Setting::find(key).unwrap();
            assert_eq!(setting.check(good), Ok(()), "{key} = {good}");
            assert_eq!(setting.check(bad), Err(setting.form()), "{key} = {bad}");
        }
        assert_eq!(parse_bytes("10G"), Some(10_000_000_000));
    }

    #[test]
    fn a_bad_value_never_gets_in() {
        let values = BTreeMap::from([
            ("idle_timeout".to_owned(), "soon".to_owned()),
            ("max_lifetime".to_owned(), "none".to_owned()),
        ]);
        let config = Config::from_values(&values);
        assert_eq!(config.idle_timeout, Config::default().idle_timeout);
        assert_eq!(config.max_lifetime, None);
    }
}
