//! Compaction against nbclient itself: tests/outputs_corpus.py makes the corpus and compares, this end compacts.
//!
//! Needs a Python with nbclient, named by FARSIDE_TEST_PYTHON (`make test` does); else it says that it skips.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use farside::session::outputs::{Limits, Replayed, compact, to_nbformat};
use farside::wire::Message;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case<'a> {
    #[serde(borrow)]
    messages: Vec<Sent<'a>>,
    cuts: Vec<usize>,
}

#[derive(Deserialize)]
struct Sent<'a> {
    msg_type: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[test]
fn nbclient_shows_a_replay_as_it_shows_the_engines_messages() {
    let Some(python) = std::env::var_os("FARSIDE_TEST_PYTHON") else {
        eprintln!(
            "skipped: FARSIDE_TEST_PYTHON names no Python with nbclient (`make test` sets it)"
        );
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outputs_corpus.py");
    let mut child = Command::new(&python)
        .arg(&script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", python.display()));
    let mut answers = child.stdin.take().expect("piped");
    let cases = BufReader::new(child.stdout.take().expect("piped"));
    let mut count = 0;
    for case in cases.lines() {
        let case = case.expect("the script writes UTF-8");
        let case: Case = serde_json::from_str(&case).expect("the script writes cases");
        // Where the script has found a difference it is gone, and its exit says so below.
        if writeln!(answers, "{}", answer(&case)).is_err() {
            break;
        }
        count += 1;
    }
    drop(answers);
    let status = child.wait().expect("the script is our child");
    assert!(status.success(), "sequence {count} (see above): {status}");
    assert!(count > 0);
}

fn answer(case: &Case) -> Value {
    let messages: Vec<Message> = case.messages.iter().map(message).collect();
    let replay = compact(&messages, Limits::default(), "hint");
    let prefixes = case
        .cuts
        .iter()
        .map(|&cut| list(&compact(&messages[..cut], Limits::default(), "hint")));
    json!({
        "replay": list(&replay),
        "prefixes": prefixes.collect::<Vec<_>>(),
        "nbformat": to_nbformat(&replay),
    })
}

fn message(sent: &Sent) -> Message {
    Message {
        header: json!({"msg_id": "m", "msg_type": sent.msg_type})
            .to_string()
            .into(),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::copy_from_slice(sent.content.get().as_bytes()),
        ..Message::default()
    }
}

fn list(replay: &[Replayed]) -> Value {
    let one = |r: &Replayed| {
        let content: Value =
            serde_json::from_slice(&r.content).expect("a message's content is JSON");
        json!({"msg_type": r.msg_type, "content": content})
    };
    replay.iter().map(one).collect()
}
