//! `farside logs`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use farside::journal::record::{Body, ExecutionState, Note};
use farside::state_dir::{SessionState, Status};
use insta::assert_snapshot;

use crate::sandbox::{Journal, NOON, Sandbox};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let session = sandbox.ended("aaaa1111", "train", NOON, "stopped");
    let mut journal = Journal::of(&session);
    let note = |note| Body::Note(note);
    journal
        .append(note(Note::SessionStarted {
            id: "aaaa1111".into(),
            name: "train".into(),
            engine: "python3".into(),
        }))
        .begin(1, "print('a')")
        .print(1, "a\nno end")
        .begin(2, "print('b')")
        .print(2, "\u{1b}[31mb\u{1b}[0m\n")
        .print(1, "still the first\n")
        .state(1, ExecutionState::Ok)
        .print(1, "a thread's last words\n")
        .append(note(Note::Gap {
            from: NOON,
            until: NOON + 1_500_000,
            why: "the host was killed".into(),
            said: false,
        }))
        .print(2, "after the gap\n")
        .state(2, ExecutionState::Ok)
        .append(note(Note::SessionEnded {
            reason: "stopped".into(),
        }));
    sandbox
}

#[test]
fn all_outputs_in_their_order() {
    assert_snapshot!(sandbox().run(&["logs", "train"]).all(), @r"
    exit 0
    --- stdout
    a
    no end
    b
    still the first
    a thread's last words
    [farside: output of 1.5 s may be missing, 8.5 s before this line: the host was killed]
    after the gap
    [farside: the session ended: stopped]
    --- stderr
    ");
}

#[test]
fn one_execution_with_what_it_left_behind() {
    let sandbox = sandbox();
    assert_snapshot!(sandbox.run(&["logs", "train", "1"]).all(), @r"
    exit 0
    --- stdout
    a
    no endstill the first
    a thread's last words
    --- stderr
    ");
    assert_snapshot!(sandbox.run(&["logs", "train", "2", "-t"]).all(), @r"
    exit 0
    --- stdout
    2026-01-31T12:00:06.000000Z b
    2026-01-31T12:00:10.000000Z [farside: output of 1.5 s may be missing, 8.5 s before this line: the host was killed]
    2026-01-31T12:00:11.000000Z after the gap
    --- stderr
    ");
    assert_eq!(
        sandbox.run(&["logs", "train", "2"]).stdout,
        sandbox.run(&["logs", "train", "2", "-f"]).stdout
    );
    assert_snapshot!(sandbox.run(&["logs", "train", "7"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: session train has no execution 7; the last one is 2 (`farside history`)
    ");
}

#[test]
fn records_as_json_lines() {
    let sandbox = sandbox();
    let ran = sandbox.run(&["logs", "train", "--json"]);
    let lines: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seqs: Vec<u64> = lines
        .iter()
        .map(|line| line["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=14).collect::<Vec<u64>>());
    assert_snapshot!(ran.stdout.lines().nth(3).unwrap(), @r#"{"seq":4,"time":"2026-01-31T12:00:03.000000Z","kind":"iopub","channel":"iopub","client":null,"execution":1,"identities":[],"header":{"msg_id":"o","msg_type":"stream","session":"s"},"parent_header":{},"metadata":{"cellId":"c"},"content":{"name":"stdout","text":"a\nno end"},"buffers":[]}"#);
    let first = sandbox.run(&["logs", "train", "1", "--json"]);
    let kinds: Vec<String> = first
        .stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        kinds,
        ["request", "note", "iopub", "iopub", "note", "iopub"]
    );
}

#[test]
fn an_empty_session_has_empty_logs() {
    let sandbox = Sandbox::new();
    sandbox.ended("aaaa1111", "train", NOON, "stopped");
    for args in [
        &["logs", "train"][..],
        &["logs", "train", "-f"],
        &["logs", "train", "--json"],
    ] {
        assert_eq!(
            sandbox.run(args).all(),
            "exit 0\n--- stdout\n--- stderr\n",
            "{args:?}"
        );
    }
}

#[test]
fn follow_goes_on_to_the_end_of_the_execution() {
    let sandbox = Sandbox::new();
    let busy = Status {
        state: SessionState::Busy,
        ..Status::starting()
    };
    let (session, _lock) = sandbox.live("aaaa1111", "train", busy);
    let mut journal = Journal::of(&session);
    journal.begin(1, "x").print(1, "one\n");
    let mut child = sandbox
        .command(&["logs", "train", "1", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    journal
        .print(1, "two\n")
        .begin(2, "y")
        .print(2, "another's\n");
    line.clear();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "two\n");
    assert!(child.try_wait().unwrap().is_none(), "it runs on");
    journal.state(1, ExecutionState::Ok);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn follow_ends_with_the_session() {
    let sandbox = Sandbox::new();
    let idle = Status {
        state: SessionState::Idle,
        ..Status::starting()
    };
    let (session, lock) = sandbox.live("aaaa1111", "train", idle);
    let mut journal = Journal::of(&session);
    journal
        .begin(1, "x")
        .print(1, "one\n")
        .state(1, ExecutionState::Ok);
    let mut child = sandbox
        .command(&["logs", "train", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    stdout.read_line(&mut text).unwrap();
    journal.print(1, "late\n");
    drop(lock);
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\nlate\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
