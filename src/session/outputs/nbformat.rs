//! PURE. Writes the outputs of a cell in nbformat 4.5, as a notebook file holds them.
//! Refuses to know files and cells; what an Output widget captured is the widget's, not the cell's.
//!
//! Source: nbformat 4.5 schema, "output"; the order of effects is nbclient's (`NotebookClient.process_message`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::Replayed;
use super::content::{self, Comm, Kind};
use super::line::OpenLine;

/// The `outputs` of a code cell that got these messages. Streams are as JupyterLab saves them: one for all that
/// follow each other, `\r` and `\b` applied.
pub fn to_nbformat(messages: &[Replayed]) -> Vec<Value> {
    let mut cell = Cell::default();
    for message in messages {
        cell.push(message);
    }
    cell.outputs.into_iter().map(Output::into_value).collect()
}

#[derive(Default)]
struct Cell {
    outputs: Vec<Output>,
    displays: HashMap<String, Vec<usize>>,
    clear_pending: bool,
    captured_by: HashSet<String>,
}

enum Output {
    Stream {
        name: String,
        text: String,
        line: OpenLine,
    },
    Other(Map<String, Value>),
}

impl Output {
    fn into_value(self) -> Value {
        match self {
            Self::Stream { name, text, line } => {
                json!({ "output_type": "stream", "name": name, "text": text + &line.visible() })
            }
            Self::Other(output) => Value::Object(output),
        }
    }
}

impl Cell {
    fn push(&mut self, message: &Replayed) {
        let Replayed {
            msg_type,
            content,
            buffers,
            ..
        } = message;
        match content::read(msg_type, content, buffers) {
            Kind::Comm(Comm::Capture {
                comm_id,
                begins: true,
            }) => {
                self.captured_by.insert(comm_id);
            }
            Kind::Comm(Comm::Capture {
                comm_id,
                begins: false,
            }) => {
                self.captured_by.remove(&comm_id);
            }
            Kind::Update { id } => self.update(id.as_deref(), content),
            Kind::Comm(_) | Kind::Frame | Kind::Aside => {}
            // Not in this cell, but what is in it under the same id is updated, as nbclient has it.
            Kind::Display { id } | Kind::Result { id } if !self.captured_by.is_empty() => {
                self.update(id.as_deref(), content);
            }
            _ if !self.captured_by.is_empty() => {}
            Kind::Stream { name, text } => self.stream(&name, &text),
            Kind::Display { id } | Kind::Result { id } => self.output(msg_type, id, content),
            Kind::Error => self.output(msg_type, None, content),
            Kind::Clear { wait: true } => self.clear_pending = true,
            Kind::Clear { wait: false } => self.clear(),
        }
    }

    fn stream(&mut self, new_name: &str, more: &str) {
        self.clear_if_pending();
        match self.outputs.last_mut() {
            Some(Output::Stream { name, text, line }) if name == new_name => {
                line.push(more, |done| text.push_str(done));
            }
            _ => {
                let (mut text, mut line) = (String::new(), OpenLine::new(usize::MAX));
                line.push(more, |done| text.push_str(done));
                self.outputs.push(Output::Stream {
                    name: new_name.to_owned(),
                    text,
                    line,
                });
            }
        }
    }

    fn output(&mut self, msg_type: &str, id: Option<Cow<str>>, content: &[u8]) {
        // A display of an id that is shown already updates what is shown, here as in JupyterLab and nbclient.
        self.update(id.as_deref(), content);
        self.clear_if_pending();
        let mut fields = object(content);
        let mut output = Map::new();
        output.insert("output_type".into(), msg_type.into());
        let wanted: &[&str] = match msg_type {
            "error" => &["ename", "evalue", "traceback"],
            "execute_result" => &["data", "metadata", "execution_count"],
            _ => &["data", "metadata"],
        };
        for &name in wanted {
            output.insert(
                name.into(),
                fields.remove(name).unwrap_or_else(|| default_of(name)),
            );
        }
        if let Some(id) = id {
            self.displays
                .entry(id.into_owned())
                .or_default()
                .push(self.outputs.len());
        }
        self.outputs.push(Output::Other(output));
    }

    fn update(&mut self, id: Option<&str>, content: &[u8]) {
        let Some(places) = id.and_then(|id| self.displays.get(id)) else {
            return;
        };
        let mut fields = object(content);
        for name in ["data", "metadata"] {
            let value = fields.remove(name).unwrap_or_else(|| default_of(name));
            for &place in places {
                if let Some(Output::Other(output)) = self.outputs.get_mut(place) {
                    output.insert(name.into(), value.clone());
                }
            }
        }
    }

    fn clear_if_pending(&mut self) {
        if self.clear_pending {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.clear_pending = false;
        self.outputs.clear();
        self.displays.clear();
    }
}

fn object(content: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(content).unwrap_or_default()
}

/// What the schema demands where an engine sent nothing.
fn default_of(field: &str) -> Value {
    match field {
        "data" | "metadata" => json!({}),
        "traceback" => json!([]),
        "execution_count" => Value::Null,
        _ => json!(""),
    }
}
