//! status.json: what others see of the session without asking.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::host::clocks;
use crate::host::usage::Target;
use crate::journal::record::Micros;
use crate::session::usage::Roots;
use crate::state_dir::{ProcessId, SessionState, Status};

/// What people look at is in status.json at once, but for a session that goes to and fro between busy and idle: then
/// so often. Shorter than it takes to run `farside ls` and look.
const SHOW_EVERY: Duration = Duration::from_millis(5);

/// And what is over within this was never busy to them. (Writing the file costs a fourth of what a small request does.)
const SHOW_BUSY_AFTER: Duration = Duration::from_millis(10);

/// Figures are in status.json so long after they have changed, with all changes up to then.
const FIGURES_DELAY: Duration = Duration::from_millis(25);

/// But where they change all the time, so often. (A file that is renamed over another one goes to the disk at once.)
const FIGURES_EVERY: Duration = Duration::from_millis(250);

/// What of the session people look at or have just set, and what tells a launcher that something runs for it, should this
/// host be killed.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Shape {
    state: &'static str,
    attached: usize,
    engine: Option<u32>,
    keeper: Option<u32>,
    extended: Micros,
    unkept_since: Option<Micros>,
    bounds: [Option<Duration>; 4],
}

/// A process of which status.json is to say more than its number; looked for again where there was no descriptor to look.
pub(super) struct Named {
    pid: u32,
    id: Option<ProcessId>,
}

impl Named {
    pub fn new(pid: u32) -> Self {
        let id = ProcessId::of(pid);
        Self { pid, id }
    }

    fn look(&mut self) {
        self.id = self.id.or_else(|| ProcessId::of(self.pid));
    }
}

impl Driver {
    /// What people look at changes in status.json at once; of the rest, and of what changes all the time, there is
    /// one write in a while.
    pub(super) fn show_status(&mut self) {
        let ((shown, at), shape) = (&self.shown, self.shape());
        if *shown == shape {
            self.show_due = None;
            return;
        }
        let next = *at + SHOW_EVERY;
        let is_busy = shape.state == "busy" && shown.state == "idle";
        match Instant::now() {
            now if is_busy => {
                self.show_due.get_or_insert(next.max(now + SHOW_BUSY_AFTER));
            }
            now if now < next => self.show_due = Some(next),
            _ => self.write_status(),
        }
    }

    /// Figures have changed: how many executions and outputs there are, what they use, when something happened last.
    pub(super) fn show_figures(&mut self) {
        let last = self.shown.1;
        self.status_due
            .get_or_insert_with(|| (Instant::now() + FIGURES_DELAY).max(last + FIGURES_EVERY));
    }

    fn shape(&self) -> Shape {
        let (state, limits) = (self.core.state(), self.core.limits());
        Shape {
            state: self.core.session_state(),
            attached: self.clients.len(),
            engine: state.engine_pid,
            keeper: self.keeper_process.as_ref().map(|keeper| keeper.pid),
            extended: state.lifetime.extended,
            unkept_since: self.log.unkept_since(),
            bounds: [
                limits.idle_timeout,
                limits.idle_timeout_detached,
                limits.max_lifetime,
                limits.cpu_budget,
            ],
        }
    }

    /// Shows all of it, to those inside of this host as well who only watch.
    pub(super) fn write_status(&mut self) {
        self.status_due = None;
        self.show_due = None;
        self.shown = (self.shape(), Instant::now());
        self.process.look();
        self.keeper_process.iter_mut().for_each(Named::look);
        self.status_file.show(self.status());
        let target = self.usage_target();
        self.engine.set_active(target.active);
        self.usage.look_at(target);
    }

    fn status(&self) -> Status {
        let state = self.core.state();
        let running = state.running();
        let lifetime = &state.lifetime;
        let ends = self.core.ends_at(clocks::now());
        let seconds = |micros: u64| micros as f64 / 1e6;
        Status {
            state: match self.core.session_state() {
                "starting" => SessionState::Starting,
                "busy" => SessionState::Busy,
                "waiting_input" => SessionState::WaitingInput,
                "ended" => SessionState::of_end(state.ended.as_deref().unwrap_or_default()),
                _ => SessionState::Idle,
            },
            attached: self.clients.len() as u32,
            executions: state.last_n,
            last_activity: (state.last_activity > 0).then_some(state.last_activity),
            ends_at: ends.map(|(at, _)| at),
            ended_at: state.ended.is_some().then_some(state.last_record),
            end_reason: state.ended.clone(),
            host: self.process.id,
            keeper: self.keeper_process.as_ref().and_then(|keeper| keeper.id),
            engine: state.engine_pid.map(|pid| ProcessId {
                pid,
                start_ticks: state.engine_start_time,
            }),
            busy_since: running.and_then(|(_, execution)| execution.started),
            running: running.map(|(n, _)| n),
            ends_by: ends.map(|(_, kind)| kind.name().to_owned()),
            code: running.map(|(_, execution)| execution.code.clone()),
            outputs: state.outputs,
            output_bytes: state.output_bytes,
            cpu_seconds: seconds(self.core.cpu()),
            cpu_seconds_left: self
                .core
                .limits()
                .cpu_budget
                .map(|budget| (budget.as_secs_f64() - seconds(self.core.cpu())).max(0.0)),
            memory_bytes: self.core.memory_bytes(),
            memory_peak_bytes: lifetime.used.peak_bytes.max(self.core.memory_bytes()),
            gpu_memory_bytes: self.core.gpu_memory_bytes(),
            unresponsive_since: lifetime.unresponsive_since,
            unkept_since: self.log.unkept_since(),
            engine_end: state.engine_end.clone(),
            connection_file: self.connection_file.clone(),
        }
    }

    fn usage_target(&self) -> Target {
        let state = self.core.state();
        let engine = self.engine.process();
        Target {
            generation: state.generation,
            roots: Roots {
                keeper: self.keeper_process.as_ref().map(|keeper| keeper.pid),
                host: std::process::id(),
                engine: engine.map(|process| (process.pid, process.start_time)),
            },
            active: state.running().is_some(),
            seen: (state.last_n, state.info.is_some()),
            left: (self.core.limits().cpu_budget)
                .map(|budget| (budget.as_micros() as Micros).saturating_sub(self.core.cpu())),
        }
    }
}
