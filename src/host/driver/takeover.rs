//! What an earlier host left: its clients, its engine, and what the keeper held of that.

use std::collections::HashMap;

use tokio::time::Instant;

use super::attachments::Attached;
use super::{Driver, Input};
use crate::host::clocks;
use crate::host::engine::{CHANNELS, spawn_id};
use crate::host::held::{self, Found, Taken};
use crate::keeper::{self, Fds, Process, ToKeeper};
use crate::session::event::{Event, Gap};
use crate::state_dir::ProcessId;
use crate::wire::Channel;

impl Driver {
    /// The first turn: what an earlier host left is taken over.
    pub(super) fn open(&mut self, held: &[(keeper::Stream, Fds)]) -> std::io::Result<()> {
        let (gap_from, ended) = (
            self.core.state().last_record,
            self.core.state().ended.is_some(),
        );
        if ended {
            self.over = true;
            return Ok(());
        }
        for (client, known) in self.core.state().clients.clone() {
            let claims = known.kind == "launcher";
            self.clients.insert(
                client,
                Attached {
                    pid: known.pid,
                    main: None,
                    claims,
                    wants_kernel_info: false,
                },
            );
            self.expect(client);
        }
        let engine = (
            self.core.state().generation,
            self.core.state().engine_pid,
            self.core.state().engine_start_time,
        );
        let effects = self.core.open(std::process::id(), clocks::now());
        self.turn.take(effects);
        if let (generation, Some(pid), start_time) = engine {
            self.adopt(generation, pid, start_time, gap_from, held);
        }
        self.status_due = Some(Instant::now());
        self.commit();
        Ok(())
    }

    pub(super) fn adopt(
        &mut self,
        generation: u32,
        pid: u32,
        start_time: u64,
        gap_from: u64,
        held: &[(keeper::Stream, Fds)],
    ) {
        let mut found = self.found(generation, held);
        let has_any = found.values().any(|found| matches!(found, Found::Whole(_)));
        let lives = ProcessId {
            pid,
            start_ticks: start_time,
        }
        .is_alive();
        // Of an engine that has ended meanwhile, what it said is still to be read.
        if !lives && !has_any {
            // How it ended, a keeper that lived on will say with its first word.
            self.inbox.send_now(Input::Event(Event::EngineEnded {
                generation,
                end: None,
                why: "ended while nobody watched it".into(),
            }));
            return;
        }
        let why = match found.get(&Channel::Iopub) {
            Some(Found::Whole(iopub)) if iopub.is_full() => Some(
                "the process that keeps this session was killed and replaced, and the engine said more meanwhile than \
                 can be held",
            ),
            Some(Found::Whole(_)) => None,
            Some(Found::Broken | Found::Nothing) | None => {
                Some("the process that keeps this session was killed and replaced")
            }
        };
        let gap = why.map(|why| Gap {
            from: gap_from,
            why: why.to_owned(),
        });
        tracing::info!(engine = pid, without_gap = gap.is_none(), "adopted");
        self.event(Event::Adopted { gap });
        let process = Process {
            id: spawn_id(generation),
            pid,
            start_time,
        };
        let heard = self.core.state().heard.clone();
        let was_ready = self.core.state().info.is_some();
        let found = |channel| {
            let position = heard.get(&channel).copied().unwrap_or(0);
            (position, found.remove(&channel).unwrap_or(Found::Nothing))
        };
        match (self.engine).adopt(generation, process, was_ready, found) {
            Ok(watch) => self.tell_keeper(watch),
            Err(why) => self.event(Event::EngineEnded {
                generation,
                end: None,
                why,
            }),
        }
    }

    /// The streams of this engine that the keeper held.
    fn found(&self, generation: u32, held: &[(keeper::Stream, Fds)]) -> HashMap<Channel, Found> {
        let mut all = HashMap::new();
        for channel in CHANNELS {
            let is_it = |(stream, _): &&(keeper::Stream, Fds)| {
                stream.process == spawn_id(generation) && stream.name == channel.name()
            };
            let Some((_, fds)) = held.iter().find(is_it) else {
                continue;
            };
            let heard = self.core.state().heard.get(&channel).copied().unwrap_or(0);
            let found = Taken::new(fds, heard).unwrap_or_else(|error| {
                tracing::warn!(%error, ?channel, "what was held of the engine cannot be had");
                None
            });
            let found = found.map_or_else(
                || {
                    tracing::warn!(?channel, "what was held of the engine is not whole");
                    held::close(fds);
                    Found::Broken
                },
                Found::Whole,
            );
            all.insert(channel, found);
        }
        all
    }

    /// An engine that the last host had asked for, and died before it had noted it: nobody knows of it.
    pub(super) fn end_if_stray(&mut self, process: &Process) {
        let named = ProcessId {
            pid: process.pid,
            start_ticks: process.start_time,
        };
        if self.is_our_engine(process) || self.engine.watches(process) || !named.is_alive() {
            return;
        }
        tracing::warn!(
            process = process.id,
            pid = process.pid,
            "an engine that is not this session's; killed"
        );
        self.tell_keeper(ToKeeper::Signal {
            pid: process.pid,
            start_time: process.start_time,
            signal: libc::SIGKILL,
            group: true,
        });
    }

    pub(super) fn is_our_engine(&self, process: &Process) -> bool {
        let state = self.core.state();
        state.engine_pid == Some(process.pid) && state.engine_start_time == process.start_time
    }
}
