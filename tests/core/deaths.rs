//! The engine's life: start, death in each state, restart, the session's end.

use farside::journal::record::{Body, ClientId, ExecutionState, Note};
use farside::session::event::{Command, Event};
use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, past_executions};

fn replies(b: &mut Bench, client: ClientId) -> Vec<String> {
    (b.heard(client).into_iter())
        .filter(|line| !line.starts_with("iopub"))
        .collect()
}

#[test]
fn an_engine_that_is_connected_before_its_start_is_told_is_asked_again() {
    let mut b = Bench::new();
    b.event(Event::EngineConnected { generation: 1 });
    assert!(b.core.awaits_engine());
    b.engine_started(1);
    assert!(b.core.awaits_engine());
    b.event(Event::EngineConnected { generation: 1 });
    b.answer_probe();
    assert!(!b.core.awaits_engine());
}

#[test]
fn what_comes_before_the_engine_is_heard_waits_for_it() {
    let mut b = Bench::new();
    let a = b.attach();
    b.execute(a, "1");
    b.engine_started(1);
    b.execute(a, "2");
    b.event(Event::EngineConnected { generation: 1 });
    let probe = b.engine_gets("kernel_info_request");
    assert!(b.to_engine.is_empty());
    assert!(b.core.awaits_engine());
    // The first answer came before the subscription: asked again.
    b.engine_replies(&probe, json!({ "status": "ok" }));
    assert!(b.to_engine.is_empty(), "its iopub is not heard yet");
    b.event(Event::EngineConnected { generation: 1 });
    let probe = b.engine_gets("kernel_info_request");
    b.status(&probe, "busy");
    assert!(!b.core.awaits_engine());
    for _ in 0..2 {
        let run = b.engine_begins();
        b.engine_ends_ok(&run);
    }
    assert_eq!(
        replies(&mut b, a),
        ["shell a1 execute_reply ok", "shell a2 execute_reply ok"]
    );
}

#[test]
fn an_engine_that_cannot_be_started_is_an_error_and_the_next_execution_tries_again() {
    let mut b = Bench::new();
    let a = b.attach();
    b.execute(a, "1");
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.ask(a, Channel::Shell, "complete_request");
    let why = "the engine python3 cannot be started: no such file".into();
    b.event(Event::EngineFailed { generation: 1, why });
    let expected = [
        "iopub a1 status busy",
        "iopub a1 error EngineDied",
        "shell a1 execute_reply EngineDied",
        "iopub a1 status idle",
        "iopub a3 status busy",
        "shell a3 complete_reply EngineDied",
        "iopub a3 status idle",
        "iopub a2 status busy",
        "shell a2 kernel_info_reply EngineDied",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    assert_eq!(b.wants(), ["start 1"]);
    b.ask(a, Channel::Control, "kernel_info_request");
    b.ask(a, Channel::Shell, "complete_request");
    assert_eq!(
        replies(&mut b, a),
        [
            "control a4 kernel_info_reply EngineDied",
            "shell a5 complete_reply EngineDied"
        ]
    );
    b.execute(a, "2");
    assert_eq!(b.wants(), ["start 1"]);
    let heard = b.heard(a);
    assert!(heard[0].starts_with("iopub a6 stream [farside] the engine python3 cannot be started"));
    b.engine_starts(1);
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    assert_eq!(replies(&mut b, a), ["shell a6 execute_reply ok"]);
}

#[test]
fn everything_that_waits_for_a_dead_engine_gets_one_error_reply_and_idle() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    b.execute(a, "os._exit(3)");
    let run = b.engine_begins();
    b.prints(&run, "so far\n");
    b.execute(other, "2");
    b.ask(a, Channel::Shell, "complete_request");
    b.ask(other, Channel::Control, "debug_request");
    b.skip(a);
    b.skip(other);
    b.engine_dies();
    let expected = [
        "iopub a1 error EngineDied",
        "shell a1 execute_reply EngineDied",
        "iopub a1 status idle",
        "iopub b1 status busy",
        "iopub b1 error EngineDied",
        "iopub b1 status idle",
        "iopub a2 status busy",
        "shell a2 complete_reply EngineDied",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    assert_eq!(
        replies(&mut b, other),
        [
            "shell b1 execute_reply EngineDied",
            "control b2 debug_reply EngineDied"
        ]
    );
    let past = past_executions(&b.records);
    assert_eq!(past[&1].summary.state, ExecutionState::Error);
    assert_eq!(past[&2].summary.state, ExecutionState::Aborted);
    let reply = String::from_utf8(past[&1].reply_content.clone().unwrap().to_vec()).unwrap();
    assert!(reply.contains("signal 9 (SIGKILL)"), "it says how: {reply}");
    assert_eq!(b.core.session_state(), "idle");
}

#[test]
fn the_next_execution_starts_a_fresh_engine_after_saying_so() {
    let (mut b, a) = Bench::ready();
    b.engine_dies();
    b.ask(a, Channel::Shell, "kernel_info_request");
    assert_eq!(
        replies(&mut b, a),
        ["shell a1 kernel_info_reply ok"],
        "frontends keep working"
    );
    b.execute(a, "1");
    assert_eq!(b.wants(), ["start 2"]);
    b.execute(a, "2");
    assert_eq!(b.wants(), Vec::<String>::new(), "one is enough");
    let heard = b.heard(a);
    let said = (heard.iter())
        .filter(|line| line.contains("A new engine was started"))
        .count();
    assert_eq!(said, 1, "{heard:?}");
    b.engine_starts(2);
    for _ in 0..2 {
        let run = b.engine_begins();
        b.engine_ends_ok(&run);
    }
    assert_eq!(
        replies(&mut b, a),
        ["shell a2 execute_reply ok", "shell a3 execute_reply ok"]
    );
}

#[test]
fn death_after_the_reply_and_before_idle() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    let run = b.engine_begins();
    b.engine_replies(&run, json!({ "status": "ok" }));
    b.skip(a);
    b.engine_dies();
    assert_eq!(b.heard(a), ["iopub a1 status idle"]);
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Ok
    );
}

#[test]
fn death_after_idle_and_before_the_reply() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    let run = b.engine_begins();
    b.status(&run, "idle");
    b.skip(a);
    b.engine_dies();
    assert_eq!(
        b.heard(a),
        [
            "iopub a1 error EngineDied",
            "shell a1 execute_reply EngineDied"
        ]
    );
}

#[test]
fn death_while_it_asks() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "input()");
    let run = b.engine_begins();
    b.engine_asks(&run, "?");
    b.engine_dies();
    assert_eq!(b.core.session_state(), "idle");
    assert_eq!(b.core.state().input, None);
    b.input(a, "too late", None);
    assert!(b.to_engine.is_empty());
}

#[test]
fn death_before_it_was_heard() {
    let mut b = Bench::new();
    let a = b.attach();
    b.execute(a, "1");
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.engine_started(1);
    b.event(Event::EngineConnected { generation: 1 });
    b.engine_dies();
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a1 execute_reply EngineDied",
            "shell a2 kernel_info_reply EngineDied"
        ]
    );
}

#[test]
fn a_restart_ends_what_waits_and_keeps_what_comes_after_it() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "old()");
    let run = b.engine_begins();
    b.execute(a, "queued()");
    b.skip(a);
    b.shutdown(a, true);
    let expected = [
        "iopub a3 status busy",
        "control a3 shutdown_reply ok",
        "iopub a3 status idle",
        "iopub a1 error EngineRestarted",
        "shell a1 execute_reply EngineRestarted",
        "iopub a1 status idle",
        "iopub a2 status busy",
        "iopub a2 error EngineRestarted",
        "shell a2 execute_reply EngineRestarted",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    assert_eq!(b.wants(), ["stop restart"]);
    b.execute(a, "new()");
    b.ask(a, Channel::Shell, "complete_request");
    b.to_engine.clear();
    // The old one's last words.
    b.engine_replies(&run, json!({ "status": "error" }));
    b.status(&run, "idle");
    b.engine_dies();
    assert_eq!(b.wants(), ["start 2"]);
    assert_eq!(b.heard(a), Vec::<String>::new());
    b.engine_starts(2);
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    let request = b.engine_gets("complete_request");
    b.engine_replies(&request, json!({ "status": "ok" }));
    assert_eq!(
        replies(&mut b, a),
        ["shell a4 execute_reply ok", "shell a5 complete_reply ok"]
    );
}

#[test]
fn a_restart_before_the_engine_is_there() {
    let mut b = Bench::new();
    let a = b.attach();
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.execute(a, "1");
    b.wants();
    b.shutdown(a, true);
    assert_eq!(b.wants(), Vec::<String>::new(), "it is new as it is");
    b.engine_starts(1);
    assert!(b.to_engine.is_empty());
    assert_eq!(
        replies(&mut b, a),
        [
            "control a3 shutdown_reply ok",
            "shell a2 execute_reply EngineRestarted",
            "shell a1 kernel_info_reply ok",
        ]
    );
}

#[test]
fn a_restart_of_a_dead_engine_starts_one() {
    let (mut b, a) = Bench::ready();
    b.engine_dies();
    b.shutdown(a, true);
    assert_eq!(b.wants(), ["start 2"]);
}

#[test]
fn a_shutdown_ends_the_session_and_nothing_follows() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    b.engine_begins();
    b.skip(a);
    b.shutdown(a, false);
    assert_eq!(b.wants(), ["stop"]);
    b.execute(a, "2");
    b.ask(a, Channel::Shell, "complete_request");
    b.engine_dies();
    assert_eq!(b.wants(), ["end"]);
    assert_eq!(
        replies(&mut b, a),
        [
            "control a2 shutdown_reply ok",
            "shell a3 execute_reply SessionEnding",
            "shell a1 execute_reply SessionEnded",
            "shell a4 complete_reply SessionEnded",
        ]
    );
    assert_eq!(b.core.session_state(), "ended");
    let last = b.records.len();
    assert!(matches!(
        &b.records[last - 1].body,
        Body::Note(Note::SessionEnded { reason }) if reason.starts_with("shutdown")
    ));
    b.execute(a, "3");
    b.detach(a);
    b.event(Event::EngineFailed {
        generation: 2,
        why: "x".into(),
    });
    let now = b.now;
    assert!(b.core.checkpoint(now).is_empty());
    assert_eq!(b.command(Command::Restart)["ok"], false);
    assert_eq!(b.records.len(), last);
    assert_eq!(b.wants(), Vec::<String>::new());
}

#[test]
fn a_stop_says_why_and_may_be_hurried() {
    let (mut b, _) = Bench::ready();
    let stop = |now| Command::Stop {
        now,
        reason: "stopped: farside stop".into(),
    };
    assert_eq!(b.command(stop(false))["ok"], true);
    assert_eq!(b.command(stop(false))["ok"], true);
    assert_eq!(b.command(stop(true))["ok"], true);
    assert_eq!(b.wants(), ["stop", "stop now"]);
    b.engine_dies();
    assert_eq!(
        b.core.state().ended.as_deref(),
        Some("stopped: farside stop")
    );
    assert_eq!(b.wants(), ["end"]);
}

#[test]
fn a_stop_without_an_engine_ends_at_once() {
    let (mut b, a) = Bench::ready();
    b.engine_dies();
    b.execute(a, "%farside retire");
    assert_eq!(b.wants(), ["end"]);
    assert_eq!(b.core.session_state(), "ended");
    assert_eq!(replies(&mut b, a), ["shell a1 execute_reply ok"]);
}

#[test]
fn a_stop_during_a_restart_ends() {
    let (mut b, a) = Bench::ready();
    b.shutdown(a, true);
    b.shutdown(a, false);
    b.shutdown(a, true);
    b.engine_dies();
    assert_eq!(b.wants(), ["stop restart", "stop", "end"]);
}

#[test]
fn a_stopping_engine_that_fails_ends_the_session_too() {
    let mut b = Bench::new();
    let a = b.attach();
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.shutdown(a, false);
    assert_eq!(b.wants(), ["start 1", "end"]);
    assert_eq!(
        replies(&mut b, a),
        [
            "control a2 shutdown_reply ok",
            "shell a1 kernel_info_reply SessionEnded"
        ]
    );
}

#[test]
fn events_of_an_engine_before_are_nothing() {
    let (mut b, a) = Bench::ready();
    b.shutdown(a, true);
    b.engine_dies();
    b.engine_starts(2);
    let records = b.records.len();
    for event in [
        Event::EngineConnected { generation: 1 },
        Event::EngineEnded {
            generation: 1,
            end: None,
            why: "x".into(),
        },
        Event::EngineFailed {
            generation: 1,
            why: "x".into(),
        },
    ] {
        b.event(event);
    }
    assert_eq!(b.records.len(), records);
    assert!(b.to_engine.is_empty());
}
