//! Against a real HTTP server on loopback, and with real commands.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use serde_json::{Value, json};

use super::shape::{cut, machine};
use super::*;
use crate::config::COMMAND_VARIABLES;
use crate::journal::record::ExecutionState;
use crate::session::event::NotifyOn;

const LONG: Duration = Duration::from_secs(30);

/// Quick, and with the same number of tries.
const QUICK: Policy = Policy {
    try_limit: LONG,
    pauses: &[Duration::from_millis(20), Duration::from_millis(40)],
    last_pause: Duration::from_millis(5),
    command_limit: LONG,
    close_limit: LONG,
};

/// A server's answer to one request.
enum Answer {
    Status(u16),
    /// It takes the request and never answers.
    Hang,
    /// It closes the connection.
    Close,
}

/// A request as it came: its first line, headers in lower case, body.
#[derive(Debug)]
struct Got {
    line: String,
    headers: Vec<String>,
    body: String,
}

/// Answers one connection after the other, as told; what came is in the receiver.
fn serve(answers: Vec<Answer>) -> (u16, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, got) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = sender.send(read_request(&stream));
            match answer {
                Answer::Status(status) => write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nlocation: /secret-place\r\n\r\n"
                )
                .unwrap(),
                Answer::Hang => held.push(stream),
                Answer::Close => {}
            }
        }
        // What hangs does so until the test has all that it wants.
        let _ = held
            .into_iter()
            .map(|mut stream| stream.read(&mut [0]))
            .count();
    });
    (port, got)
}

fn read_request(stream: &TcpStream) -> Got {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: Vec<String> = lines[1..].iter().map(|line| line.to_lowercase()).collect();
    let length = headers
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Got {
        line: lines[0].clone(),
        headers,
        body: String::from_utf8(body).unwrap(),
    }
}

fn notification() -> Notification {
    Notification {
        event: NotifyOn::ExecutionFailed,
        text: "execution 3 of train failed after 12m".to_owned(),
        time: 1_769_860_800_000_000,
        session: "aaaa1111".to_owned(),
        name: "train".to_owned(),
        engine: "python3".to_owned(),
        execution: Some(3),
        state: Some(ExecutionState::Error),
        seconds: Some(720.123_456),
        code: Some("fit(\0\"x\")".to_owned()),
        reason: None,
    }
}

fn session(dir: &Path) -> Session {
    let root = dir.join("aaaa1111");
    for folder in [dir, &root] {
        crate::state_dir::ensure_private_dir(folder).unwrap();
    }
    let text = json!({
        "format": 1, "id": "aaaa1111", "name": "train", "engine": "python3", "argv": ["/python"],
        "env": {"FROM_SPEC": "1"}, "cwd": dir, "key": null, "created": "2026-01-31T12:00:00.000000Z",
        "sockets": dir, "version": "0.1.0",
    });
    std::fs::write(root.join("session.json"), text.to_string()).unwrap();
    Session::open(&root).unwrap()
}

/// Delivers this one, and says what came of it.
fn delivered(to: &str, policy: &Policy, queue: &Queue) -> Result<(), String> {
    let (_stopper, stop) = shell::stopper().unwrap();
    let job = Job {
        event: "notice",
        to: Target::Url(to.to_owned()),
        json: "{\"a\":1}".to_owned(),
    };
    deliver(&job, policy, queue, &stop)
}

fn block_on(future: impl Future) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

#[test]
fn the_json_is_as_documented() {
    let (port, got) = serve(vec![Answer::Status(204)]);
    let dir = tempfile::tempdir().unwrap();
    let mut notifier = Notifier::with(QUICK);
    let to = format!("http://me:pass@127.0.0.1:{port}/hook?token=1#x");
    notifier.send(&session(dir.path()), to, &notification());
    block_on(notifier.finish());
    let got = got.try_recv().unwrap();
    assert_eq!(got.line, "POST /hook?token=1 HTTP/1.1");
    for header in [
        "content-type: application/json",
        "authorization: basic bwu6cgfzcw==",
        concat!("user-agent: farside/", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(got.headers.iter().any(|h| h == header), "{header}: {got:?}");
    }
    let mut body: Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(body["machine"].take(), machine().unwrap());
    assert_eq!(
        body,
        json!({
            "event": "execution_failed", "text": "execution 3 of train failed after 12m",
            "time": "2026-01-31T12:00:00.000000Z", "session_id": "aaaa1111", "session_name": "train",
            "engine": "python3", "execution": 3, "state": "error", "seconds": 720.123, "code": "fit(\0\"x\")",
            "reason": null, "machine": null, "farside": env!("CARGO_PKG_VERSION"),
        })
    );
}

/// The example in docs/settings.md has the same fields in the same order, of the same types.
#[test]
fn the_documented_example_is_true() {
    let page = include_str!("../../../docs/settings.md");
    let (_, example) = page.split_once("```json\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let fields = |json: &str| -> Vec<(String, std::mem::Discriminant<Value>)> {
        let fields: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap();
        let kind = |value: &Value| std::mem::discriminant(value);
        let fields = fields.iter().map(|(key, value)| (key.clone(), kind(value)));
        fields.collect()
    };
    let ours = serde_json::to_string(&Shape::of(&notification())).unwrap();
    assert_eq!(fields(example), fields(&ours));
}

#[test]
fn what_fails_for_a_while_is_tried_again() {
    for first in [Answer::Status(500), Answer::Status(429), Answer::Close] {
        let (port, got) = serve(vec![first, Answer::Status(503), Answer::Status(200)]);
        let url = format!("http://127.0.0.1:{port}/");
        delivered(&url, &QUICK, &Queue::default()).unwrap();
        let bodies: Vec<String> = got.iter().take(3).map(|got| got.body).collect();
        assert_eq!(bodies, ["{\"a\":1}"; 3]);
    }
}

#[test]
fn what_is_refused_is_not_tried_again() {
    for (status, why) in [
        (404, "the server answered 404"),
        (302, "the server answered 302: it wants another URL"),
    ] {
        let (port, got) = serve(vec![Answer::Status(status), Answer::Status(200)]);
        let url = format!("http://127.0.0.1:{port}/");
        let error = delivered(&url, &QUICK, &Queue::default()).unwrap_err();
        assert!(error.starts_with(why), "{error}");
        got.recv().unwrap();
        assert!(got.try_recv().is_err(), "once only");
    }
}

#[test]
fn a_server_that_hangs_costs_each_try_its_limit() {
    let (port, got) = serve(vec![Answer::Hang, Answer::Hang, Answer::Hang]);
    let policy = Policy {
        try_limit: Duration::from_millis(200),
        ..QUICK
    };
    let url = format!("http://127.0.0.1:{port}/?token=secret");
    let begun = Instant::now();
    let error = delivered(&url, &policy, &Queue::default()).unwrap_err();
    assert_eq!(error, "no answer within 0.2 s; tried 3 times");
    assert!(begun.elapsed() >= 3 * policy.try_limit);
    assert_eq!(got.try_iter().count(), 3);
}

#[test]
fn failures_tell_no_secrets() {
    // A port that nobody listens on, also if another test gets it: at another address.
    let port = TcpListener::bind("127.0.0.77:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for to in [
        format!("http://secret:secret@127.0.0.77:{port}/secret?token=secret"),
        "http://secret@/secret".to_owned(),
        "http://exa mple/secret".to_owned(),
        "http://127.0.0.1:secret/".to_owned(),
        "https://".to_owned(),
    ] {
        let error = delivered(&to, &QUICK, &Queue::default()).unwrap_err();
        assert!(!error.contains("secret") && !error.is_empty(), "{error}");
    }
    for (url, shown) in [
        ("https://a:b@x.org:81/p?q#f", "https://x.org:81/..."),
        ("https://x.org", "https://x.org"),
        ("http://x.org?q=a@b", "http://x.org/..."),
        ("http://a@b@x.org/", "http://x.org/..."),
    ] {
        assert_eq!(shown_url(url), shown);
    }
}

#[test]
fn a_command_gets_environment_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let mut notifier = Notifier::with(QUICK);
    let to = "cat > stdin.json; env -0 > env.new; mv env.new env".to_owned();
    notifier.send(&session, to, &notification());
    block_on(notifier.finish());
    let env = std::fs::read_to_string(dir.path().join("env")).unwrap();
    let env: std::collections::BTreeMap<&str, &str> = env
        .split('\0')
        .filter_map(|variable| variable.split_once('='))
        .collect();
    for (name, value) in [
        ("FARSIDE_EVENT", "execution_failed"),
        ("FARSIDE_TEXT", "execution 3 of train failed after 12m"),
        ("FARSIDE_TIME", "2026-01-31T12:00:00.000000Z"),
        ("FARSIDE_SESSION_ID", "aaaa1111"),
        ("FARSIDE_SESSION_NAME", "train"),
        ("FARSIDE_ENGINE", "python3"),
        ("FARSIDE_EXECUTION", "3"),
        ("FARSIDE_STATE", "error"),
        ("FARSIDE_SECONDS", "720.123"),
        ("FARSIDE_CODE", "fit(\u{fffd}\"x\")"),
        ("FROM_SPEC", "1"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{name}");
    }
    assert!(!env.contains_key("FARSIDE_REASON"), "it has none");
    assert!(!env.contains_key("FARSIDE_SESSION"), "that is a launcher's");
    let stdin = std::fs::read_to_string(dir.path().join("stdin.json")).unwrap();
    assert_eq!(stdin.trim_end(), env["FARSIDE_JSON"]);
    let json: Value = serde_json::from_str(&stdin).unwrap();
    assert_eq!(json["seconds"], 720.123);
    for name in env.keys().filter(|name| name.starts_with("FARSIDE_")) {
        let known = COMMAND_VARIABLES.contains(name) || std::env::var_os(name).is_some();
        assert!(known, "{name} is missing in COMMAND_VARIABLES");
    }
}

#[test]
fn a_command_that_fails_says_so_and_one_that_takes_too_long_is_stopped() {
    let (_stopper, stop) = shell::stopper().unwrap();
    let run = |command: &str, policy: &Policy| {
        let to = Target::Command {
            command: command.to_owned(),
            cwd: existing(Path::new("/no/such/folder")),
            env: Vec::new(),
        };
        let job = Job {
            event: "notice",
            to,
            json: String::new(),
        };
        deliver(&job, policy, &Queue::default(), &stop)
    };
    run("true", &QUICK).unwrap();
    let error = run("echo no mail here; exit 9", &QUICK).unwrap_err();
    assert!(
        error.starts_with("exit code 9, ") && error.ends_with(": no mail here"),
        "{error}"
    );
    let policy = Policy {
        command_limit: Duration::from_secs(1),
        ..QUICK
    };
    let error = run("sleep 100", &policy).unwrap_err();
    assert_eq!(error, "stopped after its 1s limit");
}

#[test]
fn past_the_bound_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let mut notifier = Notifier::with(QUICK);
    // The first holds the thread up until the rest waits.
    let gate = dir.path().join("gate");
    let made = std::process::Command::new("mkfifo").arg(&gate).status();
    assert!(made.unwrap().success());
    notifier.send(
        &session,
        "echo begun > gate; cat gate".to_owned(),
        &notification(),
    );
    assert_eq!(std::fs::read_to_string(&gate).unwrap(), "begun\n");
    for n in 0..WAITING_MAX + 3 {
        notifier.send(&session, format!("echo {n} >> told"), &notification());
    }
    std::fs::write(&gate, "go\n").unwrap();
    block_on(notifier.finish());
    let told = std::fs::read_to_string(dir.path().join("told")).unwrap();
    let expected: Vec<String> = (3..WAITING_MAX + 3).map(|n| n.to_string()).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_end_waits_for_what_hangs_only_so_long() {
    let (port, got) = serve(vec![Answer::Hang, Answer::Hang, Answer::Hang]);
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let policy = Policy {
        try_limit: Duration::from_millis(200),
        close_limit: Duration::from_millis(300),
        ..QUICK
    };
    for to in [format!("http://127.0.0.1:{port}/"), "sleep 100".to_owned()] {
        let mut notifier = Notifier::with(policy.clone());
        // It waits behind the one that hangs, and nobody waits for it.
        notifier.send(&session, to.clone(), &notification());
        notifier.send(&session, "touch told".to_owned(), &notification());
        let begun = Instant::now();
        block_on(notifier.finish());
        let took = begun.elapsed();
        assert!(took >= policy.close_limit, "{to}: {took:?}");
        assert!(took < LONG, "{to}: {took:?}");
        assert!(!dir.path().join("told").exists(), "{to}");
    }
    assert!(got.try_iter().count() >= 1);
}

#[test]
fn a_pause_is_cut_short_by_the_end() {
    let queue = Arc::new(Queue::default());
    let waits = queue.clone();
    let begun = Instant::now();
    let thread = std::thread::spawn(move || waits.pause(LONG, Duration::ZERO));
    queue.lock().until = Some(Instant::now() + LONG);
    queue.changed.notify_all();
    thread.join().unwrap();
    assert!(begun.elapsed() < LONG);
}

#[test]
fn without_a_notification_there_is_no_thread() {
    let notifier = Notifier::new();
    assert!(notifier.worker.is_none());
    block_on(notifier.finish());
}

#[test]
fn urls_and_commands_are_told_apart() {
    for (to, expected) in [
        ("http://x", true),
        ("HTTPS://x", true),
        ("curl http://x", false),
        ("http", false),
        ("https:/x", false),
        ("é", false),
    ] {
        assert_eq!(is_url(to), expected, "{to}");
    }
    assert_eq!(cut("éé", 1), "é...");
    assert_eq!(cut("éé", 2), "éé");
}
