//! The frontends of a simulated session: they come, ask all kinds of things, answer questions, and go.

use std::collections::HashSet;

use bytes::Bytes;
use farside::journal::record::ClientId;
use farside::session::event::{Command, Event};
use farside::wire::{Channel, Message};
use serde_json::json;

use super::{Asked, Client, Simulation};
use crate::bench::{Frontend, id, message};

impl Simulation {
    pub(super) fn attach(&mut self) {
        // Whoever comes begins behind all that was there.
        self.commit();
        let client = ClientId::from_u128(self.clients.len() as u128 + 1);
        let mut frontend = Frontend::new(client);
        frontend.starts_behind(&self.published);
        self.clients.push(Client {
            frontend,
            attached: true,
            linked: true,
            number: 0,
            unacknowledged: Vec::new(),
            answered_questions: HashSet::new(),
            tells: !self.rng.one_in(4),
            connected: true,
            last_there: self.now,
        });
        self.attached(client);
        self.tells_of_its_socket(self.clients.len() - 1);
    }

    /// Somebody leaves for good; or a link breaks, and comes back soon, or too late, or never.
    pub(super) fn comes_or_goes(&mut self) {
        let away: Vec<usize> = (self.clients.iter().enumerate())
            .filter(|(_, client)| !client.linked)
            .map(|(at, _)| at)
            .collect();
        if let Some(&at) = self.rng.pick(&away)
            && self.rng.one_in(2)
        {
            if self.clients[at].attached && self.rng.one_in(3) {
                self.leaves(at);
            } else if self.clients.iter().filter(|client| client.attached).count() < 4 {
                self.link_returns(at);
            }
            return;
        }
        let Some(at) = self.a_client() else { return };
        if self.rng.one_in(3) {
            self.leaves(at);
        } else {
            self.say(|| format!("-- the link of client {} breaks", at + 1));
            self.clients[at].linked = false;
        }
    }

    /// It counts as gone. (It may not know it, and come back.)
    pub(super) fn leaves(&mut self, at: usize) {
        self.was_there(at);
        self.clients[at].attached = false;
        self.clients[at].linked = false;
        self.detached(self.clients[at].frontend.client);
    }

    /// It goes on reading where it was, and sends what was not acknowledged once more.
    pub(super) fn link_returns(&mut self, at: usize) {
        self.commit();
        if self.over {
            return;
        }
        self.say(|| format!("-- client {} is back", at + 1));
        let client = self.clients[at].frontend.client;
        self.clients[at].frontend.comes_back();
        self.clients[at].attached = true;
        self.clients[at].linked = true;
        if !self.core.state().clients.contains_key(&client) {
            self.attached(client);
        }
        self.tells_of_its_socket(at);
        for (channel, message) in self.clients[at].unacknowledged.clone() {
            self.event(Event::Request {
                client,
                channel,
                message,
                again: true,
            });
        }
    }

    pub(super) fn attached(&mut self, client: ClientId) {
        self.event(Event::ClientAttached {
            client,
            kind: "launcher".into(),
            pid: 1,
        });
    }

    pub(super) fn detached(&mut self, client: ClientId) {
        let why = "it left".into();
        self.event(Event::ClientDetached { client, why });
    }

    pub(super) fn a_client(&mut self) -> Option<usize> {
        let attached: Vec<usize> = (self.clients.iter().enumerate())
            .filter(|(_, client)| client.attached && client.linked)
            .map(|(at, _)| at)
            .collect();
        self.rng.pick(&attached).copied()
    }

    pub(super) fn send(&mut self, at: usize, channel: Channel, request: Message) {
        self.says_something(at, &request);
        let client = self.clients[at].frontend.client;
        self.clients[at]
            .unacknowledged
            .push((channel, request.clone()));
        self.watch.asked(client, channel, &request);
        if request.header().unwrap().msg_type.ends_with("_request") {
            self.asked.push(Asked {
                client,
                channel,
                request: request.clone(),
            });
        }
        self.event(Event::Request {
            client,
            channel,
            message: request,
            again: false,
        });
    }

    pub(super) fn request(
        &mut self,
        at: usize,
        msg_type: &str,
        body: serde_json::Value,
    ) -> Message {
        let client = &mut self.clients[at];
        client.number += 1;
        let msg_id = format!("c{at}-{}", client.number);
        let mut request = message(
            msg_type,
            &msg_id,
            &format!("session {at}"),
            &Bytes::new(),
            body,
        );
        request.identities = vec![Bytes::from(format!("socket {at}"))];
        request
    }

    pub(super) fn asks_something(&mut self) {
        let Some(at) = self.a_client() else { return };
        let code = format!("{}", self.rng.below(1000));
        match self.rng.below(40) {
            0..=13 => {
                let mut request = self.request(at, "execute_request", json!({ "code": code }));
                if self.rng.one_in(2) {
                    let cell = self.rng.below(3).to_string();
                    request.metadata = json!({ "cellId": cell }).to_string().into();
                }
                self.send(at, Channel::Shell, request.clone());
                if self.rng.one_in(25) && !self.host_died {
                    // jupyter_client's clients of one manager count from the same number.
                    request.identities = vec![Bytes::from_static(b"another socket")];
                    self.asked_twice.insert(request.header.clone());
                    self.send(at, Channel::Shell, request);
                }
            }
            14..=16 => {
                let channel = *self.rng.pick(&[Channel::Shell, Channel::Control]).unwrap();
                let request = self.request(at, "kernel_info_request", json!({}));
                self.send(at, channel, request);
            }
            17..=18 => {
                let request = self.request(at, "complete_request", json!({}));
                self.send(at, Channel::Shell, request.clone());
                let mut same = request;
                same.identities = vec![Bytes::from_static(b"another socket")];
                self.send(at, Channel::Shell, same);
            }
            19 => self.asks_for_subshells(at),
            20 => {
                let request = self.request(at, "comm_msg", json!({}));
                self.send(at, Channel::Shell, request);
            }
            21 => {
                let request = self.request(at, "debug_request", json!({}));
                self.send(at, Channel::Control, request);
            }
            22..=27 => {
                let ids: Vec<String> = (self.asked.iter())
                    .map(|asked| id(&asked.request))
                    .collect();
                let wanted = self
                    .rng
                    .pick(&ids)
                    .cloned()
                    .unwrap_or_else(|| "none".into());
                let mut request = self.request(at, "execute_request", json!({ "code": "x" }));
                let metadata = json!({ "farside": { "attach": wanted } });
                request.metadata = metadata.to_string().into();
                self.send(at, Channel::Shell, request);
            }
            28..=33 => {
                let n = self.rng.below(6);
                let attach = format!("%farside attach {n}");
                let magics = [
                    "%farside attach",
                    "%farside status",
                    "%farside history",
                    "%farside x",
                    &attach,
                ];
                let code = *self.rng.pick(&magics).unwrap();
                let request = self.request(at, "execute_request", json!({ "code": code }));
                self.send(at, Channel::Shell, request);
            }
            34 => {
                let request = self.request(at, "farside_list_request", json!({}));
                self.send(at, Channel::Shell, request);
            }
            35..=36 => {
                let request = self.request(at, "interrupt_request", json!({}));
                self.send(at, Channel::Control, request);
            }
            37 => {
                let restart = !self.rng.one_in(8);
                let request = self.request(at, "shutdown_request", json!({ "restart": restart }));
                self.send(at, Channel::Control, request);
            }
            38 => {
                let client = self.clients[at].frontend.client;
                let command = match self.rng.below(12) {
                    0 => Command::Stop {
                        now: self.rng.one_in(2),
                        reason: "stopped".into(),
                    },
                    1..=3 => Command::Restart,
                    _ => Command::Interrupt,
                };
                self.event(Event::Command {
                    id: 1,
                    client,
                    command,
                });
            }
            _ => self.answers_a_question(at),
        }
    }

    pub(super) fn answers_a_question(&mut self, at: usize) {
        self.frontend_reads(at);
        let client = &mut self.clients[at];
        let questions: Vec<Message> = (client.frontend.heard.iter())
            .filter(|(channel, _)| *channel == Channel::Stdin)
            .map(|(_, message)| message.clone())
            .filter(|message| !client.answered_questions.contains(&id(message)))
            .collect();
        let Some(question) = self.rng.pick(&questions).cloned() else {
            return;
        };
        self.clients[at].answered_questions.insert(id(&question));
        let mut reply = self.request(at, "input_reply", json!({ "value": "v" }));
        if self.rng.one_in(2) {
            reply.parent_header = question.header;
        }
        self.send(at, Channel::Stdin, reply);
    }
}
