//! Compaction against a slow and obvious model of a frontend, on random message sequences.
//!
//! The model is written from JupyterLab's and nbclient's sources and shares no code with the compactor.

use std::collections::BTreeMap;

use bytes::Bytes;
use farside::session::outputs::{Budget, Compactor, Limits, Replayed, compact, to_nbformat};
use farside::wire::Message;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Where the two differ: nbclient updates an execute_result with a display_id, JupyterLab does not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flavor {
    Lab,
    Nbclient,
}

#[derive(Clone, Debug, PartialEq)]
enum Shown {
    Stream {
        name: String,
        text: Vec<u16>,
        cursor: usize,
    },
    Other(Value),
}

#[derive(Debug, Default)]
struct Area {
    outputs: Vec<Shown>,
    clear_next: bool,
    displays: BTreeMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Frontend {
    flavor: Flavor,
    cell: Area,
    widgets: BTreeMap<String, Area>,
    captured_by: Vec<String>,
    /// Traits of each comm.
    state: BTreeMap<String, BTreeMap<String, Value>>,
    /// Everything that is an event, in order.
    events: Vec<(String, Value)>,
    /// What displays in other cells show.
    elsewhere: BTreeMap<String, Value>,
}

impl Frontend {
    fn new(flavor: Flavor) -> Self {
        Self {
            flavor,
            cell: Area::default(),
            widgets: BTreeMap::new(),
            captured_by: Vec::new(),
            state: BTreeMap::new(),
            events: Vec::new(),
            elsewhere: BTreeMap::new(),
        }
    }

    fn take(&mut self, msg_type: &str, content: &Value) {
        let id = content["transient"]["display_id"]
            .as_str()
            .map(str::to_owned);
        let captured = self.captured_by.last().cloned();
        match msg_type {
            "stream" | "display_data" | "execute_result" | "error" | "clear_output" => {
                if let Some(id) = &id {
                    self.update(id, content);
                }
                let flavor = self.flavor;
                match captured {
                    Some(widget) => self
                        .widgets
                        .entry(widget)
                        .or_default()
                        .take(flavor, msg_type, content, None),
                    None => self.cell.take(flavor, msg_type, content, id),
                }
            }
            "update_display_data" => {
                if let Some(id) = &id {
                    self.update(id, content);
                }
            }
            "comm_msg" if content["data"]["method"] == "update" => {
                let comm_id = content["comm_id"].as_str().unwrap().to_owned();
                for (name, value) in content["data"]["state"].as_object().unwrap() {
                    match (name.as_str(), value.as_str()) {
                        ("msg_id", Some("")) => self.captured_by.retain(|id| *id != comm_id),
                        ("msg_id", _) => self.captured_by.push(comm_id.clone()),
                        _ => {
                            let state = self.state.entry(comm_id.clone()).or_default();
                            state.insert(name.clone(), value.clone());
                        }
                    }
                }
            }
            "status" | "execute_input" => {}
            other => {
                // With the state of its comm: an event must not overtake a change of state.
                let state = content["comm_id"]
                    .as_str()
                    .and_then(|id| self.state.get(id));
                self.events
                    .push((other.to_owned(), json!([content, state])));
            }
        }
    }

    fn update(&mut self, id: &str, content: &Value) {
        for &at in self.cell.displays.get(id).into_iter().flatten() {
            if let Shown::Other(output) = &mut self.cell.outputs[at] {
                output["data"] = content["data"].clone();
                output["metadata"] = content["metadata"].clone();
            }
        }
        if id.starts_with("elsewhere") {
            self.elsewhere
                .insert(id.to_owned(), content["data"].clone());
        }
    }

    fn nbformat(&self) -> Vec<Value> {
        let mut outputs = Vec::new();
        for shown in &self.cell.outputs {
            outputs.push(match shown {
                Shown::Stream { name, text, .. } => {
                    json!({"output_type": "stream", "name": name, "text": String::from_utf16_lossy(text)})
                }
                Shown::Other(value) => value.clone(),
            });
        }
        outputs
    }

    /// All that a person can see.
    fn shown(&self) -> Value {
        let widgets: BTreeMap<_, _> = self
            .widgets
            .iter()
            .map(|(id, area)| (id, format!("{area:?}")))
            .collect();
        json!([
            self.nbformat(),
            widgets,
            self.state,
            self.events,
            self.elsewhere
        ])
    }
}

impl Area {
    fn take(&mut self, flavor: Flavor, msg_type: &str, content: &Value, id: Option<String>) {
        if msg_type == "clear_output" {
            match content["wait"].as_bool() {
                Some(true) => self.clear_next = true,
                _ => self.clear(),
            }
            return;
        }
        if self.clear_next {
            self.clear();
            self.clear_next = false;
        }
        if msg_type == "stream" {
            let (new_name, more) = (
                content["name"].as_str().unwrap(),
                content["text"].as_str().unwrap(),
            );
            if !matches!(self.outputs.last(), Some(Shown::Stream { name, .. }) if name == new_name)
            {
                self.outputs.push(Shown::Stream {
                    name: new_name.into(),
                    text: Vec::new(),
                    cursor: 0,
                });
            }
            if let Some(Shown::Stream { text, cursor, .. }) = self.outputs.last_mut() {
                for unit in more.encode_utf16() {
                    process(text, cursor, unit);
                }
            }
            return;
        }
        let mut output = content.clone();
        let fields = output.as_object_mut().unwrap();
        fields.remove("transient");
        fields.insert("output_type".into(), msg_type.into());
        if let Some(id) = id
            && (msg_type == "display_data" || flavor == Flavor::Nbclient)
        {
            self.displays
                .entry(id)
                .or_default()
                .push(self.outputs.len());
        }
        self.outputs.push(Shown::Other(output));
    }

    fn clear(&mut self) {
        self.outputs.clear();
        self.displays.clear();
    }
}

/// JupyterLab's processText, one UTF-16 unit at a time.
fn process(text: &mut Vec<u16>, cursor: &mut usize, unit: u16) {
    const BACKSPACE: u16 = 8;
    const NEWLINE: u16 = 10;
    const RETURN: u16 = 13;
    match unit {
        NEWLINE => {
            text.push(NEWLINE);
            *cursor = text.len();
        }
        RETURN => {
            while *cursor > 0 && text[*cursor - 1] != NEWLINE {
                *cursor -= 1;
            }
        }
        BACKSPACE => {
            if *cursor > 0 && text[*cursor - 1] != NEWLINE {
                if *cursor < text.len() {
                    text.remove(*cursor);
                }
                text.remove(*cursor - 1);
                *cursor -= 1;
            }
        }
        _ => {
            if *cursor < text.len() {
                text[*cursor] = unit;
            } else {
                text.push(unit);
            }
            *cursor += 1;
        }
    }
}

type Op = (&'static str, Value);

fn message((msg_type, content): &Op) -> Message {
    Message {
        identities: vec![Bytes::from(format!("kernel.x.{msg_type}"))],
        header: Bytes::from(json!({"msg_id": "m", "msg_type": msg_type}).to_string()),
        parent_header: Bytes::from_static(br#"{"msg_id":"p","msg_type":"execute_request"}"#),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
    }
}

fn messages(ops: &[Op]) -> Vec<Message> {
    ops.iter().map(message).collect()
}

fn again(replayed: &[Replayed]) -> Vec<Message> {
    let again = |r: &Replayed| {
        let header = json!({"msg_id": "m", "msg_type": r.msg_type}).to_string();
        r.clone()
            .into_message(header.into(), Bytes::from_static(b"{}"))
    };
    replayed.iter().map(again).collect()
}

fn render<'a>(flavor: Flavor, messages: impl IntoIterator<Item = &'a Message>) -> Frontend {
    let mut frontend = Frontend::new(flavor);
    for message in messages {
        let content = serde_json::from_slice(&message.content).unwrap();
        frontend.take(&message.header().unwrap().msg_type, &content);
    }
    frontend
}

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

const FLAVORS: [Flavor; 2] = [Flavor::Lab, Flavor::Nbclient];

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

    let x = [
        x[0].clone(),
        x[1].clone(),
        display("update_display_data", 1000),
    ];
    let replay = all(&messages(&x));
    assert_eq!(replay[1].msg_type, "display_data");
    assert!(replay[1].content.len() > 1000);
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
