//! Subshells in a simulated session: frontends create, use and delete them, and vanish; what farside then deletes.

use std::collections::BTreeSet;

use farside::journal::record::{Body, Note, Record};
use farside::session::clock::Now;
use farside::session::core::Facts;
use farside::session::event::{Effect, Event};
use farside::wire::{Channel, Header, Message};
use serde_json::{Value, json};

use super::Simulation;
use super::host::identity;
use crate::bench::{SESSION_ID, content};

/// The setting `subshell_timeout`, microseconds.
const TIMEOUT: u64 = 600_000_000;

/// A session of which nothing but subshells comes to an end.
pub(super) fn stays_for_them(facts: &mut Facts) {
    for limit in [
        "idle_timeout",
        "idle_timeout_detached",
        "max_lifetime",
        "cpu_budget",
    ] {
        facts.settings.insert(limit.into(), "none".into());
    }
}

impl Simulation {
    pub(super) fn something_about_subshells(&mut self) {
        match self.rng.below(9) {
            0 | 1 => {
                if let Some(at) = self.a_client() {
                    self.asks_for_subshells(at);
                }
            }
            2 | 3 => self.socket_comes_or_goes(),
            4 | 5 => {
                self.now += self.rng.below(25) as u64 * TIMEOUT / 10;
                self.event(Event::Tick);
            }
            6 => self.engine_works(),
            _ => {
                self.deliver();
            }
        }
    }

    // Frontends.

    pub(super) fn asks_for_subshells(&mut self, at: usize) {
        let known: Vec<String> = self.subshells.keys().cloned().collect();
        let known = self.rng.pick(&known).cloned();
        let id = known.unwrap_or_else(|| "never".into());
        let (channel, request) = match self.rng.below(6) {
            0 | 1 => {
                let request = self.request(at, "create_subshell_request", json!({}));
                (Channel::Control, request)
            }
            2 => {
                let content = json!({ "subshell_id": id });
                let request = self.request(at, "delete_subshell_request", content);
                (Channel::Control, request)
            }
            choice => {
                let msg_type = ["comm_info_request", "comm_msg"][choice % 2];
                let mut request = self.request(at, msg_type, json!({}));
                let header = String::from_utf8(request.header.to_vec()).unwrap();
                let field = format!("{{\"subshell_id\":\"{id}\",");
                request.header = header.replacen('{', &field, 1).into();
                (Channel::Shell, request)
            }
        };
        self.send(at, channel, request);
    }

    /// A launcher's one socket.
    pub(super) fn socket_comes_or_goes(&mut self) {
        let Some(at) = self.a_client() else { return };
        self.was_there(at);
        self.clients[at].connected ^= true;
        self.tells_of_its_socket(at);
    }

    pub(super) fn tells_of_its_socket(&mut self, at: usize) {
        let client = &self.clients[at];
        if !client.tells || !client.linked {
            return;
        }
        let identities = match client.connected {
            true => vec![format!("socket {at}").into_bytes()],
            false => Vec::new(),
        };
        let client = client.frontend.client;
        self.event(Event::Frontends { client, identities });
    }

    /// One whose socket was gone comes back for that, and is told of before or behind it.
    pub(super) fn says_something(&mut self, at: usize, request: &Message) {
        self.clients[at].last_there = self.now;
        if let Some(subshell) = request.header().unwrap().subshell_id
            && let Some(users) = self.subshells.get_mut(subshell.as_ref())
        {
            users.insert(at);
        }
        if !self.clients[at].connected && self.rng.one_in(2) {
            self.clients[at].connected = true;
            self.tells_of_its_socket(at);
        }
    }

    /// As far as the host was told.
    fn is_there(&self, at: usize) -> bool {
        let client = &self.clients[at];
        client.attached && (client.connected || !client.tells)
    }

    pub(super) fn was_there(&mut self, at: usize) {
        if self.is_there(at) {
            self.clients[at].last_there = self.now;
        }
    }

    /// A frontend learns what it has created.
    pub(super) fn hears_of_subshell(&mut self, record: &Record) {
        if let Body::Reply {
            client, message, ..
        } = &record.body
            && message.header().unwrap().msg_type == "create_subshell_reply"
            && let Some(id) = content(message)["subshell_id"].as_str()
            && let Some(at) =
                (self.clients.iter()).position(|other| other.frontend.client == *client)
        {
            self.subshells.insert(id.to_owned(), BTreeSet::from([at]));
        }
    }

    // The engine.

    pub(super) fn engine_controls(&mut self, request: &Message) -> Value {
        let number = self.engine_messages;
        let Some(engine) = &mut self.engine else {
            return Value::Null;
        };
        let about = content(request)["subshell_id"].clone();
        match request.header().unwrap().msg_type.as_ref() {
            "create_subshell_request" => {
                let id = format!("subshell {number}");
                engine.subshells.insert(id.clone());
                json!({ "status": "ok", "subshell_id": id })
            }
            "delete_subshell_request" if !engine.subshells.remove(about.as_str().unwrap()) => {
                json!({ "status": "error", "evalue": "Unknown subshell_id" })
            }
            _ => json!({ "status": "ok" }),
        }
    }

    /// To a request that may be for a subshell.
    pub(super) fn engine_answer_beside(&self, request: &Message) -> Value {
        let has_it =
            |id: &str| (self.engine.as_ref()).is_some_and(|engine| engine.subshells.contains(id));
        match request.header().unwrap().subshell_id {
            Some(id) if !has_it(&id) => {
                json!({ "status": "error", "ename": "UnknownSubshellError" })
            }
            Some(_) | None => json!({ "status": "ok" }),
        }
    }

    // The host.

    /// Nothing goes to a subshell that farside has deleted.
    fn check_subshell_of(&self, message: &Message) {
        if let Some(id) = message.header().unwrap().subshell_id {
            assert!(
                !self.deleted_subshells.contains(id.as_ref()),
                "to a subshell that farside has deleted"
            );
        }
    }

    pub(super) fn check_deletions(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Record(Record {
                    body: Body::Reply { message, .. },
                    ..
                }) => {
                    if let Some(request) = message.parent() {
                        self.answered.insert(name(&request));
                    }
                }
                Effect::ToEngine(channel, message) => {
                    self.check_subshell_of(message);
                    let header = message.header().unwrap();
                    let deletes = header.msg_type == "delete_subshell_request";
                    if *channel == Channel::Control && deletes && header.session_id == SESSION_ID {
                        self.check_deletion(message);
                    }
                }
                _ => {}
            }
        }
    }

    /// Farside deletes a subshell only when nobody who uses it has been there for long and nothing waits in it.
    fn check_deletion(&mut self, message: &Message) {
        let id = content(message)["subshell_id"].as_str().unwrap().to_owned();
        // (Of one whose creation is not written yet no frontend knows.)
        for at in self.subshells.get(&id).into_iter().flatten() {
            assert!(!self.is_there(*at), "{id} is in use by client {}", at + 1);
            let away = self.now - self.clients[*at].last_there;
            assert!(away >= TIMEOUT, "{id}: client {} may come back", at + 1);
        }
        let waits = (self.asked.iter()).find(|asked| {
            let header = asked.request.header().unwrap();
            header.subshell_id.as_deref() == Some(id.as_str())
                && header.msg_type.ends_with("_request")
                && self.recorded.contains(&identity(&asked.request))
                && !self.answered.contains(&name(&header))
                && !self
                    .watch
                    .has_reply(asked.client, asked.channel, &asked.request)
        });
        let waits = waits.map(|asked| &asked.request);
        assert_eq!(waits, None, "something waits in {id}");
        self.deleted_subshells.insert(id);
    }

    /// A new host knows what stands in the journal.
    pub(super) fn subshells_of_last_host(&mut self) {
        let known: BTreeSet<&str> = (self.persisted.iter())
            .filter_map(|record| match &record.body {
                Body::Note(Note::SubshellDeleted { subshell_id, .. }) => Some(subshell_id.as_str()),
                _ => None,
            })
            .collect();
        self.deleted_subshells
            .retain(|id| known.contains(id.as_str()));
    }

    /// When all are gone, with their launchers or without, no subshell stays that was ever heard of.
    pub(super) fn check_subshells(&mut self) {
        for at in 0..self.clients.len() {
            self.clients[at].connected = false;
            if self.clients[at].tells && self.clients[at].linked && self.rng.one_in(2) {
                self.tells_of_its_socket(at);
            } else if self.clients[at].attached {
                self.leaves(at);
            }
        }
        let until = self.now + TIMEOUT + 1_000_000;
        while !self.over && self.engine.is_some() {
            if self.deliver() {
                continue;
            }
            let engine = self.engine.as_ref();
            if engine.is_some_and(|engine| !engine.control.is_empty()) {
                self.engine_works();
                continue;
            }
            let due = self.core.next_deadline(Now::from(self.now));
            match due.map(|due| self.now + due).filter(|due| *due <= until) {
                Some(due) => {
                    self.now = due;
                    self.event(Event::Tick);
                }
                None => break,
            }
        }
        if self.over || self.engine.is_none() || self.core.state().lifetime.ending.is_some() {
            return;
        }
        let left: Vec<&str> = self.core.state().subshells.ids().collect();
        assert_eq!(left, [""; 0], "nobody uses them, and they stay");
    }
}

fn name(header: &Header<'_>) -> (String, String) {
    (header.msg_id.to_string(), header.msg_type.to_string())
}
