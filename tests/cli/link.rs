//! The commands that talk to a host, with a real engine behind it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::real::{Real, parent, pid, real, signal};

/// Prints a line, waits for a file, prints another.
fn gated(real: &Real, end: &str) -> (String, std::path::PathBuf) {
    let gate = real.path("gate");
    let code = format!(
        "import os, time\nprint('before', flush=True)\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\n{end}"
    );
    (code, gate)
}

#[test]
fn new_exec_and_stop() {
    let Some(real) = real() else { return };
    let made = real.json(&["new", "--name", "train", "--json"]);
    assert_eq!(
        (&made["name"], &made["state"], &made["attached"]),
        (&json!("train"), &json!("idle"), &json!(0))
    );
    let ran = real.run(&[
        "exec",
        "train",
        "import sys; print('o'); print('e', file=sys.stderr); 6 * 7",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "o\n42\n", "e\n")
    );
    let ran = real.run_with(&["exec", "train", "-"], "x = 5\nprint(x)\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "5\n"));
    let ran = real.run(&["exec", "train", "print('so far', end=''); 1/0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "so far"));
    assert!(
        ran.stderr.contains("ZeroDivisionError") && !ran.stderr.contains('\u{1b}'),
        "{}",
        ran.stderr
    );
    let ran = real.run(&["exec", "train", "%farside sing"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("%farside help"), "{}", ran.stderr);

    let taken = real.run(&["new", "--name", "train"]);
    assert_eq!(taken.code, 2);
    assert!(taken.stderr.contains("already"), "{}", taken.stderr);

    assert_eq!(real.done(&["stop", "train"]), "");
    assert_eq!(real.json(&["ls", "--json"]), json!([]));
    real.wait_for_silence();
    let again = real.run(&["stop", "train"]);
    assert_eq!(again.code, 0);
    assert!(
        again.stderr.contains("has ended already: stopped"),
        "{}",
        again.stderr
    );
    // Attach reads what is over from the files.
    let ran = real.run(&["attach", "train"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "so far"));
    assert!(ran.stderr.contains("ZeroDivisionError"), "{}", ran.stderr);
    real.wait_for_silence();
}

#[test]
fn a_detached_execution_is_attached_to_and_followed() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let (code, gate) = gated(&real, "print('after'); raise KeyError('k')");
    assert_eq!(real.done(&["exec", &id, "1"]), "1\n");
    assert_eq!(real.done(&["exec", &id, "--detach", &code]), "2\n");
    let mut followers = [real.spawn(&["attach", &id]), real.spawn(&["attach", &id])];
    for follower in &mut followers {
        assert_eq!(follower.line(), "before");
    }
    let [leaver, follower] = followers;
    leaver.signal(libc::SIGINT);
    let left = leaver.end();
    assert_eq!((left.code, left.stdout.as_str()), (0, ""));
    assert!(left.stderr.contains("the code runs on"), "{}", left.stderr);
    std::fs::write(gate, "").unwrap();
    let ran = follower.end();
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (1, "after\n"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("KeyError"), "{}", ran.stderr);
    // A finished one, of a session that lives.
    let ran = real.run(&["attach", &id]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "before\nafter\n"));
}

#[test]
fn exec_leaves_with_ctrl_c_and_interrupt_stops_the_code() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let (code, _) = gated(&real, "");
    let mut running = real.spawn(&["exec", &id, &code]);
    assert_eq!(running.line(), "before");
    running.signal(libc::SIGINT);
    let left = running.end();
    assert_eq!(left.code, 0);
    assert!(left.stderr.contains("the code runs on"), "{}", left.stderr);
    // What `ls` shows is some milliseconds old.
    real.wait_for(&id, |session| {
        session["attached"] == 0 && session["state"] == "busy"
    });
    let attached = real.spawn(&["attach", &id]);
    real.wait_for(&id, |session| session["attached"] == 1);
    assert_eq!(real.done(&["interrupt", &id]), "");
    let ran = attached.end();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("KeyboardInterrupt"), "{}", ran.stderr);
    assert_eq!(
        real.json(&["history", &id, "--json"])[0]["state"],
        "interrupted"
    );
}

#[test]
fn an_attacher_answers_input() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let code = "import getpass\na = input('a? ')\nb = getpass.getpass('b? ')\nprint('got', a, b)";
    real.done(&["exec", &id, "--detach", code]);
    real.wait_for(&id, |session| session["state"] == "waiting_input");
    let ran = real.run_with(&["attach", &id], "17\nsecret\nnot asked for\n");
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "got 17 secret\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr, "a? b? ");
    // Without a terminal nobody is asked: the code hears so.
    let ran = real.run(&["exec", &id, "input()"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("StdinNotImplementedError"),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_exec_hears_of_the_sessions_end() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let (code, _) = gated(&real, "");
    let mut running = real.spawn(&["exec", &id, &code]);
    assert_eq!(running.line(), "before");
    real.done(&["stop", &id, "--now"]);
    let ran = running.end();
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("stopped"), "{}", ran.stderr);
    real.wait_for_silence();
}

#[test]
fn an_engine_that_does_not_start_leaves_nothing_behind() {
    let Some(real) = real() else { return };
    let spec = real.path("home/.local/share/jupyter/kernels/broken/kernel.json");
    std::fs::create_dir_all(spec.parent().unwrap()).unwrap();
    let argv = [
        "/bin/sh",
        "-c",
        "echo no module named whatever >&2; exit 3",
        "{connection_file}",
    ];
    let text = json!({ "argv": argv, "display_name": "Broken", "language": "none" });
    std::fs::write(spec, text.to_string()).unwrap();
    let ran = real.run(&["new", "--engine", "broken", "--name", "b"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    for word in ["broken did not start", "code 3", "no module named whatever"] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
    real.wait_for_silence();
    let all = real.json(&["ls", "--all", "--json"]);
    assert_eq!(
        (&all[0]["state"], &all[0]["end_reason"]),
        (&json!("ended"), &json!("stopped: its engine did not start"))
    );
}

#[test]
fn a_restart_returns_with_a_fresh_engine() {
    let Some(real) = real() else { return };
    let made = real.json(&["new", "--json"]);
    let id = made["id"].as_str().unwrap();
    real.done(&["exec", id, "x = 1"]);
    assert_eq!(real.done(&["restart", id]), "");
    let after = real.wait_for(id, |session| session["engine_pid"] != json!(null));
    assert_ne!(after["engine_pid"], made["engine_pid"]);
    assert_eq!(real.done(&["exec", id, "print('x' in dir())"]), "False\n");
}

#[test]
fn a_session_whose_host_and_keeper_were_killed_is_brought_back_as_it_was() {
    let Some(real) = real() else { return };
    let made = real.json(&["new", "--engine-transport", "tcp", "--json"]);
    let id = made["id"].as_str().unwrap();
    real.done(&["exec", id, "x = 'still here'"]);
    let host = pid(&made, "host_pid");
    let keeper = parent(host);
    for process in [keeper, host] {
        signal(process, libc::SIGSTOP);
    }
    for process in [keeper, host] {
        signal(process, libc::SIGKILL);
    }
    real.wait_for(id, |session| session["host_pid"].is_null());
    assert_eq!(real.done(&["exec", id, "print(x)"]), "still here\n");
    let after = real.wait_for(id, |session| !session["host_pid"].is_null());
    assert_eq!(after["engine_pid"], made["engine_pid"]);
    // The new host has the settings of the first, also for the next engine.
    real.done(&["restart", id]);
    let file = real.path("state").join(id).join("engine/connection.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(file["transport"], "tcp");
    real.done(&["stop", id]);
    real.wait_for_silence();
}

#[test]
fn a_lost_session_is_not_brought_back() {
    let Some(real) = real() else { return };
    let made = real.json(&["new", "--json"]);
    let id = made["id"].as_str().unwrap();
    real.done(&["exec", id, "print('kept')"]);
    let host = pid(&made, "host_pid");
    let all = [parent(host), host, pid(&made, "engine_pid")];
    for number in [libc::SIGSTOP, libc::SIGKILL] {
        all.iter().for_each(|process| signal(*process, number));
    }
    real.wait_for(id, |session| session["state"] == "lost");
    for args in [
        &["exec", id, "1"][..],
        &["interrupt", id],
        &["restart", id],
        &["connect", id],
    ] {
        let ran = real.run(args);
        assert_eq!(ran.code, 4, "{args:?}: {}", ran.all());
        assert!(
            ran.stderr.contains("is lost") && ran.stderr.contains("farside logs"),
            "{}",
            ran.stderr
        );
    }
    let ran = real.run(&["stop", id]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("runs any more"), "{}", ran.stderr);
    let ran = real.run(&["attach", id]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "kept\n"));
    assert!(ran.stderr.contains("is lost"), "{}", ran.stderr);
    real.wait_for_silence();
}

const CLIENT: &str = "
import sys
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=60)
reply = client.execute_interactive('print(x)', timeout=60)
# What `exit` in a jupyter console does, also to a kernel that is not its own.
client.shutdown(reply=True, timeout=60)
client.stop_channels()
sys.exit(reply['content']['status'] != 'ok')
";

#[test]
fn connect_serves_any_client_and_cleans_up() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    real.done(&["exec", &id, "x = 'there'"]);
    let mut connect = real.spawn(&["connect", &id]);
    let path = connect.line();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = Command::new(real.python())
        .args(["-c", CLIENT, &path])
        .env("HOME", real.path("home"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&client.stdout),
        "there\n",
        "{client:?}"
    );
    connect.signal(libc::SIGTERM);
    let ran = connect.end();
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "", "")
    );
    assert!(!Path::new(&path).exists());
    assert_eq!(real.done(&["exec", &id, "print(x)"]), "there\n");
}

#[test]
fn connect_ends_with_its_session() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let mut connect = real.spawn(&["connect", &id]);
    let path = connect.line();
    real.done(&["stop", &id]);
    let ran = connect.end();
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("has ended"), "{}", ran.stderr);
    assert!(!Path::new(&path).exists());
}

#[test]
fn console_runs_jupyter_console_and_ends_as_it_does() {
    let Some(real) = real() else { return };
    let id = real.done(&["new"]).trim().to_owned();
    let script = "#!/bin/sh\necho \"$1 $2\"; test -f \"$3\" && echo file; exit 7\n";
    real.program("bin/jupyter", script);
    let ran = real.run(&["console", &id]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (7, "console --existing\nfile\n"),
        "{}",
        ran.stderr
    );
    let left = std::fs::read_dir(real.path("run/farside").join(&id)).unwrap();
    assert!(
        left.flatten()
            .all(|file| !file.file_name().to_string_lossy().ends_with(".json"))
    );
    assert_eq!(real.done(&["exec", &id, "print('lives')"]), "lives\n");
}
