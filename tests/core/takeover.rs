//! A host dies, and the next one goes on.

use farside::journal::record::{Body, ClientId, ExecutionState, Note};
use farside::session::event::Event;
use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, past_executions};

fn replies(b: &mut Bench, client: ClientId) -> Vec<String> {
    (b.heard(client).into_iter())
        .filter(|line| !line.starts_with("iopub"))
        .collect()
}

fn state_of(b: &Bench, n: u64) -> ExecutionState {
    past_executions(&b.records)[&n].summary.state
}

#[test]
fn the_time_between_two_hosts_does_not_depend_on_the_wall_clock() {
    for hours in [-500, 500] {
        let (mut b, a) = Bench::ready();
        b.execute(a, "train()");
        b.engine_begins();
        b.skip(a);
        b.set_forward = hours * 3_600_000_000;
        b.host_dies();
        let heard = b.heard(a);
        let text = "may be missing here";
        assert!(
            heard
                .iter()
                .any(|line| line.contains("within 100") && line.contains(text)),
            "{heard:?}"
        );
    }
}

#[test]
fn an_execution_is_seen_through_by_the_next_host() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    let run = b.engine_begins();
    b.prints(&run, "one\n");
    b.skip(a);
    b.host_dies();
    assert!(
        b.records
            .iter()
            .any(|record| matches!(record.body, Body::Note(Note::Gap { .. })))
    );
    let heard = b.heard(a);
    assert_eq!(heard.len(), 2);
    // Whatever the last host said to it last: it is busy.
    assert_eq!(heard[0], "iopub a1 status busy");
    assert!(
        heard[1].starts_with("iopub a1 stream [farside] the host was killed:"),
        "{heard:?}"
    );
    b.adopted_engine_connects();
    let probe = b.engine_gets("kernel_info_request");
    b.prints(&run, "three\n");
    b.engine_ends_ok(&run);
    b.status(&probe, "busy");
    b.engine_replies(
        &probe,
        json!({ "status": "ok", "implementation": "ipython", "banner": "hi" }),
    );
    b.status(&probe, "idle");
    let expected = [
        "iopub a1 stream three",
        "shell a1 execute_reply ok",
        "iopub a1 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    assert_eq!(state_of(&b, 1), ExecutionState::Ok);
    assert!(!b.core.awaits_engine());
}

#[test]
fn what_ended_in_the_gap_is_settled_after_the_probe() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "replied()");
    b.execute(a, "idle()");
    b.execute(a, "failed()");
    b.execute(a, "running()");
    b.execute(a, "queued()");
    let runs: Vec<_> = (0..4).map(|_| b.engine_begins()).collect();
    b.engine_replies(&runs[0], json!({ "status": "ok" }));
    b.status(&runs[1], "idle");
    b.iopub(&runs[2], "error", json!({ "ename": "E" }));
    b.status(&runs[2], "idle");
    b.ask(a, Channel::Shell, "complete_request");
    b.ask(a, Channel::Control, "debug_request");
    b.to_engine.clear();
    b.skip(a);
    b.host_dies();
    b.adopted_engine_connects();
    b.execute(a, "after()");
    b.skip(a);
    b.answer_probe();
    assert_eq!(
        b.heard(a),
        [
            // Replies come in order: this is known as soon as the probe's is there.
            "iopub a6 status busy",
            "shell a6 complete_reply AnswerLost",
            "iopub a6 status idle",
            "iopub a1 status busy",
            "iopub a1 status idle",
            // What runs as far as is known.
            "iopub a4 status busy",
            "shell a2 execute_reply ok",
            "shell a3 execute_reply ExecutionLost",
            "iopub a4 status idle",
            "shell a4 execute_reply ExecutionLost",
            "iopub a5 status busy",
            "iopub a5 status idle",
            "shell a5 execute_reply ExecutionLost",
            "iopub a7 status busy",
            "control a7 debug_reply AnswerLost",
            "iopub a7 status idle",
        ]
    );
    let states: Vec<_> = (1..=6).map(|n| state_of(&b, n).name()).collect();
    assert_eq!(states, ["ok", "ok", "error", "lost", "lost", "queued"]);
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    assert_eq!(replies(&mut b, a), ["shell a8 execute_reply ok"]);
}

#[test]
fn an_adopted_engine_whose_answer_was_not_heard_is_asked_again() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    b.engine_begins();
    b.host_dies();
    b.adopted_engine_connects();
    let probe = b.engine_gets("kernel_info_request");
    assert!(b.core.awaits_engine());
    b.adopted_engine_connects();
    assert!(
        b.to_engine.is_empty(),
        "it has a probe already, and is busy"
    );
    // Its idle came before the subscription.
    b.engine_replies(
        &probe,
        json!({ "status": "ok", "implementation": "ipython", "banner": "hi" }),
    );
    b.adopted_engine_connects();
    b.answer_probe();
    assert_eq!(state_of(&b, 1), ExecutionState::Lost);
    assert!(!b.core.awaits_engine());
}

#[test]
fn an_adopted_engine_can_be_used_while_it_is_busy() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "loop()");
    b.engine_begins();
    b.host_dies();
    b.execute(a, "next()");
    b.adopted_engine_connects();
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.ask(a, Channel::Control, "interrupt_request");
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a3 kernel_info_reply ok",
            "control a4 interrupt_reply ok"
        ]
    );
    assert_eq!(b.wants(), ["interrupt"]);
    b.engine_gets("kernel_info_request");
    b.engine_gets("execute_request");
}

#[test]
fn an_open_question_is_still_open() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "input()");
    let run = b.engine_begins();
    b.engine_asks(&run, "name?");
    b.host_dies();
    b.adopted_engine_connects();
    b.engine_gets("kernel_info_request");
    assert_eq!(b.core.session_state(), "waiting_input");
    let other = b.attach();
    b.attach_to(other, "a1");
    assert_eq!(replies(&mut b, other), ["stdin b1 input_request name?"]);
    b.input(other, "Ada", None);
    b.engine_gets("input_reply");
}

#[test]
fn attachments_go_on() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    let run = b.engine_begins();
    b.attach_to(a, "a1");
    b.host_dies();
    b.adopted_engine_connects();
    b.skip(a);
    b.prints(&run, "x");
    b.engine_ends_ok(&run);
    let expected = [
        "iopub a1 stream x",
        "iopub a2 stream x",
        "shell a1 execute_reply ok",
        "iopub a1 status idle",
        "shell a2 execute_reply ok",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), expected);
}

#[test]
fn kernel_info_asked_before_the_first_host_died_is_answered_by_the_second() {
    let mut b = Bench::new();
    let a = b.attach();
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.execute(a, "1");
    b.ask(a, Channel::Shell, "complete_request");
    b.wants();
    b.host_dies();
    assert_eq!(b.wants(), ["start 1"]);
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a2 execute_reply HostReplaced",
            "shell a3 complete_reply HostReplaced"
        ]
    );
    b.engine_starts(1);
    assert_eq!(replies(&mut b, a), ["shell a1 kernel_info_reply ok"]);
}

#[test]
fn kernel_info_asked_of_a_starting_engine_is_answered_after_its_adoption() {
    let mut b = Bench::new();
    let a = b.attach();
    b.engine_started(1);
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.execute(a, "1");
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a1 kernel_info_reply ok",
            "shell a2 execute_reply ExecutionLost"
        ]
    );
}

#[test]
fn a_look_up_that_a_host_took_along_is_an_error() {
    let (mut b, a) = Bench::ready();
    b.queries_wait = true;
    b.execute(a, "%farside history");
    b.execute(a, "%farside attach");
    b.ask(a, Channel::Shell, "farside_list_request");
    b.host_dies();
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a1 execute_reply HostReplaced",
            "shell a2 execute_reply HostReplaced",
            "shell a3 farside_list_reply HostReplaced",
        ]
    );
}

#[test]
fn an_engine_that_died_with_its_host_is_an_end_for_all_that_waits() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    b.engine_begins();
    b.attach_to(a, "a1");
    b.execute(a, "2");
    b.host_dies();
    b.engine_dies();
    assert_eq!(
        replies(&mut b, a),
        [
            "shell a1 execute_reply EngineDied",
            "shell a2 execute_reply EngineDied",
            "shell a3 execute_reply EngineDied",
        ]
    );
    b.execute(a, "3");
    assert_eq!(b.wants(), ["start 2"]);
}

/// A host can be killed between any two records that belong together.
#[test]
fn a_host_that_died_in_the_middle_of_its_words_leaves_nothing_open() {
    let scene = |b: &mut Bench, a: ClientId| {
        b.execute(a, "1");
        let run = b.engine_begins();
        b.prints(&run, "x");
        b.execute(a, "2");
        b.attach_to(a, "a1");
        b.attach_to(a, "a2");
        b.ask(a, Channel::Shell, "complete_request");
        b.execute(a, "%farside history");
    };
    let (mut b, a) = Bench::ready();
    scene(&mut b, a);
    let before = b.records.len();
    b.engine_dies();
    let after = b.records.len();
    for keep in before..=after {
        let (mut b, a) = Bench::ready();
        scene(&mut b, a);
        b.engine_dies();
        b.host_dies_at(keep);
        if b.core.state().engine_pid.is_some() {
            b.engine_dies();
        }
        assert!(b.core.state().live.is_empty(), "{keep}");
        assert!(b.core.state().pending.is_empty(), "{keep}");
        assert!(b.core.state().attachments.is_empty(), "{keep}");
        let mut replies = replies(&mut b, a);
        replies.sort();
        let asked: Vec<_> = replies.iter().map(|line| &line[..8]).collect();
        let expected = [
            "shell a1", "shell a2", "shell a3", "shell a4", "shell a5", "shell a6",
        ];
        assert_eq!(asked, expected, "{keep}: {replies:?}");
    }
}

#[test]
fn what_is_sent_again_to_the_next_host_is_handled_once() {
    let (mut b, a) = Bench::ready();
    let run = b.execute(a, "1");
    let info = b.ask(a, Channel::Shell, "comm_info_request");
    let cached = b.ask(a, Channel::Shell, "kernel_info_request");
    let comm = b.request(a, "comm_msg", json!({}));
    b.send(a, Channel::Shell, &comm);
    b.host_dies();
    b.adopted_engine_connects();
    b.to_engine.clear();
    let records = b.records.len();
    for request in [&run, &info, &cached, &comm] {
        b.send_again(a, Channel::Shell, request);
    }
    assert_eq!(b.records.len(), records);
    assert!(b.to_engine.is_empty());
    // What was lost with the host is handled.
    let fresh = b.request(a, "execute_request", json!({ "code": "2" }));
    b.send_again(a, Channel::Shell, &fresh);
    b.engine_gets("execute_request");
}

#[test]
fn a_checkpoint_is_as_good_as_the_records_before_it() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "input()");
    let run = b.engine_begins();
    b.attach_to(a, "a1");
    b.engine_asks(&run, "?");
    b.ask(a, Channel::Shell, "complete_request");
    let state = b.core.state().clone();
    let why = "x".to_owned();
    b.event(Event::JournalFailed {
        for_good: false,
        why,
    });
    b.event(Event::JournalHealed { from: 1 });
    assert_eq!(b.core.state().live, state.live);
    b.host_dies();
    assert_eq!(b.core.state().attachments, state.attachments);
    assert_eq!(b.core.state().input, state.input);
    b.adopted_engine_connects();
    b.engine_ends_ok(&run);
    assert_eq!(state_of(&b, 1), ExecutionState::Ok);
}

/// The engine had dropped outputs, and the note that said so was in what a full disk did not take.
#[test]
fn a_loss_that_was_told_of_while_nothing_could_be_written_is_told_of_again() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    let run = b.engine_begins();
    for number in [1, 500] {
        let msg_id = format!("engine_101_{number}");
        let text = json!({ "name": "stdout", "text": "x" });
        b.engine_says_as(&msg_id, Channel::Iopub, &run, "stream", text);
    }
    let losses = |b: &Bench| {
        let is_loss = |body: &Body| matches!(body, Body::Note(Note::Gap { why, .. }) if why.starts_with("498 "));
        (b.records.iter())
            .filter(|record| is_loss(&record.body))
            .count()
    };
    assert_eq!(losses(&b), 0, "they may come");
    let from = b.clocks().wall;
    let why = "no space left on device".into();
    b.event(Event::JournalFailed {
        for_good: false,
        why,
    });
    b.wait(2);
    assert_eq!(losses(&b), 1);
    b.event(Event::JournalHealed { from });
    assert_eq!(losses(&b), 2);
    // The disk was full again before that was written.
    let from = b.clocks().wall;
    b.event(Event::JournalHealed { from });
    assert_eq!(losses(&b), 3);
    let from = b.clocks().wall + 1;
    b.event(Event::JournalHealed { from });
    assert_eq!(losses(&b), 3, "it was kept");
}

/// The engine may have heard of it or not; what must not happen is that the old one goes on, or that its end counts as
/// a death.
#[test]
fn a_restart_is_gone_on_with_by_the_next_host() {
    let (mut b, a) = Bench::ready();
    b.shutdown(a, true);
    assert_eq!(b.wants(), ["stop restart"]);
    b.host_dies();
    assert_eq!(b.wants(), ["stop restart"]);
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.engine_dies();
    assert_eq!(b.wants(), ["start 2"]);
    b.host_dies();
    assert_eq!(
        b.wants(),
        ["start 2"],
        "it had ended, and the new one was not there yet"
    );
    b.skip(a);
    b.engine_starts(2);
    assert_eq!(replies(&mut b, a), ["shell a2 kernel_info_reply ok"]);
    b.host_dies();
    assert_eq!(b.wants(), Vec::<String>::new(), "it is over");
}
