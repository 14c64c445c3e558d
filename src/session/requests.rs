//! The core's frontend side: what farside answers itself, and what goes to the engine.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, json};

use super::attach::wanted_attachment;
use super::core::{Core, Engine, Lookup, Then};
use super::engine::error_content;
use super::event::{Answer, CONSOLE_KIND, Command, Effect, ExecutionSummary, NotifyOn, Query};
use super::magic::{self, Magic};
use super::retirement::Retiring;
use super::state::Asked;
use super::text;
use crate::journal::record::{Body, ClientId, ExecutionNumber, ExecutionState, Micros, Note};
use crate::wire::message::ExecuteRequest;
use crate::wire::{Channel, Message};

/// How many executions `%farside history` and `farside_list_request` look back.
pub(super) const LIST_MAX: usize = 1000;

/// Whoever ends a session with the reply to its last execution may mean its outputs, too: they come another way, and an
/// engine that ends drops what it has not sent. So long its idle is waited for.
const LAST_WORDS: Micros = 10_000_000;

/// The code of an execute_request; `None` where its content is not what the protocol says.
fn code_of(content: &[u8]) -> Option<Cow<'_, str>> {
    ExecuteRequest::read(content).map(|request| request.code)
}

/// Whether the answer to this input_request is for nobody's eyes (getpass).
fn is_secret(content: &str) -> bool {
    #[derive(Deserialize)]
    struct Question {
        #[serde(default)]
        password: bool,
    }
    serde_json::from_str::<Question>(content).is_ok_and(|question| question.password)
}

/// The answer as it may be kept.
fn without_value(mut message: Message) -> Message {
    message.content = bytes::Bytes::from_static(br#"{"value":""}"#);
    message.buffers.clear();
    message
}

impl Core {
    pub(super) fn on_request(&mut self, client: ClientId, channel: Channel, message: Message) {
        let Ok(header) = message.header() else { return };
        match (channel, header.msg_type.as_ref()) {
            (Channel::Shell | Channel::Control, "kernel_info_request") => {
                let asked = Asked::new(client, channel, &message);
                if let Some(content) = self.kernel_info() {
                    self.answer_kernel_info(&asked, &content);
                } else if let Engine::Absent { why: Some(why) } = &self.engine {
                    let why = why.clone();
                    self.refuse(&asked, &why);
                } else {
                    // Until the engine, or the one to come, has answered its first: who asks may take the answer
                    // for the sign that it is ready.
                    self.wait(client, channel, message);
                }
            }
            (Channel::Shell, "execute_request") => self.on_execute(client, message),
            (Channel::Shell, "farside_list_request") => {
                let asked = self.wait(client, channel, message);
                let query = Query::History {
                    session: None,
                    limit: LIST_MAX,
                };
                self.lookup(Lookup::List(asked), query);
            }
            (_, "shutdown_request") => {
                self.on_shutdown(&Asked::new(client, channel, &message), &message)
            }
            (Channel::Control, "interrupt_request") => self.on_interrupt(client, message),
            (Channel::Stdin, "input_reply") => self.on_input_reply(client, message),
            _ => self.forward(client, channel, message),
        }
    }

    /// Records a request that gets its reply later.
    pub(super) fn wait(&mut self, client: ClientId, channel: Channel, message: Message) -> Asked {
        let asked = Asked::new(client, channel, &message);
        self.emit(Body::Request {
            channel,
            client,
            execution: 0,
            message,
        });
        asked
    }

    fn on_execute(&mut self, client: ClientId, message: Message) {
        let Some(code) = code_of(&message.content) else {
            // Nothing that runs: an engine may log it, and never reply.
            self.forward(client, Channel::Shell, message);
            return;
        };
        if let Some(command) = magic::command_in(&code) {
            self.on_magic(client, message, command);
            return;
        }
        if magic::leaves_console(&code)
            && self
                .state
                .clients
                .get(&client)
                .is_some_and(|client| client.kind == CONSOLE_KIND)
        {
            let asked = Asked::new(client, Channel::Shell, &message);
            self.let_console_go(&asked);
            return;
        }
        if let Some(target) = wanted_attachment(&message.metadata) {
            self.attach(client, message, target);
            return;
        }
        if self.state.lifetime.ending.is_some() {
            self.refuse_at_the_end(client, message);
            return;
        }
        self.execute(client, message);
    }

    /// Gives code to the engine, which is started if there is none.
    pub(super) fn execute(&mut self, client: ClientId, message: Message) -> ExecutionNumber {
        let n = self.state.last_n + 1;
        let absent = match &self.engine {
            Engine::Absent { why } => Some(why.clone()),
            Engine::Starting | Engine::Probing | Engine::Connected | Engine::Stopping(_) => None,
        };
        let engine_message = self.for_engine(&message);
        self.unstarted.hold(n, &engine_message);
        self.emit(Body::Request {
            channel: Channel::Shell,
            client,
            execution: n,
            message,
        });
        let by_person = self
            .state
            .live
            .get(&n)
            .is_some_and(|execution| execution.by_person);
        if by_person {
            self.say_what_was_before(n);
            self.say_notices(n);
        }
        if let Some(why) = absent {
            if let Some(why) = why {
                self.say_engine_is_new(n, &why);
            }
            self.start_engine();
        }
        self.ask_engine(Channel::Shell, engine_message);
        n
    }

    /// SIGINT, but not to an engine that is still starting: nothing of ours runs in it, and it would die of it.
    fn interrupt_engine(&mut self) {
        if self.engine == Engine::Connected {
            self.effect(Effect::InterruptEngine);
        }
    }

    /// In the outputs of the first execution of a new engine, before anything else of it.
    pub(super) fn say_engine_is_new(&mut self, n: ExecutionNumber, why: &str) {
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        let header = execution.asked.header.clone();
        let text = format!("[farside] {why}. A new engine was started; variables are gone.\n");
        let content = json!({ "name": "stderr", "text": text });
        self.publish(None, n, "stream", &header, &content);
    }

    /// In the outputs of the first execution of a person: what became of the session before this one.
    fn say_what_was_before(&mut self, n: ExecutionNumber) {
        let Some(predecessor) = &self.facts.predecessor else {
            return;
        };
        if self.state.predecessor_told {
            return;
        }
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        let header = execution.asked.header.clone();
        let (session, text) = (
            predecessor.id.clone(),
            text::predecessor(predecessor, self.now),
        );
        let content = json!({ "name": "stderr", "text": text });
        self.publish(None, n, "stream", &header, &content);
        self.note(Note::PredecessorTold { session });
    }

    /// As the engine wants to be interrupted, with nobody to hear of it.
    pub(super) fn interrupt_by_any_means(&mut self) {
        if self.facts.interrupt_by_message {
            self.ask_for_nobody(Channel::Control, "interrupt_request", &json!({}));
        } else {
            self.interrupt_engine();
        }
    }

    fn forward(&mut self, client: ClientId, channel: Channel, message: Message) {
        let expects_reply = message
            .header()
            .is_ok_and(|header| header.msg_type.ends_with("_request"));
        if let Engine::Absent { why: Some(why) } = &self.engine {
            if expects_reply {
                let why = why.clone();
                self.refuse(&Asked::new(client, channel, &message), &why);
            }
            return;
        }
        let engine_message = self.for_engine(&message);
        self.wait(client, channel, message);
        self.ask_engine(channel, engine_message);
    }

    pub(super) fn ask_engine(&mut self, channel: Channel, message: Message) {
        if self.engine == Engine::Connected {
            self.effect(Effect::ToEngine(channel, message));
        } else {
            self.outbox.push(channel, message);
        }
    }

    /// Whether the engine has said it, and is not about to be replaced.
    fn knows_kernel_info(&self) -> bool {
        self.state.info.is_some() && self.engine != Engine::Stopping(Then::Restart)
    }

    /// The answer to kernel_info, while there is one from memory.
    pub fn kernel_info(&self) -> Option<Value> {
        let info = self.state.info.as_ref();
        let mut content = info.filter(|_| self.knows_kernel_info())?.clone();
        if let Some(fields) = content.as_object_mut() {
            let banner = fields.get("banner").and_then(Value::as_str).unwrap_or("");
            let banner = format!(
                "{}\nfarside {}: session {} goes on after you have left. Type %farside help for more.",
                banner.trim_end_matches('\n'),
                self.facts.version,
                self.facts.name
            );
            fields.insert("banner".into(), banner.into());
            let session = json!({ "version": self.facts.version, "session": self.facts.id, "name": self.facts.name,
                "engine": self.facts.engine });
            fields.insert("farside".into(), session);
        }
        Some(content)
    }

    /// Tells the driver, where that has changed.
    pub(super) fn tell_kernel_info(&mut self) {
        let current = self.knows_kernel_info().then_some(self.state.generation);
        if current != self.told_kernel_info {
            self.told_kernel_info = current;
            let content = self.kernel_info();
            self.effect(Effect::KernelInfo(content));
        }
    }

    pub(super) fn answer_kernel_info(&mut self, asked: &Asked, content: &Value) {
        self.status(asked, "busy");
        self.reply(asked, 0, "kernel_info_reply", content);
        self.answered(asked);
    }

    fn on_shutdown(&mut self, asked: &Asked, message: &Message) {
        #[derive(Deserialize)]
        struct Shutdown {
            #[serde(default)]
            restart: bool,
        }
        let restart = serde_json::from_slice::<Shutdown>(&message.content)
            .is_ok_and(|shutdown| shutdown.restart);
        self.status(asked, "busy");
        self.reply(
            asked,
            0,
            "shutdown_reply",
            &json!({ "status": "ok", "restart": restart }),
        );
        self.status(asked, "idle");
        if restart {
            self.restart();
        } else {
            self.end("shutdown: a frontend asked for it".into(), false);
        }
    }

    /// A new engine; what waits for the old one hears of it.
    pub(super) fn restart(&mut self) {
        match self.engine {
            Engine::Absent { .. } => self.start_engine(),
            // It will be as new as it can be.
            Engine::Starting if self.state.engine_pid.is_none() => self.fail_for_restart(),
            Engine::Starting | Engine::Probing | Engine::Connected => {
                self.note(Note::Restarting);
                self.fail_for_restart();
                self.engine = Engine::Stopping(Then::Restart);
                self.effect(Effect::StopEngine {
                    now: false,
                    restart: true,
                });
            }
            Engine::Stopping(_) => {}
        }
    }

    fn fail_for_restart(&mut self) {
        let (ename, evalue) = ("EngineRestarted", "the engine was restarted");
        self.outbox.clear();
        self.close_statuses(|_| true);
        self.fail_executions(ename, evalue, ExecutionState::Aborted);
        // Those that wait for the first kernel_info get it of the new engine.
        self.fail_pending(ename, evalue, |asked| {
            !asked.is_of_type("kernel_info_request")
        });
    }

    /// Somebody ends the session, now.
    pub(super) fn end(&mut self, reason: String, now: bool) {
        if !now && matches!(self.retiring, Some(Retiring::LastWords { .. })) {
            return;
        }
        self.note(Note::Ending {
            reason: reason.clone(),
            retire: false,
        });
        if !now && self.engine == Engine::Connected && self.lacks_idle() {
            let until = self.clocks.awake.saturating_add(LAST_WORDS);
            self.retiring = Some(Retiring::LastWords { until });
            return;
        }
        self.retiring = Some(Retiring::Stopping);
        self.stop_for_good(reason, now);
    }

    /// First the engine, then the rest.
    pub(super) fn stop_for_good(&mut self, reason: String, now: bool) {
        match &mut self.engine {
            Engine::Absent { .. } => self.ended(reason),
            Engine::Stopping(Then::End(_)) if !now => {}
            Engine::Starting if self.state.engine_pid.is_none() => self.ended(reason),
            engine => {
                *engine = Engine::Stopping(Then::End(reason));
                self.effect(Effect::StopEngine {
                    now,
                    restart: false,
                });
            }
        }
    }

    pub(super) fn ended(&mut self, reason: String) {
        if self.state.ended.is_some() {
            return;
        }
        let evalue = format!("the session has ended ({reason})");
        self.answer_restarts(Err(&evalue));
        self.lookups.clear();
        self.close_statuses(|_| true);
        self.fail_executions("SessionEnded", &evalue, ExecutionState::Interrupted);
        self.fail_pending("SessionEnded", &evalue, |_| true);
        if !reason.starts_with("stopped") && !reason.starts_with("shutdown") {
            let text = format!("session {} has ended: {reason}", self.facts.name);
            self.notify(NotifyOn::Ended, text, |notification| {
                notification.reason = Some(reason.clone());
            });
        }
        self.note(Note::SessionEnded { reason });
        self.effect(Effect::End);
    }

    fn on_interrupt(&mut self, client: ClientId, message: Message) {
        self.note(Note::Interrupted);
        if self.facts.interrupt_by_message {
            self.forward(client, Channel::Control, message);
            return;
        }
        let asked = Asked::new(client, Channel::Control, &message);
        self.status(&asked, "busy");
        self.interrupt_engine();
        self.reply(&asked, 0, "interrupt_reply", &json!({ "status": "ok" }));
        self.answered(&asked);
    }

    fn on_input_reply(&mut self, client: ClientId, message: Message) {
        let Some(input) = self.state.input.clone() else {
            tracing::debug!("an input_reply that the engine does not wait for");
            return;
        };
        // Who answers a question that somebody else has answered does not answer the next one. (JupyterLab says what
        // it answers; jupyter_client does not.)
        let stale = message.parent().is_some_and(|parent| {
            parent.msg_type == "input_request"
                && !input.msg_ids.iter().any(|id| *id == parent.msg_id)
        });
        if stale {
            tracing::debug!("an input_reply to an earlier question");
            return;
        }
        let engine_message = self.for_engine(&message);
        let kept = match is_secret(&input.content) {
            true => without_value(message),
            false => message,
        };
        self.emit(Body::Request {
            channel: Channel::Stdin,
            client,
            execution: input.n,
            message: kept,
        });
        if self.state.live.contains_key(&input.n) {
            self.execution_state(input.n, ExecutionState::Running, None);
        }
        self.ask_engine(Channel::Stdin, engine_message);
    }

    fn on_magic(&mut self, client: ClientId, message: Message, command: Result<Magic, String>) {
        if let Ok(Magic::Attach(selector)) = command {
            self.attach(client, message, selector);
            return;
        }
        // Recorded as what a person did.
        let asked = self.wait(client, Channel::Shell, message);
        match command {
            Err(usage) => self.magic_error(&asked, "FarsideUsageError", &usage),
            Ok(Magic::Attach(_)) => {}
            Ok(Magic::History(session)) => {
                let query = Query::History {
                    session: self.other_session(session),
                    limit: LIST_MAX,
                };
                self.lookup(Lookup::History(asked), query)
            }
            Ok(Magic::Status) => {
                let status = text::status(self);
                self.magic_answer(&asked, &status);
            }
            Ok(Magic::Help) => self.magic_answer(&asked, magic::HELP),
            Ok(Magic::Extend(seconds)) => {
                let answer = self
                    .extend(seconds)
                    .map(|ends| format!("extended. The session now ends\n{ends}"));
                self.magic_result(&asked, answer);
            }
            Ok(Magic::ShowSettings) => {
                let settings = self.describe_settings();
                self.magic_answer(&asked, &settings);
            }
            Ok(Magic::Set { key, value }) => {
                let answer = self.set(&key, &value);
                self.magic_result(&asked, answer);
            }
            Ok(Magic::Notify(on)) => {
                let answer = self.set_notify(on);
                self.magic_result(&asked, answer);
            }
            Ok(Magic::Retire) => {
                self.magic_answer(
                    &asked,
                    "The session ends now. Its outputs stay: see `farside ls --all`.\n",
                );
                self.retire("stopped: %farside retire".into());
            }
        }
    }

    /// Answers `exit` for the engine, which would end itself. The payload is what ipykernel's `exit` has.
    fn let_console_go(&mut self, asked: &Asked) {
        let content = json!({ "status": "ok", "execution_count": self.count_to_show(),
            "payload": [{ "source": "ask_exit", "keepkernel": true }], "user_expressions": {} });
        self.status(asked, "busy");
        self.reply(asked, 0, "execute_reply", &content);
        self.answered(asked);
    }

    /// A magic's output: as a cell's, but without an execution count of its own.
    pub(super) fn magic_answer(&mut self, asked: &Asked, text: &str) {
        let content = json!({ "status": "ok", "execution_count": self.count_to_show(), "payload": [],
            "user_expressions": {} });
        self.status(asked, "busy");
        self.publish(
            Some(asked.client),
            0,
            "stream",
            &asked.header,
            &json!({ "name": "stdout", "text": text }),
        );
        self.reply(asked, 0, "execute_reply", &content);
        self.answered(asked);
    }

    /// The engine's count, for a reply that has none of its own. JupyterLab takes 0 for none, and shows such a cell as
    /// running for ever.
    fn count_to_show(&self) -> i64 {
        self.state.execution_count.max(1)
    }

    fn magic_result(&mut self, asked: &Asked, result: Result<String, String>) {
        match result {
            Ok(text) => self.magic_answer(asked, &text),
            Err(why) => self.magic_error(asked, "FarsideError", &why),
        }
    }

    pub(super) fn magic_error(&mut self, asked: &Asked, ename: &str, evalue: &str) {
        let mut content = error_content(ename, evalue);
        content["execution_count"] = self.count_to_show().into();
        let output = json!({ "ename": ename, "evalue": evalue, "traceback": content["traceback"] });
        self.status(asked, "busy");
        self.publish(Some(asked.client), 0, "error", &asked.header, &output);
        self.reply(asked, 0, "execute_reply", &content);
        self.answered(asked);
    }

    pub(super) fn on_answer(&mut self, id: u64, answer: Answer) {
        let Some(lookup) = self.lookups.remove(&id) else {
            return;
        };
        match (lookup, answer) {
            (Lookup::Attach(asked), Answer::Execution(found)) => self.attach_to_past(asked, found),
            (Lookup::History(asked), Answer::History { executions, .. }) => {
                let table = text::history(&executions);
                self.magic_answer(&asked, &table);
            }
            (
                Lookup::List(asked),
                Answer::History {
                    session,
                    executions,
                },
            ) => {
                self.answer_list(&asked, &session, &executions);
            }
            (Lookup::Attach(asked), Answer::NotThere(why)) => {
                self.magic_error(&asked, "UnknownExecution", &why);
            }
            (Lookup::History(asked), Answer::NotThere(why)) => {
                self.magic_error(&asked, "FarsideError", &why);
            }
            (Lookup::Attach(asked) | Lookup::History(asked), Answer::Failed(why)) => {
                self.magic_error(&asked, "JournalError", &why);
            }
            (Lookup::List(asked), Answer::Failed(why)) => {
                self.refuse_with(&asked, "JournalError", &why);
            }
            (Lookup::Attach(_), Answer::History { .. })
            | (Lookup::History(_) | Lookup::List(_), Answer::Execution(_))
            | (Lookup::List(_), Answer::NotThere(_)) => {
                tracing::error!("the journal answered another question than it was asked");
            }
        }
    }

    fn answer_list(&mut self, asked: &Asked, session: &Value, past: &[ExecutionSummary]) {
        let mut cells = std::collections::HashSet::new();
        let (latest, older): (Vec<_>, Vec<_>) = past.iter().partition(|execution| {
            execution
                .cell_id
                .as_ref()
                .is_none_or(|cell| cells.insert(cell.clone()))
        });
        let executions: Vec<Value> = latest
            .into_iter()
            .chain(older)
            .map(text::execution_json)
            .collect();
        let content = json!({ "status": "ok", "session": session, "executions": executions });
        self.status(asked, "busy");
        self.reply(asked, 0, "farside_list_reply", &content);
        self.answered(asked);
    }

    pub(super) fn on_command(&mut self, id: u64, client: ClientId, command: Command) {
        let answer = match command {
            Command::Stop { now, reason } => {
                self.end(reason, now);
                json!({ "ok": true })
            }
            Command::Restart if matches!(self.engine, Engine::Stopping(Then::End(_))) => {
                json!({ "ok": false, "error": "the session is ending" })
            }
            Command::Restart => {
                self.restarts.push((id, client));
                self.restart();
                return;
            }
            Command::Interrupt if self.state.engine_pid.is_none() => {
                json!({ "ok": false, "error": "no engine runs in this session: there is nothing to interrupt" })
            }
            Command::Interrupt => {
                self.note(Note::Interrupted);
                self.interrupt_by_any_means();
                // What is asked of the engine before that is over is not run (stop_on_error).
                if let Some((n, _)) = self.state.running() {
                    self.interrupts.push((id, client, n));
                    return;
                }
                json!({ "ok": true })
            }
            Command::Extend { seconds } => self.extend_answer(seconds),
            Command::UpgradeHost { .. } if self.state.lifetime.ending.is_some() => {
                json!({ "ok": false, "error": "the session is ending" })
            }
            Command::UpgradeHost { program } => {
                let replace = Effect::ReplaceHost {
                    id,
                    client,
                    program,
                };
                self.effect(replace);
                return;
            }
        };
        self.effect(Effect::Reply { id, client, answer });
    }
}

impl Core {
    /// The engine that commands to restart wait for is there, or it never will be.
    pub(super) fn answer_interrupts_of(&mut self, n: ExecutionNumber) {
        let answered: Vec<_> = (self.interrupts)
            .extract_if(.., |(_, _, interrupted)| *interrupted == n)
            .collect();
        for (id, client, _) in answered {
            let answer = json!({ "ok": true });
            self.effect(Effect::Reply { id, client, answer });
        }
    }

    pub(super) fn answer_restarts(&mut self, outcome: Result<(), &str>) {
        let answer = match outcome {
            Ok(()) => json!({ "ok": true }),
            Err(why) => json!({ "ok": false, "error": why }),
        };
        for (id, client) in std::mem::take(&mut self.restarts) {
            let answer = answer.clone();
            self.effect(Effect::Reply { id, client, answer });
        }
    }
}
