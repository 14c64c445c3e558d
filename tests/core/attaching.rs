//! A request gets the outputs of an earlier execution.

use farside::journal::record::{Body, ExecutionState, Note, Record};
use farside::session::core::{Core, Facts, Predecessor};
use farside::session::event::{
    Answer, Effect, Event, ExecutionSummary, PastExecution, Query, Selector,
};
use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, content, id};

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

/// The journal's answer to the one question that is open.
fn answer(b: &mut Bench, answer: Answer) -> Query {
    let (id, query) = b.queries.pop().unwrap();
    assert!(b.queries.is_empty());
    b.event(Event::Answer { id, answer });
    query
}

fn of_an_ended_session(n: u64) -> Answer {
    Answer::Execution(Some(Box::new(PastExecution {
        session: "old1old2".into(),
        summary: ExecutionSummary {
            n,
            msg_id: "long-ago".into(),
            cell_id: None,
            code: "train()".into(),
            state: ExecutionState::Ok,
            started: None,
            ended: None,
        },
        first_seq: 3,
        extent: None,
        reply_content: Some(r#"{"status":"ok","execution_count":14}"#.into()),
    })))
}

#[test]
fn to_an_execution_of_an_ended_session() {
    // The number is also that of an execution of ours that runs: that one is not meant.
    let (mut b, a, run) = running();
    b.queries_wait = true;
    b.skip(a);
    b.execute(a, "%farside attach old1:1");
    let query = answer(&mut b, of_an_ended_session(1));
    let Query::Execution(target) = query else {
        panic!("{query:?}");
    };
    assert_eq!(target.session.as_deref(), Some("old1"));
    assert_eq!(target.selector, Selector::Number(1));
    let expected = [
        "iopub a2 status busy",
        "iopub a2 stream outputs of old1old2:1",
        "shell a2 execute_reply ok",
        "iopub a2 status idle",
        "iopub a1 status busy",
    ];
    assert_eq!(b.heard(a), expected);
    let replies = b
        .records
        .iter()
        .rev()
        .find_map(|record| match &record.body {
            Body::Reply { message, .. } => Some(content(message)),
            _ => None,
        });
    assert_eq!(replies.unwrap()["execution_count"], 14);
    // Nothing of what runs here comes under the attaching request.
    assert!(b.core.state().attachments.is_empty());
    b.prints(&run, "three\n");
    b.engine_ends_ok(&run);
    let ours = [
        "iopub a1 stream three",
        "shell a1 execute_reply ok",
        "iopub a1 status idle",
    ];
    assert_eq!(b.heard(a), ours);
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn this_very_session_may_be_named() {
    let (mut b, a, _run) = running();
    b.queries_wait = true;
    for code in ["%farside attach s1:1", "%farside attach notes:"] {
        b.execute(a, code);
    }
    assert_eq!(b.core.state().attachments.len(), 2);
    b.execute(a, "%farside history s1");
    let answered = Answer::History {
        session: json!({}),
        executions: Vec::new(),
    };
    let query = answer(&mut b, answered);
    assert!(matches!(query, Query::History { session: None, .. }));
}

#[test]
fn what_is_not_found_is_said_in_the_journals_words() {
    let (mut b, a) = Bench::ready();
    b.queries_wait = true;
    b.execute(a, "%farside attach s9:1");
    answer(&mut b, Answer::NotThere("s9 lives".into()));
    b.execute(a, "%farside history s9");
    answer(&mut b, Answer::NotThere("no session".into()));
    let errors: Vec<_> = (b.heard(a).into_iter())
        .filter(|line| line.contains("error") || line.starts_with("shell"))
        .collect();
    let expected = [
        "iopub a1 error UnknownExecution",
        "shell a1 execute_reply UnknownExecution",
        "iopub a2 error FarsideError",
        "shell a2 execute_reply FarsideError",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn a_host_that_dies_in_the_middle_of_a_replay_leaves_an_error() {
    // The record of the attachment is the last that was kept.
    let (mut b, a, _run) = running();
    b.queries_wait = true;
    b.execute(a, "%farside attach old1:1");
    answer(&mut b, of_an_ended_session(1));
    let at = b
        .records
        .iter()
        .rposition(|record| matches!(record.body, Body::Note(Note::Attach { .. })));
    let kept = &b.records[..=at.unwrap()];
    let state = crate::bench::recovered(kept);
    assert!(state.attachments.is_empty());
    let next = kept.len() as u64 + 1;
    let mut core = Core::new(crate::bench::facts(false), "host2".into(), state, next);
    let replies: Vec<_> = (core.open(2, b.now).into_iter())
        .filter_map(|effect| match effect {
            Effect::Record(Record {
                body: Body::Reply { message, .. },
                ..
            }) => Some(content(&message)["ename"].clone()),
            _ => None,
        })
        .collect();
    assert_eq!(replies, ["HostReplaced"]);
}

fn after(reason: &str) -> (Bench, farside::journal::record::ClientId) {
    let predecessor = Predecessor {
        id: "old1old2".into(),
        of_notebook: true,
        executions: 14,
        ended_at: 1_700_000_000 * crate::bench::SECOND,
        lost: false,
        reason: reason.into(),
    };
    let mut b = Bench::with(Facts {
        predecessor: Some(predecessor),
        ..crate::bench::facts(false)
    });
    b.engine_starts(1);
    let client = b.attach();
    (b, client)
}

#[test]
fn the_first_output_of_a_person_tells_of_the_session_before() {
    let (mut b, a) = after("idle: for 1h");
    // What frontends run by themselves tells nobody.
    for (key, value) in [("silent", true), ("store_history", false)] {
        let content = json!({ "code": "import sys", key: value });
        let request = b.request(a, "execute_request", content);
        b.send(a, Channel::Shell, &request);
        let run = b.engine_begins();
        b.engine_ends_ok(&run);
    }
    assert!(b.heard(a).iter().all(|line| !line.contains("farside")));
    b.execute(a, "x");
    let heard = b.heard(a);
    let text = "[farside] The last session of this notebook (old1old2, 14 executions) ended at 22:13 UTC (idle: for \
                1h). Its variables are gone; its outputs are kept: `%farside attach old1old2:14` shows the last one \
                here, `%farside history old1old2` lists them.";
    assert_eq!(heard, [format!("iopub a3 stream {text}")]);
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    // Once: also after another host has taken over.
    let state = crate::bench::recovered(&b.records);
    assert!(state.predecessor_told);
    b.execute(a, "y");
    assert!(b.heard(a).iter().all(|line| !line.contains("farside")));
}

#[test]
fn without_an_argument_what_a_person_ran_last_is_meant() {
    let (mut b, a) = Bench::ready();
    let selector = |query| match query {
        Query::Execution(target) => target.selector,
        Query::History { .. } => panic!("it was no history"),
    };
    let silent = |b: &mut Bench| {
        let request = b.request(a, "execute_request", json!({ "code": "s", "silent": true }));
        b.send(a, Channel::Shell, &request);
        b.engine_begins()
    };
    let run = silent(&mut b);
    b.queries_wait = true;
    b.execute(a, "%farside attach");
    let none = answer(&mut b, Answer::Execution(None));
    assert_eq!(selector(none), Selector::Before, "also while it runs");
    b.engine_ends_ok(&run);
    b.execute(a, "%farside attach");
    let query = answer(&mut b, of_an_ended_session(14));
    assert_eq!(selector(query), Selector::Before);
    b.execute(a, "mine()");
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    silent(&mut b);
    b.execute(a, "%farside attach");
    let query = answer(&mut b, Answer::Execution(None));
    assert_eq!(selector(query), Selector::Number(2));
}

/// jupyter_client's Session objects count from 0 each, so that two sockets of one launcher may use the same msg_id.
#[test]
fn two_sockets_with_one_msg_id_get_their_reply_each() {
    let (mut b, _, run) = running();
    let other = b.attach();
    let first = b.attach_to(other, "a1");
    for identity in ["another socket", "a third"] {
        let mut request = first.clone();
        request.identities = vec![identity.into()];
        b.send(other, Channel::Shell, &request);
    }
    let place = b.records.len();
    b.engine_ends_ok(&run);
    let to = |record: &Record| match &record.body {
        Body::Reply { message, .. } if message.parent_header == first.header => {
            Some(message.identities.clone())
        }
        _ => None,
    };
    let mut replied: Vec<_> = b.records[place..].iter().filter_map(to).collect();
    replied.sort();
    let mut expected = vec![
        first.identities.clone(),
        vec!["another socket".into()],
        vec!["a third".into()],
    ];
    expected.sort();
    assert_eq!(replied, expected);
}
