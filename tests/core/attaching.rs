//! A request gets the outputs of an earlier execution.

use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, id};

/// An execution that has printed twice, and its request as the engine has it.
fn running() -> (
    Bench,
    farside::journal::record::ClientId,
    farside::wire::Message,
) {
    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    let run = b.engine_begins();
    b.prints(&run, "one\n");
    b.prints(&run, "two\n");
    (b, a, run)
}

#[test]
fn to_a_running_execution() {
    let (mut b, a, run) = running();
    b.skip(a);
    let other = b.attach();
    b.attach_to(other, "a1");
    let so_far = [
        "iopub b1 status busy",
        "iopub b1 execute_input train()",
        "iopub b1 stream one\ntwo",
        "iopub a1 status busy",
    ];
    assert_eq!(b.heard(other), so_far);
    b.prints(&run, "three\n");
    b.engine_ends_ok(&run);
    let live = [
        "iopub a1 stream three",
        "iopub b1 stream three",
        "iopub a1 status idle",
        "shell b1 execute_reply ok",
        "iopub b1 status idle",
    ];
    assert_eq!(b.heard(other), live);
    let requester = [
        "iopub a1 stream three",
        "shell a1 execute_reply ok",
        "iopub a1 status idle",
    ];
    assert_eq!(
        b.heard(a),
        requester,
        "it goes on getting its own, and nothing else"
    );
    assert!(b.core.state().attachments.is_empty());
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn by_magic_to_the_running_or_the_last_one() {
    let (mut b, a, run) = running();
    b.execute(a, "%farside attach");
    b.engine_ends_ok(&run);
    let replies = |b: &mut Bench, client| {
        (b.heard(client).into_iter())
            .filter(|line| line.starts_with("shell") || line.contains("stream"))
            .collect::<Vec<_>>()
    };
    let expected = [
        "iopub a1 stream one",
        "iopub a1 stream two",
        "iopub a2 stream one\ntwo",
        "shell a1 execute_reply ok",
        "shell a2 execute_reply ok",
    ];
    assert_eq!(replies(&mut b, a), expected);
    b.execute(a, "%farside attach");
    assert_eq!(
        replies(&mut b, a),
        ["iopub a3 stream one\ntwo", "shell a3 execute_reply ok"]
    );
    b.execute(a, "%farside attach 1");
    assert_eq!(
        replies(&mut b, a),
        ["iopub a4 stream one\ntwo", "shell a4 execute_reply ok"]
    );
    assert!(b.to_engine.is_empty());
}

#[test]
fn to_a_finished_execution_while_another_runs() {
    let (mut b, a, run) = running();
    b.engine_ends_ok(&run);
    b.execute(a, "other()");
    b.engine_begins();
    let other = b.attach();
    b.attach_to(other, "a1");
    let expected = [
        "iopub b1 status busy",
        "iopub b1 execute_input train()",
        "iopub b1 stream one\ntwo",
        "shell b1 execute_reply ok",
        "iopub b1 status idle",
        "iopub a2 status busy",
    ];
    assert_eq!(b.heard(other), expected);
}

#[test]
fn to_a_failed_execution() {
    let (mut b, a, run) = running();
    b.iopub(
        &run,
        "error",
        json!({ "ename": "ValueError", "evalue": "", "traceback": [] }),
    );
    b.engine_replies(&run, json!({ "status": "error", "ename": "ValueError" }));
    b.status(&run, "idle");
    b.skip(a);
    b.attach_to(a, "a1");
    let expected = [
        "iopub a2 status busy",
        "iopub a2 execute_input train()",
        "iopub a2 stream one\ntwo",
        "iopub a2 error ValueError",
        "shell a2 execute_reply ValueError",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), expected);
}

#[test]
fn to_a_queued_execution() {
    let (mut b, a, first) = running();
    b.execute(a, "second()");
    let other = b.attach();
    b.attach_to(other, "a2");
    assert_eq!(
        b.heard(other),
        ["iopub b1 status busy", "iopub a1 status busy"]
    );
    b.engine_ends_ok(&first);
    let second = b.engine_begins();
    b.skip(other);
    b.prints(&second, "x");
    b.engine_ends_ok(&second);
    let expected = [
        "iopub a2 stream x",
        "iopub b1 stream x",
        "iopub a2 status idle",
        "shell b1 execute_reply ok",
        "iopub b1 status idle",
    ];
    assert_eq!(b.heard(other), expected);
}

#[test]
fn to_an_unknown_execution() {
    let (mut b, a) = Bench::ready();
    b.attach_to(a, "nobodys");
    let expected = [
        "iopub a1 status busy",
        "iopub a1 error UnknownExecution",
        "shell a1 execute_reply UnknownExecution",
        "iopub a1 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    // An attachment is no execution itself.
    b.attach_to(a, "a1");
    assert!(
        b.heard(a)
            .contains(&"shell a2 execute_reply UnknownExecution".to_owned())
    );
}

#[test]
fn several_attachers_of_one_and_of_two_clients() {
    let (mut b, a, run) = running();
    let other = b.attach();
    b.attach_to(other, "a1");
    b.attach_to(other, "a1");
    b.attach_to(a, "a1");
    for client in [a, other] {
        b.skip(client);
    }
    b.prints(&run, "x");
    assert_eq!(
        b.heard(other),
        [
            "iopub a1 stream x",
            "iopub b1 stream x",
            "iopub b2 stream x"
        ]
    );
    assert_eq!(b.heard(a), ["iopub a1 stream x", "iopub a2 stream x"]);
    let messages: Vec<_> = b.heard_messages(a);
    assert!(messages.is_empty());
    b.engine_ends_ok(&run);
    let ends = |b: &mut Bench, client| {
        (b.heard(client).iter())
            .filter(|line| line.starts_with("shell"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ends(&mut b, other),
        ["shell b1 execute_reply ok", "shell b2 execute_reply ok"]
    );
    assert_eq!(
        ends(&mut b, a),
        ["shell a1 execute_reply ok", "shell a2 execute_reply ok"]
    );
}

#[test]
fn every_message_has_an_id_of_its_own() {
    let (mut b, a, run) = running();
    let other = b.attach();
    b.attach_to(other, "a1");
    b.attach_to(other, "a1");
    b.prints(&run, "x");
    b.engine_ends_ok(&run);
    for client in [a, other] {
        let heard = b.heard_messages(client);
        let ids: std::collections::HashSet<_> =
            heard.iter().map(|(_, message)| id(message)).collect();
        assert_eq!(ids.len(), heard.len());
    }
}

#[test]
fn an_attacher_that_leaves_takes_nothing_with_it() {
    let (mut b, a, run) = running();
    let other = b.attach();
    b.attach_to(other, "a1");
    b.skip(other);
    b.detach(other);
    assert!(b.core.state().attachments.is_empty());
    assert!(b.core.state().pending.is_empty());
    // Should it come back after all, its cell has ended.
    assert_eq!(
        b.heard(other),
        [
            "shell b1 execute_reply Detached",
            "iopub b1 status idle",
            "iopub a1 status busy"
        ]
    );
    b.skip(a);
    b.prints(&run, "x");
    b.engine_ends_ok(&run);
    assert_eq!(
        b.heard(a),
        [
            "iopub a1 stream x",
            "shell a1 execute_reply ok",
            "iopub a1 status idle"
        ]
    );
}

#[test]
fn an_attacher_that_leaves_before_the_journal_has_answered() {
    let (mut b, a, _run) = running();
    let other = b.attach();
    b.queries_wait = true;
    b.attach_to(other, "nobodys");
    b.execute(other, "%farside history");
    b.execute(a, "second()");
    b.execute(other, "%farside attach 2");
    b.detach(other);
    b.answer_queries();
    assert!(b.core.state().attachments.is_empty());
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn the_requester_may_leave() {
    let (mut b, a, run) = running();
    b.detach(a);
    let other = b.attach();
    b.attach_to(other, "a1");
    b.engine_ends_ok(&run);
    assert!(
        b.heard(other)
            .contains(&"shell b1 execute_reply ok".to_owned())
    );
    assert!(b.core.state().live.is_empty());
}

#[test]
fn a_question_waits_for_the_next_attacher() {
    let (mut b, a, run) = running();
    b.detach(a);
    b.engine_asks(&run, "go on?");
    assert_eq!(b.core.session_state(), "waiting_input");
    let other = b.attach();
    b.attach_to(other, "a1");
    let expected = [
        "iopub b1 status busy",
        "iopub b1 execute_input train()",
        "iopub b1 stream one\ntwo",
        "stdin b1 input_request go on?",
        "iopub a1 status busy",
    ];
    assert_eq!(b.heard(other), expected);
    b.input(other, "yes", None);
    b.engine_gets("input_reply");
    b.engine_asks(&run, "sure?");
    assert_eq!(b.heard(other), ["stdin b1 input_request sure?"]);
}

#[test]
fn to_an_execution_of_the_engine_before() {
    let (mut b, a, _run) = running();
    b.shutdown(a, true);
    b.engine_dies();
    b.engine_starts(2);
    b.skip(a);
    b.attach_to(a, "a1");
    let heard = b.heard(a);
    assert!(
        heard.contains(&"iopub a3 stream one\ntwo".to_owned()),
        "{heard:?}"
    );
    assert!(
        heard.contains(&"shell a3 execute_reply EngineRestarted".to_owned()),
        "{heard:?}"
    );
}

#[test]
fn the_attachments_of_a_dead_engine_end() {
    let (mut b, a, _run) = running();
    b.attach_to(a, "a1");
    let other = b.attach();
    b.attach_to(other, "a1");
    b.skip(a);
    b.skip(other);
    b.engine_dies();
    let expected = [
        "iopub a1 error EngineDied",
        "iopub b1 error EngineDied",
        "iopub a1 status idle",
        "shell b1 execute_reply EngineDied",
        "iopub b1 status idle",
    ];
    assert_eq!(b.heard(other), expected);
    let replies: Vec<_> = (b.heard(a).into_iter())
        .filter(|line| line.starts_with("shell"))
        .collect();
    assert_eq!(
        replies,
        [
            "shell a1 execute_reply EngineDied",
            "shell a2 execute_reply EngineDied"
        ]
    );
}

#[test]
fn the_engines_own_words_pass_during_an_attachment() {
    let (mut b, a, run) = running();
    b.attach_to(a, "a1");
    b.skip(a);
    b.iopub(&run, "never_heard_of", json!({ "x": 1 }));
    let mut copy = b.heard_messages(a);
    assert_eq!(copy.len(), 2);
    let (channel, message) = copy.pop().unwrap();
    assert_eq!(channel, Channel::Iopub);
    assert_eq!(message.parent().unwrap().msg_id, "a2");
    assert_eq!(message.header().unwrap().msg_type, "never_heard_of");
    assert_eq!(message.content, r#"{"x":1}"#);
}
