//! The engine of a simulated session: what ipykernel does, one thing at a time.

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use farside::session::event::Event;
use farside::wire::{Channel, Message};
use serde_json::json;

use super::{Engine, Simulation};
use crate::bench::{content, message};

impl Simulation {
    pub(super) fn engine_sends(
        &mut self,
        channel: Channel,
        parent: &Bytes,
        msg_type: &str,
        body: serde_json::Value,
    ) {
        self.engine_messages += 1;
        let msg_id = format!("engine-{}", self.engine_messages);
        let message = message(msg_type, &msg_id, "engine", parent, body);
        let Some(engine) = &mut self.engine else {
            return;
        };
        // Nobody listens: it is lost.
        let heard = match channel {
            Channel::Iopub => engine.subscribed,
            Channel::Shell | Channel::Control | Channel::Stdin => engine.connected,
        };
        if heard {
            engine.sent.entry(channel).or_default().push_back(message);
        }
    }

    pub(super) fn engine_status(&mut self, request: &Message, state: &str) {
        let body = json!({ "execution_state": state });
        self.engine_sends(Channel::Iopub, &request.header, "status", body);
    }

    pub(super) fn engine_answers(
        &mut self,
        channel: Channel,
        request: &Message,
        body: serde_json::Value,
    ) {
        let reply = (request.header().unwrap().msg_type).replace("_request", "_reply");
        self.engine_sends(channel, &request.header, &reply, body);
    }

    /// One thing that ipykernel might do.
    pub(super) fn engine_works(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        if engine.dead {
            return;
        }
        if let Some(request) = engine.control.pop_front() {
            self.engine_status(&request, "busy");
            if request.header().unwrap().msg_type == "interrupt_request"
                && let Some(engine) = &mut self.engine
            {
                engine.interrupted = true;
            }
            let answer = self.engine_controls(&request);
            self.engine_answers(Channel::Control, &request, answer);
            self.engine_status(&request, "idle");
            return;
        }
        match engine.running.clone() {
            Some(request) => self.engine_runs(&request),
            None => {
                if let Some(request) = engine.shell.pop_front() {
                    self.engine_takes(request);
                }
            }
        }
        let subshell = |request: &Message| request.header().unwrap().subshell_id.is_some();
        if let Some(engine) = &mut self.engine
            && let Some(at) = engine.shell.iter().position(subshell)
            && let Some(request) = engine.shell.remove(at)
        {
            self.engine_takes(request);
        }
    }

    pub(super) fn engine_takes(&mut self, request: Message) {
        let msg_type = request.header().unwrap().msg_type.into_owned();
        self.engine_status(&request, "busy");
        match msg_type.as_str() {
            "execute_request" => {
                let body = json!({ "code": content(&request)["code"], "execution_count": 1 });
                self.engine_sends(Channel::Iopub, &request.header, "execute_input", body);
                if let Some(engine) = &mut self.engine {
                    engine.interrupted = false;
                    engine.running = Some(request);
                }
                return;
            }
            "comm_msg" => {}
            "kernel_info_request" => {
                let body = json!({ "status": "ok", "implementation": "ipython", "banner": "" });
                self.engine_answers(Channel::Shell, &request, body);
            }
            _ => {
                let answer = self.engine_answer_beside(&request);
                self.engine_answers(Channel::Shell, &request, answer);
            }
        }
        self.engine_status(&request, "idle");
    }

    pub(super) fn engine_runs(&mut self, request: &Message) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        if engine.interrupted {
            engine.interrupted = false;
            self.engine_finishes(request, true);
            return;
        }
        if engine.asks {
            if engine.stdin.pop_front().is_some() {
                engine.asks = false;
            }
            return;
        }
        let choice = if self.calm { 9 } else { self.rng.below(12) };
        match choice {
            0..=3 => {
                let text = *self.rng.pick(&["a", "b\n", "50%\r", "x\n\u{8}y"]).unwrap();
                let name = if self.rng.one_in(3) {
                    "stderr"
                } else {
                    "stdout"
                };
                let body = json!({ "name": name, "text": text });
                self.engine_sends(Channel::Iopub, &request.header, "stream", body);
            }
            4 => {
                let number = self.rng.below(3);
                let body = json!({ "data": { "text/plain": number.to_string() }, "metadata": {},
                    "transient": { "display_id": format!("d{number}") } });
                let msg_type = *self
                    .rng
                    .pick(&["display_data", "update_display_data"])
                    .unwrap();
                self.engine_sends(Channel::Iopub, &request.header, msg_type, body);
            }
            5 => {
                let body = json!({ "wait": self.rng.one_in(2) });
                self.engine_sends(Channel::Iopub, &request.header, "clear_output", body);
            }
            // Which of two with one msg_id asks, nobody can tell.
            6 if !self.asked_twice.contains(&request.header) => {
                if let Some(engine) = &mut self.engine {
                    engine.asks = true;
                }
                let body = json!({ "prompt": "?", "password": false });
                self.engine_sends(Channel::Stdin, &request.header, "input_request", body);
            }
            7 => self.engine_finishes(request, true),
            _ => self.engine_finishes(request, false),
        }
    }

    /// It prints much at once, and the host takes all of it in one turn.
    pub(super) fn engine_floods(&mut self) {
        let Some(engine) = &self.engine else { return };
        let Some(request) = engine.running.clone() else {
            return;
        };
        if engine.dead || engine.asks || !engine.subscribed {
            return;
        }
        for number in 0..50 + self.rng.below(150) {
            let text = format!("{number}{}", ["\n", "\r", ""][number % 3]);
            let body = json!({ "name": "stdout", "text": text });
            self.engine_sends(Channel::Iopub, &request.header, "stream", body);
        }
        self.commit();
        self.holds = true;
        while let Some(engine) = &mut self.engine
            && !engine.dead
            && let Some(sent) = engine.sent.get_mut(&Channel::Iopub)
            && let Some(message) = sent.pop_front()
        {
            let channel = Channel::Iopub;
            self.event(Event::EngineMessage {
                channel,
                message,
                heard: 0,
            });
        }
        self.holds = false;
        self.commit();
    }

    pub(super) fn engine_finishes(&mut self, request: &Message, error: bool) {
        let ok = json!({ "status": "ok", "execution_count": 1 });
        let failed = json!({ "status": "error", "ename": "E", "evalue": "", "traceback": [] });
        if error {
            self.engine_sends(Channel::Iopub, &request.header, "error", failed.clone());
        }
        self.engine_answers(Channel::Shell, request, if error { failed } else { ok });
        self.engine_status(request, "idle");
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.running = None;
        engine.asks = false;
        engine.stdin.clear();
        if error {
            let is_execution =
                |request: &Message| request.header().unwrap().msg_type == "execute_request";
            let (aborted, others) = engine.shell.drain(..).partition(is_execution);
            engine.shell = others;
            let aborted: VecDeque<Message> = aborted;
            for request in aborted {
                self.engine_status(&request, "busy");
                self.engine_answers(Channel::Shell, &request, json!({ "status": "aborted" }));
                self.engine_status(&request, "idle");
            }
        }
    }

    /// The process ends; of what it had sent, some has left it.
    pub(super) fn engine_dies(&mut self) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.dead = true;
        self.engine_died = true;
        let channels = [
            Channel::Shell,
            Channel::Control,
            Channel::Stdin,
            Channel::Iopub,
        ];
        for channel in channels {
            if let Some(sent) = engine.sent.get_mut(&channel) {
                let keep = self.rng.below(sent.len() + 1);
                sent.truncate(keep);
            }
        }
    }

    /// Hands something of the engine's to the host. `false`: there is nothing.
    pub(super) fn deliver(&mut self) -> bool {
        let Some(engine) = &mut self.engine else {
            return false;
        };
        let channels = [
            Channel::Shell,
            Channel::Control,
            Channel::Stdin,
            Channel::Iopub,
        ];
        let full: Vec<Channel> = (channels.into_iter())
            .filter(|channel| {
                engine
                    .sent
                    .get(channel)
                    .is_some_and(|sent| !sent.is_empty())
            })
            .collect();
        if let Some(channel) = self.rng.pick(&full).copied() {
            let message = engine
                .sent
                .get_mut(&channel)
                .and_then(VecDeque::pop_front)
                .unwrap();
            self.event(Event::EngineMessage {
                channel,
                message,
                heard: 0,
            });
            return true;
        }
        if !engine.dead {
            return false;
        }
        let generation = engine.generation;
        self.engine = None;
        self.engine_ended = true;
        self.event(Event::EngineEnded {
            generation,
            end: None,
            why: "was killed".into(),
        });
        true
    }

    /// Its next step into life. `false`: it is in it.
    pub(super) fn engine_grows(&mut self) -> bool {
        if let Some(generation) = self.to_spawn.take() {
            if !self.calm && self.rng.one_in(12) {
                let why = "the engine cannot be started: no such file".into();
                self.event(Event::EngineFailed { generation, why });
                return true;
            }
            self.engine = Some(Engine {
                generation,
                connected: false,
                subscribed: false,
                shell: VecDeque::new(),
                control: VecDeque::new(),
                stdin: VecDeque::new(),
                subshells: BTreeSet::new(),
                sent: HashMap::new(),
                running: None,
                asks: false,
                interrupted: false,
                stopping: false,
                dead: false,
            });
            self.deleted_subshells.clear();
            self.event(Event::EngineStarted {
                generation,
                pid: 100 + generation,
                start_time: 1,
            });
            return true;
        }
        let Some(engine) = &mut self.engine else {
            return false;
        };
        if engine.dead {
            return false;
        }
        let generation = engine.generation;
        if !engine.connected {
            engine.connected = true;
            self.event(Event::EngineConnected { generation });
            return true;
        }
        if !engine.subscribed {
            engine.subscribed = true;
            return true;
        }
        if engine.stopping {
            self.engine_dies();
            return true;
        }
        false
    }

    /// The host's timer: the engine has not been heard yet.
    pub(super) fn engine_is_asked_again(&mut self) -> bool {
        let Some(engine) = &self.engine else {
            return false;
        };
        if engine.dead || !engine.connected || !self.core.awaits_engine() {
            return false;
        }
        let generation = engine.generation;
        self.event(Event::EngineConnected { generation });
        true
    }
}
