//! The core's way from one host to the next: what the records of the last one leave open is brought to an end.
//!
//! A host can die between any two records. What it had begun and only it could end is ended here; what the engine
//! still works on goes on.

use serde_json::json;

use super::core::{Core, Engine, Then};
use super::engine::error_content;
use super::event::{Effect, Gap};
use super::state::{Asked, Attachment, OpenBusy, Told};
use crate::journal::record::{ClientId, ExecutionNumber, ExecutionState, Micros, Note};
use crate::wire::Channel;

/// The probe that tells when an adopted engine has done all that was sent before.
#[derive(Debug)]
pub(super) struct Adoption {
    probe: String,
    /// What has a smaller seq was sent before the probe.
    at: u64,
    /// The same of what waited for the engine's answer.
    pending: Vec<Asked>,
    /// And of what the engine was at.
    busy: Vec<OpenBusy>,
    replied: bool,
    idle: bool,
}

impl Adoption {
    /// The engine has the probe, and has not come to it yet.
    pub fn awaits_reply(&self) -> bool {
        !self.probe.is_empty() && !self.replied
    }
}

/// An engine says idle right behind its reply. Where it does not within this (its iopub may be that far behind), the
/// idle may have been dropped.
const IDLE_GRACE: Micros = 3_000_000;

/// Why an answer never came.
const IN_THE_GAP: &str = "its end fell into a gap in which no host was there to read it";

impl Core {
    /// Ends what the last host had begun to end.
    pub(super) fn take_over(&mut self) {
        for n in self.live_executions() {
            self.finish_if_done(n);
        }
        for attachment in self.state.attachments.clone() {
            if !self.state.live.contains_key(&attachment.n) {
                self.end_lost_attachment(&attachment);
            }
        }
        let why =
            "the process that keeps this session was replaced before it had answered; ask again";
        for asked in self.pending_requests() {
            // Executions of the engine are not among these: it is a command of ours, or an attachment.
            let ours =
                asked.is_of_type("farside_list_request") || asked.is_of_type("execute_request");
            if ours && !self.is_attached(&asked) {
                self.refuse_with(&asked, "HostReplaced", why);
            }
        }
        for OpenBusy { client, parent } in self.state.busy.clone() {
            let attached = |attachment: &Attachment| attachment.asked.header == parent;
            if let Some(client) = client
                && !self.state.attachments.iter().any(attached)
            {
                let idle = json!({ "execution_state": "idle" });
                self.publish(Some(client), 0, "status", &parent, &idle);
            }
        }
        // An idle may have been the last that the last host said to them.
        let clients: Vec<ClientId> = self.state.clients.keys().copied().collect();
        clients
            .into_iter()
            .for_each(|client| self.still_busy(Some(client)));
        match &self.engine {
            Engine::Absent { why: Some(why) } => {
                let why = why.clone();
                self.engine_gone(&why);
            }
            Engine::Absent { why: None } => self.fail_for_next_engine(),
            Engine::Starting | Engine::Probing | Engine::Connected | Engine::Stopping(_) => {}
        }
    }

    /// The engine was not there yet, so nothing was sent to it; kernel_info the next one answers.
    fn fail_for_next_engine(&mut self) {
        let why = "the process that keeps this session was replaced before its engine had started; run it again";
        self.fail_executions("HostReplaced", why, ExecutionState::Aborted);
        self.fail_pending("HostReplaced", why, |asked| {
            !asked.is_of_type("kernel_info_request")
        });
    }

    /// Goes on with a restart that the last host had begun.
    pub(super) fn resume_restart(&mut self) {
        if !self.state.restarting || self.state.lifetime.ending.is_some() {
            return;
        }
        if self.state.engine_pid.is_none() {
            self.start_engine();
        } else {
            // It has heard of it, or has not: it is to end either way. What waited for the one to come, only the last
            // host had.
            self.fail_for_next_engine();
            self.engine = Engine::Stopping(Then::Restart);
            self.effect(Effect::StopEngine {
                now: false,
                restart: true,
            });
        }
    }

    pub(super) fn on_adopted(&mut self, gap: Option<Gap>) {
        if !matches!(self.engine, Engine::Stopping(_)) {
            self.engine = Engine::Starting;
        }
        self.adopted = Some(Adoption {
            probe: String::new(),
            at: self.next_seq(),
            pending: self.pending_requests(),
            busy: self.state.busy.clone(),
            replied: false,
            idle: false,
        });
        let Some(Gap { from, why }) = gap else {
            return;
        };
        self.note(Note::Gap {
            from,
            until: self.now,
            why: why.clone(),
            said: self.state.running().is_some(),
        });
        if let Some((n, execution)) = self.state.running() {
            let header = execution.asked.header.clone();
            // Between the two hosts the wall clock may have been set.
            let until = self.clocks.elapsed;
            let from = (self.clock_before.as_ref()).map_or(from, |clock| clock.elapsed_at(from));
            let gap_ms = until.saturating_sub(from) / 1000;
            let text = format!(
                "[farside] {why}: what the engine printed within {gap_ms} ms may be missing here.\n"
            );
            self.publish(
                None,
                n,
                "stream",
                &header,
                &json!({ "name": "stderr", "text": text }),
            );
        }
    }

    /// A reply has come. Its idle goes another way, on which an engine drops what is not taken in time; without it the
    /// execution would never end.
    pub(super) fn idle_is_due(&mut self) {
        if self.idle_due.is_none() && self.lacks_idle() {
            self.idle_due = Some(self.clocks.awake.saturating_add(IDLE_GRACE));
        }
    }

    /// Whether an execution has its reply and not all of its outputs.
    pub(super) fn lacks_idle(&self) -> bool {
        let lacks = |execution: &super::state::Execution| {
            execution.reply.is_some() && execution.told != Told::Idle
        };
        self.state.live.values().any(lacks)
    }

    /// Asks an engine that has answered and not said idle: what comes of that question comes behind what was not
    /// dropped.
    pub(super) fn ask_for_idle(&mut self) {
        if self.idle_due.is_none_or(|due| due > self.clocks.awake) {
            return;
        }
        self.idle_due = None;
        if self.engine != Engine::Connected || !self.lacks_idle() {
            return;
        }
        self.idle_is_due();
        match &self.adopted {
            // It has not come to the question yet.
            Some(adoption) if !adoption.replied => return,
            // The idle of the question was dropped as well.
            Some(_) => {}
            None => {
                self.adopted = Some(Adoption {
                    probe: String::new(),
                    at: self.next_seq(),
                    // Replies are not dropped.
                    pending: Vec::new(),
                    busy: self.state.busy.clone(),
                    replied: false,
                    idle: false,
                });
            }
        }
        self.probe();
    }

    /// An adopted engine is asked (again).
    pub(super) fn adoption_probed(&mut self, msg_id: &str) {
        let (next_seq, pending) = (self.next_seq(), self.pending_requests());
        let busy = self.state.busy.clone();
        let Some(adoption) = &mut self.adopted else {
            return;
        };
        if !adoption.probe.is_empty() {
            // Our subscription came after the first probe, and so maybe after what was asked until now.
            adoption.at = next_seq;
            adoption.pending.extend(
                pending
                    .into_iter()
                    .filter(|asked| asked.channel == Channel::Shell),
            );
            adoption.busy.extend(busy);
        }
        msg_id.clone_into(&mut adoption.probe);
        adoption.replied = false;
        adoption.idle = false;
    }

    /// Something that belongs to a probe of ours.
    pub(super) fn on_adoption_probe(&mut self, probe: &str, replied: bool, idle: bool) {
        let Some(adoption) = self
            .adopted
            .as_mut()
            .filter(|adoption| adoption.probe == probe)
        else {
            return;
        };
        adoption.replied |= replied;
        adoption.idle |= idle;
        if replied {
            // Its replies come in order: one that comes now is to a request behind the probe, also where that has the
            // name of one before it (two sockets of a client may use the same msg_id).
            let pending = std::mem::take(&mut adoption.pending);
            let before =
                |asked: &Asked| asked.channel == Channel::Shell && !self.has_subshell(asked);
            let (before, beside) = pending.into_iter().partition(before);
            if let Some(adoption) = &mut self.adopted {
                adoption.pending = beside;
            }
            self.lose_answers(before);
        }
        let Some(adoption) = &self.adopted else {
            return;
        };
        if adoption.replied
            && adoption.idle
            && let Some(adoption) = self.adopted.take()
        {
            self.settle_after_gap(adoption);
        }
    }

    /// The adopted engine has worked off all it had been sent, so what is not over now has lost its end in the gap.
    fn settle_after_gap(&mut self, adoption: Adoption) {
        self.tell_of_losses(true);
        self.close_statuses(|busy| adoption.busy.contains(busy));
        for n in self.live_executions() {
            let before = |execution: &super::state::Execution| execution.first_seq < adoption.at;
            if self.state.live.get(&n).is_some_and(before) {
                self.settle(n);
            }
        }
        self.lose_answers(adoption.pending);
    }

    /// Those of these requests that still wait for the engine do so in vain.
    fn lose_answers(&mut self, pending: Vec<Asked>) {
        for asked in pending {
            let engines = !self.is_attached(&asked) && !self.is_looked_up(&asked);
            if engines && self.state.is_pending(&asked) {
                self.refuse_with(&asked, "AnswerLost", IN_THE_GAP);
            }
        }
    }

    fn settle(&mut self, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n).cloned() else {
            return;
        };
        let asked = &execution.asked;
        let idle = execution.told == Told::Idle;
        if self.has_subshell(asked) && !idle && execution.reply.is_none() {
            // It runs beside the probe, maybe still.
            return;
        }
        if execution.told == Told::Nothing {
            self.engine_status(n, &asked.header, "busy");
        }
        if !idle {
            self.engine_status(n, &asked.header, "idle");
        }
        if execution.reply.is_some() {
            self.finish_if_done(n);
            return;
        }
        let lost = error_content("ExecutionLost", IN_THE_GAP);
        let (end, content) = match (idle, execution.failed) {
            (false, _) => (ExecutionState::Lost, lost),
            (true, true) => (ExecutionState::Error, lost),
            (true, false) => {
                let count = self.state.execution_count;
                let ok = json!({ "status": "ok", "execution_count": count, "payload": [], "user_expressions": {} });
                (ExecutionState::Ok, ok)
            }
        };
        self.reply(asked, n, "execute_reply", &content);
        self.finish(n, end, Some(IN_THE_GAP.into()));
    }

    fn end_lost_attachment(&mut self, attachment: &Attachment) {
        let why =
            "the process that keeps this session was replaced in the middle of it; attach again";
        self.end_attachment(attachment, &error_content("HostReplaced", why));
    }

    fn live_executions(&self) -> Vec<ExecutionNumber> {
        self.state.live.keys().copied().collect()
    }
}
