//! A slow and obvious model of what a cell shows, to compare compaction with.
//!
//! Written from JupyterLab's and nbclient's sources; shares no code with the compactor. Used by the properties
//! (tests/outputs_properties.rs) and by the fuzz target `compaction` (tests/fuzzed/compaction.rs).

use std::collections::BTreeMap;

use bytes::Bytes;
use farside::session::outputs::Replayed;
use farside::wire::Message;
use serde_json::{Value, json};

/// Both frontends.
pub const FLAVORS: [Flavor; 2] = [Flavor::Lab, Flavor::Nbclient];

/// Where the two differ: nbclient updates an execute_result with a display_id, JupyterLab does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flavor {
    Lab,
    Nbclient,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    Stream {
        name: String,
        text: Vec<u16>,
        cursor: usize,
    },
    Other(Value),
}

#[derive(Debug, Default)]
pub struct Area {
    pub outputs: Vec<Shown>,
    clear_next: bool,
    displays: BTreeMap<String, Vec<usize>>,
}

#[derive(Debug)]
pub struct Frontend {
    flavor: Flavor,
    pub cell: Area,
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

    pub fn nbformat(&self) -> Vec<Value> {
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
    pub fn shown(&self) -> Value {
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

/// A message: its type and content.
pub type Op = (&'static str, Value);

pub fn message((msg_type, content): &Op) -> Message {
    Message {
        identities: vec![Bytes::from(format!("kernel.x.{msg_type}"))],
        header: Bytes::from(json!({"msg_id": "m", "msg_type": msg_type}).to_string()),
        parent_header: Bytes::from_static(br#"{"msg_id":"p","msg_type":"execute_request"}"#),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(content.to_string()),
        buffers: Vec::new(),
    }
}

pub fn messages(ops: &[Op]) -> Vec<Message> {
    ops.iter().map(message).collect()
}

/// The messages that a replay sends, as they would be recorded.
pub fn again(replayed: &[Replayed]) -> Vec<Message> {
    let again = |r: &Replayed| {
        let header = json!({"msg_id": "m", "msg_type": r.msg_type}).to_string();
        r.clone()
            .into_message(header.into(), Bytes::from_static(b"{}"))
    };
    replayed.iter().map(again).collect()
}

pub fn render<'a>(flavor: Flavor, messages: impl IntoIterator<Item = &'a Message>) -> Frontend {
    let mut frontend = Frontend::new(flavor);
    for message in messages {
        let content = serde_json::from_slice(&message.content).unwrap();
        frontend.take(&message.header().unwrap().msg_type, &content);
    }
    frontend
}
