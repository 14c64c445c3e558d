//! What must hold when a simulated session has come to rest.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use farside::journal::record::{Body, ClientId, Note, Record};
use farside::session::outputs::{Limits, compact};
use farside::session::state::{State, is_idle};
use farside::wire::{Channel, Message};

use super::{Asked, Client, Simulation};
use crate::bench::{id, line, recovered};

impl Simulation {
    pub(super) fn check_rest(&self) {
        let state = self.core.state();
        assert!(state.live.is_empty(), "open: {:?}", state.live);
        assert!(state.pending.is_empty(), "open: {:?}", state.pending);
        assert!(
            state.attachments.is_empty(),
            "open: {:?}",
            state.attachments
        );
        assert_eq!(state.input, None);
        assert_eq!(self.core.session_state(), "idle");
        if !self.failure_was_told {
            assert_eq!(recovered(&self.persisted), *state);
        }
        let checkpoint = serde_json::to_value(state).unwrap();
        assert_eq!(State::from_checkpoint(&checkpoint).as_ref(), Some(state));
    }

    pub(super) fn check_replies(&self) {
        let mut replies: HashMap<(ClientId, Channel, Bytes, String), usize> = HashMap::new();
        for record in &self.published {
            if let Body::Reply {
                channel: channel @ (Channel::Shell | Channel::Control),
                client,
                message,
                ..
            } = &record.body
                && !client.is_nil()
            {
                // (The hook's code was asked for by nobody.)
                let socket = message.identities[0].clone();
                let parent = message.parent().unwrap();
                let name = format!("{} {}", parent.msg_type, parent.msg_id);
                *replies
                    .entry((*client, *channel, socket, name))
                    .or_default() += 1;
            }
        }
        let ended = self.core.state().ended.is_some() || self.over;
        for Asked {
            client,
            channel,
            request,
        } in &self.asked
        {
            let header = request.header().unwrap();
            let name = format!("{} {}", header.msg_type, header.msg_id);
            let key = (*client, *channel, request.identities[0].clone(), name);
            let count = replies.remove(&key).unwrap_or(0);
            let attached = (self.clients.iter())
                .any(|other| other.frontend.client == *client && other.attached);
            // One that left did not send again what was lost with the host.
            let lost = !attached && self.host_died;
            assert!(
                count == 1 || count == 0 && (ended || lost),
                "{count} replies to {key:?}"
            );
        }
        assert!(replies.is_empty(), "replies to nothing: {replies:?}");
    }

    /// Busy and idle of each parent, as each client's subscribers see them.
    pub(super) fn check_statuses(&self) {
        if self.over {
            return;
        }
        let statuses: Vec<(Option<ClientId>, String, bool)> = (self.published.iter())
            .filter_map(|record| match &record.body {
                Body::Iopub {
                    client, message, ..
                } if message.header().unwrap().msg_type == "status" => {
                    let parent = message.parent().unwrap().msg_id.into_owned();
                    Some((*client, parent, !is_idle(&message.content)))
                }
                _ => None,
            })
            .collect();
        for client in &self.clients {
            let mut busy: HashMap<&str, bool> = HashMap::new();
            let mut last = None;
            let own = Some(client.frontend.client);
            for (_, parent, is_busy) in
                (statuses.iter()).filter(|(to, ..)| to.is_none() || *to == own)
            {
                let was_busy = busy.insert(parent, *is_busy);
                assert!(
                    *is_busy || was_busy == Some(true) || self.host_died,
                    "idle of {parent} without busy before it",
                );
                last = Some(*is_busy);
            }
            let open: Vec<_> = busy.iter().filter(|(_, busy)| **busy).collect();
            assert!(open.is_empty(), "busy for ever: {open:?}");
            assert_ne!(last, Some(true), "the last word is busy");
        }
    }

    /// An attached cell shows what the original's would.
    pub(super) fn check_attachments(&mut self) {
        for at in 0..self.clients.len() {
            if self.clients[at].linked {
                self.frontend_reads(at);
            }
            let client = &self.clients[at];
            let own = client.frontend.client;
            for (index, record) in self.published.iter().enumerate() {
                let Body::Note(Note::Attach {
                    client, parent, n, ..
                }) = &record.body
                else {
                    continue;
                };
                if *client != own {
                    continue;
                }
                let parent_id =
                    serde_json::from_str::<serde_json::Value>(parent).unwrap()["msg_id"]
                        .as_str()
                        .unwrap()
                        .to_owned();
                let is_end = |record: &Record| {
                    matches!(&record.body, Body::Note(Note::AttachEnded { client, msg_id })
                        if *client == own && *msg_id == parent_id)
                };
                if index >= self.clients[at].frontend.place() {
                    // It left before it read that.
                    continue;
                }
                let Some(length) = self.published[index..].iter().position(is_end) else {
                    assert!(self.over, "an attachment without end");
                    continue;
                };
                // One that left has seen the beginning of it.
                let end = (index + length).min(self.clients[at].frontend.place());
                self.check_attachment(&self.clients[at], *n, &parent_id, end);
            }
        }
    }

    pub(super) fn check_attachment(&self, client: &Client, n: u64, parent: &str, end: usize) {
        let is_output = |message: &&Message| message.header().unwrap().msg_type != "status";
        let original = (self.published[..end].iter()).filter_map(|record| match &record.body {
            Body::Iopub {
                client: None,
                execution,
                message,
            } if *execution == n => Some(message),
            _ => None,
        });
        let original: Vec<&Message> = original.filter(is_output).collect();
        let shown = (client.frontend.heard.iter())
            .filter(|(channel, message)| {
                *channel == Channel::Iopub
                    && message
                        .parent()
                        .is_some_and(|header| header.msg_id == parent)
            })
            .map(|(_, message)| message);
        let shown: Vec<&Message> = shown.filter(is_output).collect();
        let cell = |messages: &[&Message]| -> Vec<(String, Bytes)> {
            compact(messages.iter().copied(), Limits::default(), "")
                .into_iter()
                .map(|output| (output.msg_type.to_string(), output.content))
                .collect()
        };
        assert_eq!(cell(&shown), cell(&original), "{parent} attached to {n}");
        let is_ambiguous = |record: &Record| {
            matches!(&record.body, Body::Request { execution, message, .. }
                if *execution == n && self.asked_twice.contains(&message.header))
        };
        if self.published.iter().any(is_ambiguous) {
            // Where the first one's idle was lost, the input of the second of this msg_id counts as its own.
            return;
        }
        let inputs = |messages: &[&Message]| {
            (messages.iter())
                .filter(|message| message.header().unwrap().msg_type == "execute_input")
                .map(|message| message.content.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(inputs(&shown), inputs(&original));
    }

    /// No frontend gets two messages of one id, and all carry the one session.
    pub(super) fn check_ids(&self) {
        for client in &self.clients {
            let mut ids = HashSet::new();
            for (channel, message) in &client.frontend.heard {
                assert!(
                    ids.insert(id(message)),
                    "twice: {}",
                    line(*channel, message)
                );
                assert_eq!(
                    message.header().unwrap().session_id,
                    crate::bench::SESSION_ID
                );
            }
        }
    }
}
