//! Attaching: a request that gets the outputs of an earlier execution.
//!
//! The core says when it begins and ends; the outputs themselves are made by each reader from the journal, at its
//! own speed ([`super::view`]).

use serde::Deserialize;
use serde_json::{Value, json};

use super::core::{Core, Lookup};
use super::event::{PastExecution, Query, Selector, Target};
use super::state::{Asked, Attachment};
use crate::journal::record::{ClientId, ExecutionNumber, ExecutionState, Extent, Note};
use crate::wire::{Channel, Message};

impl Core {
    pub(super) fn attach(&mut self, client: ClientId, message: Message, mut target: Target) {
        let asked = self.wait(client, Channel::Shell, message);
        target.session = self.other_session(target.session);
        let live = match &target.selector {
            _ if target.session.is_some() => None,
            // What frontends run by themselves, when they come or at any time, is not what a person comes back for.
            Selector::Latest | Selector::Before => self.state.running_for_person().map(|(n, _)| n),
            Selector::Number(n) => self.state.live.contains_key(n).then_some(*n),
            Selector::MsgId(msg_id) => self
                .state
                .execution_of_id(msg_id)
                .filter(|n| self.state.live.contains_key(n)),
        };
        if target.session.is_none() && target.selector == Selector::Latest {
            target.selector = match self.state.last_by_person {
                0 => Selector::Before,
                n => Selector::Number(n),
            };
        }
        match live {
            Some(n) => self.attach_to_live(&asked, n),
            None => self.lookup(Lookup::Attach(asked), Query::Execution(target)),
        }
    }

    /// What a person calls a session, if that is not plainly this one.
    pub(super) fn other_session(&self, named: Option<String>) -> Option<String> {
        named.filter(|name| *name != self.facts.id && *name != self.facts.name)
    }

    fn attach_to_live(&mut self, asked: &Asked, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        if !self.state.clients.contains_key(&asked.client) {
            // It left while the journal was looked into.
            self.refuse_with(asked, "Detached", "its frontend had gone; attach again");
            return;
        }
        let (first_seq, waiting) = (
            execution.first_seq,
            execution.state == ExecutionState::WaitingInput,
        );
        self.begin_attachment(asked, n, first_seq, String::new(), None);
        // An execution that was interrupted while it asked may not have said its end yet, and the next one asks already.
        if waiting && let Some(input) = self.state.input.clone().filter(|input| input.n == n) {
            let content = serde_json::from_str(&input.content).unwrap_or(Value::Null);
            self.ask(asked, n, &content);
        }
        self.still_busy(Some(asked.client));
    }

    pub(super) fn attach_to_past(&mut self, asked: Asked, found: Option<Box<PastExecution>>) {
        let Some(past) = found else {
            self.magic_error(
                &asked,
                "UnknownExecution",
                "there is no such execution in this session. `%farside history` lists those there are; \
                 `%farside attach SESSION:N` shows one of a session that has ended (`farside ls --all`).",
            );
            return;
        };
        let n = past.summary.n;
        if past.session.is_empty() && self.state.live.contains_key(&n) {
            self.attach_to_live(&asked, n);
            return;
        }
        self.begin_attachment(&asked, n, past.first_seq, past.session, past.extent);
        let content = past
            .reply_content
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_else(|| lost_reply(&past.summary));
        let msg_id = super::state::header_id(&asked.header);
        self.end_attachment(&Attachment { msg_id, asked, n }, &content);
    }

    fn begin_attachment(
        &mut self,
        asked: &Asked,
        n: ExecutionNumber,
        first_seq: u64,
        session: String,
        extent: Option<Extent>,
    ) {
        self.status(asked, "busy");
        self.note(Note::Attach {
            client: asked.client,
            parent: asked.header.clone(),
            n,
            first_seq,
            session,
            extent,
        });
    }

    /// The original's reply, idle, and, if another execution runs, its busy.
    pub(super) fn end_attachment(&mut self, attachment: &Attachment, reply_content: &Value) {
        let Attachment { msg_id, asked, .. } = attachment;
        self.note(Note::AttachEnded {
            client: asked.client,
            msg_id: msg_id.clone(),
        });
        self.reply(asked, 0, "execute_reply", reply_content);
        self.answered(asked);
    }

    /// Whether a request waits for a look-up of ours rather than for the engine.
    pub(super) fn is_looked_up(&self, asked: &Asked) -> bool {
        self.lookups.values().any(|lookup| lookup.asked() == asked)
    }

    /// Whether a request waits for an execution that it is attached to.
    pub(super) fn is_attached(&self, asked: &Asked) -> bool {
        self.state.is_attached(asked)
    }

    /// A client leaves, and with it go its attachments. What ends them it reads only if it comes back after all.
    pub(super) fn end_attachments_of(&mut self, client: ClientId) {
        let error = super::engine::error_content("Detached", "its frontend had gone; attach again");
        for attachment in self.state.attachments.clone() {
            if attachment.asked.client == client {
                self.end_attachment(&attachment, &error);
            }
        }
    }
}

/// The reply of an execution that never got one.
fn lost_reply(summary: &super::event::ExecutionSummary) -> Value {
    match summary.state {
        ExecutionState::Ok => {
            json!({ "status": "ok", "execution_count": null, "payload": [], "user_expressions": {} })
        }
        state => {
            let evalue = format!(
                "execution {} ended as {} without a reply",
                summary.n,
                state.name()
            );
            super::engine::error_content("ExecutionLost", &evalue)
        }
    }
}

/// `metadata.farside.attach`, where the request has it.
pub(super) fn wanted_attachment(metadata: &[u8]) -> Option<Target> {
    #[derive(Deserialize)]
    struct Metadata {
        farside: Option<Farside>,
    }
    #[derive(Deserialize)]
    struct Farside {
        attach: Option<String>,
    }
    let attach = serde_json::from_slice::<Metadata>(metadata)
        .ok()?
        .farside?
        .attach?;
    Some(Selector::MsgId(attach).into())
}
