//! Help, exit codes, and that nothing happens by mistake.

use insta::assert_snapshot;

use crate::sandbox::{NOON, Sandbox, names};

#[test]
fn help_is_worth_reading() {
    assert_snapshot!(Sandbox::new().run(&["--help"]).stdout);
}

#[test]
fn every_command_has_help_on_stdout() {
    let sandbox = Sandbox::new();
    let all = [
        "install",
        "uninstall",
        "ls",
        "status",
        "top",
        "attach",
        "logs",
        "history",
        "new",
        "exec",
        "interrupt",
        "restart",
        "stop",
        "extend",
        "console",
        "connect",
        "metrics",
        "prune",
        "config",
        "completions",
        "launch",
    ];
    let help: String = all
        .iter()
        .map(|command| {
            let ran = sandbox.run(&[command, "-h"]);
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{command}");
            format!("=== {command}\n{}", ran.stdout)
        })
        .collect();
    assert_snapshot!(help);
}

#[test]
fn mistakes_are_exit_code_2_and_touch_nothing() {
    let sandbox = Sandbox::new();
    for args in [
        &["lss"][..],
        &["ls", "--al"],
        &["install", "--user", "--prefix", "/x"],
        &["install", "--idle-timeout", "soon"],
        &["new", "--engine-transport", "udp"],
        &["new", "extra"],
        &["extend", "x", "5"],
        &["metrics", "--listen", "0.0.0.0:0"],
        &["metrics", "--listen", "example.org:80"],
        // No terminal here.
        &["top"],
        &["launch"],
        // How an editor asks whether a program is a python.
        &["-c", "import sys; print(sys.executable)"],
        &["-m", "ipykernel_launcher"],
        &[],
    ] {
        let ran = sandbox.run(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{args:?}: {}",
            ran.all()
        );
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(names(&sandbox.path("home")), [""; 0]);
    assert_eq!(names(&sandbox.path("run")), [""; 0]);
    assert!(!sandbox.path("state").exists());
}

#[test]
fn a_session_that_is_not_there_is_exit_code_3() {
    let sandbox = Sandbox::new();
    assert_snapshot!(sandbox.run(&["logs", "train"]).all(), @r"
    exit 3
    --- stdout
    --- stderr
    error: no session `train`; `farside ls --all` shows that there are none (`farside new` starts one)
    ");
    sandbox.ended("aaaa1111", "train", NOON, "stopped");
    for command in [
        "attach",
        "logs",
        "history",
        "interrupt",
        "restart",
        "stop",
        "console",
        "connect",
    ] {
        assert_eq!(sandbox.run(&[command, "nonesuch"]).code, 3, "{command}");
    }
    assert_eq!(sandbox.run(&["exec", "nonesuch", "1"]).code, 3);
    assert_eq!(sandbox.run(&["extend", "nonesuch", "1h"]).code, 3);
    assert_snapshot!(sandbox.run(&["logs", "nonesuch"]).all(), @r"
    exit 3
    --- stdout
    --- stderr
    error: no session `nonesuch`; there are: aaaa1111 (train) (`farside ls --all` shows them all)
    ");
}

#[test]
fn an_ambiguous_selector_is_a_usage_error() {
    let sandbox = Sandbox::new();
    sandbox.ended("aaaa1111", "one", NOON, "stopped");
    sandbox.ended("aaab1111", "two", NOON, "stopped");
    assert_snapshot!(sandbox.run(&["logs", "aaa"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: `aaa` is not the only one: aaaa1111 (one, ended), aaab1111 (two, ended); say which with more of the id
    ");
}

#[test]
fn a_state_folder_of_others_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    sandbox.ended("aaaa1111", "one", NOON, "stopped");
    let open = std::fs::Permissions::from_mode(0o775);
    std::fs::set_permissions(sandbox.path("state"), open).unwrap();
    assert_snapshot!(sandbox.run(&["ls"]).all(), @r"
    exit 4
    --- stdout
    --- stderr
    error: [SANDBOX]/state: can be written by other users (mode 0775); see that nothing of theirs is in it, and make it your own with `chmod 700 [SANDBOX]/state`
    ");
}

#[test]
fn a_state_folder_that_others_can_read_is_closed_to_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    sandbox.ended("aaaa1111", "one", NOON, "stopped");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(sandbox.path("state"), open).unwrap();
    assert_eq!(sandbox.run(&["ls", "--all"]).code, 0);
    let mode = std::fs::metadata(sandbox.path("state"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn completions_know_the_commands() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = sandbox.run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(
            ran.stdout.contains("history") && ran.stdout.contains("idle-timeout"),
            "{shell}"
        );
    }
}

#[test]
fn config_shows_where_values_come_from() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("home/.config/farside/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "max_lifetime = 'none'\nretire_grace = '5s'\n").unwrap();
    let mut command = sandbox.command(&["config", "--log", "debug"]);
    command
        .env("FARSIDE_IDLE_TIMEOUT", "90m")
        .env("FARSIDE_IDLE_TIMEUOT", "1h")
        .env("FARSIDE_RETIRE_GRACE", "9s");
    // The folder of the test has a name of another length elsewhere.
    let blanks_squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = sandbox.ran(command.output().unwrap()).all();
    assert_snapshot!(text.lines().map(blanks_squeezed).collect::<Vec<_>>().join("\n"), @r"
    exit 0
    --- stdout
    SETTING VALUE FROM WHAT IT DOES
    idle_timeout 90m FARSIDE_IDLE_TIMEOUT End an idle session that has a frontend after this long
    idle_timeout_detached 1h default End an idle session that has no frontend after this long
    input_timeout 12h default End a session that waits for input() with no frontend after this long
    subshell_timeout 1h default Delete an idle subshell when the frontends that use it have been gone for this long
    max_lifetime none [SANDBOX]/home/.config/farside/config.toml End a session this long after its start, busy or not
    max_lifetime_cap none default The longest lifetime that can be asked for, extensions included; the smallest one given counts
    cpu_budget none default End a session when its engine and all that it started have used this much CPU time
    notices 30m,10m,1m default How long before its end a session says so
    retire_grace 9s FARSIDE_RETIRE_GRACE How long interrupted code has to finish when its session ends
    before_retire default Shell command to run before a session retires (its engine lives still)
    before_retire_code default Code to run in the engine before a session retires
    before_retire_timeout 1m default How long each of the two may take
    notify default Shell command to run, or http(s) URL to post JSON to, when something happens that you want to know of
    notify_after 10m default Tell of an execution's end if it took longer, or if nobody was attached
    keep_records 14d default How long the records of an ended session are kept
    keep_records_bytes 10G default How much all sessions' records may take; those of the longest ended sessions go first
    journal_bytes_max 2G default How much a session's journal may take; past half of it, outputs of finished executions are compacted, the oldest first
    durability process default What an output survives from the moment a frontend has it: the death of any process, or a power cut too
    engine_start_timeout 60s default How long an engine may take to answer for the first time
    engine_transport auto default How farside talks to the engine (auto: ipc where the engine can)
    log debug --log What goes to the log
    --- stderr
    warning: FARSIDE_IDLE_TIMEUOT is set, but there is no such setting (did you mean `idle_timeout`?)
    ");
    assert_eq!(
        sandbox.json(&["config", "--json"])[4],
        serde_json::json!({
            "key": "max_lifetime", "value": "none", "source": "[SANDBOX]/home/.config/farside/config.toml"
        })
    );
    std::fs::write(&file, "max_life = '1h'\n").unwrap();
    assert_snapshot!(sandbox.run(&["config"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: [SANDBOX]/home/.config/farside/config.toml: no setting is called `max_life`; the settings are: idle_timeout, idle_timeout_detached, input_timeout, subshell_timeout, max_lifetime, max_lifetime_cap, cpu_budget, notices, retire_grace, before_retire, before_retire_code, before_retire_timeout, notify, notify_after, keep_records, keep_records_bytes, journal_bytes_max, durability, engine_start_timeout, engine_transport, log
    ");
    std::fs::write(&file, "max_lifetime = 24\n").unwrap();
    assert_snapshot!(sandbox.run(&["config"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: [SANDBOX]/home/.config/farside/config.toml: `24` is no value for max_lifetime; it takes a duration like 45s, 90m, 2h30m or 1d, or none
    ");
}

#[test]
fn an_administrators_cap_can_be_lowered_and_not_raised() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("system.toml"), "max_lifetime_cap = '8h'\n").unwrap();
    let shown = |args: &[&str], key: &str| {
        let values = sandbox.json(args);
        let found = (values.as_array().unwrap().iter()).find(|value| value["key"] == key);
        let value = found.unwrap();
        format!(
            "{} from {}",
            value["value"].as_str().unwrap(),
            value["source"].as_str().unwrap()
        )
        .replace("[SANDBOX]/", "")
    };
    let cap = ["config", "--json", "--max-lifetime-cap"];
    assert_eq!(
        shown(&["config", "--json"], "max_lifetime_cap"),
        "8h from system.toml"
    );
    assert_eq!(
        shown(&[&cap[..], &["9h"]].concat(), "max_lifetime_cap"),
        "8h from system.toml"
    );
    assert_eq!(
        shown(&[&cap[..], &["2h"]].concat(), "max_lifetime_cap"),
        "2h from --max-lifetime-cap"
    );
    assert_eq!(
        shown(&["config", "--json"], "max_lifetime"),
        "8h from max_lifetime_cap, system.toml"
    );
    assert_snapshot!(sandbox.run(&["config", "--json"]).stderr, @"warning: max_lifetime is 24h (default), but max_lifetime_cap is 8h ([SANDBOX]/system.toml): 8h counts");
    // Nothing is started, nothing is written.
    assert_snapshot!(sandbox.run(&["new", "--max-lifetime", "none"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: --max-lifetime: a max_lifetime of none is more than is allowed here; max_lifetime_cap is 8h ([SANDBOX]/system.toml)
    ");
    assert_snapshot!(sandbox.run(&["install", "--max-lifetime", "9h"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: --max-lifetime: a max_lifetime of 9h is more than is allowed here; max_lifetime_cap is 8h ([SANDBOX]/system.toml)
    ");
    assert_eq!(names(&sandbox.path("home")), [""; 0]);
    assert!(!sandbox.path("state").exists());
}
