//! Settings: defaults, the system's `config.toml`, the user's, `FARSIDE_*`, flags; the later one wins, and each value
//! knows where it came from. One is different: of all values of `max_lifetime_cap` the smallest counts, so that who
//! comes later can lower it and not raise it.
//!
//! Owns: where values come from and how they are merged. What settings there are is in [`crate::settings`].
//! Invariants: an unknown key or a bad value is refused by its name, with the form it should have, and never silently
//! ignored. `max_lifetime` is within `max_lifetime_cap`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches};
use serde::Serialize;

pub use crate::duration::{DURATION_FORM, format_duration, parse_duration};
pub use crate::settings::{Config, Durability, EngineTransport, SETTINGS, Setting, parse_bytes};

/// Says where the system's config.toml is, for tests: a user who may run another farside, or this one otherwise, is
/// bound by nothing that this one reads.
const SYSTEM_FILE_VARIABLE: &str = "FARSIDE_SYSTEM_CONFIG";

/// What an administrator sets for all users of a machine.
const SYSTEM_FILE: &str = "/etc/farside/config.toml";

/// Variables of ours that are not settings.
const OTHER_VARIABLES: &[&str] = &["FARSIDE_STATE_DIR", "FARSIDE_SESSION", SYSTEM_FILE_VARIABLE];

/// Those that the commands of a session get (`before_retire`, `notify`), in which farside may be run.
pub const COMMAND_VARIABLES: &[&str] = &[
    "FARSIDE_CODE",
    "FARSIDE_ENGINE",
    "FARSIDE_ENGINE_PID",
    "FARSIDE_EVENT",
    "FARSIDE_EXECUTION",
    "FARSIDE_JSON",
    "FARSIDE_MACHINE",
    "FARSIDE_REASON",
    "FARSIDE_SECONDS",
    "FARSIDE_SESSION_ID",
    "FARSIDE_SESSION_NAME",
    "FARSIDE_STATE",
    "FARSIDE_TEXT",
    "FARSIDE_TIME",
];

/// The settings that `-h` shows; `--help` shows them all.
const SHORT_HELP: &[&str] = &[
    "idle_timeout",
    "idle_timeout_detached",
    "max_lifetime",
    "cpu_budget",
    "notify",
];

const LIFETIME: &str = "max_lifetime";
const CAP: &str = "max_lifetime_cap";

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Each setting as text, in the order of [`SETTINGS`].
    pub values: Vec<Value>,
    /// The config files that were there, the user's first.
    pub files: Vec<PathBuf>,
    /// What looks like a mistake but is not refused, in words.
    pub warnings: Vec<String>,
    given: Vec<(String, String)>,
}

impl Loaded {
    /// What was set by flags or environment, as key and value: what a session that is created now keeps, since they
    /// are gone when a later host starts. What the files say is read again by each host.
    pub fn given(&self) -> Vec<(String, String)> {
        self.given.clone()
    }
}

/// One setting's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// The setting.
    pub key: &'static str,
    /// As it was written.
    pub value: String,
    /// `default`, a file's path, a variable's name or a flag.
    pub source: String,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("{origin}: `{value}` is no value for {key}; it takes {form}")]
    BadValue {
        origin: String,
        key: &'static str,
        value: String,
        form: String,
    },
    #[error("{}: no setting is called `{key}`{}; the settings are: {}", .file.display(), did_you_mean(.key), all_keys())]
    UnknownKey { file: PathBuf, key: String },
    #[error("{}: {why}", .file.display())]
    BadFile { file: PathBuf, why: String },
    #[error(
        "{origin}: a max_lifetime of {value} is more than is allowed here; max_lifetime_cap is {cap} ({cap_origin})"
    )]
    OverCap {
        origin: String,
        value: String,
        cap: String,
        cap_origin: String,
    },
}

fn all_keys() -> String {
    SETTINGS
        .iter()
        .map(|s| s.key)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A setting with nearly this name: two slips of the finger away at most.
fn did_you_mean(key: &str) -> String {
    let key = key.to_lowercase().replace('-', "_");
    let near = SETTINGS.iter().map(|s| (slips(s.key, &key), s.key)).min();
    near.filter(|(slips, _)| *slips <= 2)
        .map_or_else(String::new, |(_, key)| format!(" (did you mean `{key}`?)"))
}

/// Letters to put in, take away or change to get from one word to the other (Levenshtein's distance).
fn slips(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Settings given on the command line: `--idle-timeout 2h` and so on, for `#[command(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    given: Vec<(&'static str, String)>,
    /// They were flags once: a session has been living with them.
    kept: bool,
}

impl Flags {
    /// What a session was created with, as if given as flags; keys that are no settings (any more) are passed over,
    /// and a lifetime past a cap that has come since is cut rather than refused: the session must get its host.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let known = |key: &str| SETTINGS.iter().find(|setting| setting.key == key);
        let given = pairs
            .into_iter()
            .filter_map(|(key, value)| Some((known(key)?.key, value.clone())))
            .collect();
        Self { given, kept: true }
    }

    /// The same flags as arguments, for the process that is started.
    pub fn to_args(&self) -> Vec<String> {
        self.given
            .iter()
            .flat_map(|(key, value)| [flag_of(key), value.clone()])
            .collect()
    }

    /// The same settings as environment variables, for a kernelspec's env. Refuses bad values.
    pub fn to_env(&self) -> Result<Vec<(String, String)>, ConfigError> {
        for (key, value) in &self.given {
            check(setting_of(key), value, &flag_of(key))?;
        }
        Ok(self
            .given
            .iter()
            .map(|(key, value)| (variable_of(key), value.clone()))
            .collect())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(SETTINGS.iter().map(|setting| {
            Arg::new(setting.key)
                .long(setting.flag)
                .value_name(setting.value_name())
                .help(setting.about)
                .hide_short_help(!SHORT_HELP.contains(&setting.key))
                .help_heading(
                    "Settings (all with --help; else from the environment or config.toml, see `farside config`)",
                )
        }))
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |s: &Setting| Some((s.key, matches.get_one::<String>(s.key)?.clone()));
        Ok(Self {
            given: SETTINGS.iter().filter_map(given).collect(),
            kept: false,
        })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Config {
    /// The settings of this process: defaults, then the system's `config.toml`, then the user's, then the environment,
    /// then `flags`.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
        Self::load_with(flags, environment(), Faults::Refused)
    }

    /// The same for the host of a session that has been living with `flags`. It must come up, whatever somebody has
    /// written into config.toml since: what is wrong is passed over, and is among the warnings.
    pub fn load_for_host(flags: &Flags) -> Result<Loaded, ConfigError> {
        Self::load_with(flags, environment(), Faults::PassedOver)
    }

    /// The `log` setting, as far as it can be known: what is wrong with the settings is said when there is a log.
    pub fn log_filter(flags: &Flags) -> String {
        Self::load_for_host(flags).map_or_else(|_| "info".to_owned(), |loaded| loaded.config.log)
    }

    /// The settings that no process was given by its starter: defaults and `config.toml`. For what is done to
    /// sessions that others have started.
    pub fn load_shared() -> Result<Loaded, ConfigError> {
        let mut variables = environment();
        variables.retain(|(name, _)| SETTINGS.iter().all(|s| variable_of(s.key) != *name));
        Self::load_with(&Flags::default(), variables, Faults::Refused)
    }

    fn load_with(
        flags: &Flags,
        variables: Vec<(String, String)>,
        faults: Faults,
    ) -> Result<Loaded, ConfigError> {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(n, v)| n == name && !v.is_empty())
                .map(|(_, v)| v)
        };
        let base = match variable("XDG_CONFIG_HOME") {
            Some(base) => Some(PathBuf::from(base)),
            None => variable("HOME").map(|home| Path::new(home).join(".config")),
        };
        let user = base.map(|base| base.join("farside/config.toml"));
        let system = variable(SYSTEM_FILE_VARIABLE).map_or(SYSTEM_FILE, |path| path);
        let (mut files, mut warnings) = (Vec::new(), Vec::new());
        for path in user.into_iter().chain([PathBuf::from(system)]) {
            match fs::read_to_string(&path) {
                Ok(text) => files.push((path, text)),
                Err(e) if is_absent(&e) => {}
                Err(e) => faults.meet(
                    bad_file(&path, format!("cannot read it: {e}")),
                    &mut warnings,
                )?,
            }
        }
        let mut loaded = merge(&files, &variables, flags, faults)?;
        loaded.warnings.splice(..0, warnings);
        Ok(loaded)
    }
}

/// What becomes of what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    Refused,
    PassedOver,
}

impl Faults {
    fn meet(self, fault: ConfigError, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        match self {
            Self::Refused => Err(fault),
            Self::PassedOver => {
                warnings.push(fault.to_string());
                Ok(())
            }
        }
    }

    /// The good ones.
    fn sift(
        self,
        values: Vec<Result<Value, ConfigError>>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Value>, ConfigError> {
        let mut good = Vec::with_capacity(values.len());
        for value in values {
            match value {
                Ok(value) => good.push(value),
                Err(fault) => self.meet(fault, warnings)?,
            }
        }
        Ok(good)
    }
}

/// A home that is a file (`/dev/null`, as service users have it) has no config either.
fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            Some((
                name.into_string().ok()?,
                value.to_string_lossy().into_owned(),
            ))
        })
        .collect()
}

fn bad_file(file: &Path, why: String) -> ConfigError {
    ConfigError::BadFile {
        file: file.to_owned(),
        why,
    }
}

/// PURE. The merge itself. `files`: what is in those that are there, the one that wins first.
fn merge(
    files: &[(PathBuf, String)],
    variables: &[(String, String)],
    flags: &Flags,
    faults: Faults,
) -> Result<Loaded, ConfigError> {
    let (mut tables, mut warnings) = (Vec::new(), Vec::new());
    for (file, text) in files {
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(e) => {
                faults.meet(bad_file(file, e.to_string()), &mut warnings)?;
                continue;
            }
        };
        for key in table.keys().filter(|key| Setting::find(key).is_none()) {
            let unknown = ConfigError::UnknownKey {
                file: file.clone(),
                key: key.clone(),
            };
            faults.meet(unknown, &mut warnings)?;
        }
        tables.push((file.display().to_string(), table));
    }
    let mut values = Vec::new();
    let mut given = Vec::new();
    let mut is_lifetime_given = false;
    for setting in SETTINGS {
        let for_us = from_flags_and_variables(setting, variables, flags);
        let for_us = faults.sift(for_us, &mut warnings)?;
        let for_all = faults.sift(from_files(setting, &tables), &mut warnings)?;
        if let Some(value) = chosen(&for_us) {
            given.push((value.key.to_owned(), value.value.clone()));
        }
        is_lifetime_given |= setting.key == LIFETIME && !for_us.is_empty();
        let value = chosen(&[for_us, for_all].concat()).cloned();
        values.push(value.unwrap_or_else(|| Value {
            key: setting.key,
            value: setting.default.to_owned(),
            source: "default".to_owned(),
        }));
    }
    warnings.extend(variables.iter().filter_map(unknown_variable));
    warnings.extend(keep_to_cap(&mut values, is_lifetime_given && !flags.kept)?);
    let config = Config::from_values(
        &values
            .iter()
            .map(|value| (value.key.to_owned(), value.value.clone()))
            .collect::<BTreeMap<_, _>>(),
    );
    Ok(Loaded {
        config,
        values,
        files: files.iter().map(|(file, _)| file.clone()).collect(),
        warnings,
        given,
    })
}

/// The values that count for this process alone, the one that wins first.
fn from_flags_and_variables(
    setting: &Setting,
    variables: &[(String, String)],
    flags: &Flags,
) -> Vec<Result<Value, ConfigError>> {
    let variable = variable_of(setting.key);
    let flag = (flags.given.iter())
        .find(|(key, _)| *key == setting.key)
        .map(|(key, text)| (text, flag_of(key)));
    let variable = variables
        .iter()
        .find(|(name, text)| *name == variable && !text.is_empty())
        .map(|(name, text)| (text, name.clone()));
    let found = flag.into_iter().chain(variable);
    found
        .map(|(text, source)| value_from(setting, text, source))
        .collect()
}

fn from_files(
    setting: &Setting,
    tables: &[(String, toml::Table)],
) -> Vec<Result<Value, ConfigError>> {
    let found = tables
        .iter()
        .filter_map(|(file, table)| Some((file, table.get(setting.key)?)));
    found
        .map(|(file, value)| match value {
            toml::Value::String(text) => value_from(setting, text, file.clone()),
            // `idle_timeout = 5`: of what?
            other => Err(bad_value(setting, &other.to_string(), file)),
        })
        .collect()
}

fn value_from(setting: &Setting, text: &str, source: String) -> Result<Value, ConfigError> {
    check(setting, text, &source)?;
    Ok(Value {
        key: setting.key,
        value: text.to_owned(),
        source,
    })
}

/// Of several values the first one; but of the cap the smallest, and of equal ones the last, an administrator's.
fn chosen(values: &[Value]) -> Option<&Value> {
    if values.first()?.key != CAP {
        return values.first();
    }
    // `none` is larger than any.
    let size = |value: &&Value| parse_duration(&value.value).unwrap_or(Duration::MAX);
    values.iter().rev().min_by_key(size)
}

/// A lifetime past the cap is refused where somebody asks for it now, and else cut, which the warning says.
fn keep_to_cap(values: &mut [Value], is_asked_for: bool) -> Result<Option<String>, ConfigError> {
    let of = |key: &str| {
        let at = values.iter().position(|value| value.key == key);
        at.expect("every setting has a value")
    };
    let (lifetime, cap) = (of(LIFETIME), of(CAP));
    let Some(longest) = parse_duration(&values[cap].value) else {
        return Ok(None);
    };
    if parse_duration(&values[lifetime].value).is_some_and(|asked| asked <= longest) {
        return Ok(None);
    }
    let Value {
        value: cap,
        source: cap_origin,
        ..
    } = values[cap].clone();
    let Value { value, source, .. } = values[lifetime].clone();
    if is_asked_for {
        return Err(ConfigError::OverCap {
            origin: source,
            value,
            cap,
            cap_origin,
        });
    }
    let warning = format!(
        "max_lifetime is {value} ({source}), but max_lifetime_cap is {cap} ({cap_origin}): {cap} counts"
    );
    values[lifetime].value = cap;
    values[lifetime].source = format!("{CAP}, {cap_origin}");
    Ok(Some(warning))
}

fn unknown_variable((name, _): &(String, String)) -> Option<String> {
    let key = name.strip_prefix("FARSIDE_")?;
    let is_known = OTHER_VARIABLES.contains(&name.as_str())
        || COMMAND_VARIABLES.contains(&name.as_str())
        || SETTINGS.iter().any(|s| variable_of(s.key) == *name);
    (!is_known).then(|| {
        format!(
            "{name} is set, but there is no such setting{}",
            did_you_mean(key)
        )
    })
}

fn bad_value(setting: &Setting, value: &str, origin: &str) -> ConfigError {
    let form = setting.form();
    ConfigError::BadValue {
        origin: origin.to_owned(),
        key: setting.key,
        value: value.to_owned(),
        form,
    }
}

fn check(setting: &Setting, value: &str, origin: &str) -> Result<(), ConfigError> {
    setting
        .check(value)
        .map_err(|_| bad_value(setting, value, origin))
}

fn setting_of(key: &str) -> &'static Setting {
    Setting::find(key).expect("flags are made from the settings")
}

fn variable_of(key: &str) -> String {
    format!("FARSIDE_{}", key.to_uppercase())
}

fn flag_of(key: &str) -> String {
    format!("--{}", setting_of(key).flag)
}
