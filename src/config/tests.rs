use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};

use super::*;

fn flags(args: &[&str]) -> Flags {
    let command = Flags::augment_args(clap::Command::new("x"));
    let matches = command
        .try_get_matches_from([&["x"], args].concat())
        .unwrap();
    Flags::from_arg_matches(&matches).unwrap()
}

fn load(text: &str, variables: &[(&str, &str)], args: &[&str]) -> Result<Loaded, ConfigError> {
    let variables: Vec<(String, String)> = variables
        .iter()
        .map(|(n, v)| (n.to_string(), v.to_string()))
        .collect();
    merge(
        Some("/c/config.toml".into()),
        Some(text),
        &variables,
        &flags(args),
    )
}

#[test]
fn defaults_are_those_of_the_list() {
    let loaded = merge(None, None, &[], &Flags::default()).unwrap();
    let hours = |n: u64| Some(Duration::from_secs(n * 3600));
    assert_eq!(
        loaded.config,
        Config {
            idle_timeout: hours(4),
            idle_timeout_detached: hours(1),
            input_timeout: hours(12),
            max_lifetime: hours(24),
            max_lifetime_cap: None,
            cpu_budget: None,
            notices: [30, 10, 1]
                .map(|minutes| Duration::from_secs(minutes * 60))
                .to_vec(),
            retire_grace: Duration::from_secs(30),
            before_retire: String::new(),
            before_retire_code: String::new(),
            before_retire_timeout: Duration::from_secs(60),
            notify: String::new(),
            notify_after: Duration::from_secs(600),
            keep_records: hours(14 * 24),
            keep_records_bytes: Some(10_000_000_000),
            engine_start_timeout: Duration::from_secs(60),
            engine_transport: EngineTransport::Auto,
            log: "info".to_owned(),
        }
    );
    assert!(loaded.values.iter().all(|v| v.source == "default"));
    assert_eq!(loaded.values.len(), SETTINGS.len());
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let file = "idle_timeout = '1h'\nmax_lifetime = 'none'\nengine_transport = 'tcp'";
    let variables = [
        ("FARSIDE_IDLE_TIMEOUT", "2h"),
        ("FARSIDE_LOG", "farside=debug"),
        ("FARSIDE_RETIRE_GRACE", ""),
    ];
    let loaded = load(file, &variables, &["--idle-timeout", "3h"]).unwrap();
    assert_eq!(
        loaded.config.idle_timeout,
        Some(Duration::from_secs(3 * 3600))
    );
    assert_eq!(loaded.config.max_lifetime, None);
    assert_eq!(loaded.config.engine_transport, EngineTransport::Tcp);
    let source = |key: &str| {
        loaded
            .values
            .iter()
            .find(|v| v.key == key)
            .unwrap()
            .source
            .clone()
    };
    assert_eq!(source("idle_timeout"), "--idle-timeout");
    assert_eq!(source("log"), "FARSIDE_LOG");
    assert_eq!(source("max_lifetime"), "/c/config.toml");
    assert_eq!(
        source("retire_grace"),
        "default",
        "an empty variable says nothing"
    );
}

#[test]
fn mistakes_are_refused_by_name() {
    for (file, variables, args, expected) in [
        (
            "idle_timeot = '1h'",
            vec![],
            vec![],
            "no setting is called `idle_timeot`",
        ),
        (
            "idle-timeout = '1h'",
            vec![],
            vec![],
            "did you mean `idle_timeout`?",
        ),
        (
            "idle_timeout = 5",
            vec![],
            vec![],
            "`5` is no value for idle_timeout; it takes a duration like",
        ),
        ("idle_timeout = ", vec![], vec![], "/c/config.toml: "),
        (
            "retire_grace = 'none'",
            vec![],
            vec![],
            "`none` is no value for retire_grace",
        ),
        (
            "",
            vec![("FARSIDE_MAX_LIFETIME", "soon")],
            vec![],
            "FARSIDE_MAX_LIFETIME: `soon` is no value for max_lifetime",
        ),
        (
            "",
            vec![],
            vec!["--engine-transport", "udp"],
            "--engine-transport: `udp` is no value for engine_transport; it takes auto",
        ),
        ("log = 'a=b=c'", vec![], vec![], "no value for log"),
    ] {
        let error = load(file, &variables, &args).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{file} {variables:?} {args:?}: {error}"
        );
    }
}

#[test]
fn unknown_variables_are_told_of() {
    let variables = [
        ("FARSIDE_IDLETIMEOUT", "1h"),
        ("FARSIDE_STATE_DIR", "/x"),
        ("OTHER", ""),
    ];
    let loaded = load("", &variables, &[]).unwrap();
    assert_eq!(
        loaded.warnings,
        ["FARSIDE_IDLETIMEOUT is set, but there is no such setting (did you mean `idle_timeout`?)"]
    );
}

#[test]
fn flags_travel_as_arguments_and_as_variables() {
    let given = flags(&["--max-lifetime", "none", "--idle-timeout", "2h"]);
    assert_eq!(
        given.to_args(),
        ["--idle-timeout", "2h", "--max-lifetime", "none"]
    );
    let args: Vec<String> = given.to_args();
    assert_eq!(
        flags(&args.iter().map(String::as_str).collect::<Vec<_>>()),
        given
    );
    let env = given.to_env().unwrap();
    assert_eq!(env[0], ("FARSIDE_IDLE_TIMEOUT".to_owned(), "2h".to_owned()));
    assert!(flags(&["--idle-timeout", "x"]).to_env().is_err());
}

#[test]
fn near_misses_are_recognised() {
    assert_eq!(slips("log", "log"), 0);
    assert_eq!(slips("kitten", "sitting"), 3);
    assert_eq!(slips("", "abc"), 3);
    assert_eq!(
        did_you_mean("idle-timeuot"),
        " (did you mean `idle_timeout`?)"
    );
    assert_eq!(did_you_mean("FARSIDE"), "");
}
