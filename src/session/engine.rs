//! The core's engine side: its messages, its life and death.

use serde_json::{Value, json};

use super::clock::Now;
use super::continuity::Loss;
use super::core::{Core, Engine, Then};
use super::event::{Effect, NotifyOn};
use super::state::{Asked, OpenBusy, RequestName, Told, is_idle};
use crate::journal::record::{Body, ExecutionNumber, ExecutionState, Note, ProcessEnd};
use crate::wire::message::{PROTOCOL_VERSION, with_session_id};
use crate::wire::{Channel, Message};

impl Core {
    pub(super) fn start_engine(&mut self) {
        self.engine = Engine::Starting;
        let generation = self.state.generation + 1;
        self.effect(Effect::StartEngine { generation });
    }

    pub(super) fn on_engine_connected(&mut self, generation: u32) {
        if generation != self.state.generation || matches!(self.engine, Engine::Stopping(_)) {
            return;
        }
        let adopted = self.adopted.is_some();
        if self
            .adopted
            .as_ref()
            .is_some_and(|adoption| adoption.awaits_reply())
        {
            // It is busy, and will come to the probe that it has.
            return;
        }
        if self.engine != Engine::Connected {
            self.engine = Engine::Probing;
        }
        self.probe();
        if adopted {
            // It may be busy for long, and must be interruptible meanwhile; we were its subscriber before.
            self.engine_is_heard();
        }
    }

    /// Asks the engine for a sign of life, which comes behind all that it was asked before.
    pub(super) fn probe(&mut self) {
        let probe = self.message("kernel_info_request", "{}", &json!({}));
        if let Ok(header) = probe.header() {
            let msg_id = header.msg_id.into_owned();
            self.adoption_probed(&msg_id);
            self.probes.insert(msg_id);
        }
        self.effect(Effect::ToEngine(Channel::Shell, probe));
    }

    /// The engine's iopub reaches us: what it is asked from now on, we will see the outputs of.
    fn engine_is_heard(&mut self) {
        self.engine = Engine::Connected;
        for (channel, message) in self.outbox.take() {
            self.effect(Effect::ToEngine(channel, message));
        }
    }

    pub(super) fn on_engine_message(&mut self, channel: Channel, mut message: Message, heard: u32) {
        let Ok(header) = message.header() else {
            tracing::warn!(
                ?channel,
                "the engine sent a message without a readable header; dropped"
            );
            return;
        };
        let msg_type = header.msg_type.clone().into_owned();
        if channel == Channel::Iopub && self.engine == Engine::Probing {
            self.engine_is_heard();
        }
        if let Some(pid) = self.state.engine_pid {
            let in_order = channel == Channel::Iopub;
            let Now { wall, awake, .. } = self.clocks;
            self.continuity
                .see(&header.msg_id, &message.header, pid, in_order, wall, awake);
        }
        let parent = message.parent();
        let n = parent
            .as_ref()
            .and_then(|parent| self.state.execution_of(parent, channel))
            .unwrap_or(0);
        if let Some(probe) = parent
            .as_ref()
            .and_then(|parent| self.probes.get(parent.msg_id.as_ref()).cloned())
        {
            self.on_probe_message(channel, &msg_type, &probe, &message);
            return;
        }
        // ipykernel makes up a parent of its own for what no request caused.
        let is_own_parent = parent
            .as_ref()
            .is_some_and(|parent| parent.session_id == header.session_id);
        let asked = parent
            .filter(|_| n == 0 && channel != Channel::Iopub)
            .map(|parent| RequestName::of(&parent));
        if is_own_parent {
            message.parent_header = with_session_id(&message.parent_header, &self.facts.session_id);
        }
        message.header = with_session_id(&message.header, &self.facts.session_id);
        match channel {
            Channel::Iopub => self.on_iopub(&msg_type, n, message, heard),
            Channel::Stdin => self.on_input_request(n, asked.as_ref(), message, heard),
            Channel::Shell | Channel::Control => {
                self.on_reply(channel, n, asked.as_ref(), message, heard);
            }
        }
    }

    fn on_iopub(&mut self, msg_type: &str, n: ExecutionNumber, message: Message, heard: u32) {
        if msg_type == "iopub_welcome" {
            // To us as its subscriber; each frontend gets one of its own.
            return;
        }
        if matches!(self.engine, Engine::Stopping(_))
            && msg_type == "status"
            && !self.state.live.contains_key(&n)
        {
            // What it was asked was answered in its place already, with an idle; and of its own shutdown_request
            // nobody knows.
            return;
        }
        let queued = self
            .state
            .live
            .get(&n)
            .is_some_and(|execution| execution.state == ExecutionState::Queued);
        if queued
            && (msg_type == "execute_input" || (msg_type == "status" && !is_idle(&message.content)))
        {
            self.execution_state(n, ExecutionState::Running, None);
        }
        let is_idle = msg_type == "status" && is_idle(&message.content);
        if is_idle && self.state.live.contains_key(&n) {
            self.tell_of_losses(true);
        }
        let body = Body::Iopub {
            client: None,
            execution: n,
            message,
        };
        self.emit_heard(heard, body);
        if is_idle {
            // It may be one of its other threads that is done: that of control, or a subshell's.
            self.still_busy_but_for(n);
        }
        if msg_type == "status" {
            self.finish_if_done(n);
        }
    }

    fn on_reply(
        &mut self,
        channel: Channel,
        n: ExecutionNumber,
        request: Option<&RequestName>,
        mut message: Message,
        heard: u32,
    ) {
        let asked = match self.state.live.get(&n) {
            Some(execution) if execution.reply.is_none() => Some(&execution.asked),
            Some(_) => None,
            None => request.and_then(|request| self.state.pending_of(request, channel)),
        };
        let Some(Asked {
            client, identities, ..
        }) = asked
        else {
            tracing::debug!(?request, "a reply that nobody waits for");
            return;
        };
        message.identities = identities
            .iter()
            .map(|identity| identity.clone().into())
            .collect();
        let body = Body::Reply {
            channel,
            client: *client,
            execution: n,
            message,
        };
        self.emit_heard(heard, body);
        if channel == Channel::Control {
            // It may have created a subshell, or deleted one.
            self.look_for_users();
        }
        self.finish_if_done(n);
        self.idle_is_due();
    }

    fn on_input_request(
        &mut self,
        n: ExecutionNumber,
        request: Option<&RequestName>,
        mut message: Message,
        heard: u32,
    ) {
        let asked = match self.state.live.get(&n) {
            Some(execution) => Some(execution.asked.clone()),
            None => request
                .and_then(|request| self.state.pending_of(request, Channel::Stdin))
                .cloned(),
        };
        let content = serde_json::from_slice(&message.content).unwrap_or(Value::Null);
        if let Some(asked) = asked {
            message.identities = asked
                .identities
                .iter()
                .map(|identity| identity.clone().into())
                .collect();
            let body = Body::Reply {
                channel: Channel::Stdin,
                client: asked.client,
                execution: n,
                message,
            };
            self.emit_heard(heard, body);
        }
        if self.state.live.contains_key(&n) {
            self.execution_state(n, ExecutionState::WaitingInput, None);
            self.notify_input(n);
        }
        for attachment in self.state.attachments.clone() {
            if attachment.n == n {
                self.ask(&attachment.asked, n, &content);
            }
        }
    }

    /// Sends the engine's question to an attacher.
    pub(super) fn ask(&mut self, asked: &Asked, n: ExecutionNumber, content: &Value) {
        let stdin = Asked {
            channel: Channel::Stdin,
            ..asked.clone()
        };
        self.reply(&stdin, n, "input_request", content);
    }

    fn on_probe_message(
        &mut self,
        channel: Channel,
        msg_type: &str,
        probe: &str,
        message: &Message,
    ) {
        if channel == Channel::Shell
            && msg_type == "kernel_info_reply"
            && let Ok(info) = serde_json::from_slice::<Value>(&message.content)
        {
            let generation = self.state.generation;
            if self.state.info.as_ref() != Some(&info) {
                self.note(Note::EngineReady { generation, info });
                self.told_kernel_info = None;
            }
            if let Some(content) = self.kernel_info() {
                for asked in self.pending_requests() {
                    if asked.is_of_type("kernel_info_request") {
                        self.answer_kernel_info(&asked, &content);
                    }
                }
            }
            if !matches!(self.engine, Engine::Stopping(_)) {
                self.answer_restarts(Ok(()));
            }
        }
        if channel == Channel::Control {
            self.on_subshell_deleted(probe, message);
        }
        let idle = msg_type == "status" && is_idle(&message.content);
        self.on_adoption_probe(probe, channel == Channel::Shell, idle);
    }

    pub(super) fn finish_if_done(&mut self, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        let Some(reply) = &execution.reply else {
            return;
        };
        let state = match (reply_status(reply), execution.interrupted) {
            (Some("ok"), _) => ExecutionState::Ok,
            (Some("aborted"), _) => ExecutionState::Aborted,
            // A reply too large for recovery: only what the outputs said is known of it.
            (None, _) if !execution.failed => ExecutionState::Ok,
            (_, true) => ExecutionState::Interrupted,
            (_, false) => ExecutionState::Error,
        };
        let done = match execution.told {
            Told::Idle => true,
            Told::Busy => false,
            // An engine may abort what it never began, and say nothing else of it.
            Told::Nothing => state == ExecutionState::Aborted,
        };
        if done {
            let by_us = self.retiring.is_some().then(|| {
                format!(
                    "interrupted at the session's end ({})",
                    self.ending_reason()
                )
            });
            self.finish(
                n,
                state,
                by_us.filter(|_| state == ExecutionState::Interrupted),
            );
        }
    }

    /// Says so where the engine has dropped messages. `over`: what runs is over, and nothing can be said in it later.
    pub(super) fn tell_of_losses(&mut self, over: bool) {
        let awake = self.clocks.awake;
        let is_due = over || self.continuity.due().is_some_and(|due| due <= awake);
        let Some(loss) = is_due.then(|| self.continuity.loss(awake, over)).flatten() else {
            return;
        };
        let why = format!(
            "{} messages of the engine never arrived: an engine drops what is not taken from it in time",
            loss.messages
        );
        let Loss { from, until, .. } = loss;
        // It is known some time after.
        let ago = self.clocks.wall.saturating_sub(from) as f64 / 1e6;
        let said = self.say_in_running(&format!(
            "{why}. What is missing was printed about {ago:.1} s before this line."
        ));
        self.note_vital(Note::Gap {
            from,
            until,
            why,
            said,
        });
    }

    /// Ends an execution whose reply and idle were sent, and all that is attached to it.
    pub(super) fn finish(
        &mut self,
        n: ExecutionNumber,
        state: ExecutionState,
        reason: Option<String>,
    ) {
        let attached = self.state.attachments.iter();
        let attached: Vec<_> = attached.filter(|one| one.n == n).cloned().collect();
        let execution = self.state.live.get(&n).filter(|_| !attached.is_empty());
        let reply = execution.and_then(|execution| execution.reply.clone());
        self.notify_finished(n, state);
        self.execution_state(n, state, reason);
        self.answer_interrupts_of(n);
        let content = reply
            .and_then(|reply| serde_json::from_str(&reply).ok())
            .unwrap_or_else(|| json!({}));
        for attachment in attached {
            self.end_attachment(&attachment, &content);
        }
    }

    pub(super) fn on_engine_failed(&mut self, generation: u32, why: String) {
        if generation <= self.state.generation && self.state.engine_pid.is_some() {
            return;
        }
        match std::mem::replace(&mut self.engine, Engine::Absent { why: None }) {
            Engine::Stopping(Then::End(reason)) => self.ended(reason),
            Engine::Absent { .. }
            | Engine::Starting
            | Engine::Probing
            | Engine::Connected
            | Engine::Stopping(Then::Restart) => self.engine_gone(&why),
        }
    }

    pub(super) fn on_engine_ended(
        &mut self,
        generation: u32,
        end: Option<ProcessEnd>,
        why: String,
    ) {
        if generation != self.state.generation || self.state.engine_pid.is_none() {
            return;
        }
        self.tell_of_losses(true);
        self.note(Note::EngineEnded {
            generation,
            end,
            why: why.clone(),
        });
        self.probes.clear();
        self.subshells_ended();
        self.adopted = None;
        match std::mem::replace(&mut self.engine, Engine::Absent { why: None }) {
            // The outbox holds what came since the restart was asked for: it is for the new one.
            Engine::Stopping(Then::Restart) => self.start_engine(),
            Engine::Stopping(Then::End(reason)) => self.ended(reason),
            // It did not wait for the end's last step.
            _ if self.retiring.is_some() => self.engine_gone(&format!("the engine {why}")),
            Engine::Connected if self.nothing_was_begun() => {
                self.begin_anew(&format!("the engine {why}"))
            }
            Engine::Absent { .. } | Engine::Starting | Engine::Probing | Engine::Connected => {
                self.engine_gone(&format!("the engine {why}"));
            }
        }
    }

    /// Executions wait that the engine had not begun when it died: it was idle, and nobody had noticed yet that it was
    /// gone. They can go to a new one; once, so that a request that kills engines does not do so for ever.
    fn nothing_was_begun(&self) -> bool {
        !self.state.live.is_empty()
            && self.state.live.iter().all(|(n, execution)| {
                execution.state == ExecutionState::Queued && self.unstarted.holds(*n)
            })
    }

    fn begin_anew(&mut self, why: &str) {
        self.outbox.clear();
        self.close_statuses(|_| true);
        self.fail_pending("EngineDied", why, |asked| {
            !asked.is_of_type("execute_request")
        });
        if let Some(first) = self.state.live.keys().next().copied() {
            self.say_engine_is_new(first, why);
        }
        self.start_engine();
        for message in self.unstarted.take() {
            // Once more: its subshell may have gone with the engine.
            let message = self.for_engine(&message);
            self.ask_engine(Channel::Shell, message);
        }
    }

    /// The engine is not there although it should be: all who wait for it hear so.
    pub(super) fn engine_gone(&mut self, why: &str) {
        self.engine = Engine::Absent {
            why: Some(why.to_owned()),
        };
        self.outbox.clear();
        self.answer_restarts(Err(why));
        if self.retiring.is_none() {
            let text = format!("{}: {why}", self.facts.name);
            self.notify(NotifyOn::EngineDied, text, |_| {});
        }
        let ename = "EngineDied";
        let evalue =
            format!("{why}. Its variables are gone; the next execution starts a new engine.");
        self.close_statuses(|_| true);
        self.fail_executions(ename, &evalue, ExecutionState::Error);
        self.fail_pending(ename, &evalue, |_| true);
    }

    /// Ends every execution with an error; `running` is the state of what ran.
    pub(super) fn fail_executions(&mut self, ename: &str, evalue: &str, running: ExecutionState) {
        let error = error_content(ename, evalue);
        for n in self.state.live.keys().copied().collect::<Vec<_>>() {
            let Some(execution) = self.state.live.get(&n) else {
                continue;
            };
            let (asked, was_queued) = (
                execution.asked.clone(),
                execution.state == ExecutionState::Queued,
            );
            let (replied, told) = (execution.reply.is_some(), execution.told);
            if told == Told::Nothing {
                self.engine_status(n, &asked.header, "busy");
            }
            if !replied {
                let output =
                    json!({ "ename": ename, "evalue": evalue, "traceback": error["traceback"] });
                self.publish(None, n, "error", &asked.header, &output);
                self.reply(&asked, n, "execute_reply", &error);
            }
            if told != Told::Idle {
                self.engine_status(n, &asked.header, "idle");
            }
            match (replied, was_queued) {
                (true, _) => self.finish_if_done(n),
                (false, true) => self.finish(n, ExecutionState::Aborted, Some(evalue.to_owned())),
                (false, false) => self.finish(n, running, Some(evalue.to_owned())),
            }
        }
    }

    /// A status in the engine's place.
    pub(super) fn engine_status(&mut self, n: ExecutionNumber, parent: &str, state: &str) {
        let content = json!({ "execution_state": state });
        self.publish(None, n, "status", parent, &content);
        if state == "idle" {
            self.still_busy_but_for(n);
        }
    }

    /// All have heard of an idle: if it was not the running execution's, that one's busy comes after it.
    fn still_busy_but_for(&mut self, n: ExecutionNumber) {
        if self
            .state
            .running()
            .is_some_and(|(running, _)| running != n)
        {
            self.still_busy(None);
        }
    }

    /// The engine will not say idle any more for what else it was at.
    pub(super) fn close_statuses(&mut self, which: impl Fn(&OpenBusy) -> bool) {
        for busy in self.state.busy.clone() {
            if busy.client.is_none() && which(&busy) {
                self.engine_status(0, &busy.parent, "idle");
            }
        }
    }

    /// Answers those of the other requests that wait for the engine with an error.
    pub(super) fn fail_pending(
        &mut self,
        ename: &str,
        evalue: &str,
        which: impl Fn(&Asked) -> bool,
    ) {
        for asked in self.pending_requests() {
            if which(&asked) && !self.is_attached(&asked) && !self.is_looked_up(&asked) {
                self.refuse_with(&asked, ename, evalue);
            }
        }
    }

    /// All requests but executions that wait for their replies.
    pub(super) fn pending_requests(&self) -> Vec<Asked> {
        self.state.pending.values().flatten().cloned().collect()
    }

    /// Answers a request that no engine can answer.
    pub(super) fn refuse(&mut self, asked: &Asked, why: &str) {
        self.refuse_with(asked, "EngineDied", why);
    }

    pub(super) fn refuse_with(&mut self, asked: &Asked, ename: &str, evalue: &str) {
        let Ok(header) = serde_json::from_str::<crate::wire::Header<'_>>(&asked.header) else {
            return;
        };
        let reply_type = format!("{}_reply", header.msg_type.trim_end_matches("_request"));
        let error = error_reply(&reply_type, ename, evalue);
        self.status(asked, "busy");
        self.reply(asked, 0, &reply_type, &error);
        self.answered(asked);
    }
}

/// Content of a reply that says what went wrong.
pub(super) fn error_content(ename: &str, evalue: &str) -> Value {
    json!({ "status": "error", "ename": ename, "evalue": evalue, "traceback": [format!("{ename}: {evalue}")],
        "execution_count": 0, "payload": [], "user_expressions": {} })
}

/// The same of a reply of any type.
pub(crate) fn error_reply(reply_type: &str, ename: &str, evalue: &str) -> Value {
    let mut content = error_content(ename, evalue);
    if reply_type == "kernel_info_reply" {
        // jupyter_client looks for a version in it, whatever its status, and jupyter console for the rest.
        content["protocol_version"] = PROTOCOL_VERSION.into();
        content["implementation"] = "farside".into();
        content["implementation_version"] = env!("CARGO_PKG_VERSION").into();
        content["language_info"] = json!({ "name": "", "version": "", "mimetype": "text/plain", "file_extension": ".txt" });
        content["banner"] = evalue.into();
        content["help_links"] = json!([]);
    }
    content
}

fn reply_status(reply: &str) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Status<'a> {
        #[serde(borrow)]
        status: std::borrow::Cow<'a, str>,
    }
    let parsed = serde_json::from_str::<Status<'_>>(reply).ok()?;
    match parsed.status.as_ref() {
        "ok" => Some("ok"),
        "aborted" | "abort" => Some("aborted"),
        _ => Some("error"),
    }
}
