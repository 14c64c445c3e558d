//! The commands that talk to a host, where there is no session to talk to. No engine is needed, and none is started.

use farside::journal::record::ExecutionState;
use insta::assert_snapshot;

use crate::sandbox::{Journal, NOON, Sandbox};

#[test]
fn an_ended_session_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let session = sandbox.ended("aaaa1111", "train", NOON, "idle for 1h");
    for args in [
        &["exec", "train", "1"][..],
        &["exec", "train", "--detach", "1"],
        &["interrupt", "train"],
        &["restart", "train"],
        &["extend", "train", "1h"],
        &["connect", "train"],
        &["console", "train"],
    ] {
        let ran = sandbox.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{args:?}");
        assert_eq!(
            ran.stderr,
            "error: session aaaa1111 has ended (idle for 1h); `farside logs aaaa1111` shows its outputs\n"
        );
    }
    assert_snapshot!(sandbox.run(&["stop", "train"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    train has ended already: idle for 1h
    ");
    assert_snapshot!(sandbox.run(&["attach", "train"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    train has executed nothing
    ");
    assert!(!session.dir.host_log().exists(), "a host was started");
}

#[test]
fn attach_shows_the_last_execution_of_an_ended_session() {
    let sandbox = Sandbox::new();
    let session = sandbox.ended("aaaa1111", "train", NOON, "lifetime of 24h");
    let mut journal = Journal::of(&session);
    journal
        .begin(1, "1")
        .print(1, "first\n")
        .state(1, ExecutionState::Ok);
    journal
        .begin(2, "2")
        .print(2, "10%\r")
        .print(2, "20%\rdone\n");
    journal.print(1, "late\n").state(2, ExecutionState::Ok);
    assert_snapshot!(sandbox.run(&["attach", "train"]).all(), @r"
    exit 0
    --- stdout
    done
    --- stderr
    session train is ended: lifetime of 24h
    ");
    journal.begin(3, "3").print(3, "so far\n");
    assert_snapshot!(sandbox.run(&["attach", "train"]).all(), @r"
    exit 1
    --- stdout
    so far
    --- stderr
    execution 3 is lost: its session ended before it
    session train is ended: lifetime of 24h
    ");
    assert!(!session.dir.host_log().exists(), "a host was started");
}

#[test]
fn a_session_that_cannot_be_made_leaves_no_trace() {
    let sandbox = Sandbox::new();
    assert_snapshot!(sandbox.run(&["new", "--cwd", "/nonesuch"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: --cwd /nonesuch: there is no such folder
    ");
    // What else is found is this machine's.
    let ran = sandbox.run(&["new", "--engine", "cobol"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    assert!(
        ran.stderr.starts_with("error: no kernelspec named `cobol`"),
        "{}",
        ran.stderr
    );
    assert!(!sandbox.path("state").exists());
}

#[test]
fn a_console_without_jupyter_says_what_to_do() {
    let sandbox = Sandbox::new();
    let status = farside::state_dir::Status {
        state: farside::state_dir::SessionState::Idle,
        ..farside::state_dir::Status::starting()
    };
    let (_session, _lock) = sandbox.live("aaaa1111", "train", status);
    assert_snapshot!(sandbox.run(&["console", "train"]).all(), @r"
    exit 4
    --- stdout
    --- stderr
    error: there is no `jupyter` on PATH; install it (`pip install jupyter-console`), or connect another client with `farside connect train`
    ");
}
