//! PURE. When a session ends by itself: what is remembered for it (a fold over the journal's records), and the policy.
//!
//! Idle time counts on the clock that stands still while the machine sleeps, a lifetime on the one that does not; the
//! wall clock, which can be set, only shows them. Each end has a deadline that moves only by an event: a person's
//! execution, somebody who comes or goes, a changed setting, an extension.
//!
//! An end is never a surprise: where its limit is longer than the shortest notice, that notice is out for its whole
//! time before the session ends, also if the machine slept over the deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::{Clock, Now};
use crate::journal::record::{ExecutionNumber, Micros, Note};
use crate::settings::Config;

/// Executions whose end is to be told of by a word of a person's: the ones asked for last.
const NOTIFY_OF_MAX: usize = 1024;

/// What the records say of a session's end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Lifetime {
    /// `None`: a journal of a farside before there were ends.
    pub clock: Option<Clock>,
    /// When the session began, on the clock since boot.
    began: Option<Micros>,
    /// The last that a person did, or that was done for one, on the clock of awake time.
    pub quiet_since: Micros,
    /// By how much the lifetime was extended.
    pub extended: Micros,
    /// An idle session stays until then at least, on the clock of awake time.
    stay_until: Micros,
    /// The last notice of each kind of end.
    pub noticed: BTreeMap<EndKind, Noticed>,
    /// Settings that were changed for this session.
    pub settings: BTreeMap<String, String>,
    /// The session has begun to end.
    pub ending: Option<Ending>,
    /// What engine and descendants have used.
    pub used: Used,
    /// Since when the engine's heartbeat does not answer.
    pub unresponsive_since: Option<Micros>,
    /// Executions whose end a person wants to be told of, or not.
    pub notify_of: BTreeMap<ExecutionNumber, bool>,
}

/// Why a session ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// Nobody has wanted anything of it.
    Idle,
    /// Nobody has answered its input().
    Input,
    /// Its lifetime is over.
    Lifetime,
    /// Its CPU time is used up.
    Budget,
}

/// A notice that was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Noticed {
    /// Of this deadline; a notice of another one does not count.
    pub deadline: Micros,
    /// How long before it, as the setting has it.
    pub before: Micros,
    /// When, on the clock of awake time.
    pub at: Micros,
    /// Whether a person could see it.
    pub said: bool,
}

/// The way to the end has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// As the session will say.
    pub reason: String,
    /// With time to finish, and hooks.
    pub retire: bool,
    /// The steps taken.
    pub steps: Vec<String>,
}

/// CPU time and memory.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Used {
    /// CPU time of engines that have ended.
    pub before: Micros,
    /// Of the one that lives.
    pub cpu: Micros,
    /// Most memory at one time, bytes.
    pub peak_bytes: u64,
}

impl Used {
    /// CPU time of all engines of the session.
    pub fn cpu(&self) -> Micros {
        self.before + self.cpu
    }
}

/// An end that is to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub kind: EndKind,
    /// When, on the clock that counts for it.
    pub deadline: Micros,
    /// How long it is until then: awake time, time, or CPU time.
    pub left: Micros,
    /// The whole limit.
    pub limit: Micros,
}

/// What is to be done about an end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// People are to be told.
    Notice {
        /// Of this end.
        end: End,
        /// As long before it as this setting says, or less.
        before: Micros,
    },
    /// It is there.
    End(End),
}

/// What the session does at the moment, as far as its end is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Nothing,
    /// Executions run or wait to run.
    Work,
    /// What runs waits for an input().
    Input,
}

impl EndKind {
    /// Its name: the first word of the end's reason.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle | Self::Input => "idle",
            Self::Lifetime => "lifetime",
            Self::Budget => "budget",
        }
    }
}

impl Lifetime {
    /// The session begins.
    pub fn begin(&mut self, time: Micros) {
        self.began = Some(time);
        self.quiet_since = time;
    }

    /// A person did something, or something was done for one.
    pub fn not_idle(&mut self, time: Micros) {
        self.quiet_since = self.quiet_since.max(self.awake_at(time));
    }

    /// Folds a note in. `time`: the record's.
    pub fn apply(&mut self, time: Micros, note: &Note) {
        match note {
            Note::Clock {
                awake,
                elapsed,
                boot,
            } => {
                let now = Now {
                    wall: time,
                    awake: *awake,
                    elapsed: *elapsed,
                };
                self.compare(now, boot);
            }
            Note::Set { key, value } => {
                self.settings.insert(key.clone(), value.clone());
            }
            Note::Extended { seconds } => {
                let by = seconds.saturating_mul(1_000_000);
                self.extended = self.extended.saturating_add(by);
                let until = self.awake_at(time).saturating_add(by);
                self.stay_until = self.stay_until.max(until);
            }
            Note::Notice {
                kind,
                deadline,
                before,
                said,
                ..
            } => {
                if let Some(kind) = EndKind::from_name(kind) {
                    let noticed = Noticed {
                        deadline: *deadline,
                        before: before.saturating_mul(1_000_000),
                        at: self.awake_at(time),
                        said: *said,
                    };
                    self.notice_given(kind, noticed);
                }
            }
            Note::Ending { reason, retire } => {
                self.ending = Some(Ending {
                    reason: reason.clone(),
                    retire: *retire,
                    steps: Vec::new(),
                });
            }
            Note::EndStep { step, .. } => {
                if let Some(ending) = &mut self.ending
                    && !ending.steps.contains(step)
                {
                    ending.steps.push(step.clone());
                }
            }
            Note::Usage {
                before,
                cpu,
                peak_bytes,
            } => {
                self.used = Used {
                    before: *before,
                    cpu: *cpu,
                    peak_bytes: *peak_bytes,
                };
            }
            Note::Health { responsive } => {
                self.unresponsive_since = (!responsive).then_some(time);
            }
            Note::NotifyOf { n, on } => {
                self.notify_of.insert(*n, *on);
                while self.notify_of.len() > NOTIFY_OF_MAX {
                    self.notify_of.pop_first();
                }
            }
            Note::EngineStarted { .. } => {
                self.used.before += std::mem::take(&mut self.used.cpu);
                self.unresponsive_since = None;
            }
            Note::EngineEnded { .. } => self.unresponsive_since = None,
            Note::SessionStarted { .. }
            | Note::HostStarted { .. }
            | Note::EngineReady { .. }
            | Note::Gap { .. }
            | Note::ClientAttached { .. }
            | Note::ClientDetached { .. }
            | Note::Execution { .. }
            | Note::Interrupted
            | Note::Restarting
            | Note::Attach { .. }
            | Note::AttachEnded { .. }
            | Note::Checkpoint { .. }
            | Note::PredecessorTold { .. }
            | Note::SubshellDeleted { .. }
            | Note::Compacted { .. }
            | Note::SessionEnded { .. }
            | Note::Unknown => {}
        }
    }

    /// The same notice, said later, keeps the time at which it was given.
    fn notice_given(&mut self, kind: EndKind, noticed: Noticed) {
        match self.noticed.get_mut(&kind) {
            Some(known) if (known.deadline, known.before) == (noticed.deadline, noticed.before) => {
                known.said |= noticed.said;
            }
            Some(_) | None => {
                self.noticed.insert(kind, noticed);
            }
        }
    }

    /// Within one boot the clocks that count go on whatever happens to the wall clock. Over a boot only that one is
    /// left to tell by.
    fn compare(&mut self, now: Now, boot: &str) {
        let new = Clock::new(now, boot.to_owned());
        let began = self.began.unwrap_or(now.elapsed);
        let same_boot = self
            .clock
            .as_ref()
            .is_some_and(|clock| clock.boot() == boot);
        if !same_boot {
            let (awake, elapsed): (&dyn Fn(Micros) -> Micros, &dyn Fn(Micros) -> Micros) =
                match &self.clock {
                    Some(old) => (&|time| old.wall_of_awake(time), &|time| {
                        old.wall_of_elapsed(time)
                    }),
                    None => (&|time| time, &|time| time),
                };
            self.quiet_since = new.awake_at(awake(self.quiet_since));
            if self.stay_until > 0 {
                self.stay_until = new.awake_at(awake(self.stay_until));
            }
            self.began = Some(match self.began {
                Some(began) => new.elapsed_at(elapsed(began)),
                None => now.elapsed,
            });
            self.noticed.clear();
        } else {
            self.began = Some(began);
        }
        self.clock = Some(new);
    }

    fn awake_at(&self, wall: Micros) -> Micros {
        self.clock
            .as_ref()
            .map_or(wall, |clock| clock.awake_at(wall))
    }

    /// The ends to be expected as things are.
    /// `cpu`: CPU time that was used so far.
    pub fn ends(
        &self,
        config: &Config,
        doing: Doing,
        attached: bool,
        cpu: Micros,
        now: Now,
    ) -> Vec<End> {
        let limit_of = |limit: Option<Duration>| limit.map(micros);
        let idle = match (doing, attached) {
            (Doing::Nothing, true) => Some((EndKind::Idle, config.idle_timeout)),
            (Doing::Nothing, false) => Some((EndKind::Idle, config.idle_timeout_detached)),
            (Doing::Input, false) => Some((EndKind::Input, config.input_timeout)),
            (Doing::Input, true) | (Doing::Work, _) => None,
        };
        let mut ends = Vec::with_capacity(3);
        if let Some((kind, Some(limit))) = idle.map(|(kind, limit)| (kind, limit_of(limit))) {
            let deadline = self.quiet_since.saturating_add(limit).max(self.stay_until);
            ends.push(End {
                kind,
                deadline,
                left: deadline.saturating_sub(now.awake),
                limit,
            });
        }
        if let Some(limit) = self.lifetime(config) {
            let deadline = self.began.unwrap_or(now.elapsed).saturating_add(limit);
            ends.push(End {
                kind: EndKind::Lifetime,
                deadline,
                left: deadline.saturating_sub(now.elapsed),
                limit,
            });
        }
        if let Some(limit) = limit_of(config.cpu_budget) {
            ends.push(End {
                kind: EndKind::Budget,
                deadline: limit,
                left: limit.saturating_sub(cpu),
                limit,
            });
        }
        ends
    }

    /// How long the session may live in all.
    fn lifetime(&self, config: &Config) -> Option<Micros> {
        let asked = config
            .max_lifetime
            .map(|limit| micros(limit).saturating_add(self.extended));
        match (asked, config.max_lifetime_cap.map(micros)) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (asked, cap) => asked.or(cap),
        }
    }

    /// By how much the lifetime can be extended at most; `None`: there is no bound.
    pub fn can_extend_by(&self, config: &Config) -> Option<Micros> {
        let cap = micros(config.max_lifetime_cap?);
        Some(cap.saturating_sub(self.lifetime(config)?))
    }

    /// What is to be done about this end now.
    pub fn due(&self, config: &Config, end: End, now: Now) -> Option<Due> {
        let given = self.given(&end);
        // Those whose time has come; of those that a sleep jumped over only the last.
        let before = applicable(config, &end).rfind(|before| end.left <= *before);
        let used_up = end.kind == EndKind::Budget && end.left == 0;
        if let Some(before) = before
            && !used_up
            && given.is_none_or(|given| given.before > before)
        {
            return Some(Due::Notice { end, before });
        }
        (end.left == 0 && self.notice_left(config, &end, now) == 0).then_some(Due::End(end))
    }

    /// How long until something is due about this end; `None`: not by time alone.
    pub fn due_in(&self, config: &Config, end: &End, now: Now) -> Option<Micros> {
        if end.kind == EndKind::Budget {
            return None;
        }
        let given = self.given(end).map(|given| given.before);
        let notice =
            applicable(config, end).find(|before| given.is_none_or(|given| given > *before));
        Some(match notice {
            Some(before) => end.left.saturating_sub(before),
            None => self.left(config, end, now),
        })
    }

    /// How long it really is until this end: one that was slept over has its last notice first.
    pub fn left(&self, config: &Config, end: &End, now: Now) -> Micros {
        end.left.max(self.notice_left(config, end, now))
    }

    fn given(&self, end: &End) -> Option<&Noticed> {
        self.noticed
            .get(&end.kind)
            .filter(|noticed| noticed.deadline == end.deadline)
    }

    /// How long the last notice must still be out before the end.
    fn notice_left(&self, config: &Config, end: &End, now: Now) -> Micros {
        match (applicable(config, end).last(), self.given(end)) {
            // CPU time is not used while nothing runs: no end of it can be slept over.
            _ if end.kind == EndKind::Budget => 0,
            (None, _) => 0,
            (Some(last), Some(given)) if given.before == last => {
                (given.at + last).saturating_sub(now.awake)
            }
            (Some(last), _) => last,
        }
    }
}

impl EndKind {
    /// In notes. `input` has a word of its own there.
    pub(super) fn note_name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Idle | Self::Lifetime | Self::Budget => self.name(),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Idle, Self::Input, Self::Lifetime, Self::Budget]
            .into_iter()
            .find(|kind| kind.note_name() == name)
    }
}

/// The notices that an end has, from long to short: those shorter than its whole limit.
fn applicable<'a>(config: &'a Config, end: &End) -> impl DoubleEndedIterator<Item = Micros> + 'a {
    let limit = end.limit;
    config
        .notices
        .iter()
        .map(|before| micros(*before))
        .filter(move |before| *before < limit)
}

/// In microseconds; a duration too long for them is the longest.
pub(super) fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
