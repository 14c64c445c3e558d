//! The tests.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use farside::keeper::{FromKeeper, Process, STRIPPED_VARIABLES, ToKeeper, describe_end};
use farside::process::{self, PidFd};

use crate::roles::{FAIL, Order, Report, Surroundings, fds};
use crate::sandbox::{LIMIT, Sandbox, descendants, is_running, kill, reap, state, until};

type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[Test] = &[$((stringify!($name), $name)),*];
    };
}

tests! {
    the_end_of_a_process_is_told_with_code_signal_and_usage,
    what_cannot_be_started_is_told_with_its_path,
    an_engine_starts_in_clean_surroundings,
    keeper_and_host_start_in_clean_surroundings,
    a_killed_host_is_replaced_within_a_second_and_its_successor_finds_the_engine,
    an_end_that_no_host_saw_is_told_until_it_is_acknowledged,
    a_request_of_a_host_that_died_right_after_it_is_carried_out,
    a_killed_keeper_is_replaced_and_its_successor_replaces_hosts,
    after_keeper_and_host_were_killed_a_new_pair_adopts_the_engine,
    many_starts_make_one_keeper,
    after_bye_nothing_is_left,
    a_bye_outlives_its_keeper,
    a_bye_behind_many_requests_is_heard_before_the_hosts_end,
    an_engines_orphans_are_reaped,
    a_host_that_always_fails_is_given_up_where_there_is_no_engine,
    a_keeper_ends_where_another_host_holds_the_session,
    signals_to_the_keeper_end_nothing_and_sigterm_reaches_the_host,
    a_message_over_the_limit_is_refused_and_one_below_it_passes,
    a_replaced_binary_does_not_matter,
    by_hand_the_hidden_commands_say_what_to_do,
}

fn the_end_of_a_process_is_told_with_code_signal_and_usage() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();

    let mut exits = sandbox.engine("exits", &[]);
    exits.argv = vec!["/bin/sh".into(), "-c".into(), "exit 7".into()];
    let exits = host.spawn(exits);
    let end = host.ended(&exits);
    assert_eq!(describe_end(end.end.as_ref()), "exited with code 7");
    assert!(end.usage.unwrap().max_resident_bytes > 100_000, "{end:?}");

    for (signal, group) in [(libc::SIGTERM, false), (libc::SIGKILL, true)] {
        let waits = host.spawn(sandbox.engine("waits", &["wait"]));
        assert_eq!(process::start_time(waits.pid), Some(waits.start_time));
        host.signal(&waits, signal, group);
        let end = host.ended(&waits).end.unwrap();
        assert_eq!(end.signal, Some(signal));
        assert!(!end.out_of_memory);
    }

    // Not one of the keeper's: this very test.
    let stranger = Process {
        id: "stranger".into(),
        pid: std::process::id(),
        start_time: process::start_time(std::process::id()).unwrap(),
    };
    host.signal(&stranger, libc::SIGKILL, false);
    assert!(matches!(host.recv(), FromKeeper::Refused { .. }));
}

fn what_cannot_be_started_is_told_with_its_path() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let mut error = |change: &dyn Fn(&mut farside::keeper::Spawn)| {
        let mut request = sandbox.engine("engine-1", &["wait"]);
        change(&mut request);
        host.spawn_error(request)
    };
    assert_eq!(
        error(&|request| request.argv[0] = "/no/such/python".into()),
        "No such file or directory: /no/such/python"
    );
    let plain = sandbox.path("plain");
    std::fs::write(&plain, "").unwrap();
    assert_eq!(
        error(&|request| request.argv[0] = plain.clone().into()),
        format!("Permission denied: {}", plain.display())
    );
    assert_eq!(
        error(&|request| request.cwd = "/no/such/dir".into()),
        "no such directory: /no/such/dir"
    );
    assert_eq!(
        error(&|request| request.log = "/no/such/log".into()),
        "No such file or directory: /no/such/log"
    );
    assert!(error(&|request| request.argv.clear()).contains("kernelspec"));
    assert!(error(&|request| request.argv[1] = "a\0b".into()).contains("NUL"));
    assert_eq!(descendants().len(), 2, "keeper and host");
}

fn an_engine_starts_in_clean_surroundings() {
    let sandbox = Sandbox::new();
    spoil_own_surroundings();
    sandbox.start();
    let mut host = sandbox.host();
    let report = sandbox.path("report");
    let mut request = sandbox.engine("engine-1", &["report", report.to_str().unwrap()]);
    request.env.push(("JPY_PARENT_PID".into(), "1".into()));
    request.env.push(("A".into(), "b c".into()));
    // No variable's name; std's Command would panic.
    request.env.push(("".into(), "x".into()));
    request.env.push(("=C:".into(), "x".into()));
    request.nice = Some(1);
    let engine = host.spawn(request);
    let end = host.ended(&engine);
    assert_eq!(describe_end(end.end.as_ref()), "exited with code 0");

    let seen: Surroundings = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(
        (seen.session, seen.process_group),
        (engine.pid as i32, engine.pid as i32)
    );
    assert_eq!(seen.cwd, sandbox.path("cwd").to_str().unwrap());
    assert_eq!(
        seen.env.keys().collect::<Vec<_>>(),
        ["A", "FARSIDE_TEST_PID"]
    );
    let log = sandbox.path("session/engine.log");
    let log_name = log.to_str().unwrap();
    assert_eq!(
        seen.fds.keys().collect::<Vec<_>>(),
        [&0, &1, &2],
        "{seen:?}"
    );
    assert_eq!(
        [&*seen.fds[&0], &*seen.fds[&1], &*seen.fds[&2]],
        ["/dev/null", log_name, log_name]
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "reported\n");
    assert_eq!(
        std::fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(seen.signals["SigBlk"], "0000000000000000");
    let ignored = u64::from_str_radix(&seen.signals["SigIgn"], 16).unwrap();
    // SIGPIPE: Rust's own start-up does that in this program. 32 and 33 are libc's own, which it sets when it
    // needs them and does not let anybody else touch.
    let libcs_own = 0b11 << 31;
    assert_eq!(
        ignored & !libcs_own,
        1 << (libc::SIGPIPE - 1),
        "{ignored:x}"
    );
    assert!(seen.nice >= 1, "{}", seen.nice);
}

fn keeper_and_host_start_in_clean_surroundings() {
    let sandbox = Sandbox::new();
    spoil_own_surroundings();
    sandbox.start();
    let host = sandbox.host();
    let keeper = host.hello.keeper_pid;
    assert_eq!(
        state(keeper).unwrap().1,
        std::process::id(),
        "reparented to us, the subreaper"
    );
    assert_eq!(state(host.pid).unwrap().1, keeper);
    for pid in [keeper, host.pid] {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let env = String::from_utf8_lossy(&env);
        for name in STRIPPED_VARIABLES {
            assert!(!env.contains(name), "{name}");
        }
        assert!(env.contains("PATH="), "the rest is there");
        // SAFETY: integers only.
        let session = unsafe { libc::getsid(pid as i32) };
        // SAFETY: integers only.
        assert_ne!(session, unsafe { libc::getsid(0) });
        assert_ne!(session, keeper as i32, "a leader could get a terminal");
        let fds = fds(&pid.to_string());
        assert_eq!(fds[&0], "/dev/null");
        assert!(fds[&2].ends_with("/session/host.log"), "{fds:?}");
        assert!(
            !fds.values().any(|target| target.ends_with("/inherited")),
            "{fds:?}"
        );
    }
    let log = std::fs::metadata(sandbox.path("session/host.log")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
}

/// What no descendant may see.
fn spoil_own_surroundings() {
    for name in STRIPPED_VARIABLES {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(name, "1") };
    }
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("inherited")).unwrap();
    // Not close-on-exec, as a Jupyter Server's could be. Open until this process ends.
    // SAFETY: a new number for an open descriptor; SIG_IGN runs no code.
    unsafe {
        assert!(libc::dup(file.as_raw_fd()) > 2);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
    }
}

fn a_killed_host_is_replaced_within_a_second_and_its_successor_finds_the_engine() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let engine = host.spawn(sandbox.engine("engine-1", &["wait"]));
    let keeper = host.hello.keeper_pid;
    // Three in a row, as in a bad moment; the fourth would wait longer.
    for _ in 0..3 {
        let killed = Instant::now();
        kill(host.pid);
        host = sandbox.host();
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(host.hello.keeper_pid, keeper);
        assert_eq!(host.hello.alive, std::slice::from_ref(&engine));
        assert_eq!(host.hello.ended, []);
    }
    assert!(is_running(engine.pid));
    host.signal(&engine, libc::SIGKILL, true);
    assert_eq!(host.ended(&engine).end.unwrap().signal, Some(libc::SIGKILL));
}

fn an_end_that_no_host_saw_is_told_until_it_is_acknowledged() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let engine = host.spawn(sandbox.engine("engine-1", &["wait"]));
    // Held still, the keeper cannot have a new host up before the engine's end.
    let keeper = host.hello.keeper_pid;
    process::signal(keeper, libc::SIGSTOP).unwrap();
    kill(host.pid);
    kill(engine.pid);
    until("both end", || {
        !is_running(host.pid) && !is_running(engine.pid)
    });
    process::signal(keeper, libc::SIGCONT).unwrap();

    let next = sandbox.host();
    assert_eq!(next.hello.alive, []);
    let [end] = next.hello.ended.as_slice() else {
        panic!("{:?}", next.hello)
    };
    assert_eq!(
        (&end.process, end.end.as_ref().unwrap().signal),
        (&engine, Some(libc::SIGKILL))
    );
    kill(next.pid);
    let mut third = sandbox.host();
    assert_eq!(third.hello.ended, next.hello.ended);
    third.ack(&engine);
    third.settle();
    kill(third.pid);
    assert_eq!(sandbox.host().hello.ended, []);
}

fn a_request_of_a_host_that_died_right_after_it_is_carried_out() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let keeper = host.hello.keeper_pid;
    process::signal(keeper, libc::SIGSTOP).unwrap();
    host.send(ToKeeper::Spawn(sandbox.engine("engine-1", &["wait"])));
    host.order(&Order::Exit(1));
    until("the host ends", || !is_running(host.pid));
    process::signal(keeper, libc::SIGCONT).unwrap();
    let next = sandbox.host();
    let [engine] = next.hello.alive.as_slice() else {
        panic!("{:?}", next.hello)
    };
    assert_eq!(engine.id, "engine-1");
}

fn a_killed_keeper_is_replaced_and_its_successor_replaces_hosts() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let first = host.spawn(sandbox.engine("engine-1", &["wait"]));
    let killed = Instant::now();
    kill(host.hello.keeper_pid);
    let hello = host.next_hello();
    assert!(
        killed.elapsed() < Duration::from_secs(1),
        "{:?}",
        killed.elapsed()
    );
    assert_ne!(hello.keeper_pid, host.hello.keeper_pid);
    assert!(is_running(first.pid));

    // It serves as the first one did.
    let second = host.spawn(sandbox.engine("engine-2", &["wait"]));
    assert_eq!(state(second.pid).unwrap().1, hello.keeper_pid);
    host.signal(&second, libc::SIGTERM, true);
    assert_eq!(host.ended(&second).end.unwrap().signal, Some(libc::SIGTERM));
    host.ack(&second);
    host.settle();

    let killed = Instant::now();
    kill(host.pid);
    let mut host = sandbox.host();
    assert!(
        killed.elapsed() < Duration::from_secs(1),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(host.hello.keeper_pid, hello.keeper_pid);
    assert_eq!(
        (&*host.hello.alive, &*host.hello.ended),
        (&[first.clone()][..], &[][..])
    );

    // Once more, with a host that is the keeper's child and an engine that never was.
    kill(host.hello.keeper_pid);
    let hello = host.next_hello();
    host.settle();
    // The engine came to us when its keeper was killed. Newer kernels tell its end to others once we have
    // reaped it, which is to be so before the keeper looks.
    let engine = PidFd::open(first.pid).unwrap();
    process::signal(hello.keeper_pid, libc::SIGSTOP).unwrap();
    kill(first.pid);
    assert!(engine.wait_blocking(LIMIT));
    reap();
    let kernel_tells = engine.exit_status().is_some();
    process::signal(hello.keeper_pid, libc::SIGCONT).unwrap();
    let end = host.ended(&first).end;
    assert_eq!(
        end.as_ref().and_then(|end| end.signal),
        kernel_tells.then_some(libc::SIGKILL)
    );
    assert!(is_running(hello.keeper_pid));
}

fn after_keeper_and_host_were_killed_a_new_pair_adopts_the_engine() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let engine = host.spawn(sandbox.engine("engine-1", &["wait"]));
    // Stopped first, or it would be too quick with a new keeper.
    process::signal(host.pid, libc::SIGSTOP).unwrap();
    kill(host.hello.keeper_pid);
    kill(host.pid);
    until("both end", || {
        !is_running(host.pid) && !is_running(host.hello.keeper_pid)
    });
    assert!(is_running(engine.pid));

    sandbox.start();
    let mut host = sandbox.host();
    assert_eq!(host.hello.alive, []);
    let wrong = Process {
        start_time: engine.start_time + 1,
        ..engine.clone()
    };
    host.send(ToKeeper::Watch(wrong.clone()));
    assert_eq!(
        host.ended(&wrong).end,
        None,
        "that one is not there any more"
    );
    host.send(ToKeeper::Watch(engine.clone()));
    host.signal(&engine, libc::SIGTERM, true);
    until("the engine ends", || !is_running(engine.pid));
    reap();
    let end = host.ended(&engine).end;
    assert!(end.is_none_or(|end| end.signal == Some(libc::SIGTERM)));
}

fn many_starts_make_one_keeper() {
    let sandbox = Sandbox::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| sandbox.start());
        }
    });
    let host = sandbox.host();
    sandbox.start();
    until("the other keepers end", || {
        reap();
        let mut left = descendants();
        left.sort_unstable();
        let mut expected = [host.hello.keeper_pid, host.pid];
        expected.sort_unstable();
        left == expected
    });
    assert!(
        sandbox.host_within(Duration::ZERO).is_none(),
        "a second host"
    );
}

fn after_bye_nothing_is_left() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    host.spawn(sandbox.engine("engine-1", &["wait"]));
    let pid_file = sandbox.path("orphan");
    host.spawn(sandbox.engine("engine-2", &["with-orphan", pid_file.to_str().unwrap()]));
    until("the orphan is there", || pid_file.exists());
    host.send(ToKeeper::Bye);
    host.order(&Order::Exit(0));
    expect_the_end(&sandbox, host.hello.keeper_pid);
}

/// The keeper ends with 0, and nothing else is left either.
fn expect_the_end(sandbox: &Sandbox, keeper: u32) {
    let status = std::cell::Cell::new(None);
    until("all processes end", || {
        for (pid, code) in reap() {
            if pid == keeper {
                status.set(Some(code));
            }
        }
        descendants().is_empty()
    });
    assert_eq!(status.get(), Some(0), "{}", sandbox.log());
}

fn a_bye_outlives_its_keeper() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    host.spawn(sandbox.engine("engine-1", &["wait"]));
    host.send(ToKeeper::Bye);
    kill(host.hello.keeper_pid);
    let keeper = host.next_hello().keeper_pid;
    host.order(&Order::Exit(0));
    expect_the_end(&sandbox, keeper);
}

fn a_bye_behind_many_requests_is_heard_before_the_hosts_end() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let keeper = host.hello.keeper_pid;
    process::signal(keeper, libc::SIGSTOP).unwrap();
    // More than the socket takes, and each one is answered.
    for _ in 0..5_000 {
        host.send(ToKeeper::Unknown);
    }
    host.send(ToKeeper::Bye);
    host.order(&Order::Exit(0));
    process::signal(keeper, libc::SIGCONT).unwrap();
    host.end();
    expect_the_end(&sandbox, keeper);
}

fn an_engines_orphans_are_reaped() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let pid_file = sandbox.path("orphan");
    let engine =
        host.spawn(sandbox.engine("engine-1", &["with-orphan", pid_file.to_str().unwrap()]));
    until("the orphan is there", || pid_file.exists());
    let orphan: u32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    until("it comes to the keeper", || {
        state(orphan).unwrap().1 == host.hello.keeper_pid
    });
    kill(orphan);
    until("it is reaped", || state(orphan).is_none());
    // And nobody took it for the engine.
    host.signal(&engine, libc::SIGKILL, false);
    assert_eq!(host.ended(&engine).end.unwrap().signal, Some(libc::SIGKILL));
}

fn a_host_that_always_fails_is_given_up_where_there_is_no_engine() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("session").join(FAIL), "").unwrap();
    sandbox.start();
    until("the keeper gives up", || {
        reap();
        descendants().is_empty()
    });
    let log = sandbox.log();
    assert!(log.contains("giving up"), "{log}");
}

fn a_keeper_ends_where_another_host_holds_the_session() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    host.order(&Order::Exit(farside::keeper::EXIT_OTHER_HOST));
    expect_the_end(&sandbox, host.hello.keeper_pid);
    assert!(
        sandbox.host_within(Duration::ZERO).is_none(),
        "a second host"
    );
}

fn signals_to_the_keeper_end_nothing_and_sigterm_reaches_the_host() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    let keeper = host.hello.keeper_pid;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        process::signal(keeper, signal).unwrap();
    }
    assert_eq!(host.recv(), FromKeeper::Terminate);
    // And it still works.
    let engine = host.spawn(sandbox.engine("engine-1", &["wait"]));
    assert_eq!(state(engine.pid).unwrap().1, keeper);

    // One that no host could be told of goes to the next.
    process::signal(keeper, libc::SIGSTOP).unwrap();
    kill(host.pid);
    until("the host ends", || !is_running(host.pid));
    process::signal(keeper, libc::SIGTERM).unwrap();
    process::signal(keeper, libc::SIGCONT).unwrap();
    assert_eq!(sandbox.host().recv(), FromKeeper::Terminate);
}

fn a_message_over_the_limit_is_refused_and_one_below_it_passes() {
    let sandbox = Sandbox::new();
    sandbox.start();
    let mut host = sandbox.host();
    // Linux takes at most 128 KiB in one variable.
    let mut request = sandbox.engine("engine-1", &["wait"]);
    request
        .env
        .push(("A".into(), "x".repeat(120 * 1024).into()));
    request
        .env
        .push(("B".into(), "x".repeat(120 * 1024).into()));
    let engine = host.spawn(request.clone());
    request
        .env
        .push(("C".into(), "x".repeat(120 * 1024).into()));
    host.send(ToKeeper::Spawn(request));
    match host.report() {
        Report::NotSent(error) => assert!(error.contains("environment"), "{error}"),
        other => panic!("{other:?}"),
    }
    host.signal(&engine, libc::SIGKILL, true);
    host.ended(&engine);
}

fn a_replaced_binary_does_not_matter() {
    let sandbox = Sandbox::new();
    let copy = sandbox.path("farside");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    sandbox.start_exe(&copy);
    let mut host = sandbox.host();
    std::fs::remove_file(&copy).unwrap();
    kill(host.hello.keeper_pid);
    host.next_hello();
    kill(host.pid);
    let host = sandbox.host();
    assert!(is_running(host.pid));
}

fn by_hand_the_hidden_commands_say_what_to_do() {
    let exe = std::env::current_exe().unwrap();
    let dirs = ["--session-dir", "/nowhere", "--runtime-dir", "/nowhere"];
    let calls: [(&str, &[&str]); 3] = [("host", &[]), ("host-worker", &[]), ("host-worker", &dirs)];
    for (command, args) in calls {
        let started = Instant::now();
        let output = Command::new(&exe).arg(command).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command} {args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("farside new"), "{text}");
        assert!(started.elapsed() < LIMIT);
    }
}
