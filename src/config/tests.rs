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
    merge(&[file("/c/config.toml", text)], &variables, &flags(args))
}

fn merge(
    files: &[(PathBuf, String)],
    variables: &[(String, String)],
    flags: &Flags,
) -> Result<Loaded, ConfigError> {
    super::merge(files, variables, flags, Faults::Refused)
}

fn file(path: &str, text: &str) -> (PathBuf, String) {
    (path.into(), text.to_owned())
}

fn source<'a>(loaded: &'a Loaded, key: &str) -> &'a str {
    let value = loaded.values.iter().find(|v| v.key == key);
    &value.unwrap().source
}

#[test]
fn defaults_are_those_of_the_list() {
    let loaded = merge(&[], &[], &Flags::default()).unwrap();
    let hours = |n: u64| Some(Duration::from_secs(n * 3600));
    assert_eq!(
        loaded.config,
        Config {
            idle_timeout: hours(4),
            idle_timeout_detached: hours(1),
            input_timeout: hours(12),
            subshell_timeout: hours(1),
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
            journal_bytes_max: Some(2_000_000_000),
            durability: crate::settings::Durability::Process,
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
    let source = |key: &str| source(&loaded, key);
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
        ("FARSIDE_SYSTEM_CONFIG", "/x"),
        (
            "FARSIDE_SESSION_ID",
            "of the session whose hook we are run in",
        ),
        ("OTHER", ""),
    ];
    let loaded = load("", &variables, &[]).unwrap();
    assert_eq!(
        loaded.warnings,
        ["FARSIDE_IDLETIMEOUT is set, but there is no such setting (did you mean `idle_timeout`?)"]
    );
}

#[test]
fn the_users_file_wins_over_the_systems() {
    let user = file("/c/config.toml", "idle_timeout = '2h'");
    let system = file("/e/config.toml", "idle_timeout = '1h'\nretire_grace = '5s'");
    let loaded = merge(&[user.clone(), system], &[], &Flags::default()).unwrap();
    assert_eq!(source(&loaded, "idle_timeout"), "/c/config.toml");
    assert_eq!(source(&loaded, "retire_grace"), "/e/config.toml");
    assert_eq!(loaded.config.retire_grace, Duration::from_secs(5));
    assert!(loaded.given().is_empty(), "each host reads the files anew");
    let bad = file("/e/config.toml", "idle_timeout = 'soon'");
    let error = merge(&[user, bad], &[], &Flags::default()).unwrap_err();
    assert!(
        error.to_string().starts_with("/e/config.toml: `soon`"),
        "also where it would not count: {error}"
    );
}

/// The cap and where it comes from, for these values of it.
fn cap(flag: &str, variable: &str, user: &str, system: &str) -> (Option<Duration>, String) {
    let text = |cap: &str| match cap {
        "" => String::new(),
        cap => format!("max_lifetime_cap = '{cap}'\nmax_lifetime = '1m'"),
    };
    let files = [file("user", &text(user)), file("system", &text(system))];
    let variables = [("FARSIDE_MAX_LIFETIME_CAP".to_owned(), variable.to_owned())];
    let flags = match flag {
        "" => Flags::default(),
        flag => flags(&["--max-lifetime-cap", flag]),
    };
    let loaded = merge(&files, &variables, &flags).unwrap();
    let source = source(&loaded, "max_lifetime_cap").to_owned();
    (loaded.config.max_lifetime_cap, source)
}

#[test]
fn of_the_caps_the_smallest_counts() {
    let hours = |n: u64| Some(Duration::from_secs(n * 3600));
    for (caps, expected, source) in [
        (["", "", "", "8h"], hours(8), "system"),
        (["9h", "10h", "none", "8h"], hours(8), "system"),
        (
            ["9h", "7h", "none", "8h"],
            hours(7),
            "FARSIDE_MAX_LIFETIME_CAP",
        ),
        (["6h", "7h", "none", "8h"], hours(6), "--max-lifetime-cap"),
        (["", "", "5h", "8h"], hours(5), "user"),
        (["8h", "8h", "480m", "8h"], hours(8), "system"),
        (["none", "", "", ""], None, "--max-lifetime-cap"),
        (["", "", "", ""], None, "default"),
    ] {
        let [flag, variable, user, system] = caps;
        let (found, from) = cap(flag, variable, user, system);
        assert_eq!((found, from.as_str()), (expected, source), "{caps:?}");
    }
}

#[test]
fn a_lifetime_past_the_cap_is_refused_where_it_is_asked_for_and_else_cut() {
    let system = || file("/e/config.toml", "max_lifetime_cap = '8h'");
    let files = [file("/c/config.toml", "max_lifetime = 'none'"), system()];
    let eight = Some(Duration::from_secs(8 * 3600));

    let loaded = merge(&files, &[], &Flags::default()).unwrap();
    assert_eq!(loaded.config.max_lifetime, eight);
    assert_eq!(
        source(&loaded, "max_lifetime"),
        "max_lifetime_cap, /e/config.toml"
    );
    assert_eq!(
        loaded.warnings,
        [
            "max_lifetime is none (/c/config.toml), but max_lifetime_cap is 8h (/e/config.toml): 8h counts"
        ]
    );
    let loaded = merge(&[system()], &[], &Flags::default()).unwrap();
    assert_eq!(loaded.config.max_lifetime, eight);
    assert!(loaded.warnings[0].starts_with("max_lifetime is 24h (default), but"));

    for value in ["9h", "none"] {
        let variable = [("FARSIDE_MAX_LIFETIME".to_owned(), value.to_owned())];
        let error = merge(&files, &variable, &Flags::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "FARSIDE_MAX_LIFETIME: a max_lifetime of {value} is more than is allowed here; max_lifetime_cap is 8h \
                 (/e/config.toml)"
            )
        );
        let asked = flags(&["--max-lifetime", value]);
        let error = merge(&files, &[], &asked).unwrap_err().to_string();
        assert!(error.starts_with("--max-lifetime: "), "{error}");
        // The session was there before the cap.
        let kept = BTreeMap::from([("max_lifetime".to_owned(), value.to_owned())]);
        let loaded = merge(&files, &variable, &Flags::from_pairs(&kept)).unwrap();
        assert_eq!(loaded.config.max_lifetime, eight);
        assert_eq!(loaded.warnings.len(), 1);
    }
    let loaded = merge(&files, &[], &flags(&["--max-lifetime", "8h"])).unwrap();
    assert_eq!(
        (loaded.config.max_lifetime, loaded.warnings.len()),
        (eight, 0)
    );
    // One may bind oneself.
    let both = flags(&["--max-lifetime", "2h", "--max-lifetime-cap", "1h"]);
    assert!(merge(&[], &[], &both).is_err());
}

#[test]
fn a_session_keeps_what_its_creator_was_given() {
    let variables = [
        ("FARSIDE_MAX_LIFETIME_CAP", "3h"),
        ("FARSIDE_IDLE_TIMEOUT", "2h"),
        ("FARSIDE_LOG", "debug"),
    ];
    let file = "max_lifetime_cap = '2h'\nretire_grace = '5s'\nmax_lifetime = '1h'";
    let loaded = load(file, &variables, &["--log", "warn"]).unwrap();
    let given: Vec<(&str, &str)> = (loaded.given.iter())
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    // The cap too, though the file's is smaller now: files change.
    assert_eq!(
        given,
        [
            ("idle_timeout", "2h"),
            ("max_lifetime_cap", "3h"),
            ("log", "warn")
        ]
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

/// A host that was killed could not come back while config.toml had a slip in it, and its session's outputs were lost.
#[test]
fn a_host_passes_over_what_is_wrong_and_says_so() {
    let kept = [("idle_timeout".to_owned(), "7m".to_owned())];
    let kept = Flags::from_pairs(kept.iter().map(|(key, value)| (key, value)));
    let files = [
        file(
            "/u",
            "max_lifetime = 'soon'\nretire_grace = '5s'\nbedtime = 8",
        ),
        file("/s", "max_lifetime = '9h'\nmax_lifetime_cap = '10h'"),
    ];
    let load =
        |files: &[(PathBuf, String)]| super::merge(files, &[], &kept, Faults::PassedOver).unwrap();
    let loaded = load(&files);
    assert_eq!(loaded.config.idle_timeout, Some(Duration::from_secs(420)));
    assert_eq!(loaded.config.retire_grace, Duration::from_secs(5));
    assert_eq!(source(&loaded, "max_lifetime"), "/s", "the next good one");
    let said = loaded.warnings.join("\n");
    assert!(
        said.contains("`soon` is no value for max_lifetime") && said.contains("`bedtime`"),
        "{said}"
    );
    // A file that is none takes nothing of the other with it.
    let loaded = load(&[file("/u", "max_lifetime ="), files[1].clone()]);
    assert_eq!(
        loaded.config.max_lifetime_cap,
        Some(Duration::from_secs(36_000))
    );
    assert!(
        loaded.warnings[0].starts_with("/u: "),
        "{:?}",
        loaded.warnings
    );
}
