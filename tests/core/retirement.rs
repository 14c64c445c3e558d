//! When a session ends by itself, what it says before, and how it ends: the scenarios. `retirement_policy` has what
//! holds whatever happens.

use farside::journal::record::{Body, ClientId, ExecutionState, Note};
use farside::session::event::{Command, Event, NotifyOn, Usage};
use farside::wire::Channel;
use serde_json::json;

use crate::bench::{Bench, SECOND, past_executions};

pub const HOUR: u64 = 3600;

/// The notes of the session's end, in short.
fn end_notes(b: &Bench) -> Vec<String> {
    let note = |note: &Note| match note {
        Note::Ending { reason, retire } => Some(format!("ending {retire} {reason}")),
        Note::EndStep { step, outcome } => Some(format!("{step} {outcome}").trim().to_owned()),
        Note::SessionEnded { reason } => Some(format!("ended {reason}")),
        _ => None,
    };
    b.records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Note(found) => note(found),
            _ => None,
        })
        .collect()
}

/// The notices in the journal: kind, seconds before, whether said.
fn notices(b: &Bench) -> Vec<(String, u64, bool)> {
    b.records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Note(Note::Notice {
                kind, before, said, ..
            }) => Some((kind.clone(), *before, *said)),
            _ => None,
        })
        .collect()
}

fn is_ending(b: &Bench) -> bool {
    b.core.state().lifetime.ending.is_some()
}

/// A request as frontends make them for themselves.
pub fn silently(b: &mut Bench, client: ClientId, code: &str) {
    let request = b.request(
        client,
        "execute_request",
        json!({ "code": code, "silent": false, "store_history": false }),
    );
    b.send(client, Channel::Shell, &request);
}

#[test]
fn an_idle_session_ends_after_its_timeout_and_a_detached_one_sooner() {
    let (mut b, a) = Bench::ready();
    b.wait(4 * HOUR - 10);
    assert!(!is_ending(&b));
    b.wait(10);
    assert_eq!(b.wants(), ["stop"]);
    b.engine_dies();
    assert_eq!(b.wants(), ["end"]);
    let reason = "idle: nothing was run for 4h";
    assert_eq!(
        end_notes(&b),
        [
            &format!("ending true {reason}"),
            "shutdown_request",
            &format!("ended {reason}")
        ]
    );

    let (mut b, other) = Bench::ready();
    b.detach(other);
    // Commands come and go; none of them is a frontend.
    b.attach_as("exec");
    b.wait(HOUR - 10);
    assert!(!is_ending(&b));
    b.wait(10);
    assert_eq!(
        b.core.state().lifetime.ending.as_ref().unwrap().reason,
        "idle: nobody was attached, and nothing was run for 1h"
    );
    let _ = a;
}

#[test]
fn what_frontends_do_by_themselves_is_no_person() {
    let (mut b, a) = Bench::ready();
    for _ in 0..39 {
        b.wait(360);
        b.ask(a, Channel::Shell, "kernel_info_request");
        b.ask(a, Channel::Control, "kernel_info_request");
        b.ask(a, Channel::Shell, "comm_info_request");
        b.ask(a, Channel::Shell, "history_request");
        b.ask(a, Channel::Shell, "complete_request");
        silently(&mut b, a, "dir()");
        while let Some((_, request)) = b.to_engine.pop_front() {
            if request.header().unwrap().msg_type == "execute_request" {
                b.status(&request, "busy");
                b.engine_ends_ok(&request);
            }
        }
    }
    assert!(!is_ending(&b));
    b.wait(360);
    assert!(is_ending(&b), "4 hours without a person");
}

#[test]
fn a_persons_execution_restarts_the_clock_and_a_silent_cell_is_never_idle() {
    let (mut b, a) = Bench::ready_with(&[("max_lifetime", "none")]);
    b.wait(3 * HOUR);
    b.execute(a, "sleep(10**6)");
    let run = b.engine_begins();
    b.detach(a);
    b.wait(40 * HOUR);
    assert!(!is_ending(&b), "it works");
    b.engine_ends_ok(&run);
    b.wait(HOUR - 2);
    assert!(!is_ending(&b));
    b.wait(2);
    assert!(is_ending(&b));
}

#[test]
fn a_session_that_waits_for_input_detached_has_a_longer_limit() {
    let (mut b, a) = Bench::ready_with(&[("max_lifetime", "none")]);
    b.execute(a, "input()");
    let run = b.engine_begins();
    b.engine_asks(&run, "?");
    b.wait(30 * HOUR);
    assert!(!is_ending(&b), "somebody is there to answer");
    b.detach(a);
    b.wait(12 * HOUR - 2);
    assert!(!is_ending(&b));
    b.wait(2);
    let reason = &b.core.state().lifetime.ending.as_ref().unwrap().reason;
    assert!(
        reason.starts_with("idle: nobody was attached to answer"),
        "{reason}"
    );
}

#[test]
fn at_the_end_of_its_lifetime_what_runs_is_interrupted_and_may_finish() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    let run = b.engine_begins();
    b.skip(a);
    b.wait(24 * HOUR);
    assert_eq!(b.wants(), ["interrupt"]);
    let heard = b.heard(a);
    assert_eq!(heard.len(), 4, "{heard:#?}");
    for (line, expected) in heard.iter().zip([
        "this session ends in 30m",
        "this session ends in 10m",
        "this session ends in 60s",
        "this session ends now (lifetime: 24h are over)",
    ]) {
        let expected = expected.replace("60s", "1m");
        assert!(line.starts_with("iopub a1 stream [farside]"), "{line}");
        assert!(line.contains(&expected), "{line}");
    }
    // Its finally: block prints.
    b.wait(20);
    b.prints(&run, "saved\n");
    b.engine_replies(
        &run,
        json!({ "status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": [] }),
    );
    assert_eq!(b.wants(), Vec::<String>::new(), "its idle is to come");
    b.status(&run, "idle");
    assert_eq!(b.wants(), ["stop"]);
    let past = past_executions(&b.records);
    assert_eq!(past[&1].summary.state, ExecutionState::Interrupted);
    let reason = b.records.iter().find_map(|record| match &record.body {
        Body::Note(Note::Execution {
            state: ExecutionState::Interrupted,
            reason,
            ..
        }) => reason.clone(),
        _ => None,
    });
    assert!(reason.unwrap().contains("lifetime: 24h are over"));
    b.engine_dies();
    assert_eq!(b.wants(), ["end"]);
    assert_eq!(
        end_notes(&b),
        [
            "ending true lifetime: 24h are over",
            "interrupt",
            "shutdown_request",
            "ended lifetime: 24h are over"
        ]
    );
}

#[test]
fn what_does_not_finish_in_its_grace_is_ended_as_interrupted() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "while True: pass");
    b.execute(a, "2");
    b.engine_begins();
    b.wait(24 * HOUR);
    b.wait(29);
    assert_eq!(b.wants(), ["interrupt"]);
    b.execute(a, "3");
    assert!(
        b.heard(a)
            .iter()
            .any(|line| line.contains("execute_reply SessionEnding"))
    );
    b.wait(2);
    assert_eq!(b.wants(), ["stop"]);
    b.event(Event::EngineSignalled { signal: "SIGTERM" });
    b.engine_dies();
    let past = past_executions(&b.records);
    assert_eq!(past[&1].summary.state, ExecutionState::Interrupted);
    assert_eq!(past[&2].summary.state, ExecutionState::Aborted);
    assert_eq!(past.len(), 2, "the third was refused");
    assert_eq!(
        end_notes(&b),
        [
            "ending true lifetime: 24h are over",
            "interrupt",
            "interrupt not finished within 30s",
            "shutdown_request",
            "SIGTERM",
            "ended lifetime: 24h are over"
        ]
    );
}

#[test]
fn hooks_run_in_the_engine_and_in_a_shell_before_it_ends() {
    let settings = [
        ("before_retire_code", "save()"),
        ("before_retire", "sync"),
        ("notify", "tell"),
    ];
    let (mut b, _) = Bench::ready_with(&settings);
    b.wait(4 * HOUR);
    let run = b.engine_gets("execute_request");
    assert_eq!(crate::bench::content(&run)["code"], "save()");
    b.status(&run, "busy");
    b.prints(&run, "saved\n");
    b.wants();
    b.engine_ends_ok(&run);
    assert_eq!(b.wants(), ["hook sync"]);
    b.event(Event::HookEnded {
        outcome: "exit code 0".into(),
    });
    assert_eq!(b.wants(), ["stop"]);
    b.engine_dies();
    assert_eq!(b.wants(), ["notify ended", "end"]);
    let reason = "idle: nothing was run for 4h";
    assert_eq!(
        end_notes(&b),
        [
            &format!("ending true {reason}"),
            "before_retire_code",
            "before_retire",
            "before_retire exit code 0",
            "shutdown_request",
            &format!("ended {reason}"),
        ]
    );
    assert_eq!(past_executions(&b.records)[&1].summary.code, "save()");
}

#[test]
fn code_that_does_not_end_is_cut_and_an_engine_that_dies_meanwhile_is_no_obstacle() {
    let settings = [("before_retire_code", "hang()"), ("before_retire", "sync")];
    let (mut b, _) = Bench::ready_with(&settings);
    b.wait(4 * HOUR);
    b.engine_begins();
    b.wait(61);
    assert_eq!(b.wants(), ["interrupt", "hook sync"]);
    b.engine_dies();
    b.event(Event::HookEnded {
        outcome: "exit code 1".into(),
    });
    assert_eq!(b.wants(), ["end"]);
}

#[test]
fn a_host_that_is_killed_keeps_every_deadline_and_goes_on_with_an_end() {
    let (mut b, a) = Bench::ready();
    b.wait(3 * HOUR);
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    b.wait(HOUR - 60);
    assert!(!is_ending(&b), "three hours and a bit are not four");
    b.wait(60);
    assert!(is_ending(&b));
    assert_eq!(b.wants(), ["stop"]);
    let _ = a;

    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    b.engine_begins();
    b.wait(24 * HOUR);
    assert_eq!(b.wants(), ["interrupt"]);
    b.host_dies();
    b.adopted_engine_connects();
    b.wait(31);
    assert_eq!(
        b.wants(),
        ["stop"],
        "it was interrupted once, and had its time"
    );
    b.engine_dies();
    assert_eq!(b.wants(), ["end"]);
}

#[test]
fn a_stop_is_not_forgotten_with_its_host() {
    let (mut b, _) = Bench::ready();
    b.command(Command::Stop {
        now: false,
        reason: "stopped: farside stop".into(),
    });
    assert_eq!(b.wants(), ["stop"]);
    b.host_dies();
    assert_eq!(b.wants(), ["stop"]);
    b.engine_dies();
    assert_eq!(b.wants(), ["end"]);
    assert_eq!(end_notes(&b).last().unwrap(), "ended stopped: farside stop");
}

/// What was printed comes another way than the reply, and an engine that is told to end drops what it has not sent.
#[test]
fn a_stop_waits_for_the_outputs_of_what_is_done() {
    let stop = |now| Command::Stop {
        now,
        reason: "stopped: farside stop".into(),
    };
    for patient in [true, false] {
        let (mut b, a) = Bench::ready();
        b.execute(a, "1");
        let run = b.engine_begins();
        b.engine_replies(&run, json!({ "status": "ok", "execution_count": 1 }));
        b.command(stop(false));
        assert_eq!(b.wants(), [""; 0]);
        if patient {
            b.prints(&run, "last words");
            b.status(&run, "idle");
        } else {
            b.command(stop(true));
        }
        assert_eq!(b.wants().len(), 1);
    }
    // Not for ever.
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    let run = b.engine_begins();
    b.engine_replies(&run, json!({ "status": "ok", "execution_count": 1 }));
    b.command(stop(false));
    b.wait(11);
    assert_eq!(b.wants(), ["stop"]);
    // What still runs is not waited for.
    let (mut b, a) = Bench::ready();
    b.execute(a, "1");
    b.engine_begins();
    b.command(stop(false));
    assert_eq!(b.wants(), ["stop"]);
}

#[test]
fn the_wall_clock_may_be_set_and_nothing_ends_sooner_or_later() {
    for set in [-20 * 3600 * 1_000_000, 400 * 24 * 3600 * 1_000_000_i64] {
        let (mut b, a) = Bench::ready_with(&[("idle_timeout", "none")]);
        b.wait(20 * HOUR);
        b.set_forward = set;
        b.execute(a, "1");
        let run = b.engine_begins();
        b.engine_ends_ok(&run);
        b.wait(2 * HOUR);
        b.host_dies();
        b.adopted_engine_connects();
        b.answer_probe();
        b.wait(2 * HOUR - 60);
        assert!(!is_ending(&b), "24 hours are not over yet");
        b.wait(61);
        assert!(is_ending(&b), "24 hours are over");
    }
    for set in [-20 * 3600 * 1_000_000, 20 * 3600 * 1_000_000_i64] {
        let (mut b, _) = Bench::ready();
        b.wait(HOUR);
        b.set_forward = set;
        b.wait(3 * HOUR - 60);
        assert!(!is_ending(&b));
        b.wait(61);
        assert!(is_ending(&b));
    }
}

#[test]
fn a_machine_that_slept_over_the_deadline_gives_a_last_notice_first() {
    let (mut b, a) = Bench::ready();
    b.execute(a, "train()");
    b.engine_begins();
    b.wait(20 * HOUR);
    b.skip(a);
    b.sleep(9 * HOUR);
    b.wait(0);
    assert!(!is_ending(&b));
    let heard = b.heard(a);
    assert_eq!(heard.len(), 1);
    assert!(heard[0].contains("this session ends in 1m"), "{heard:?}");
    b.wait(58);
    assert!(!is_ending(&b));
    b.wait(2);
    assert!(is_ending(&b));
    // A sleeping machine is not an idle one.
    let (mut b, _) = Bench::ready();
    b.wait(HOUR);
    b.sleep(9 * HOUR);
    b.wait(2 * HOUR);
    assert!(!is_ending(&b));
}

#[test]
fn notices_come_once_each_and_one_that_nobody_saw_comes_with_the_next_execution() {
    let (mut b, a) = Bench::ready_with(&[("idle_timeout", "none"), ("notify", "tell")]);
    b.wait(24 * HOUR - 25 * 60);
    assert_eq!(notices(&b), [("lifetime".to_owned(), 1800, false)]);
    assert_eq!(b.wants(), ["notify notice"]);
    b.execute(a, "1");
    let heard = b.heard(a);
    assert!(heard[0].contains("this session ends in 25m"), "{heard:?}");
    let run = b.engine_begins();
    b.wait(20 * 60);
    b.host_dies();
    b.adopted_engine_connects();
    b.wait(4 * 60 + 1);
    b.wants();
    assert_eq!(
        notices(&b),
        [
            ("lifetime".to_owned(), 1800, false),
            ("lifetime".to_owned(), 1800, true),
            ("lifetime".to_owned(), 600, true),
            ("lifetime".to_owned(), 60, true),
        ]
    );
    let _ = run;
}

/// A notice in the output of what a frontend runs by itself counted as said, though nobody sees that output.
#[test]
fn what_a_frontend_runs_by_itself_shows_no_notice() {
    let (mut b, a) = Bench::ready_with(&[("idle_timeout", "none")]);
    silently(&mut b, a, "watch()");
    let own = b.engine_begins();
    b.wait(24 * HOUR - 25 * 60);
    assert_eq!(notices(&b), [("lifetime".to_owned(), 1800, false)]);
    b.execute(a, "1");
    let heard = b.heard(a).join("\n");
    assert!(heard.contains("this session ends in 25m"), "{heard}");
    b.engine_ends_ok(&own);
    let run = b.engine_begins();
    b.wait(15 * 60);
    assert_eq!(
        notices(&b)[1..],
        [
            ("lifetime".to_owned(), 1800, true),
            ("lifetime".to_owned(), 600, true)
        ]
    );
    let _ = run;
}

#[test]
fn an_extension_moves_the_end_within_the_cap() {
    let (mut b, a) = Bench::ready_with(&[("max_lifetime_cap", "30h"), ("idle_timeout", "none")]);
    b.wait(23 * HOUR);
    let answer = b.command(Command::Extend { seconds: 7 * HOUR });
    assert_eq!(answer["ok"], false);
    let error = answer["error"].as_str().unwrap();
    assert!(
        error.contains("6h at most") && error.contains("max_lifetime_cap is 30h"),
        "{error}"
    );
    let answer = b.command(Command::Extend { seconds: 6 * HOUR });
    assert_eq!(answer["ok"], true);
    assert!(
        answer["text"].as_str().unwrap().contains("in 7h"),
        "{answer}"
    );
    b.wait(7 * HOUR - 60);
    assert!(!is_ending(&b));
    b.wait(61);
    assert!(is_ending(&b));
    let _ = a;

    // Nothing is left to ask for, but an idle session need not end.
    let (mut b, a) = Bench::ready_with(&[("max_lifetime_cap", "24h")]);
    let answer = b.command(Command::Extend { seconds: 60 });
    let error = answer["error"].as_str().unwrap();
    assert!(
        error.contains("max_lifetime_cap allows (24h)")
            && error.contains("%farside set idle_timeout 24h"),
        "{error}"
    );
    b.execute(a, "%farside set idle_timeout 24h");
    b.skip(a);
    b.execute(a, "train()");
    b.engine_begins();
    b.wait(24 * HOUR - 60);
    assert!(!is_ending(&b));
    b.wait(61);
    assert!(is_ending(&b));
    let heard = b.heard(a).join("\n");
    assert!(
        heard.contains("Save what you need.") && !heard.contains("%farside extend"),
        "{heard}"
    );

    // An idle session stays for what was asked.
    let (mut b, a) = Bench::ready();
    b.wait(3 * HOUR + 50 * 60);
    b.execute(a, "%farside extend 2h");
    let heard = b.heard(a);
    assert!(
        heard.iter().any(|line| line.contains("execute_reply ok")),
        "{heard:?}"
    );
    b.wait(4 * HOUR - 60);
    assert!(
        !is_ending(&b),
        "the command was a person's, and idle time began anew"
    );
    b.wait(61);
    assert!(is_ending(&b));
}

#[test]
fn settings_can_be_changed_for_a_session_and_bad_ones_are_refused_by_name() {
    let (mut b, a) = Bench::ready_with(&[("max_lifetime_cap", "48h")]);
    for (code, expected) in [
        (
            "%farside set idle_timeout soon",
            "`soon` is no value for idle_timeout; it takes a duration",
        ),
        ("%farside set bedtime 8h", "no setting is called `bedtime`"),
        (
            "%farside set log debug",
            "log cannot be changed in a session that runs",
        ),
        (
            "%farside set max_lifetime none",
            "max_lifetime can be 2d at most",
        ),
        (
            "%farside set max_lifetime 3d",
            "max_lifetime can be 2d at most",
        ),
        ("%farside set idle_timeout", "takes a setting and its value"),
    ] {
        b.skip(a);
        b.execute(a, code);
        let heard = b.heard(a).join("\n");
        assert!(
            heard.contains("execute_reply FarsideError")
                || heard.contains("execute_reply FarsideUsageError"),
            "{heard}"
        );
        let records = &b.records;
        let said = records.iter().rev().find_map(|record| match &record.body {
            Body::Iopub { message, .. } if message.header().unwrap().msg_type == "error" => Some(
                crate::bench::content(message)["evalue"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            ),
            _ => None,
        });
        assert!(
            said.as_ref().unwrap().contains(expected),
            "{code}: {said:?}"
        );
    }
    b.execute(a, "%farside set idle_timeout 8h");
    b.execute(a, "%farside set before_retire  rsync -a out/ host:'my dir'");
    assert_eq!(b.core.limits().before_retire, "rsync -a out/ host:'my dir'");
    b.execute(a, "%farside set before_retire ''");
    assert_eq!(b.core.limits().before_retire, "");
    b.host_dies();
    b.adopted_engine_connects();
    b.answer_probe();
    b.wait(8 * HOUR - 60);
    assert!(!is_ending(&b), "also under the next host");
    b.wait(61);
    assert!(is_ending(&b));
}

#[test]
fn a_budget_ends_it_and_counts_over_engines() {
    let (mut b, a) = Bench::ready_with(&[("cpu_budget", "1h"), ("idle_timeout", "none")]);
    let usage = |generation, minutes: u64| {
        Event::Usage(Usage {
            generation,
            cpu: minutes * 60 * SECOND,
            memory_bytes: 1000,
            gpu_memory_bytes: None,
        })
    };
    b.execute(a, "train()");
    b.engine_begins();
    b.event(usage(1, 40));
    b.engine_dies();
    b.execute(a, "train()");
    b.engine_starts(2);
    b.engine_begins();
    b.event(usage(2, 15));
    assert_eq!(
        notices(&b),
        [
            ("budget".to_owned(), 1800, true),
            ("budget".to_owned(), 600, true)
        ]
    );
    b.wants();
    b.event(usage(2, 20));
    assert_eq!(
        b.core.state().lifetime.ending.as_ref().unwrap().reason,
        "budget: 1h of CPU time are used up"
    );
    assert_eq!(b.wants(), ["interrupt"]);
}

/// An execution of seconds was told of as one of weeks, and one of hours not at all.
#[test]
fn how_long_something_runs_does_not_depend_on_the_wall_clock() {
    for (set_hours, seconds, told) in [(500, 5, 0), (-500, 700, 1), (500, 700, 1)] {
        let (mut b, a) = Bench::ready_with(&[("notify", "tell")]);
        b.execute(a, "run()");
        let run = b.engine_begins();
        b.set_forward = set_hours * 3600 * SECOND as i64;
        b.wait(seconds);
        b.prints(&run, "on\n");
        let state = b.core.state();
        let began = state.live[&1].started.unwrap();
        let ran = b.clocks().wall.saturating_sub(began) / SECOND;
        assert!((seconds..seconds + 5).contains(&ran), "{ran}");
        assert!(state.last_activity <= b.clocks().wall);
        b.engine_ends_ok(&run);
        assert_eq!(b.notifications.len(), told, "{set_hours} h");
    }
}

#[test]
fn people_are_told_of_what_they_wait_for() {
    let (mut b, a) = Bench::ready_with(&[("notify", "tell")]);
    let run = |b: &mut Bench, a, code: &str, seconds| {
        b.execute(a, code);
        let run = b.engine_begins();
        b.wait(seconds);
        b.engine_ends_ok(&run);
    };
    run(&mut b, a, "quick()", 5);
    assert_eq!(b.wants(), Vec::<String>::new());
    run(&mut b, a, "slow()", 700);
    assert_eq!(b.wants(), ["notify execution_finished"]);
    let told = b.notifications.last().unwrap();
    assert_eq!(
        (told.execution, told.code.as_deref()),
        (Some(2), Some("slow()"))
    );
    b.execute(a, "%farside notify");
    run(&mut b, a, "quick()", 1);
    assert_eq!(b.wants(), ["notify execution_finished"]);
    b.execute(a, "%farside notify off");
    run(&mut b, a, "slow()", 700);
    assert_eq!(b.wants(), Vec::<String>::new());
    // Nobody is there.
    b.execute(a, "input()");
    let asks = b.engine_begins();
    b.detach(a);
    b.engine_asks(&asks, "?");
    assert_eq!(b.wants(), ["notify waiting_input"]);
    b.event(Event::Health {
        generation: 1,
        responsive: false,
    });
    b.engine_dies();
    assert_eq!(
        b.wants(),
        [
            "notify unresponsive",
            "notify engine_died",
            "notify execution_failed"
        ]
    );
    assert_eq!(b.notifications[0].event, NotifyOn::ExecutionFinished);
}

#[test]
fn an_engine_that_does_not_answer_is_shown_and_left_alone() {
    let (mut b, a) = Bench::ready();
    let health = |generation, responsive| Event::Health {
        generation,
        responsive,
    };
    b.event(health(1, false));
    let since = b.core.state().lifetime.unresponsive_since;
    assert!(since.is_some());
    b.event(health(1, false));
    b.event(health(7, true));
    assert_eq!(b.core.state().lifetime.unresponsive_since, since);
    b.execute(a, "%farside status");
    assert!(
        b.heard(a)
            .iter()
            .any(|line| line.contains("heartbeat does not answer"))
    );
    b.event(health(1, true));
    assert_eq!(b.core.state().lifetime.unresponsive_since, None);
    assert_eq!(b.wants(), Vec::<String>::new());
}
