//! Settings: defaults, `config.toml`, `FARSIDE_*`, flags; the later one wins, and each value knows where it came from.
//!
//! Owns: where values come from and how they are merged. What settings there are is in [`crate::settings`].
//! Invariant: an unknown key or a bad value is refused by its name, with the form it should have, and never silently
//! ignored.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};
use serde::Serialize;

pub use crate::duration::{DURATION_FORM, format_duration, parse_duration};
pub use crate::settings::{Config, EngineTransport, SETTINGS, Setting};

/// Variables of ours that are not settings.
const OTHER_VARIABLES: &[&str] = &["FARSIDE_STATE_DIR", "FARSIDE_SESSION"];

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Each setting as text, in the order of [`SETTINGS`].
    pub values: Vec<Value>,
    /// The config file: read if it was there.
    pub file: Option<PathBuf>,
    /// What looks like a mistake but is not refused, in words.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// What was set by flags or environment, as key and value: what a session that is created now keeps, since they
    /// are gone when a later host starts. What config.toml says is read again by each host.
    pub fn given(&self) -> Vec<(String, String)> {
        let file = self.file.as_ref().map(|file| file.display().to_string());
        self.values
            .iter()
            .filter(|value| value.source != "default" && Some(&value.source) != file.as_ref())
            .map(|value| (value.key.to_owned(), value.value.clone()))
            .collect()
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
}

impl Flags {
    /// As if these settings had been given as flags; keys that are no settings (any more) are passed over.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let known = |key: &str| SETTINGS.iter().find(|setting| setting.key == key);
        let given = pairs
            .into_iter()
            .filter_map(|(key, value)| Some((known(key)?.key, value.clone())))
            .collect();
        Self { given }
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
                .help_heading(
                    "Settings (else from the environment or config.toml, see `farside config`)",
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
        })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Config {
    /// The settings of this process: defaults, then `config.toml`, then the environment, then `flags`.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((
                    name.into_string().ok()?,
                    value.to_string_lossy().into_owned(),
                ))
            })
            .collect();
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
        let file = base.map(|base| base.join("farside/config.toml"));
        let text = match file.as_deref().map(fs::read_to_string) {
            None => None,
            Some(Ok(text)) => Some(text),
            Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => None,
            Some(Err(e)) => return Err(bad_file(file.as_deref(), format!("cannot read it: {e}"))),
        };
        merge(file, text.as_deref(), &variables, flags)
    }
}

fn bad_file(file: Option<&Path>, why: String) -> ConfigError {
    ConfigError::BadFile {
        file: file.unwrap_or(Path::new("config.toml")).to_owned(),
        why,
    }
}

/// PURE. The merge itself.
fn merge(
    file: Option<PathBuf>,
    text: Option<&str>,
    variables: &[(String, String)],
    flags: &Flags,
) -> Result<Loaded, ConfigError> {
    let table = match text {
        Some(text) => text
            .parse::<toml::Table>()
            .map_err(|e| bad_file(file.as_deref(), e.to_string()))?,
        None => toml::Table::new(),
    };
    if let Some(key) = table
        .keys()
        .find(|key| !SETTINGS.iter().any(|s| s.key == *key))
    {
        return Err(ConfigError::UnknownKey {
            file: file.unwrap_or_default(),
            key: key.clone(),
        });
    }
    let file_name = file
        .as_deref()
        .map_or_else(String::new, |f| f.display().to_string());
    let mut values = Vec::new();
    for setting in SETTINGS {
        let value = resolve(setting, &table, &file_name, variables, flags)?;
        check(setting, &value.value, &value.source)?;
        values.push(value);
    }
    let config = Config::from_values(
        &values
            .iter()
            .map(|value| (value.key.to_owned(), value.value.clone()))
            .collect::<BTreeMap<_, _>>(),
    );
    let warnings = variables
        .iter()
        .filter(|(name, _)| {
            name.starts_with("FARSIDE_") && !OTHER_VARIABLES.contains(&name.as_str())
        })
        .filter(|(name, _)| !SETTINGS.iter().any(|s| variable_of(s.key) == *name))
        .map(|(name, _)| {
            format!(
                "{name} is set, but there is no such setting{}",
                did_you_mean(&name["FARSIDE_".len()..])
            )
        })
        .collect();
    Ok(Loaded {
        config,
        values,
        file: file.filter(|_| text.is_some()),
        warnings,
    })
}

fn resolve(
    setting: &Setting,
    table: &toml::Table,
    file_name: &str,
    variables: &[(String, String)],
    flags: &Flags,
) -> Result<Value, ConfigError> {
    let value = |value: &str, source: String| {
        Ok(Value {
            key: setting.key,
            value: value.to_owned(),
            source,
        })
    };
    if let Some((key, text)) = flags.given.iter().find(|(key, _)| *key == setting.key) {
        return value(text, flag_of(key));
    }
    let variable = variable_of(setting.key);
    if let Some((_, text)) = variables
        .iter()
        .find(|(name, text)| *name == variable && !text.is_empty())
    {
        return value(text, variable);
    }
    match table.get(setting.key) {
        Some(toml::Value::String(text)) => value(text, file_name.to_owned()),
        // `idle_timeout = 5`: of what?
        Some(other) => Err(bad_value(setting, &other.to_string(), file_name)),
        None => value(setting.default, "default".to_owned()),
    }
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
