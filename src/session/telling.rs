//! Whom the core tells of what (`notify`): which executions are worth it, and what is said.

use super::core::Core;
use super::event::{Effect, Notification, NotifyOn, SUBMIT_KIND};
use super::state::Execution;
use super::text::span;
use crate::journal::record::{ExecutionNumber, ExecutionState};

impl Core {
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
                let mut clients = self.state.clients.values();
                let unwatched = clients.all(|client| client.kind == SUBMIT_KIND);
                execution.by_person && (long || unwatched)
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
}
