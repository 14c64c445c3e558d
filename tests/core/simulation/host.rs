//! The host of a simulated session: carries the effects out as the driver does, and dies anywhere in between.

use farside::journal::record::{Body, Note, Record};
use farside::session::core::Core;
use farside::session::event::{Effect, Event, Gap};
use farside::wire::Channel;

use super::{Simulation, describe, gist};
use crate::bench::recovered;

impl Simulation {
    pub(super) fn event(&mut self, event: Event) {
        if self.over {
            return;
        }
        self.now += 1000;
        self.say(|| format!("-- {}", gist(&event)));
        // A host that dies before its first checkpoint after a failure takes along what was not kept: nothing holds then.
        let may_die = self.host_may_die() && !matches!(event, Event::JournalHealed { .. });
        let effects = self.core.handle(event, self.now);
        if may_die && !self.calm && self.rng.one_in(300) {
            self.host_dies_within(effects);
        } else {
            self.carry_out(effects);
        }
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        let (records, after): (Vec<_>, Vec<_>) =
            (effects.into_iter()).partition(|effect| matches!(effect, Effect::Record(_)));
        let any = !records.is_empty();
        for effect in records {
            let Effect::Record(record) = effect else {
                continue;
            };
            self.append(record);
        }
        for effect in after {
            self.do_effect(effect);
        }
        if any && self.failing && !self.failure_was_told {
            self.failure_was_told = true;
            let why = "no space".into();
            self.event(Event::JournalFailed { why });
        } else if any && !self.failing && self.failure_was_told {
            self.failure_was_told = false;
            self.event(Event::JournalHealed { from: self.now });
        }
    }

    pub(super) fn append(&mut self, record: Record) {
        assert_eq!(record.seq, self.published.len() as u64 + 1, "a hole");
        if self.loud {
            println!("{} {}", record.seq, describe(&record));
        }
        if let Body::Request { message, .. } = &record.body {
            self.recorded.insert(message.header.clone());
        }
        if !self.failing {
            self.persisted.push(record.clone());
        }
        self.published.push(record);
    }

    pub(super) fn do_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) => unreachable!("records come first"),
            Effect::ToEngine(channel, message) => {
                let farsides = matches!(
                    message.header().unwrap().msg_type.as_ref(),
                    "kernel_info_request" | "interrupt_request"
                );
                assert!(
                    farsides || self.recorded.contains(&message.header),
                    "to the engine before it is in the journal"
                );
                let Some(engine) = &mut self.engine else {
                    return;
                };
                assert!(engine.connected, "sent to an engine without sockets");
                match channel {
                    Channel::Shell => engine.shell.push_back(message),
                    Channel::Control => engine.control.push_back(message),
                    Channel::Stdin => engine.stdin.push_back(message),
                    Channel::Iopub => panic!("nobody writes to iopub"),
                }
            }
            Effect::StartEngine { generation } => {
                assert!(
                    self.engine.is_none() && self.to_spawn.is_none(),
                    "two engines"
                );
                self.to_spawn = Some(generation);
            }
            Effect::InterruptEngine => {
                if let Some(engine) = &mut self.engine {
                    engine.interrupted = true;
                }
            }
            Effect::StopEngine { .. } => match &mut self.engine {
                Some(engine) => engine.stopping = true,
                // A new host does not know yet that it has died meanwhile; it will hear.
                None if self.core.state().engine_pid.is_some() => {}
                None => panic!("no engine to stop: the session would wait for ever"),
            },
            Effect::Query(id, query) => self.queries.push((id, query)),
            Effect::Reply { .. } | Effect::Notify { .. } => {}
            Effect::RunHook { .. } => self.hook_runs = true,
            Effect::ReplaceHost { .. } => unreachable!("nobody asks for it"),
            Effect::End => {
                self.over = true;
                assert!(matches!(
                    self.published.last().unwrap().body,
                    Body::Note(Note::SessionEnded { .. })
                ));
            }
        }
    }

    /// The host is killed while it carries these out.
    pub(super) fn host_dies_within(&mut self, effects: Vec<Effect>) {
        let records = (effects.iter())
            .filter(|effect| matches!(effect, Effect::Record(_)))
            .count();
        let keep = self.rng.below(records + 1);
        let after = if keep == records {
            self.rng.below(effects.len() - records + 1)
        } else {
            0
        };
        let (records, rest): (Vec<_>, Vec<_>) =
            (effects.into_iter()).partition(|effect| matches!(effect, Effect::Record(_)));
        for effect in records.into_iter().take(keep) {
            let Effect::Record(record) = effect else {
                continue;
            };
            self.append(record);
        }
        for effect in rest.into_iter().take(after) {
            self.do_effect(effect);
        }
        self.replace_host();
    }

    pub(super) fn host_may_die(&self) -> bool {
        // Of two executions with one msg_id nobody can tell which one a host took along.
        !self.failing && !self.failure_was_told && self.asked_twice.is_empty()
    }

    pub(super) fn host_dies(&mut self) {
        assert_eq!(recovered(&self.persisted), *self.core.state());
        self.replace_host();
    }

    pub(super) fn replace_host(&mut self) {
        self.say(|| "-- the host dies".into());
        self.host_died = true;
        self.hook_runs = false;
        self.hosts += 1;
        self.queries.clear();
        self.to_spawn = None;
        // What was on its way is lost, and so is what the engine sends while nobody is there.
        if let Some(engine) = &mut self.engine {
            engine.connected = false;
            engine.subscribed = false;
            engine.sent.clear();
            for _ in 0..self.rng.below(6) {
                self.engine_works();
            }
            if self.rng.one_in(6) {
                self.engine_dies();
            }
            if let Some(engine) = &mut self.engine {
                engine.sent.clear();
            }
        }
        let state = recovered(&self.persisted);
        if state.ended.is_some() {
            self.over = true;
            return;
        }
        let lives = (self.engine.as_ref())
            .is_some_and(|engine| !engine.dead && engine.generation == state.generation);
        if !lives || state.engine_pid.is_none() {
            // One that no record tells of is the keeper's to end.
            self.engine = None;
        }
        let (generation, pid, gap_from) = (state.generation, state.engine_pid, state.last_record);
        let known = state.clients.clone();
        self.core = Core::new(
            self.facts.clone(),
            format!("host{}", self.hosts),
            state,
            self.published.len() as u64 + 1,
        );
        self.now += 1_000_000;
        let effects = self.core.open(self.hosts, self.now);
        self.carry_out(effects);
        if pid.is_some() {
            if self.engine.is_some() {
                let why = "the host was killed".into();
                let gap = Some(Gap {
                    from: gap_from,
                    why,
                });
                self.event(Event::Adopted { gap });
            } else {
                self.engine_died = true;
                self.event(Event::EngineEnded {
                    generation,
                    end: None,
                    why: "ended while nobody watched it".into(),
                });
            }
        }
        for at in 0..self.clients.len() {
            let client = self.clients[at].frontend.client;
            match (self.clients[at].attached, known.contains_key(&client)) {
                (true, false) => self.attached(client),
                (false, true) => self.detached(client),
                (true, true) | (false, false) => {}
            }
            if let Some((channel, message)) = self.clients[at].last.clone()
                && self.clients[at].attached
            {
                self.event(Event::Request {
                    client,
                    channel,
                    message,
                    again: true,
                });
            }
        }
    }
}
