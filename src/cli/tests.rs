use clap::CommandFactory as _;

use super::*;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_contracts_command_line_is_understood() {
    for line in [
        "install --user",
        "install --sys-prefix --engine python3 --engine ir --display-name X --json",
        "install --prefix /p --idle-timeout 8h",
        "uninstall --prefix /p",
        "new --engine ir --name n --cwd /c --json --max-lifetime none",
        "exec s --detach -",
        "exec s -1",
        "exec s - --detach",
        "ls --all --json",
        "top",
        "top --once --json",
        "metrics",
        "metrics --listen 127.0.0.1:0",
        "metrics --listen unix:/run/x.sock",
        "history s --json",
        "logs s 3 -f -t",
        "logs s --json",
        "attach s",
        "interrupt s",
        "restart s",
        "stop s --now",
        "extend s 2h30m",
        "console s",
        "connect s",
        "prune --older-than 3d",
        "prune --older-than 0s",
        "config",
        "completions bash",
        "launch --engine python3 --engine-spec /e.json -f /c.json --session n",
    ] {
        let parsed = Cli::try_parse_from(["farside"].into_iter().chain(line.split(' ')));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
    for line in [
        "",
        "x",
        "install --user --sys-prefix",
        "exec s",
        "extend s soon",
        "extend s 5",
        "logs s x",
        "top s",
        "metrics --listen 0.0.0.0:1",
        "logs s -t --json",
        "prune --older-than none",
        "launch",
        "-c import",
    ] {
        let parsed = Cli::try_parse_from(["farside"].into_iter().chain(line.split_terminator(' ')));
        assert!(parsed.is_err(), "{line}");
    }
}

#[test]
fn an_error_has_the_exit_code_of_its_kind() {
    let exit = |error: anyhow::Error| exit_of(&error);
    let not_found = StateError::NotFound {
        selector: "x".to_owned(),
        known: Vec::new(),
    };
    assert_eq!(exit(not_found.into()), Exit::NoSession);
    assert_eq!(
        exit(anyhow::Error::from(StateError::NoHome).context("more words")),
        Exit::Failed
    );
    assert_eq!(exit(UsageError("x".to_owned()).into()), Exit::Usage);
    let own = SpecError::OwnSpec {
        name: "farside-ir".to_owned(),
        engine: "ir".to_owned(),
    };
    assert_eq!(
        exit(anyhow::Error::from(own).context("more words")),
        Exit::Usage
    );
    assert_eq!(exit(anyhow::anyhow!("x")), Exit::Failed);
    assert!(is_broken_pipe(
        &anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("x")
    ));
}
