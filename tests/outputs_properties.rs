//! Compaction against a slow and obvious model of a frontend ([`outputs_model`]), on random message sequences.

mod outputs_model;

use bytes::Bytes;
use farside::session::outputs::{Budget, Compactor, Limits, Replayed, compact, to_nbformat};
use farside::wire::Message;
use outputs_model::{FLAVORS, Flavor, Frontend, Op, Shown, again, message, messages, render};
use proptest::prelude::*;
use serde_json::{Value, json};

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec!["a", "bc", "def ", "é", "┃", "\u{1b}[31m", "\u{1b}[0m", "\"\\", "50%"]),
        2 => Just("\n"),
        3 => Just("\r"),
        2 => Just("\u{8}"),
        1 => Just("\r\n"),
        1 => Just("😀"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn stream() -> impl Strategy<Value = Op> {
    let name = prop_oneof![4 => Just("stdout"), 1 => Just("stderr")];
    (name, text()).prop_map(|(name, text)| ("stream", json!({"name": name, "text": text})))
}

fn display() -> impl Strategy<Value = Op> {
    let id = prop_oneof![Just(None), (0..3).prop_map(|n| Some(format!("id{n}")))];
    (
        prop::sample::select(vec![
            "display_data",
            "execute_result",
            "update_display_data",
        ]),
        id,
        0..100u32,
    )
        .prop_map(|(msg_type, id, n): (&'static str, Option<String>, u32)| {
            let id = match (msg_type, id) {
                ("update_display_data", None) => Some("elsewhere".to_owned()),
                (_, id) => id,
            };
            let mut content = json!({"data": {"text/plain": n.to_string()}, "metadata": {"n": n}});
            if let Some(id) = id {
                content["transient"] = json!({"display_id": id});
            }
            if msg_type == "execute_result" {
                content["execution_count"] = json!(7);
            }
            (msg_type, content)
        })
}

fn comm() -> impl Strategy<Value = Op> {
    let state = prop::collection::btree_map(
        prop::sample::select(vec!["value", "text", "max"]),
        0..9,
        1..3,
    );
    prop_oneof![
        4 => (0..2, state).prop_map(|(comm, state)| {
            ("comm_msg", json!({"comm_id": format!("c{comm}"), "data": {"method": "update", "state": state}}))
        }),
        1 => (0..2).prop_map(|comm| {
            ("comm_msg", json!({"comm_id": format!("c{comm}"), "data": {"method": "custom", "content": {}}}))
        }),
        1 => (0..2).prop_map(|comm| ("comm_open", json!({"comm_id": format!("c{comm}"), "data": {"state": {}}}))),
    ]
}

fn capture() -> impl Strategy<Value = Op> {
    any::<bool>().prop_map(|begin| {
        let msg_id = if begin { "p" } else { "" };
        (
            "comm_msg",
            json!({"comm_id": "out", "data": {"method": "update", "state": {"msg_id": msg_id}}}),
        )
    })
}

fn clear() -> impl Strategy<Value = Op> {
    any::<bool>().prop_map(|wait| ("clear_output", json!({"wait": wait})))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => stream(),
        8 => display(),
        4 => comm(),
        2 => clear(),
        1 => Just(("error", json!({"ename": "E", "evalue": "v", "traceback": ["\u{1b}[31mE"]}))),
        1 => Just(("status", json!({"execution_state": "busy"}))),
        1 => Just(("something_new", json!({"x": [1, 2]}))),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let with_widgets = prop_oneof![20 => op(), 1 => capture()];
    prop_oneof![3 => prop::collection::vec(op(), 0..40), 1 => prop::collection::vec(with_widgets, 0..40)]
}

fn all(messages: &[Message]) -> Vec<Replayed> {
    compact(messages, Limits::default(), "hint")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_shows_what_the_cell_showed(ops in ops()) {
        let x = messages(&ops);
        let replay = again(&all(&x));
        for flavor in FLAVORS {
            prop_assert_eq!(render(flavor, &replay).shown(), render(flavor, &x).shown(), "{:?}: {:#?}", flavor, replay);
        }
    }

    /// What somebody sees who attaches in the middle.
    #[test]
    fn a_replay_goes_on_live(ops in ops(), at in any::<prop::sample::Index>()) {
        let x = messages(&ops);
        let (before, after) = x.split_at(at.index(x.len() + 1));
        let replay = again(&all(before));
        for flavor in FLAVORS {
            let seen = render(flavor, before);
            // Half an emoji left by `\b` is replayed as U+FFFD; live it could still meet another half.
            prop_assume!(!seen.shown().to_string().contains('\u{FFFD}'));
            let live = render(flavor, replay.iter().chain(after)).shown();
            prop_assert_eq!(live, render(flavor, &x).shown(), "{:?}: {:#?}", flavor, replay);
        }
    }

    #[test]
    fn compacting_twice_changes_nothing(ops in ops()) {
        let once = all(&messages(&ops));
        prop_assert_eq!(all(&again(&once)), once);
    }

    #[test]
    fn asking_for_a_replay_changes_nothing(ops in ops(), at in any::<prop::sample::Index>()) {
        let x = messages(&ops);
        let mut compactor = Compactor::new(Limits::default(), "hint");
        for (i, message) in x.iter().enumerate() {
            if i == at.index(x.len()) {
                compactor.replay();
            }
            compactor.push(message);
        }
        prop_assert_eq!(compactor.replay(), all(&x));
    }

    #[test]
    fn a_notebook_file_holds_what_the_cell_shows(ops in ops()) {
        let x = messages(&ops);
        let raw: Vec<Replayed> = ops.iter().zip(&x).map(|((msg_type, _), m)| Replayed {
            msg_type: (*msg_type).into(),
            content: m.content.clone(),
            ..Replayed::default()
        }).collect();
        let shown = render(Flavor::Nbclient, &x).nbformat();
        prop_assert_eq!(to_nbformat(&all(&x)), shown.clone());
        prop_assert_eq!(to_nbformat(&raw), shown);
    }

    #[test]
    fn the_result_is_bounded_and_its_end_is_right(ops in prop::collection::vec(op(), 0..200)) {
        let small = Budget { text_bytes: 60, rich_bytes: 600, messages: 6 };
        let limits = Limits { head: small, tail: small, asides_head: small, asides_tail: small, line_units_max: 1000 };
        let x = messages(&ops);
        let replay = compact(&x, limits, "hint");
        prop_assert!(replay.len() <= 4 * 6 + 4, "{} messages", replay.len());
        let bytes: usize = again(&replay).iter().map(Message::size_bytes).sum();
        prop_assert!(bytes <= 16_000, "{} bytes", bytes);
        let last_line = |frontend: Frontend| match frontend.cell.outputs.last() {
            Some(Shown::Stream { name, text, cursor }) => {
                let line = text.iter().rposition(|&unit| unit == 10).map_or(0, |at| at + 1);
                Some((name.clone(), text[line..].to_vec(), cursor - line))
            }
            _ => None,
        };
        let expected = last_line(render(Flavor::Lab, &x));
        let half = expected.iter().any(|(_, line, _)| String::from_utf16(line).is_err());
        prop_assume!(!half);
        if expected.is_some() {
            prop_assert_eq!(last_line(render(Flavor::Lab, &again(&replay))), expected, "{:#?}", replay);
        }
    }

    #[test]
    fn what_was_cleared_is_forgotten(before in prop::collection::vec(op(), 0..60), after in prop::collection::vec(stream(), 1..5)) {
        let small = Budget { text_bytes: 1000, rich_bytes: 1000, messages: 6 };
        let limits = Limits { head: small, tail: small, ..Limits::default() };
        for wait in [false, true] {
            let mut x = before.clone();
            x.push(("clear_output", json!({"wait": wait})));
            x.extend(after.clone());
            let cell = render(Flavor::Lab, &again(&compact(&messages(&x), limits, "hint"))).nbformat();
            prop_assert_eq!(cell, render(Flavor::Lab, &messages(&after)).nbformat());
        }
    }

    #[test]
    fn any_bytes_are_taken(parts in prop::collection::vec((0..9usize, any::<Vec<u8>>()), 0..20)) {
        const TYPES: [&str; 9] = ["stream", "display_data", "execute_result", "update_display_data", "error",
            "clear_output", "comm_open", "comm_msg", "other"];
        let mut compactor = Compactor::new(Limits::default(), "hint");
        for (kind, bytes) in parts {
            compactor.push_as(TYPES[kind], &Message { content: bytes.into(), ..Message::default() });
        }
        to_nbformat(&compactor.replay());
    }
}

#[test]
fn what_needs_no_change_passes_byte_for_byte() {
    let odd = [
        (
            "stream",
            r#"{ "text":"a\u0041\n" , "name" : "stdout", "new": 1}"#,
        ),
        (
            "display_data",
            r#"{"data":{"text/plain":"\u00e9"}, "metadata": {} }"#,
        ),
        ("stream", r#"{"name":"stderr","text":"x"}"#),
        ("stream", r#"{"name":"stdout","text":"" }"#),
        ("comm_open", r#"{ "comm_id":"c","data":{}}"#),
        ("display_data", "not json"),
        ("something_new", "[1,  2]"),
    ];
    let messages: Vec<Message> = odd
        .iter()
        .map(|(msg_type, content)| Message {
            identities: vec![Bytes::from_static(b"topic")],
            header: json!({"msg_id": "m", "msg_type": msg_type})
                .to_string()
                .into(),
            metadata: Bytes::from_static(b"{ \"m\": 1}"),
            content: Bytes::from_static(content.as_bytes()),
            buffers: vec![Bytes::from_static(b"\x00\xff")],
            ..Message::default()
        })
        .collect();
    for (replayed, message) in all(&messages).iter().zip(&messages) {
        assert_eq!(replayed.content, message.content);
        assert_eq!(replayed.metadata, message.metadata);
        assert_eq!(replayed.identities, message.identities);
        assert_eq!(replayed.buffers, message.buffers);
    }
    assert_eq!(all(&messages).len(), messages.len());
}

#[test]
fn a_progress_bar_of_many_updates_is_one_line() {
    let mut compactor = Compactor::new(Limits::default(), "hint");
    let mut most = 0;
    for n in 0..100_000 {
        compactor.push(&message(&(
            "stream",
            json!({"name": "stderr", "text": format!("\r{n:6}|{}", "#".repeat(n / 1000))}),
        )));
        most = most.max(compactor.size_bytes());
    }
    assert!(most < 2000, "{most} bytes held");
    let replay = compactor.replay();
    assert_eq!(replay.len(), 1);
    let content: Value = serde_json::from_slice(&replay[0].content).unwrap();
    assert_eq!(content["text"], format!(" 99999|{}", "#".repeat(99)));
}

#[test]
fn head_and_tail_stay_and_a_line_says_what_is_missing() {
    let text =
        |range: std::ops::Range<usize>| range.map(|n| format!("line {n}\n")).collect::<String>();
    let x: Vec<Op> = (0..100)
        .map(|n| {
            (
                "stream",
                json!({"name": "stdout", "text": text(n * 10_000..(n + 1) * 10_000)}),
            )
        })
        .collect();
    let replay = compact(
        &messages(&x),
        Limits::default(),
        "`farside logs a 7` shows them all",
    );
    let texts: Vec<String> = replay
        .iter()
        .map(|r| {
            serde_json::from_slice::<Value>(&r.content).unwrap()["text"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let [head, notice, tail] = &texts[..] else {
        panic!("{} messages", texts.len())
    };
    let whole = text(0..1_000_000);
    assert!(whole.starts_with(head) && whole.ends_with(tail));
    assert!(
        head.len() > 500_000 && tail.len() > 1_500_000,
        "{} {}",
        head.len(),
        tail.len()
    );
    let missing = whole.len() - head.len() - tail.len();
    let (m, k, n) = (missing / 1_000_000, missing / 1000 % 1000, missing % 1000);
    let expected = format!(
        "\n[farside: {m},{k:03},{n:03} bytes (0 outputs) left out here; `farside logs a 7` shows them all]\n"
    );
    assert_eq!(*notice, expected);
}

#[test]
fn a_message_above_the_limits_leaves_a_line_and_an_update_brings_it_back() {
    let display = |msg_type, bytes: usize| {
        (
            msg_type,
            json!({"data": {"image/png": "A".repeat(bytes)}, "metadata": {}, "transient": {"display_id": "d"}}),
        )
    };
    let max = Limits::default().tail.rich_bytes;
    let x = [
        ("stream", json!({"name": "stdout", "text": "before"})),
        display("display_data", max + 1),
    ];
    let replay = all(&messages(&x));
    assert_eq!(replay.len(), 2);
    let line = String::from_utf8(replay[1].content.to_vec()).unwrap();
    assert!(
        line.contains("(1 display_data) left out here; hint"),
        "{line}"
    );

    let update = messages(&[display("update_display_data", 1000)]);
    let x = [messages(&x), update.clone()].concat();
    let updated = all(&x);
    assert_eq!(updated[1].msg_type, "display_data");
    assert!(updated[1].content.len() > 1000);

    // Also where the line was written by somebody before, whose hint holds.
    for hint in ["hint", "another"] {
        let mut again = again(&replay);
        again.extend(messages(&[(
            "stream",
            json!({"name": "stderr", "text": "behind"}),
        )]));
        let shown = compact(&again, Limits::default(), hint);
        assert_eq!(shown[1], replay[1]);
        assert_eq!(shown.len(), 3, "it stays a line of its own");
        again.extend(update.clone());
        let shown = compact(&again, Limits::default(), hint);
        assert_eq!(shown[1].msg_type, "display_data");
        assert_eq!(shown[1].content, updated[1].content);
    }
}

/// Above 1 MiB a text is read in pieces.
#[test]
fn a_long_text_is_what_its_parts_are() {
    let lines = (0..).map(|n| format!("bar {n}%\rline {n} é😀 \"\\\u{8}\n"));
    let mut parts = Vec::new();
    let mut bytes = 0;
    for line in lines {
        bytes += line.len();
        parts.push(line);
        if bytes > 1_300_000 {
            break;
        }
    }
    let stream = |text: &str| ("stream", json!({ "name": "stdout", "text": text }));
    let whole = messages(&[stream("first "), stream(&parts.concat()), stream("last")]);
    let ops: Vec<Op> = (std::iter::once("first ").chain(parts.iter().map(String::as_str)))
        .chain(["last"])
        .map(stream)
        .collect();
    let replay = all(&whole);
    assert_eq!(replay, all(&messages(&ops)));
    assert_eq!(replay.len(), 1);
    let escaped = json!({ "name": "stdout", "text": parts.concat() }).to_string();
    let escaped = escaped
        .replace('é', "\\u00e9")
        .replace('😀', "\\ud83d\\ude00");
    let mut whole = whole;
    whole[1].content = escaped.into();
    assert_eq!(replay, all(&whole));
}

/// Compacted in steps, as a long execution in a journal is: what is left out adds up, and each hint stands for its own.
#[test]
fn what_was_left_out_in_steps_is_said_in_one_line() {
    let budget = Budget {
        text_bytes: 4000,
        rich_bytes: 2000,
        messages: 4,
    };
    let limits = Limits {
        head: budget,
        tail: budget,
        asides_head: budget,
        asides_tail: budget,
        ..Limits::default()
    };
    let said = |step: usize| -> Vec<Message> {
        let lines = (0..1000).map(|n| format!("line {step}-{n:03} of this\n"));
        let mut ops: Vec<Op> = lines
            .map(|text| ("stream", json!({ "name": "stdout", "text": text })))
            .collect();
        let event = json!({ "comm_id": "c", "data": { "method": "custom", "n": step } });
        ops.extend((0..20).map(|_| ("comm_msg", event.clone())));
        messages(&ops)
    };
    let texts = |replay: &[Replayed]| -> Vec<String> {
        let contents = replay.iter().filter(|r| r.msg_type == "stream");
        let text = |r: &Replayed| {
            let content: serde_json::Value = serde_json::from_slice(&r.content).unwrap();
            content["text"].as_str().unwrap().to_owned()
        };
        contents.map(text).collect()
    };
    let bytes_of = |notice: &str| -> usize {
        let digits = notice.split(" bytes").next().unwrap().replace(',', "");
        digits.trim_start_matches("\n[farside: ").parse().unwrap()
    };
    let mut kept: Vec<Message> = Vec::new();
    let mut total = 0;
    for step in 0..5 {
        let more = said(step);
        total += 1000 * "line 0-000 of this\n".len();
        kept.extend(more);
        let replay = compact(&kept, limits, "gone");
        let texts = texts(&replay);
        let [asides, head, notice, tail] = &texts[..] else {
            panic!("{texts:#?}");
        };
        assert!(head.starts_with("line 0-000 "));
        assert!(tail.ends_with(&format!("line {step}-999 of this\n")));
        assert_eq!(bytes_of(notice) + head.len() + tail.len(), total);
        assert!(notice.ends_with("left out here; gone]\n"), "{notice}");
        let messages = 20 * (step + 1) - 8;
        assert!(
            asides.contains(&format!("({messages} widget messages)")),
            "{asides}"
        );
        kept = again(&replay);
        assert_eq!(compact(&kept, limits, "gone"), replay);
    }
    // Somebody else, for whom only the end is left out anew.
    kept.extend(said(5));
    let texts = texts(&compact(&kept, limits, "logs has it"));
    let [gone_asides, asides, head, gone, notice, tail] = &texts[..] else {
        panic!("{texts:#?}");
    };
    assert!(gone.ends_with("; gone]\n") && notice.ends_with("; logs has it]\n"));
    assert!(gone_asides.ends_with("; gone]\n") && asides.ends_with("; logs has it]\n"));
    let shown = head.len() + tail.len() + bytes_of(gone) + bytes_of(notice);
    assert_eq!(shown, total + 1000 * "line 0-000 of this\n".len());
    // A cell that is cleared has nothing left out.
    kept.extend(messages(&[
        ("clear_output", json!({ "wait": true })),
        ("stream", json!({ "name": "stdout", "text": "fresh" })),
    ]));
    let replay = compact(&kept, limits, "logs has it");
    assert_eq!(self::texts_of(&replay, "stdout"), "fresh");
    assert_eq!(
        self::texts_of(&replay, "stderr").matches("outputs").count(),
        0
    );
}

fn texts_of(replay: &[Replayed], name: &str) -> String {
    let contents = replay.iter().filter(|r| r.msg_type == "stream");
    contents
        .filter_map(|r| serde_json::from_slice::<serde_json::Value>(&r.content).ok())
        .filter(|content| content["name"] == name)
        .filter_map(|content| content["text"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn a_clear_that_still_waits_is_part_of_the_replay() {
    let say = |text| ("stream", json!({"name": "stdout", "text": text}));
    let wait = ("clear_output", json!({"wait": true}));
    let types = |ops: &[Op]| {
        all(&messages(ops))
            .iter()
            .map(|r| r.msg_type.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(types(&[say("a"), wait.clone()]), ["stream", "clear_output"]);
    // Carried out, or with nothing to clear.
    assert_eq!(types(&[say("a"), wait.clone(), say("b")]), ["stream"]);
    assert_eq!(
        types(&[
            say("a"),
            wait.clone(),
            ("clear_output", json!({"wait": false}))
        ]),
        [""; 0]
    );
    assert_eq!(types(&[wait]), [""; 0]);
}

#[test]
fn a_single_message_is_bounded_too() {
    let text: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    let budget = Budget {
        text_bytes: 9000,
        rich_bytes: 1000,
        messages: 6,
    };
    let limits = Limits {
        head: budget,
        tail: budget,
        ..Limits::default()
    };
    let x = messages(&[("stream", json!({ "name": "stdout", "text": text }))]);
    let replay = compact(&x, limits, "hint");
    let bytes: usize = replay.iter().map(|replayed| replayed.content.len()).sum();
    assert!(bytes < 20_000, "{bytes} bytes");
    assert_eq!(replay.len(), 3, "head, a line, tail");
}

#[test]
fn the_head_has_the_first_lines_however_large_the_messages_are() {
    let lines = |range: std::ops::Range<u32>| -> String {
        range.map(|n| format!("row {n} of text\n")).collect()
    };
    let budget = Budget {
        text_bytes: 8 << 10,
        rich_bytes: 8 << 10,
        messages: 10,
    };
    let limits = Limits {
        head: budget,
        tail: budget,
        ..Limits::default()
    };
    let mut x = messages(&[(
        "stream",
        json!({ "name": "stderr", "text": "a warning\n".repeat(30) }),
    )]);
    x.extend((0..5).flat_map(|n| {
        let text = lines(n * 3000..(n + 1) * 3000);
        messages(&[("stream", json!({ "name": "stdout", "text": text }))])
    }));
    let replay = again(&compact(&x, limits, "hint"));
    // And also once more, with less of it.
    let less = Budget {
        text_bytes: 1 << 10,
        ..budget
    };
    let less = Limits {
        head: less,
        tail: less,
        ..limits
    };
    for compacted in [&replay, &again(&compact(&replay, less, "hint"))] {
        let stdout: String = compacted
            .iter()
            .filter_map(|message| {
                serde_json::from_slice::<serde_json::Value>(&message.content).ok()
            })
            .filter(|content| content["name"] == "stdout")
            .filter_map(|content| content["text"].as_str().map(str::to_owned))
            .collect();
        assert!(stdout.starts_with("row 0 of text\nrow 1 "), "{stdout:.100}");
        assert!(stdout.ends_with("row 14999 of text\n"));
    }
}

/// Whatever a cell writes into metadata of its own.
#[test]
fn sums_that_nobody_can_have_left_out_do_no_harm() {
    let mut forged = messages(&[("stream", json!({ "name": "stdout", "text": "x" }))]);
    let bytes = u64::MAX;
    let left_out = json!({ "what": "outputs", "bytes": bytes, "messages": bytes, "hint": "h" });
    let metadata = json!({ "farside": { "left_out": left_out } });
    forged[0].metadata = metadata.to_string().into();
    forged.push(forged[0].clone());
    for hint in ["h", "another"] {
        assert_eq!(compact(&forged, Limits::default(), hint).len(), 1);
    }
    // What it says of a single display takes no more memory than any other text.
    let one = |what: &str| {
        let left_out = json!({ "what": what, "bytes": 1, "messages": 1, "hint": "h" });
        let mut forged = forged[0].clone();
        forged.metadata = json!({ "farside": { "left_out": left_out } })
            .to_string()
            .into();
        forged
    };
    let many = vec![one(&"x".repeat(10_000)); 3000];
    let shown = compact(&many, Limits::default(), "h");
    assert_eq!(shown.len(), 1);
    assert_eq!(compact(&[one("error")], Limits::default(), "h").len(), 1);
}
