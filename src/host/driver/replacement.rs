//! The way to the next host, which goes on with the session (`farside upgrade-host`).

use serde_json::json;
use tokio::time::Instant;

use super::Driver;
use crate::host::clients::StreamId;
use crate::keeper::ToKeeper;

/// How far a host has come on the way to the next one ([`ReplaceHost`](crate::session::event::Effect::ReplaceHost)).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Replacement {
    None,
    /// The keeper was asked to start it, for this command.
    Asked(u64),
    /// The keeper will start it as soon as we end. That is when who asked for it has heard so, and all is out that is
    /// in memory only; looked at every [`LEAVE_LOOK_EVERY`](super::LEAVE_LOOK_EVERY).
    Next {
        asked: Option<StreamId>,
        /// Who asked has had its time.
        at_last: Instant,
    },
}

impl Driver {
    /// Asks the keeper for another host in our place. Then all that is in memory only must be out: requests to the
    /// engine, also to one that is still starting, are waited for, people's notifications and commands that wait for an
    /// answer are a reason not to.
    pub(super) fn replace_by(&mut self, id: u64, program: &str) {
        let busy = if self.replacement != Replacement::None {
            Some("it is just being replaced")
        } else if !self.notifier.is_idle() {
            Some("a notification is on its way (`notify`); try again in a moment")
        } else if self.commands.len() > 1 {
            Some("another command waits for its answer; try again in a moment")
        } else {
            None
        };
        if let Some(why) = busy {
            self.answer(id, json!({ "ok": false, "error": why }));
            return;
        }
        self.replacement = Replacement::Asked(id);
        self.tell_keeper(ToKeeper::HostProgram {
            program: program.into(),
        });
    }

    /// Whether the next host can go on from here.
    pub(super) fn may_leave(&self) -> bool {
        let Replacement::Next { asked, at_last } = &self.replacement else {
            return false;
        };
        let is_told = asked.is_none_or(|stream| !self.streams.contains_key(&stream));
        let unsent = self.core.waiting_bytes() + self.engine.unsent_bytes();
        (is_told || Instant::now() >= *at_last) && unsent == 0
    }

    /// The next host finds all of it in the journal, and the engine's streams with the keeper.
    pub(super) fn leave(mut self) {
        tracing::info!("making room for another host");
        self.commit();
        self.compaction.finish();
        self.lookups.finish();
        self.digester.finish();
        self.status_file.finish();
    }
}
