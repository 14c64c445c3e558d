//! The host of a simulated session: carries the effects out as the driver does, and dies anywhere in between.

use bytes::Bytes;
use farside::journal::record::{Body, Note, Record};
use farside::session::core::Core;
use farside::session::event::{Effect, Event, Gap};
use farside::session::turn::{Todo, Turn};
use farside::wire::{Channel, Message};

use super::{Simulation, describe, gist};
use crate::bench::{id, recovered};

impl Simulation {
    pub(super) fn event(&mut self, event: Event) {
        if self.over {
            return;
        }
        self.now += 1000;
        self.say(|| format!("-- {}", gist(&event)));
        let effects = self.core.handle(event, self.now);
        self.check_deletions(&effects);
        self.check_kernel_info(&effects);
        self.turn.take(effects);
        if !self.holds && (self.calm || !self.rng.one_in(3)) {
            self.commit();
        }
    }

    /// Carries the turn out, as the driver does. The host may die anywhere in it: of the records a beginning is there
    /// then, and of the rest nothing that stands behind a record that is not.
    pub(super) fn commit(&mut self) {
        if self.holds || self.over {
            return;
        }
        // A host that dies before its first checkpoint after a failure takes along what was not kept: nothing holds then.
        let dies = self.host_may_die() && !self.healing && !self.calm && self.rng.one_in(200);
        let mut dead = false;
        self.holds = true;
        while let Some(todo) = self.turn.next() {
            match todo {
                Todo::Append(records) => {
                    let mut kept = records.len();
                    if dies && self.rng.one_in(2) {
                        dead = true;
                        kept = self.rng.below(records.len() + 1);
                    }
                    for record in &records[..kept] {
                        self.append(Record::clone(record));
                    }
                    if !dead {
                        self.tell_of_the_journal();
                    }
                }
                Todo::Do(effect) => {
                    dead = dies && self.rng.one_in(4);
                    if !dead {
                        self.do_effect(effect);
                    }
                }
            }
            if dead || self.over {
                break;
            }
        }
        self.holds = false;
        self.healing = false;
        self.engine_ended = false;
        if dies && !self.over {
            self.replace_host();
            return;
        }
        self.acknowledge();
        self.check_turn();
    }

    fn tell_of_the_journal(&mut self) {
        if self.failing && !self.failure_was_told {
            self.failure_was_told = true;
            let why = "no space".into();
            self.event(Event::JournalFailed {
                for_good: false,
                why,
            });
        } else if !self.failing && self.failure_was_told {
            self.failure_was_told = false;
            self.healing = true;
            self.event(Event::JournalHealed { from: self.now });
        }
    }

    /// What the journal has is acknowledged; some of the acknowledgements are still on their way.
    fn acknowledge(&mut self) {
        for client in &mut self.clients {
            if client.linked && (self.calm || self.rng.one_in(2)) {
                let recorded = &self.recorded;
                (client.unacknowledged)
                    .retain(|(_, request)| !recorded.contains(&identity(request)));
            }
        }
    }

    pub(super) fn append(&mut self, record: Record) {
        assert_eq!(record.seq, self.published.len() as u64 + 1, "a hole");
        if self.loud {
            println!("{} {}", record.seq, describe(&record));
        }
        if let Body::Request { message, .. } = &record.body {
            self.recorded.insert(identity(message));
            self.sendable.insert(id(message));
        }
        self.hears_of_subshell(&record);
        self.watch(&record);
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
                    "kernel_info_request" | "interrupt_request" | "delete_subshell_request"
                );
                let asked = self.sendable.contains(&id(&message));
                assert!(
                    farsides || asked,
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
                None if self.core.state().engine_pid.is_some() || self.engine_ended => {}
                None => panic!("no engine to stop: the session would wait for ever"),
            },
            Effect::Query(id, query) => self.queries.push((id, query)),
            Effect::Reply { .. } | Effect::Notify { .. } | Effect::KernelInfo(_) => {}
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

    pub(super) fn host_may_die(&self) -> bool {
        // Of two executions with one msg_id nobody can tell which one a host took along.
        !self.failing && !self.failure_was_told && self.asked_twice.is_empty()
    }

    pub(super) fn host_dies(&mut self) {
        let host = self.hosts;
        self.commit();
        // It may have died in that already.
        if self.hosts != host || self.over || !self.host_may_die() {
            return;
        }
        assert_eq!(recovered(&self.persisted), *self.core.state());
        self.replace_host();
    }

    pub(super) fn replace_host(&mut self) {
        self.say(|| "-- the host dies".into());
        self.host_died = true;
        self.hook_runs = false;
        self.hosts += 1;
        let host = self.hosts;
        self.turn = Turn::default();
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
        self.watch.host_changed();
        self.subshells_of_last_host();
        self.now += 1_000_000;
        let effects = self.core.open(self.hosts, self.now);
        self.check_kernel_info(&effects);
        self.turn.take(effects);
        self.commit();
        // It may have died again in what it did first; then the one after it has done all this.
        if pid.is_some() && self.hosts == host {
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
            if self.hosts != host || self.over {
                return;
            }
            let client = &self.clients[at];
            let id = client.frontend.client;
            match (client.attached, client.linked) {
                (true, true) => self.link_returns(at),
                (false, _) if known.contains_key(&id) => self.detached(id),
                // It is not back yet.
                (true, false) | (false, _) => {}
            }
        }
    }
}

/// What tells a request from others: one socket's from the same of another.
pub(super) fn identity(request: &Message) -> (Bytes, Vec<Bytes>) {
    (request.header.clone(), request.identities.clone())
}
