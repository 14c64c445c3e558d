//! What farside answers itself, and what the engine does.

use bytes::Bytes;
use farside::journal::record::{Body, ExecutionState, Note};
use farside::session::event::{Command, Event};
use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, content, id, line, past_executions};

#[test]
fn kernel_info_waits_for_the_engines_first_answer_and_then_comes_from_the_cache() {
    let mut b = Bench::new();
    assert_eq!(b.wants(), ["start 1"]);
    let a = b.attach();
    b.ask(a, Channel::Shell, "kernel_info_request");
    b.ask(a, Channel::Control, "kernel_info_request");
    assert_eq!(b.heard(a), Vec::<String>::new());
    assert_eq!(b.core.session_state(), "starting");
    assert_eq!(b.kernel_info, None);
    b.engine_starts(1);
    let answered = [
        "iopub a1 status busy",
        "shell a1 kernel_info_reply ok",
        "iopub a1 status idle",
        "iopub a2 status busy",
        "control a2 kernel_info_reply ok",
        "iopub a2 status idle",
    ];
    assert_eq!(b.heard(a), answered);
    let request = b.ask(a, Channel::Shell, "kernel_info_request");
    assert!(b.to_engine.is_empty(), "from the cache");
    let heard = b.heard_messages(a);
    let (channel, reply) = &heard[1];
    assert_eq!(*channel, Channel::Shell);
    assert_eq!(reply.identities, request.identities);
    let info = content(reply);
    assert_eq!(b.kernel_info.as_ref(), Some(&info), "launchers know it");
    assert_eq!(info["implementation"], "ipython");
    assert_eq!(info["farside"]["session"], "s1");
    let banner = info["banner"].as_str().unwrap();
    assert!(
        banner.starts_with("hi\nfarside 0: session notes "),
        "{banner}"
    );
}

#[test]
fn an_answer_of_farsides_does_not_make_a_busy_engine_look_idle() {
    let (mut b, a) = Bench::ready();
    let run = b.execute(a, "sleep()");
    let run_id = id(&run);
    b.engine_begins();
    b.skip(a);
    b.ask(a, Channel::Shell, "kernel_info_request");
    let expected = [
        "iopub a2 status busy",
        "shell a2 kernel_info_reply ok",
        "iopub a2 status idle",
        &format!("iopub {run_id} status busy"),
    ];
    assert_eq!(b.heard(a), expected);
    b.execute(a, "%farside status");
    let heard = b.heard(a);
    assert_eq!(heard.first().unwrap(), "iopub a3 status busy");
    assert!(heard[1].contains("state      busy"), "{heard:?}");
    assert_eq!(
        heard[2..],
        [
            "shell a3 execute_reply ok",
            "iopub a3 status idle",
            "iopub a1 status busy"
        ]
    );
}

/// JupyterLab asks for subshells, and its debugger for modules, as soon as it has a kernel.
#[test]
fn what_the_engines_other_threads_end_does_not_make_it_look_idle() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    b.execute(a, "sleep()");
    let run = b.engine_begins();
    let asked = b.ask(a, Channel::Control, "debug_request");
    let (mine, theirs) = (b.heard(a), b.heard(other));
    assert_eq!(mine, theirs);
    b.status(&asked, "busy");
    b.status(&asked, "idle");
    let expected = [
        "iopub a2 status busy",
        "iopub a2 status idle",
        "iopub a1 status busy",
    ];
    assert_eq!(b.heard(a), expected);
    assert_eq!(b.heard(other), expected);
    // Its own end is the last word, also of what ends between that and its reply.
    b.status(&run, "idle");
    b.status(&asked, "busy");
    b.status(&asked, "idle");
    b.engine_replies(&run, json!({ "status": "ok", "execution_count": 1 }));
    let heard = b.heard(other);
    assert_eq!(
        heard,
        [
            "iopub a1 status idle",
            "iopub a2 status busy",
            "iopub a2 status idle"
        ]
    );
}

/// JupyterLab shows a cell whose reply has the count 0 as running for ever.
#[test]
fn a_magic_shows_a_count_also_before_anything_has_ended() {
    let (mut b, a) = Bench::ready();
    let count = |b: &mut Bench| {
        b.execute(a, "%farside status");
        let heard = b.heard_messages(a);
        let reply = heard.iter().find(|(channel, _)| *channel == Channel::Shell);
        content(&reply.unwrap().1)["execution_count"].clone()
    };
    assert_eq!(count(&mut b), 1);
    b.execute(a, "sleep()");
    let run = b.engine_gets("execute_request");
    b.status(&run, "busy");
    b.iopub(
        &run,
        "execute_input",
        json!({ "code": "sleep()", "execution_count": 7 }),
    );
    assert_eq!(count(&mut b), 7);
}

#[test]
fn an_execution_goes_to_the_engine_and_its_messages_to_everybody() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    let request = b.execute(a, "print(1)");
    let run = b.engine_begins();
    assert_eq!(run.content, request.content);
    assert_eq!(b.core.session_state(), "busy");
    b.prints(&run, "1\n");
    b.engine_ends_ok(&run);
    let outputs = [
        "iopub a1 status busy",
        "iopub a1 execute_input print(1)",
        "iopub a1 stream 1",
        "shell a1 execute_reply ok",
        "iopub a1 status idle",
    ];
    let heard = b.heard(a);
    assert_eq!(heard, outputs);
    let without_reply: Vec<_> = outputs
        .into_iter()
        .filter(|line| !line.starts_with("shell"))
        .collect();
    assert_eq!(b.heard(other), without_reply);
    assert_eq!(b.core.session_state(), "idle");
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Ok
    );
    for record in &b.records {
        if let Body::Iopub { message, .. } | Body::Reply { message, .. } = &record.body {
            assert_eq!(
                message.header().unwrap().session_id,
                crate::bench::SESSION_ID
            );
        }
    }
}

#[test]
fn the_reply_may_come_before_everything_else() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    let run = b.engine_gets("execute_request");
    b.engine_replies(&run, json!({ "status": "ok" }));
    assert_eq!(
        b.core.state().live.len(),
        1,
        "its outputs are still to come"
    );
    b.status(&run, "busy");
    b.prints(&run, "late");
    b.status(&run, "idle");
    assert!(b.core.state().live.is_empty());
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Ok
    );
}

#[test]
fn an_error_aborts_what_the_engine_aborts() {
    let (mut b, a) = Bench::ready();
    for code in ["1/0", "2", "3"] {
        b.execute(a, code);
    }
    let run = b.engine_begins();
    b.iopub(&run, "error", json!({ "ename": "ZeroDivisionError" }));
    b.engine_replies(
        &run,
        json!({ "status": "error", "ename": "ZeroDivisionError" }),
    );
    b.status(&run, "idle");
    for _ in 0..2 {
        let aborted = b.engine_gets("execute_request");
        b.status(&aborted, "busy");
        b.engine_replies(&aborted, json!({ "status": "aborted" }));
        b.status(&aborted, "idle");
    }
    let past = past_executions(&b.records);
    let states: Vec<_> = past
        .values()
        .map(|past| past.summary.state.name())
        .collect();
    assert_eq!(states, ["error", "aborted", "aborted"]);
    let replies: Vec<_> = (b.heard(a).into_iter())
        .filter(|line| line.starts_with("shell"))
        .collect();
    let expected = [
        "shell a1 execute_reply ZeroDivisionError",
        "shell a2 execute_reply aborted",
        "shell a3 execute_reply aborted",
    ];
    assert_eq!(replies, expected);
}

#[test]
fn an_interrupt_by_signal_is_answered_by_farside_and_marks_the_execution() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "loop()");
    let run = b.engine_begins();
    b.execute(a, "next()");
    b.skip(a);
    b.ask(a, Channel::Control, "interrupt_request");
    assert_eq!(b.wants(), ["interrupt"]);
    let expected = [
        "iopub a3 status busy",
        "control a3 interrupt_reply ok",
        "iopub a3 status idle",
        "iopub a1 status busy",
    ];
    assert_eq!(b.heard(a), expected);
    b.engine_replies(
        &run,
        json!({ "status": "error", "ename": "KeyboardInterrupt" }),
    );
    b.status(&run, "idle");
    let next = b.engine_begins();
    b.engine_ends_ok(&next);
    let past = past_executions(&b.records);
    assert_eq!(past[&1].summary.state, ExecutionState::Interrupted);
    assert_eq!(
        past[&2].summary.state,
        ExecutionState::Ok,
        "it was only queued"
    );
}

#[test]
fn an_interrupt_by_message_goes_to_the_engine() {
    let mut b = Bench::with_interrupts(true);
    b.engine_starts(1);
    let a = b.attach();
    b.ask(a, Channel::Control, "interrupt_request");
    let request = b.engine_gets("interrupt_request");
    b.engine_replies_on(Channel::Control, &request, json!({ "status": "ok" }));
    assert_eq!(b.heard(a), ["control a1 interrupt_reply ok"]);
    assert_eq!(b.wants(), ["start 1"]);
    assert_eq!(b.command(Command::Interrupt)["ok"], true);
    let ours = b.engine_gets("interrupt_request");
    b.engine_replies_on(Channel::Control, &ours, json!({ "status": "ok" }));
    assert_eq!(b.heard(a), Vec::<String>::new(), "nobody asked for it");
}

#[test]
fn other_requests_pass_and_get_their_replies_once() {
    let (mut b, a) = Bench::ready();
    let mut request = b.request(a, "complete_request", json!({ "code": "x" }));
    // A subshell's, with a field nobody knows.
    let header = String::from_utf8(request.header.to_vec()).unwrap();
    let header = header.replacen('{', "{\"subshell_id\": \"sub\", \"new\": 1, ", 1);
    request.header = header.into();
    b.send(a, Channel::Shell, &request);
    let passed = b.engine_gets("complete_request");
    assert_eq!(passed.header, request.header);
    b.status(&passed, "busy");
    b.engine_replies(&passed, json!({ "status": "ok" }));
    b.engine_replies(&passed, json!({ "status": "ok" }));
    b.status(&passed, "idle");
    let expected = [
        "iopub a1 status busy",
        "shell a1 complete_reply ok",
        "iopub a1 status idle",
    ];
    assert_eq!(b.heard(a), expected);
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn a_comm_msg_waits_for_no_reply() {
    let (mut b, a) = Bench::ready();
    let request = b.request(a, "comm_msg", json!({ "comm_id": "c", "data": {} }));
    b.send(a, Channel::Shell, &request);
    assert_eq!(b.engine_gets("comm_msg").content, request.content);
    assert!(b.core.state().pending.is_empty());
    b.engine_dies();
    assert_eq!(b.heard(a), Vec::<String>::new());
}

#[test]
fn requests_with_one_msg_id_from_several_sockets_all_get_their_replies() {
    let (mut b, a) = Bench::ready();
    let one = b.request(a, "comm_info_request", json!({}));
    let mut two = one.clone();
    two.identities = vec![Bytes::from_static(b"another socket")];
    let other = b.attach();
    b.send(a, Channel::Shell, &one);
    b.send(a, Channel::Shell, &two);
    b.send(other, Channel::Shell, &one);
    b.send(a, Channel::Control, &one);
    for _ in 0..3 {
        let request = b.engine_gets("comm_info_request");
        b.engine_replies(&request, json!({ "status": "ok" }));
    }
    let request = b.engine_gets("comm_info_request");
    b.engine_replies_on(Channel::Control, &request, json!({ "status": "ok" }));
    let heard = b.heard_messages(a);
    let to: Vec<_> = (heard.iter())
        .map(|(channel, reply)| (*channel, reply.identities[0].clone()))
        .collect();
    let expected = [
        (Channel::Shell, one.identities[0].clone()),
        (Channel::Shell, two.identities[0].clone()),
        (Channel::Control, one.identities[0].clone()),
    ];
    assert_eq!(to, expected);
    assert_eq!(b.heard(other), ["shell a1 comm_info_reply ok"]);
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn executions_with_one_msg_id_from_several_sockets_all_get_their_replies() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    let request = b.execute(a, "1");
    b.send(other, Channel::Shell, &request);
    let first = b.engine_begins();
    b.engine_ends_ok(&first);
    let second = b.engine_begins();
    b.engine_ends_ok(&second);
    for client in [a, other] {
        let replies = (b.heard(client).iter())
            .filter(|line| line.starts_with("shell"))
            .count();
        assert_eq!(replies, 1);
    }
    let past = past_executions(&b.records);
    assert_eq!(past[&1].summary.state, ExecutionState::Ok);
    assert_eq!(past[&2].summary.state, ExecutionState::Ok);
}

#[test]
fn what_is_sent_again_after_a_lost_link_is_handled_once() {
    let (mut b, a) = Bench::ready();
    let run = b.execute(a, "1");
    let info = b.ask(a, Channel::Shell, "comm_info_request");
    let cached = b.ask(a, Channel::Shell, "kernel_info_request");
    let mut comm = b.request(a, "comm_msg", json!({}));
    b.send(a, Channel::Shell, &comm);
    assert_eq!(b.to_engine.len(), 3);
    let records = b.records.len();
    for request in [&run, &info, &cached, &comm] {
        b.send_again(a, Channel::Shell, request);
    }
    assert_eq!(b.records.len(), records);
    assert_eq!(b.to_engine.len(), 3);
    // Not by the msg_id alone.
    comm.identities = vec![Bytes::from_static(b"another socket")];
    b.send_again(a, Channel::Shell, &comm);
    b.send_again(a, Channel::Control, &info);
    assert_eq!(b.to_engine.len(), 5);
}

#[test]
fn input_goes_to_who_asked_and_the_first_answer_counts() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "input('name?')");
    let run = b.engine_begins();
    b.skip(a);
    b.engine_asks(&run, "name?");
    assert_eq!(b.core.session_state(), "waiting_input");
    assert_eq!(b.heard(a), ["stdin a1 input_request name?"]);
    let other = b.attach();
    b.attach_to(other, "a1");
    let heard = b.heard_messages(other);
    let prompt = &heard
        .iter()
        .find(|(channel, _)| *channel == Channel::Stdin)
        .unwrap()
        .1;
    assert_eq!(prompt.identities[0], "socket-b");
    assert_eq!(content(prompt)["prompt"], "name?");
    let answer = b.input(other, "Ada", Some(prompt));
    assert_eq!(b.engine_gets("input_reply").content, answer.content);
    assert_eq!(b.core.session_state(), "busy");
    b.input(a, "Bob", None);
    assert!(b.to_engine.is_empty(), "the second answer goes nowhere");
    b.engine_ends_ok(&run);
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Ok
    );
}

#[test]
fn a_late_answer_is_not_the_next_questions() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    b.execute(a, "input('1?'); input('2?')");
    let run = b.engine_begins();
    b.attach_to(other, "a1");
    b.engine_asks(&run, "1?");
    let prompts = |b: &mut Bench, client| {
        (b.heard_messages(client).into_iter())
            .filter(|(channel, _)| *channel == Channel::Stdin)
            .map(|(_, message)| message)
            .collect::<Vec<_>>()
    };
    let (ours, theirs) = (prompts(&mut b, a), prompts(&mut b, other));
    b.input(a, "one", Some(&ours[0]));
    b.engine_gets("input_reply");
    b.engine_asks(&run, "2?");
    b.input(other, "one, too", Some(&theirs[0]));
    assert!(b.to_engine.is_empty());
    let again = prompts(&mut b, other);
    b.input(other, "two", Some(&again[0]));
    assert_eq!(content(&b.engine_gets("input_reply"))["value"], "two");
}

#[test]
fn exit_in_a_console_of_ours_leaves_it_and_ends_nothing() {
    let (mut b, launcher) = Bench::ready();
    let console = b.attach_as("console");
    for code in ["exit", " quit()\n"] {
        let request = b.execute(console, code);
        assert!(b.to_engine.is_empty(), "{code}");
        let heard = b.heard_messages(console);
        let (_, reply) = &heard[1];
        assert_eq!(
            content(reply)["payload"],
            json!([{ "source": "ask_exit", "keepkernel": true }])
        );
        let request = id(&request);
        assert_eq!(
            heard
                .iter()
                .map(|(channel, message)| line(*channel, message))
                .collect::<Vec<_>>(),
            [
                format!("iopub {request} status busy"),
                format!("shell {request} execute_reply ok"),
                format!("iopub {request} status idle"),
            ]
        );
    }
    b.execute(console, "exit(3)");
    b.engine_gets("execute_request");
    // In a notebook it is code like any other.
    b.execute(launcher, "exit");
    b.engine_gets("execute_request");
}

#[test]
fn magics_answer_without_the_engine() {
    let (mut b, a) = Bench::ready();
    for (code, reply) in [
        ("%farside", "ok"),
        ("%farside help", "ok"),
        ("\n  %farside status", "ok"),
        ("%farside history", "ok"),
        ("%farside sing", "FarsideUsageError"),
        ("%farside status\nprint(1)", "FarsideUsageError"),
        ("%farside extend soon", "FarsideUsageError"),
        ("%farside attach", "UnknownExecution"),
        ("%farside attach 7", "UnknownExecution"),
        ("%farside attach nobodys", "UnknownExecution"),
    ] {
        let request = id(&b.execute(a, code));
        let heard = b.heard(a);
        assert_eq!(heard.len(), 4, "{code}: {heard:?}");
        assert_eq!(heard[0], format!("iopub {request} status busy"));
        let output = if reply == "ok" { "stream" } else { "error" };
        assert!(
            heard[1].starts_with(&format!("iopub {request} {output}")),
            "{heard:?}"
        );
        assert_eq!(heard[2], format!("shell {request} execute_reply {reply}"));
        assert_eq!(heard[3], format!("iopub {request} status idle"));
    }
    assert!(b.to_engine.is_empty());
    assert_eq!(b.core.state().last_n, 0, "none of them is an execution");
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn a_magics_output_is_for_who_asked() {
    let (mut b, a) = Bench::ready();
    let other = b.attach();
    b.execute(a, "%farside help");
    assert_eq!(b.heard(other), Vec::<String>::new());
}

#[test]
fn history_shows_what_ran() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "first = 1");
    let run = b.engine_begins();
    b.engine_ends_ok(&run);
    b.execute(a, "second = 2");
    b.skip(a);
    b.execute(a, "%farside history");
    let heard = b.heard(a);
    assert!(
        heard[1].contains("first = 1") && heard[1].contains("second = 2"),
        "{heard:?}"
    );
}

#[test]
fn farside_list_request_gives_the_latest_of_each_cell_first() {
    let (mut b, a) = Bench::ready();
    for (code, cell) in [("1", "x"), ("2", "y"), ("3", "x")] {
        let mut request = b.request(a, "execute_request", json!({ "code": code }));
        request.metadata = json!({ "cellId": cell }).to_string().into();
        b.send(a, Channel::Shell, &request);
    }
    b.skip(a);
    b.queries_wait = true;
    b.ask(a, Channel::Shell, "farside_list_request");
    assert_eq!(b.heard(a), Vec::<String>::new());
    b.queries_wait = false;
    b.answer_queries();
    let heard = b.heard_messages(a);
    let reply = content(&heard[1].1);
    let codes: Vec<_> = (reply["executions"].as_array().unwrap().iter())
        .map(|execution| execution["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["3", "2", "1"]);
    assert_eq!(reply["session"]["id"], "s1");
    assert_eq!(reply["executions"][0]["state"], "queued");
    assert_eq!(heard.len(), 3);
}

#[test]
fn a_look_up_that_fails_is_an_error_reply() {
    let (mut b, a) = Bench::ready();
    b.queries_wait = true;
    b.execute(a, "%farside history");
    b.execute(a, "%farside attach 1");
    b.ask(a, Channel::Shell, "farside_list_request");
    let ids: Vec<u64> = b.queries.drain(..).map(|(id, _)| id).collect();
    for query in ids {
        let answer = farside::session::event::Answer::Failed("no disk".into());
        b.event(Event::Answer { id: query, answer });
    }
    let replies: Vec<_> = (b.heard(a).into_iter())
        .filter(|line| line.starts_with("shell"))
        .collect();
    let expected = [
        "shell a1 execute_reply JournalError",
        "shell a2 execute_reply JournalError",
        "shell a3 farside_list_reply JournalError",
    ];
    assert_eq!(replies, expected);
    assert!(b.core.state().pending.is_empty());
}

#[test]
fn a_journal_that_cannot_be_written_is_said_and_its_healing_leaves_a_gap() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    b.engine_begins();
    b.skip(a);
    for _ in 0..2 {
        let why = "no space left on device".into();
        b.event(Event::JournalFailed {
            for_good: false,
            why,
        });
    }
    let heard = b.heard(a);
    assert_eq!(heard.len(), 1, "said once: {heard:?}");
    assert!(
        heard[0].starts_with("iopub a1 stream [farside] the journal cannot be written: no space")
    );
    // It is tried again also where nothing else happens.
    let before = b.records.len();
    b.event(Event::Tick);
    assert_eq!(b.records.len(), before, "not at once");
    let due = b.core.next_deadline(b.clocks());
    assert!(due.is_some_and(|micros| micros <= 1_000_000), "{due:?}");
    b.now += 1_000_000;
    b.event(Event::Tick);
    assert_eq!(b.records.len(), before + 1);
    b.event(Event::JournalHealed { from: 5 });
    let last = &b.records[b.records.len() - 2..];
    assert!(matches!(
        last[0].body,
        Body::Note(Note::Gap { from: 5, .. })
    ));
    // What was lost includes ends of executions: the next host must not go on from before.
    assert!(matches!(last[1].body, Body::Note(Note::Checkpoint { .. })));
    b.event(Event::JournalFailed {
        for_good: false,
        why: "again".into(),
    });
    assert_eq!(b.heard(a).len(), 1);
}

#[test]
fn a_message_without_a_readable_header_is_nothing() {
    let (mut b, a) = Bench::ready();
    let mut request = b.request(a, "x_request", json!({}));
    request.header = Bytes::from_static(b"[]");
    b.send(a, Channel::Shell, &request);
    b.event(Event::EngineMessage {
        channel: Channel::Iopub,
        message: request,
        heard: 0,
    });
    assert!(b.to_engine.is_empty());
    assert_eq!(b.heard(a), Vec::<String>::new());
}

#[test]
fn commands_are_answered() {
    let (mut b, _) = Bench::ready();
    assert_eq!(b.command(Command::Interrupt)["ok"], true);
    b.restart_by_command();
    assert_eq!(b.wants(), ["interrupt", "stop restart"]);
    b.engine_dies();
    assert_eq!(b.wants(), ["start 2"]);
    assert_eq!(b.command(Command::Interrupt)["ok"], false, "no engine yet");
    assert!(b.answers.is_empty());
    b.engine_starts(2);
    assert_eq!(
        b.answers.pop().expect("the new engine is ready")["ok"],
        true
    );
    b.restart_by_command();
    b.engine_dies();
    b.event(Event::EngineFailed {
        generation: 3,
        why: "no memory".into(),
    });
    let answer = b.answers.pop().expect("no new engine will come");
    assert_eq!(
        (&answer["ok"], &answer["error"]),
        (&false.into(), &"no memory".into())
    );
    b.engine_starts(4);
    b.restart_by_command();
    b.command(Command::Stop {
        now: false,
        reason: "stopped".into(),
    });
    assert_eq!(b.command(Command::Restart)["ok"], false);
    b.engine_dies();
    let answer = b.answers.pop().expect("the session has ended");
    assert!(
        answer["error"].as_str().unwrap().contains("stopped"),
        "{answer}"
    );
}

/// An engine's PUB socket drops what is not taken in time, also the idle of a cell that has flooded it.
#[test]
fn an_execution_whose_idle_was_dropped_ends_all_the_same() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "flood()");
    let run = b.engine_begins();
    b.engine_replies(&run, json!({ "status": "ok" }));
    b.execute(a, "next()");
    b.skip(a);
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Running
    );
    b.event(Event::Tick);
    b.to_engine.clear();
    let due = b.core.next_deadline(b.clocks()).unwrap();
    b.now += due;
    b.event(Event::Tick);
    let probe = b.engine_gets("kernel_info_request");
    // The question's own idle may be dropped as well; it is asked again, but not before it was answered.
    b.now += 10_000_000;
    b.event(Event::Tick);
    assert!(
        b.to_engine.is_empty(),
        "it has not come to the first one yet"
    );
    b.engine_replies(&probe, json!({ "status": "ok" }));
    b.now += 10_000_000;
    b.event(Event::Tick);
    let probe = b.engine_gets("kernel_info_request");
    b.engine_replies(&probe, json!({ "status": "ok" }));
    b.status(&probe, "idle");
    let heard = b.heard(a);
    assert!(
        heard.contains(&"iopub a1 status idle".to_owned()),
        "{heard:?}"
    );
    assert_eq!(
        past_executions(&b.records)[&1].summary.state,
        ExecutionState::Ok
    );
}
