//! Compaction against the slow and obvious model of a frontend.
//!
//! Input: a program of messages, a few bytes each (see [`Program`]).

#[path = "../outputs_model/mod.rs"]
mod outputs_model;

use farside::session::outputs::{Budget, Compactor, Limits, compact, to_nbformat};
use farside::wire::Message;
use outputs_model::{FLAVORS, Flavor, Op, again, messages, render};
use serde_json::json;

/// More say nothing new, and the model is slow.
const MESSAGES_MAX: usize = 200;

const PIECES: [&str; 16] = [
    "a",
    "bc",
    "def ",
    "é",
    "┃",
    "\u{1b}[31m",
    "\u{1b}[0m",
    "\"\\",
    "50%",
    "\n",
    "\r",
    "\u{8}",
    "\r\n",
    "😀",
    "\n\n",
    "x\u{8}\u{8}",
];

pub fn check(bytes: &[u8]) {
    let mut program = Program { bytes };
    let at = program.byte();
    let ops: Vec<Op> = std::iter::from_fn(|| program.op())
        .take(MESSAGES_MAX)
        .collect();
    let x = messages(&ops);
    let once = compact(&x, Limits::default(), "hint");
    let replay = again(&once);
    for flavor in FLAVORS {
        let shown = render(flavor, &x).shown();
        assert_eq!(
            render(flavor, &replay).shown(),
            shown,
            "{flavor:?}: {ops:#?}"
        );
    }
    assert_eq!(
        compact(&replay, Limits::default(), "hint"),
        once,
        "twice: {ops:#?}"
    );
    check_going_on(&x, usize::from(at) % (x.len() + 1));
    let shown = render(Flavor::Nbclient, &x).nbformat();
    assert_eq!(to_nbformat(&once), shown);
    check_bounds(&x);
    check_garbage(bytes);
}

/// Somebody attaches in the middle: the replay, and then what comes, live.
fn check_going_on(x: &[Message], at: usize) {
    let (before, after) = x.split_at(at);
    let replay = again(&compact(before, Limits::default(), "hint"));
    for flavor in FLAVORS {
        // Half an emoji left by `\b` is replayed as U+FFFD; live it could still meet another half.
        if render(flavor, before)
            .shown()
            .to_string()
            .contains('\u{FFFD}')
        {
            return;
        }
        let live = render(flavor, replay.iter().chain(after)).shown();
        assert_eq!(
            live,
            render(flavor, x).shown(),
            "{flavor:?}: attached at {at}"
        );
    }
}

/// Under small limits the result is small, whatever comes, and nothing panics.
fn check_bounds(x: &[Message]) {
    let small = Budget {
        text_bytes: 60,
        rich_bytes: 600,
        messages: 6,
    };
    let limits = Limits {
        head: small,
        tail: small,
        asides_head: small,
        asides_tail: small,
        line_units_max: 50,
    };
    let replay = compact(x, limits, "hint");
    assert!(replay.len() <= 4 * 6 + 4, "{} messages", replay.len());
    let bytes: usize = again(&replay).iter().map(Message::size_bytes).sum();
    assert!(bytes <= 16_000, "{bytes} bytes");
}

/// Contents that are no JSON, or not what they should be.
fn check_garbage(bytes: &[u8]) {
    const TYPES: [&str; 9] = [
        "stream",
        "display_data",
        "execute_result",
        "update_display_data",
        "error",
        "clear_output",
        "comm_open",
        "comm_msg",
        "other",
    ];
    let mut compactor = Compactor::new(Limits::default(), "hint");
    for line in bytes.split(|&byte| byte == b'\n') {
        let Some((kind, content)) = line.split_first() else {
            continue;
        };
        let message = Message {
            content: content.to_vec().into(),
            ..Message::default()
        };
        compactor.push_as(TYPES[usize::from(*kind) % TYPES.len()], &message);
    }
    to_nbformat(&compactor.replay());
}

/// Reads messages off bytes: one says which, the next ones fill it in.
struct Program<'a> {
    bytes: &'a [u8],
}

impl Program<'_> {
    /// 0 past the end.
    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((&first, rest)) => {
                self.bytes = rest;
                first
            }
            None => 0,
        }
    }

    fn op(&mut self) -> Option<Op> {
        if self.bytes.is_empty() {
            return None;
        }
        let choice = self.byte();
        Some(match choice % 16 {
            0..=6 => {
                let pieces = self.byte() % 8;
                let text: String = (0..pieces)
                    .map(|_| PIECES[usize::from(self.byte()) % PIECES.len()])
                    .collect();
                let name = if choice & 0x80 == 0 {
                    "stdout"
                } else {
                    "stderr"
                };
                ("stream", json!({ "name": name, "text": text }))
            }
            7..=9 => self.display(choice),
            10 => {
                let trait_name = ["value", "text", "max"][usize::from(self.byte()) % 3];
                let state = json!({ trait_name: self.byte() % 9 });
                let comm = format!("c{}", choice >> 7);
                (
                    "comm_msg",
                    json!({ "comm_id": comm, "data": { "method": "update", "state": state } }),
                )
            }
            11 => {
                let comm = format!("c{}", choice >> 7);
                match self.byte() % 2 {
                    0 => (
                        "comm_msg",
                        json!({ "comm_id": comm, "data": { "method": "custom", "content": {} } }),
                    ),
                    _ => (
                        "comm_open",
                        json!({ "comm_id": comm, "data": { "state": {} } }),
                    ),
                }
            }
            12 => {
                let msg_id = if choice & 0x80 == 0 { "p" } else { "" };
                let data = json!({ "method": "update", "state": { "msg_id": msg_id } });
                ("comm_msg", json!({ "comm_id": "out", "data": data }))
            }
            13 => ("clear_output", json!({ "wait": choice & 0x80 == 0 })),
            14 => match self.byte() % 3 {
                0 => (
                    "error",
                    json!({ "ename": "E", "evalue": "v", "traceback": ["\u{1b}[31mE"] }),
                ),
                1 => ("status", json!({ "execution_state": "busy" })),
                _ => ("something_new", json!({ "x": [1, 2] })),
            },
            _ => ("stream", json!({ "name": "stdout", "text": "line\n" })),
        })
    }

    fn display(&mut self, choice: u8) -> Op {
        let msg_type = match choice % 16 {
            7 => "display_data",
            8 => "execute_result",
            _ => "update_display_data",
        };
        let n = self.byte();
        let mut content =
            json!({ "data": { "text/plain": (n % 100).to_string() }, "metadata": { "n": n } });
        let id = match (msg_type, n % 4) {
            ("update_display_data", 3) => Some("elsewhere".to_owned()),
            (_, 3) => None,
            (_, id) => Some(format!("id{id}")),
        };
        if let Some(id) = id {
            content["transient"] = json!({ "display_id": id });
        }
        if msg_type == "execute_result" {
            content["execution_count"] = json!(7);
        }
        (msg_type, content)
    }
}

#[cfg(test)]
mod tests {
    use super::outputs_model::message;
    use super::*;

    #[test]
    fn the_model_can_tell_a_difference() {
        let ops: [Op; 2] = [
            ("stream", json!({ "name": "stdout", "text": "a\rb" })),
            (
                "display_data",
                json!({ "data": { "text/plain": "1" }, "metadata": {} }),
            ),
        ];
        let shown = render(Flavor::Lab, &messages(&ops)).shown();
        let lost = compact(&[message(&ops[0])], Limits::default(), "hint");
        assert_ne!(render(Flavor::Lab, &again(&lost)).shown(), shown);
    }
}
