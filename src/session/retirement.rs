//! The core's way to the end of a session: when it is due, and the end's steps.
//!
//! The policy itself is [`super::lifetime`]; here is what it does to executions, engine and frontends. What is said of it
//! is in [`super::notices`], what moves it in [`super::adjusting`].
//!
//! A session that retires first interrupts what runs and lets it finish, then runs its hooks, and then asks the engine
//! to end. Each step is a note before it is taken, so that the next host goes on where one was killed.

use serde_json::json;

use super::clock::Now;
use super::core::{Core, Engine, Facts};
use super::event::{Effect, NotifyOn, Usage};
use super::lifetime::{Doing, Due, End, EndKind, micros};
use super::state::{Execution, State};
use super::text::span_long;
use crate::duration::format_duration;
use crate::journal::record::{ClientId, ExecutionNumber, ExecutionState, Micros, Note};
use crate::settings::Config;
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
    /// Somebody ends the session, and of an execution that is done outputs are still on their way.
    LastWords { until: Micros },
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

    /// GPU memory that engine and descendants were last seen to use, bytes; `None` where nobody can tell.
    pub fn gpu_memory_bytes(&self) -> Option<u64> {
        self.gpu_memory_bytes
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
        let doing = self.doing();
        let attached = match doing {
            // Whoever is there can answer.
            Doing::Input => !self.state.clients.is_empty(),
            Doing::Nothing | Doing::Work => self.state.has_frontend(),
        };
        let lifetime = &self.state.lifetime;
        let cpu = self.cpu();
        let mut ends = lifetime.ends(&self.limits, doing, attached, cpu, now);
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
        let own = [
            self.continuity.due(),
            self.idle_due,
            self.journal_retry,
            self.subshell_due(),
        ];
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
                | Retiring::Code { until, .. }
                | Retiring::LastWords { until },
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
        self.ask_for_idle();
        self.delete_subshells();
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
            EndKind::Idle if !self.state.has_frontend() => {
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
                Retiring::LastWords { until } => {
                    if self.engine == Engine::Connected && self.lacks_idle() && now < until {
                        return;
                    }
                    Retiring::Stopping
                }
                Retiring::Command | Retiring::Stopping => return,
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
        self.gpu_memory_bytes = usage.gpu_memory_bytes;
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
}
