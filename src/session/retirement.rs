//! The core's way to the end of a session: notices, what moves the end, the end's steps, and whom to tell of what.
//!
//! The policy itself is [`super::lifetime`]; here is what it does to executions, engine and frontends.
//!
//! A session that retires first interrupts what runs and lets it finish, then runs its hooks, and then asks the engine
//! to end. Each step is a note before it is taken, so that the next host goes on where one was killed.

use serde_json::{Value, json};

use super::clock::Now;
use super::core::{Core, Engine, Facts};
use super::event::{Effect, Notification, NotifyOn, Usage};
use super::lifetime::{Doing, Due, End, EndKind, micros};
use super::state::{Execution, State};
use super::text::{clock_time, span, span_long};
use crate::duration::format_duration;
use crate::journal::record::{ClientId, ExecutionNumber, ExecutionState, Micros, Note};
use crate::settings::{Config, SETTINGS, Setting};
use crate::wire::{Channel, Message};

/// Who asks for the code of `before_retire_code`: nobody that could be told.
const NOBODY: ClientId = ClientId::nil();

/// An engine that was just adopted may take this long to be heard, before the end goes on without it.
const HEARD_WITHIN: Micros = 10_000_000;

/// CPU time is a note when it has grown by this share of what it was, or by a minute: a host that comes after a killed
/// one sees the rest in the engine itself.
const USED_SHARE: u64 = 20;

/// See [`USED_SHARE`].
const USED_MICROS: Micros = 60_000_000;

/// Where a retiring session stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Retiring {
    /// The engine is not connected yet.
    Unheard { until: Micros },
    /// What runs was interrupted, and finishes.
    Grace { until: Micros },
    /// The engine runs `before_retire_code`.
    Code { n: ExecutionNumber, until: Micros },
    /// `before_retire` runs.
    Command,
    /// The engine was told to end.
    Stopping,
}

impl Core {
    /// CPU time of the session so far.
    pub fn cpu(&self) -> Micros {
        self.cpu_now.max(self.state.lifetime.used.cpu())
    }

    /// Memory that engine and descendants were last seen to use, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The settings that hold.
    pub fn limits(&self) -> &Config {
        &self.limits
    }

    /// The settings, with those that were changed for this session.
    pub(super) fn merged(facts: &Facts, state: &State) -> Config {
        let mut values = facts.settings.clone();
        values.extend(state.lifetime.settings.clone());
        Config::from_values(&values)
    }

    /// Says so in the journal where the clocks have moved against one another.
    pub(super) fn compare_clocks(&mut self, now: Now) {
        let holds = match &self.state.lifetime.clock {
            Some(clock) => clock.holds(now, &self.facts.boot),
            None => self.facts.boot.is_empty() && now == Now::from(now.wall),
        };
        if !holds {
            self.note_clock();
        }
    }

    /// What the clocks show now.
    pub(super) fn note_clock(&mut self) {
        let (awake, elapsed) = (self.clocks.awake, self.clocks.elapsed);
        let boot = self.facts.boot.clone();
        self.note(Note::Clock {
            awake,
            elapsed,
            boot,
        });
    }

    fn doing(&self) -> Doing {
        let live = &self.state.live;
        if live.is_empty() {
            return Doing::Nothing;
        }
        let waits = live
            .values()
            .any(|execution| execution.state == ExecutionState::WaitingInput);
        let works = live
            .values()
            .any(|execution| execution.state == ExecutionState::Running);
        if waits && !works {
            Doing::Input
        } else {
            Doing::Work
        }
    }

    /// The ends to be expected as things are, the soonest first.
    pub fn ends(&self, now: Now) -> Vec<End> {
        if self.state.ended.is_some() || self.state.lifetime.ending.is_some() {
            return Vec::new();
        }
        let attached = !self.state.clients.is_empty();
        let lifetime = &self.state.lifetime;
        let cpu = self.cpu();
        let mut ends = lifetime.ends(&self.limits, self.doing(), attached, cpu, now);
        ends.sort_by_key(|end| end.left);
        ends
    }

    /// The wall time of the soonest end that is known beforehand, and which it is.
    pub fn ends_at(&self, now: Now) -> Option<(Micros, EndKind)> {
        let ends = self.ends(now);
        let end = ends.iter().find(|end| end.kind != EndKind::Budget)?;
        Some((now.wall.saturating_add(end.left), end.kind))
    }

    /// How long until [`super::event::Event::Tick`] is wanted.
    pub fn next_deadline(&self, now: Now) -> Option<Micros> {
        if self.state.ended.is_some() {
            return None;
        }
        let own = [self.continuity.due(), self.journal_retry];
        let own = own
            .into_iter()
            .flatten()
            .map(|due| due.saturating_sub(now.awake));
        own.chain(self.retirement_deadline(now)).min()
    }

    fn retirement_deadline(&self, now: Now) -> Option<Micros> {
        match &self.retiring {
            Some(
                Retiring::Unheard { until }
                | Retiring::Grace { until }
                | Retiring::Code { until, .. },
            ) => return Some(until.saturating_sub(now.awake)),
            Some(Retiring::Command | Retiring::Stopping) => return None,
            None => {}
        }
        let lifetime = &self.state.lifetime;
        self.ends(now)
            .iter()
            .filter_map(|end| lifetime.due_in(&self.limits, end, now))
            .min()
    }

    /// Does what is due.
    pub(super) fn on_tick(&mut self, now: Now) {
        self.retry_journal();
        if self.retiring.is_some() {
            return;
        }
        for end in self.ends(now) {
            match self.state.lifetime.due(&self.limits, end, now) {
                Some(Due::Notice { end, before }) => self.give_notice(end, before, now),
                Some(Due::End(end)) => {
                    self.retire(self.reason_of(&end));
                    return;
                }
                None => {}
            }
        }
    }

    fn reason_of(&self, end: &End) -> String {
        let limit = span_long(end.limit);
        match end.kind {
            EndKind::Idle if self.state.clients.is_empty() => {
                format!("idle: nobody was attached, and nothing was run for {limit}")
            }
            EndKind::Idle => format!("idle: nothing was run for {limit}"),
            EndKind::Input => {
                format!("idle: nobody was attached to answer its input() for {limit}")
            }
            EndKind::Lifetime => format!("lifetime: {limit} are over"),
            EndKind::Budget => format!("budget: {limit} of CPU time are used up"),
        }
    }

    fn give_notice(&mut self, end: End, before: Micros, now: Now) {
        let text = self.notice_text(&end, now);
        let said = self.say_in_running(&text);
        self.note_notice(&end, before, &text, said);
        self.notify(NotifyOn::Notice, text, |notification| {
            notification.reason = Some(end.kind.name().to_owned());
        });
    }

    fn note_notice(&mut self, end: &End, before: Micros, text: &str, said: bool) {
        self.note(Note::Notice {
            kind: end.kind.note_name().to_owned(),
            deadline: end.deadline,
            before: before / 1_000_000,
            text: text.to_owned(),
            said,
        });
    }

    fn notice_text(&self, end: &End, now: Now) -> String {
        let left = self.state.lifetime.left(&self.limits, end, now);
        let (limit, left_text) = (span_long(end.limit), span_long(left));
        let at = clock_time(now.wall.saturating_add(left));
        match end.kind {
            EndKind::Idle => format!(
                "this session ends in {left_text} (at {at}), for nothing was run in it for long ({limit} is the limit). Run \
                 something, or `%farside extend 2h`, to keep it."
            ),
            EndKind::Input => format!(
                "this session ends in {left_text} (at {at}), for it waits for input() and nobody is attached ({limit} is the \
                 limit)."
            ),
            EndKind::Lifetime => format!(
                "this session ends in {left_text} (at {at}): then its {limit} are over. Save what you need, or move the end \
                 with `%farside extend 2h`."
            ),
            EndKind::Budget => format!(
                "this session ends when it has used {left_text} more of CPU time: its budget is {limit}. Save what you \
                 need, or `%farside set cpu_budget {}`.",
                format_duration(std::time::Duration::from_micros(
                    end.limit.saturating_mul(2)
                ))
            ),
        }
    }

    /// A line of farside's in the output of what runs. `false`: nothing does.
    pub(super) fn say_in_running(&mut self, text: &str) -> bool {
        let Some((n, header)) = self
            .state
            .running()
            .map(|(n, execution)| (n, execution.asked.header.clone()))
        else {
            return false;
        };
        self.say(n, &header, text);
        true
    }

    /// A line of farside's in an execution's output.
    pub(super) fn say(&mut self, n: ExecutionNumber, header: &str, text: &str) {
        let content = json!({ "name": "stderr", "text": format!("[farside] {text}\n") });
        self.publish(None, n, "stream", header, &content);
    }

    /// Notices that nobody could see yet are said with the first execution that is to come.
    pub(super) fn say_notices(&mut self, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        let header = execution.asked.header.clone();
        let now = self.clocks;
        for end in self.ends(now) {
            let noticed = self.state.lifetime.noticed.get(&end.kind);
            let unsaid = noticed
                .filter(|noticed| noticed.deadline == end.deadline && !noticed.said)
                .map(|noticed| noticed.before);
            if let Some(before) = unsaid {
                let text = self.notice_text(&end, now);
                self.say(n, &header, &text);
                self.note_notice(&end, before, &text, true);
            }
        }
    }

    /// Moves the end. The answer says where to; an error why not.
    pub(super) fn extend(&mut self, seconds: u64) -> Result<String, String> {
        if let Some(ending) = &self.state.lifetime.ending {
            return Err(format!("the session is ending already ({})", ending.reason));
        }
        let by = seconds.saturating_mul(1_000_000);
        if let Some(most) = self.state.lifetime.can_extend_by(&self.limits)
            && by > most
        {
            let cap = self.limits.max_lifetime_cap.unwrap_or_default();
            return Err(format!(
                "this session can be extended by {} at most: max_lifetime_cap is {}",
                span_long(most),
                span_long(micros(cap))
            ));
        }
        self.note(Note::Extended { seconds });
        Ok(self.describe_ends())
    }

    /// When the session will end, in a few lines.
    pub(super) fn describe_ends(&self) -> String {
        let now = self.clocks;
        if let Some(ending) = &self.state.lifetime.ending {
            return format!("it is ending: {}\n", ending.reason);
        }
        let mut text = String::new();
        for end in self.ends(now) {
            let (left, limit) = (span_long(end.left), span_long(end.limit));
            let at = clock_time(now.wall.saturating_add(end.left));
            text.push_str(&match end.kind {
                EndKind::Idle => {
                    format!("in {left} (at {at}) if nothing is run until then (limit: {limit})\n")
                }
                EndKind::Input => {
                    format!("in {left} (at {at}) if nobody answers its input() (limit: {limit})\n")
                }
                EndKind::Lifetime => {
                    format!("in {left} (at {at}) in any case (lifetime: {limit})\n")
                }
                EndKind::Budget => {
                    format!("after {left} more of CPU time (budget: {limit})\n")
                }
            });
        }
        if text.is_empty() {
            text.push_str("not before it is stopped\n");
        }
        text
    }

    /// Changes a setting of this session. The answer says what holds now; an error what is allowed.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<String, String> {
        let keys = || {
            let keys = SETTINGS.iter().filter(|setting| setting.of_session);
            keys.map(|setting| setting.key)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let setting = match Setting::find(key) {
            Some(setting) if setting.of_session => setting,
            Some(_) => {
                return Err(format!(
                    "{key} cannot be changed in a session that runs; these can: {}",
                    keys()
                ));
            }
            None => {
                return Err(format!(
                    "no setting is called `{key}`; those of a session are: {}",
                    keys()
                ));
            }
        };
        setting
            .check(value)
            .map_err(|form| format!("`{value}` is no value for {key}; it takes {form}"))?;
        let mut state = self.state.lifetime.settings.clone();
        state.insert(key.to_owned(), value.to_owned());
        let mut values = self.facts.settings.clone();
        values.extend(state);
        let config = Config::from_values(&values);
        if key == "max_lifetime"
            && let Some(cap) = config.max_lifetime_cap
            && config.max_lifetime.is_none_or(|asked| asked > cap)
        {
            return Err(format!(
                "max_lifetime can be {} at most: that is max_lifetime_cap",
                span_long(micros(cap))
            ));
        }
        self.note(Note::Set {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        self.limits = config;
        Ok(format!("{key} = {value}, in this session\n"))
    }

    /// What `%farside set` shows.
    pub(super) fn describe_settings(&self) -> String {
        let mut text = String::new();
        for setting in SETTINGS.iter().filter(|setting| setting.of_session) {
            let of_session = self.state.lifetime.settings.get(setting.key);
            let value = of_session
                .or_else(|| self.facts.settings.get(setting.key))
                .map_or(setting.default, String::as_str);
            let mark = if of_session.is_some() {
                "  (set in this session)"
            } else {
                ""
            };
            text.push_str(&format!("{:<22} {value}{mark}\n", setting.key));
        }
        text
    }

    /// `%farside notify`: whether the end of what runs, or of what runs next, is to be told of.
    pub(super) fn set_notify(&mut self, on: bool) -> Result<String, String> {
        if on && self.limits.notify.is_empty() {
            return Err(
                "nothing says how to tell you: `%farside set notify COMMAND` or `%farside set notify URL` first".into(),
            );
        }
        let (n, which) = match self.state.running() {
            Some((n, _)) => (n, format!("execution {n}, which runs")),
            None => (self.state.last_n + 1, "the next execution".to_owned()),
        };
        self.note(Note::NotifyOf { n, on });
        let not = if on { "" } else { "not " };
        Ok(format!("the end of {which}, will {not}be told of\n"))
    }

    // ---- The end's steps

    /// Begins to end, with time for what runs, and hooks.
    pub(super) fn retire(&mut self, reason: String) {
        if self.state.lifetime.ending.is_some() {
            return;
        }
        self.note(Note::Ending {
            reason: reason.clone(),
            retire: true,
        });
        let grace = format_duration(self.limits.retire_grace);
        let id = self.facts.id.clone();
        self.say_in_running(&format!(
            "this session ends now ({reason}). What runs is interrupted and has {grace} to finish. All outputs are \
             kept: `farside logs {id}`."
        ));
        self.retiring = Some(Retiring::Unheard {
            until: self.clocks.awake.saturating_add(HEARD_WITHIN),
        });
        self.go_on_retiring();
    }

    /// A new host goes on with what the last one had begun.
    pub(super) fn resume_ending(&mut self) {
        let Some(ending) = self.state.lifetime.ending.clone() else {
            return;
        };
        if ending.retire {
            self.retiring = Some(Retiring::Unheard {
                until: self.clocks.awake.saturating_add(HEARD_WITHIN),
            });
            self.go_on_retiring();
        } else {
            self.stop_for_good(ending.reason, false);
        }
    }

    fn step_taken(&self, step: &str) -> bool {
        self.state
            .lifetime
            .ending
            .as_ref()
            .is_some_and(|ending| ending.steps.iter().any(|taken| taken == step))
    }

    fn end_step(&mut self, step: &str, outcome: &str) {
        self.note(Note::EndStep {
            step: step.to_owned(),
            outcome: outcome.to_owned(),
        });
    }

    /// Takes the steps that can be taken now.
    pub(super) fn go_on_retiring(&mut self) {
        let now = self.clocks.awake;
        while let Some(at) = self.retiring.clone() {
            let next = match at {
                Retiring::Unheard { until } => {
                    let is_coming = matches!(self.engine, Engine::Starting | Engine::Probing)
                        && self.state.engine_pid.is_some();
                    if is_coming && now < until {
                        return;
                    }
                    self.begin_grace()
                }
                Retiring::Grace { until } => {
                    if self.has_engine() && self.interrupt_what_began() && now < until {
                        return;
                    }
                    if !self.state.live.is_empty() {
                        let grace = format_duration(self.limits.retire_grace);
                        self.end_step("interrupt", &format!("not finished within {grace}"));
                    }
                    self.begin_code()
                }
                Retiring::Code { n, until } => {
                    if self.state.live.contains_key(&n) && now < until {
                        return;
                    }
                    if self.state.live.contains_key(&n) {
                        let limit = format_duration(self.limits.before_retire_timeout);
                        self.end_step(
                            "before_retire_code",
                            &format!("not finished within {limit}: interrupted"),
                        );
                        self.interrupt_now();
                    }
                    self.begin_command()
                }
                Retiring::Command => return,
                Retiring::Stopping => return,
            };
            self.retiring = Some(next);
            if self.retiring == Some(Retiring::Stopping) {
                let reason = self.ending_reason();
                self.end_step("shutdown_request", "");
                self.stop_for_good(reason, false);
            }
        }
    }

    pub(super) fn ending_reason(&self) -> String {
        let ending = self.state.lifetime.ending.as_ref();
        ending.map_or_else(String::new, |ending| ending.reason.clone())
    }

    fn has_engine(&self) -> bool {
        !matches!(self.engine, Engine::Absent { .. })
    }

    fn begin_grace(&mut self) -> Retiring {
        if self.has_engine() && !self.state.live.is_empty() && !self.step_taken("interrupt") {
            self.end_step("interrupt", "");
        }
        let grace = micros(self.limits.retire_grace);
        Retiring::Grace {
            until: self.clocks.awake.saturating_add(grace),
        }
    }

    /// Interrupts what has begun to run since the last time. `false`: nothing is left to be finished.
    fn interrupt_what_began(&mut self) -> bool {
        let began = |execution: &Execution| {
            execution.state != ExecutionState::Queued && !execution.interrupted
        };
        if self.state.live.values().any(began) {
            self.interrupt_now();
        }
        !self.state.live.is_empty()
    }

    fn interrupt_now(&mut self) {
        self.note(Note::Interrupted);
        self.interrupt_by_any_means();
    }

    fn begin_code(&mut self) -> Retiring {
        let code = self.limits.before_retire_code.clone();
        let can = self.engine == Engine::Connected && self.state.live.is_empty();
        if code.is_empty() || self.step_taken("before_retire_code") {
            return self.begin_command();
        }
        if !can {
            self.end_step("before_retire_code", "not run: the engine is not free");
            return self.begin_command();
        }
        self.end_step("before_retire_code", "");
        let content = json!({ "code": code, "silent": false, "store_history": false, "user_expressions": {},
            "allow_stdin": false, "stop_on_error": true });
        let request = self.message("execute_request", "{}", &content);
        let n = self.execute(NOBODY, request);
        let limit = micros(self.limits.before_retire_timeout);
        Retiring::Code {
            n,
            until: self.clocks.awake.saturating_add(limit),
        }
    }

    fn begin_command(&mut self) -> Retiring {
        let command = self.limits.before_retire.clone();
        if command.is_empty() || self.step_taken("before_retire") {
            return Retiring::Stopping;
        }
        self.end_step("before_retire", "");
        let (timeout, reason) = (self.limits.before_retire_timeout, self.ending_reason());
        self.effect(Effect::RunHook {
            command,
            timeout,
            reason,
        });
        Retiring::Command
    }

    pub(super) fn on_hook_ended(&mut self, outcome: &str) {
        if self.retiring != Some(Retiring::Command) {
            return;
        }
        self.end_step("before_retire", outcome);
        self.end_step("shutdown_request", "");
        self.retiring = Some(Retiring::Stopping);
        let reason = self.ending_reason();
        self.stop_for_good(reason, false);
    }

    pub(super) fn on_engine_signalled(&mut self, signal: &str) {
        if self.state.lifetime.ending.is_some() {
            self.end_step(signal, "");
        }
    }

    /// Refuses what a frontend wants to run while the session ends.
    pub(super) fn refuse_at_the_end(&mut self, client: ClientId, message: Message) {
        let asked = self.wait(client, Channel::Shell, message);
        let evalue = format!(
            "this session is ending ({}): nothing more is run in it. Run it again in the session that follows.",
            self.ending_reason()
        );
        self.magic_error(&asked, "SessionEnding", &evalue);
    }

    // ---- Usage and health

    pub(super) fn on_usage(&mut self, usage: Usage) {
        if usage.generation != self.state.generation || self.state.engine_pid.is_none() {
            return;
        }
        self.memory_bytes = usage.memory_bytes;
        let used = self.state.lifetime.used;
        let cpu = usage.cpu.max(used.cpu);
        let peak_bytes = usage.memory_bytes.max(used.peak_bytes);
        let grown = cpu - used.cpu;
        let step = (used.cpu() / USED_SHARE).clamp(1_000_000, USED_MICROS);
        let budget_over = self
            .limits
            .cpu_budget
            .is_some_and(|budget| used.before + cpu >= micros(budget));
        let peak_grown = peak_bytes > used.peak_bytes + used.peak_bytes / USED_SHARE;
        if grown >= step || (grown > 0 && budget_over) || peak_grown {
            self.note(Note::Usage {
                before: used.before,
                cpu,
                peak_bytes,
            });
        }
        self.cpu_now = used.before + cpu;
        // Where the budget is what ends it, this is its clock.
        self.on_tick(self.clocks);
    }

    pub(super) fn on_health(&mut self, responsive: bool) {
        let known = self.state.lifetime.unresponsive_since.is_none();
        if known == responsive || self.state.engine_pid.is_none() {
            return;
        }
        self.note(Note::Health { responsive });
        if !responsive {
            let text = "the engine's heartbeat does not answer any more, but its process lives (it may be stopped, or \
                        swapping). Nothing was done to it.";
            self.notify(NotifyOn::Unresponsive, text.to_owned(), |_| {});
        }
    }

    // ---- Telling people

    /// Tells of an execution that has come to its end.
    pub(super) fn notify_finished(&mut self, n: ExecutionNumber, state: ExecutionState) {
        let Some(execution) = self.state.live.get(&n).cloned() else {
            return;
        };
        let event = match state {
            ExecutionState::Ok => NotifyOn::ExecutionFinished,
            ExecutionState::Error | ExecutionState::Lost | ExecutionState::Interrupted => {
                NotifyOn::ExecutionFailed
            }
            ExecutionState::Aborted
            | ExecutionState::Queued
            | ExecutionState::Running
            | ExecutionState::WaitingInput => return,
        };
        let ran = execution
            .started
            .map_or(0, |started| self.now.saturating_sub(started));
        let text = format!(
            "execution {n} in {} {} after {}: {}",
            self.facts.name,
            match state {
                ExecutionState::Ok => "is done".to_owned(),
                other => format!("ended as {}", other.name()),
            },
            span(ran),
            execution.code
        );
        self.notify_of(event, n, &execution, state, text);
    }

    /// Tells that an execution waits for input().
    pub(super) fn notify_input(&mut self, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n).cloned() else {
            return;
        };
        let text = format!("execution {n} in {} waits for input()", self.facts.name);
        let state = ExecutionState::WaitingInput;
        self.notify_of(NotifyOn::WaitingInput, n, &execution, state, text);
    }

    fn notify_of(
        &mut self,
        event: NotifyOn,
        n: ExecutionNumber,
        execution: &Execution,
        state: ExecutionState,
        text: String,
    ) {
        let ran = execution
            .started
            .map_or(0, |started| self.now.saturating_sub(started));
        let wanted = match self.state.lifetime.notify_of.get(&n) {
            Some(on) => *on,
            None => {
                let long = u128::from(ran) > self.limits.notify_after.as_micros();
                execution.by_person && (long || self.state.clients.is_empty())
            }
        };
        if wanted {
            let code = execution.code.clone();
            self.notify(event, text, |notification| {
                notification.execution = Some(n);
                notification.state = Some(state);
                notification.seconds = Some(ran as f64 / 1e6);
                notification.code = Some(code);
            });
        }
    }

    pub(super) fn notify(
        &mut self,
        event: NotifyOn,
        text: String,
        fill: impl FnOnce(&mut Notification),
    ) {
        if self.limits.notify.is_empty() {
            return;
        }
        let mut notification = Notification {
            event,
            text,
            time: self.now,
            session: self.facts.id.clone(),
            name: self.facts.name.clone(),
            engine: self.facts.engine.clone(),
            execution: None,
            state: None,
            seconds: None,
            code: None,
            reason: None,
        };
        fill(&mut notification);
        let to = self.limits.notify.clone();
        self.effect(Effect::Notify {
            to,
            notification: Box::new(notification),
        });
    }

    /// What `extend` answers on the command line.
    pub(super) fn extend_answer(&mut self, seconds: u64) -> Value {
        match self.extend(seconds) {
            Ok(text) => {
                let ends_at = self
                    .ends_at(self.clocks)
                    .map(|(at, _)| crate::wire::message::iso8601(at));
                json!({ "ok": true, "ends_at": ends_at, "text": text })
            }
            Err(error) => json!({ "ok": false, "error": error }),
        }
    }
}
