//! `farside ls`, `top`, `metrics`, `history` and `prune`.

use std::fs::File;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use farside::journal::record::{Body, ExecutionState, Note};
use farside::state_dir::{ProcessId, SessionState, Status, now};
use insta::assert_snapshot;

use crate::sandbox::{HOUR, Journal, NOON, SECOND, Sandbox};

fn busy() -> Status {
    Status {
        state: SessionState::Busy,
        attached: 1,
        executions: 12,
        // Half a second past the full minute, so that the table does not change while the test runs.
        busy_since: Some(now() - 2 * HOUR - SECOND / 2),
        last_activity: Some(now() - 12 * 60 * SECOND - SECOND / 2),
        ends_at: Some(now() + HOUR + 30 * SECOND),
        ..Status::starting()
    }
}

#[test]
fn ls_shows_what_lives() {
    let sandbox = Sandbox::new();
    assert_snapshot!(sandbox.run(&["ls"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    no sessions; `farside new` starts one, and so does a notebook on a kernel from `farside install`
    ");
    assert_eq!(sandbox.json(&["ls", "--json"]), serde_json::json!([]));
    assert!(!sandbox.path("state").exists(), "a look creates nothing");

    sandbox.ended(
        "bbbb2222",
        "yesterday",
        now() - 26 * HOUR,
        "idle: no request for 1h",
    );
    assert_snapshot!(sandbox.run(&["ls"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    no session is running; `farside ls --all` shows those that have ended
    ");

    let (_session, _lock) = sandbox.live("aaaa1111", "train", busy());
    let waiting = Status {
        state: SessionState::WaitingInput,
        ends_at: None,
        ..Status::starting()
    };
    let (_other, _other_lock) = sandbox.live("cccc3333", "asks", waiting);
    assert_snapshot!(sandbox.run(&["ls"]).all(), @r"
    exit 0
    --- stdout
    ID        NAME   ENGINE   STATE          ATTACHED  RUNS  BUSY  ACTIVE  CPU  MEMORY  PEAK  LEFT
    aaaa1111  train  python3  busy                  1    12  2h    12m     -         -     -  1h
    cccc3333  asks   python3  waiting_input         0     0  -     -       -         -     -  none
    --- stderr
    ");
    sandbox.session("dddd4444", "vanished", None, NOON);
    assert_snapshot!(sandbox.run(&["ls", "--all"]).all(), @r"
    exit 0
    --- stdout
    ID        NAME       ENGINE   STATE          ATTACHED  RUNS  BUSY  ACTIVE  CPU  MEMORY  PEAK  LEFT  ENDED
    dddd4444  vanished   python3  lost                  0     0  -     -       -         -     -  -     host_lost: neither its host nor its engine runs any more
    bbbb2222  yesterday  python3  ended                 0     3  -     1d2h    -         -     -  -     1d2h ago, idle: no request for 1h
    aaaa1111  train      python3  busy                  1    12  2h    12m     -         -     -  1h    -
    cccc3333  asks       python3  waiting_input         0     0  -     -       -         -     -  none  -
    --- stderr
    ");
}

#[test]
fn ls_json_has_exactly_the_contracts_names() {
    let sandbox = Sandbox::new();
    sandbox.ended("bbbb2222", "old", NOON, "stopped");
    let me = ProcessId::of(std::process::id());
    let status = Status {
        last_activity: Some(NOON),
        ends_at: Some(NOON + HOUR),
        busy_since: None,
        engine: me,
        ..busy()
    };
    let (session, _lock) = sandbox.live("aaaa1111", "train", status);
    let pid = std::process::id();
    assert_eq!(
        sandbox.json(&["ls", "--json"]),
        serde_json::json!([{
            "id": "aaaa1111", "name": "train", "engine": "python3", "state": "busy", "attached": 1, "executions": 12,
            "created": farside::state_dir::iso::format(session.json.created),
            "last_activity": "2026-01-31T12:00:00.000000Z", "ends_at": "2026-01-31T13:00:00.000000Z",
            "end_reason": null, "host_pid": pid, "engine_pid": pid, "key": "/home/me/train.ipynb",
        }])
    );
    let all = sandbox.run(&["ls", "--all", "--json"]);
    let old = serde_json::from_str::<serde_json::Value>(&all.stdout).unwrap()[0].clone();
    assert_snapshot!(serde_json::to_string_pretty(&old).unwrap(), @r#"
    {
      "id": "bbbb2222",
      "name": "old",
      "engine": "python3",
      "state": "ended",
      "attached": 0,
      "executions": 3,
      "created": "2026-01-31T11:00:00.000000Z",
      "last_activity": "2026-01-31T12:00:00.000000Z",
      "ends_at": null,
      "end_reason": "stopped",
      "host_pid": null,
      "engine_pid": null,
      "key": null
    }
    "#);
}

#[test]
fn ls_shows_what_is_used_and_what_ends_it() {
    let sandbox = Sandbox::new();
    let status = Status {
        cpu_seconds: 14_000.0,
        cpu_seconds_left: Some(5_400.0),
        memory_bytes: 1_340_000_000,
        ends_by: Some("lifetime".to_owned()),
        unresponsive_since: Some(now() - 300 * SECOND - SECOND / 2),
        ..busy()
    };
    let (_session, _lock) = sandbox.live("aaaa1111", "train", status);
    let json = sandbox.json(&["ls", "--json"]);
    assert_eq!(
        json[0].as_object().unwrap().len(),
        13,
        "the contract's names: {json}"
    );
    assert_snapshot!(sandbox.run(&["ls"]).all(), @r"
    exit 0
    --- stdout
    ID        NAME   ENGINE   STATE            ATTACHED  RUNS  BUSY  ACTIVE  CPU                MEMORY  PEAK  LEFT
    aaaa1111  train  python3  unresponsive 5m         1    12  2h    12m     3h53m, 1h30m left    1.3G     -  1h lifetime
    --- stderr
    ");
}

#[test]
fn top_once_takes_no_terminal() {
    let sandbox = Sandbox::new();
    assert_snapshot!(sandbox.run(&["top"]).all(), @r"
    exit 2
    --- stdout
    --- stderr
    error: there is no terminal to draw on: use `farside top --once`, or `farside ls`
    ");
    assert_snapshot!(sandbox.run(&["top", "--once"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    no session is running; `farside ls --all` shows those that have ended
    ");
    assert_eq!(sandbox.json(&["top", "--json"]), serde_json::json!([]));
    assert!(!sandbox.path("state").exists(), "a look creates nothing");

    sandbox.ended("bbbb2222", "yesterday", now() - 26 * HOUR, "stopped");
    let status = Status {
        running: Some(12),
        code: Some("for epoch in range(90):\n    train()".to_owned()),
        cpu_seconds: 14_000.0,
        memory_bytes: 1_340_000_000,
        ends_by: Some("lifetime".to_owned()),
        ..busy()
    };
    let (session, lock) = sandbox.live("aaaa1111", "train", status.clone());
    // Written long ago, and nothing since.
    let file = File::options()
        .write(true)
        .open(session.dir.status_json())
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    assert_snapshot!(sandbox.run(&["top", "--once"]).all(), @r"
    exit 0
    --- stdout
    ID        NAME   STATE  ENGINE   ATT  RUNNING                          AGE  CPU%  CPU     MEM  PEAK  MSG/S  OUT/S  LEFT
    aaaa1111  train  busy   python3    1  #12 for epoch in range(90): ...   2h     0  3h53m  1.3G     -      0     0B  1h lifetime
    --- stderr
    ");

    // What is written between its two looks is a rate.
    let looking = sandbox
        .command(&["top", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut news = status;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let host = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            news.cpu_seconds += 0.005;
            news.outputs += 1;
            news.output_bytes += 1000;
            session.dir.write_status(&lock, &news).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let seen = looking.wait_with_output().unwrap();
    stop.store(true, Ordering::Relaxed);
    host.join().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
    let rate = |name: &str| seen[0][name].as_f64().unwrap();
    assert!(rate("outputs_per_second") > 0.0, "{seen}");
    // The three are read together, whatever time it took.
    assert!(
        (rate("output_bytes_per_second") / rate("outputs_per_second") - 1000.0).abs() < 0.1,
        "{seen}"
    );
    assert!(
        (rate("cpu_percent") / rate("outputs_per_second") - 0.5).abs() < 0.01,
        "{seen}"
    );
    assert_eq!(seen[0]["execution"]["n"], 12);
    let names: Vec<&String> = seen[0].as_object().unwrap().keys().collect();
    assert_snapshot!(format!("{names:?}"), @r#"
    ["id", "name", "engine", "state", "attached", "execution", "cpu_percent", "cpu_seconds", "cpu_seconds_left", "memory_bytes", "memory_peak_bytes", "gpu_memory_bytes", "outputs", "output_bytes", "outputs_per_second", "output_bytes_per_second", "ends_at", "ends_by", "unresponsive_since"]
    "#);
}

#[test]
fn metrics_are_printed_once_where_nothing_listens() {
    let sandbox = Sandbox::new();
    let nothing = sandbox.run(&["metrics"]);
    assert_eq!((nothing.code, nothing.stderr.as_str()), (0, ""));
    assert!(
        nothing
            .stdout
            .contains("\nfarside_sessions{state=\"busy\"} 0\n")
    );
    assert!(!sandbox.path("state").exists(), "a look creates nothing");

    sandbox.ended("bbbb2222", "yesterday", NOON, "idle: no request for 1h");
    let (_session, _lock) = sandbox.live("aaaa1111", "train", busy());
    let text = sandbox.run(&["metrics"]).stdout;
    for line in [
        "farside_sessions{state=\"busy\"} 1",
        "farside_sessions_ended{reason=\"idle\"} 1",
        "farside_session_info{id=\"aaaa1111\",name=\"train\",engine=\"python3\",key=\"/home/me/train.ipynb\"} 1",
        "farside_session_executions_total{id=\"aaaa1111\"} 12",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
}

#[test]
fn history_lists_executions_in_their_order() {
    let sandbox = Sandbox::new();
    let session = sandbox.ended("aaaa1111", "train", NOON, "stopped");
    assert_snapshot!(sandbox.run(&["history", "train"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    train has executed nothing
    ");

    let fill = |mut journal: Journal| {
        journal
            .begin(1, "\nimport torch\nimport x")
            .print(1, "hello\n")
            .state(1, ExecutionState::Ok);
        journal
            .begin(2, "1/0")
            .state(2, ExecutionState::Error)
            .begin(3, &"long ".repeat(20));
    };
    fill(Journal::of(&session));
    let list = sandbox.json(&["history", "aaaa", "--json"]);
    assert_snapshot!(serde_json::to_string_pretty(&list[0]).unwrap(), @r#"
    {
      "msg_id": "m1",
      "n": 1,
      "cell_id": "c",
      "code": "\nimport torch\nimport x",
      "state": "ok",
      "started": "2026-01-31T12:00:01.000000Z",
      "ended": "2026-01-31T12:00:03.000000Z",
      "queued": "2026-01-31T12:00:00.000000Z",
      "reason": null,
      "execution_count": null,
      "outputs": 1,
      "bytes": 98
    }
    "#);
    assert_eq!(
        list[2]["state"], "lost",
        "the session is over, so nothing runs in it"
    );
}

#[test]
fn prune_removes_the_old_and_never_the_living() {
    let sandbox = Sandbox::new();
    let old = sandbox.ended("aaaa1111", "old", now() - 20 * 24 * HOUR, "idle");
    sandbox.ended("bbbb2222", "recent", now() - 2 * 24 * HOUR, "idle");
    let ancient = Status {
        last_activity: Some(NOON),
        ..busy()
    };
    let (_session, lock) = sandbox.live("cccc3333", "living", ancient);
    Journal::of(&old).append(Body::Note(Note::SessionEnded {
        reason: "idle".to_owned(),
    }));

    assert_snapshot!(sandbox.run(&["prune"]).all(), @r"
    exit 0
    --- stdout
    aaaa1111  old
    --- stderr
    ");
    assert!(!old.dir.root().exists() && !old.dir.sockets().exists());
    assert_snapshot!(sandbox.run(&["prune"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    nothing to remove
    ");
    let removed = sandbox.json(&["prune", "--older-than", "1h", "--json"]);
    assert_eq!(
        removed,
        serde_json::json!([{ "id": "bbbb2222", "name": "recent" }])
    );

    let mut forever = sandbox.command(&["prune"]);
    forever.env("FARSIDE_KEEP_RECORDS", "none");
    assert_snapshot!(sandbox.ran(forever.output().unwrap()).all(), @r"
    exit 0
    --- stdout
    --- stderr
    nothing to remove
    ");
    drop(lock);
    assert_eq!(
        sandbox.json(&["prune", "--json"]).as_array().unwrap().len(),
        1,
        "its host is gone, it is lost"
    );
    assert!(sandbox.sessions().list().unwrap().is_empty());
}
