//! When a session ends by itself, whatever happens in it: random operations, and the obvious model beside the core.
//!
//! - It never ends while it works, before its lifetime or its budget is over.
//! - It ends within a moment of the first deadline whose last notice has been out for its whole time.
//! - A deadline moves back only by an operation that says so.
//! - Each notice is given once, at its time, the longer ones first; and no end comes without the last one.

use std::collections::{BTreeMap, HashMap, HashSet};

use farside::journal::record::{Body, ClientId, Micros, Note};
use farside::session::event::{Command, Event, Usage};
use farside::session::lifetime::EndKind;
use farside::wire::{Channel, Message};
use proptest::prelude::*;

use crate::bench::{Bench, SECOND};
use crate::retirement::{HOUR, silently};

/// The limits, in seconds; those that operations do not change.
const IDLE_DETACHED: u64 = HOUR;
const INPUT: u64 = 12 * HOUR;
const LIFETIME: u64 = 24 * HOUR;
const BUDGET: u64 = 8 * HOUR;
/// The default of `notices`, in seconds.
const NOTICES: [u64; 3] = [1800, 600, 60];
/// What happens takes a moment in the clock of the tests, and a new host a second.
const MOMENT: Micros = 2 * SECOND;

/// What may happen in a session.
#[derive(Debug, Clone)]
enum Op {
    Wait(u64),
    /// The machine sleeps.
    Sleep(u64),
    /// The wall clock is set.
    SetClock(i64),
    /// A person runs something, maybe behind what runs already.
    Execute,
    /// A frontend does, for itself.
    Silently,
    /// What runs asks for input().
    AsksForInput,
    /// Somebody answers.
    Answer,
    /// What runs comes to its end.
    Finish,
    Attach,
    Detach,
    Extend(u64),
    SetIdle(u64),
    /// The engine is seen to have used so much more CPU time.
    Use(u64),
    EngineDies,
    HostDies,
    /// A frontend asks what frontends ask.
    Ask,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..3 * HOUR).prop_map(Op::Wait),
        2 => (1..90_u64).prop_map(Op::Wait),
        1 => (1..3 * HOUR).prop_map(Op::Sleep),
        1 => (-90_000_i64..90_000).prop_map(Op::SetClock),
        3 => Just(Op::Execute),
        2 => Just(Op::Silently),
        1 => Just(Op::AsksForInput),
        1 => Just(Op::Answer),
        5 => Just(Op::Finish),
        1 => Just(Op::Attach),
        1 => Just(Op::Detach),
        1 => (1..3 * HOUR).prop_map(Op::Extend),
        1 => (600..5 * HOUR).prop_map(Op::SetIdle),
        3 => (1..3 * HOUR).prop_map(Op::Use),
        1 => Just(Op::EngineDies),
        1 => Just(Op::HostDies),
        3 => Just(Op::Ask),
    ]
}

/// An execution that is not over, as the engine sees it.
#[derive(Debug)]
struct Execution {
    request: Message,
    by_person: bool,
    asks: bool,
}

/// The obvious way to know when a session must end, beside the core's.
struct Model {
    idle_timeout: u64,
    /// On the clock of awake time, as are the next two.
    quiet_since: Micros,
    stay_until: Micros,
    /// When something was last moved that a notice may be late for: only then can the last one come after its time.
    moved_at: Micros,
    /// On the clock that goes on while the machine sleeps.
    began: Micros,
    extended: Micros,
    /// CPU time of all engines, and of the living one.
    used: Micros,
    used_by_engine: Micros,
}

/// One session under test.
struct Trial {
    b: Bench,
    model: Model,
    client: ClientId,
    attached: bool,
    /// The first one is what the engine works on.
    running: Vec<Execution>,
    engine_lives: bool,
    /// What a new host asked the engine comes after so many of them.
    probe_behind: Option<usize>,
    deadlines: BTreeMap<EndKind, Micros>,
    /// Records that were looked at.
    seen: usize,
    notices: Notices,
}

/// The notices that were given.
#[derive(Default)]
struct Notices {
    /// Of each deadline: the last one, seconds before it, and when, on the clock of awake time.
    last: HashMap<(String, Micros), (u64, Micros)>,
    /// Those that a person could see.
    said: HashSet<(String, Micros, u64)>,
}

impl Trial {
    fn new() -> Self {
        let (b, client) = Bench::ready_with(&[("cpu_budget", "8h")]);
        let now = b.clocks();
        Self {
            model: Model {
                idle_timeout: 4 * HOUR,
                quiet_since: now.awake,
                stay_until: 0,
                moved_at: now.awake,
                began: now.elapsed,
                extended: 0,
                used: 0,
                used_by_engine: 0,
            },
            b,
            client,
            attached: true,
            running: Vec::new(),
            engine_lives: true,
            probe_behind: None,
            deadlines: BTreeMap::new(),
            seen: 0,
            notices: Notices::default(),
        }
    }

    /// Does it, and says it to the model; `false`: it makes no sense now. What a person does, and what moves a deadline,
    /// is followed by `touched` or `moved`.
    fn apply(&mut self, op: &Op) -> bool {
        let awake = self.b.clocks().awake;
        match op {
            Op::Wait(seconds) => self.b.wait(*seconds),
            Op::Sleep(seconds) => {
                self.b.sleep(*seconds);
                self.moved();
                self.b.wait(0);
            }
            Op::SetClock(seconds) => self.b.set_forward += seconds * SECOND as i64,
            Op::Execute | Op::Silently if !self.attached || self.running.len() > 2 => return false,
            Op::Execute => self.execute(true),
            Op::Silently => self.execute(false),
            Op::AsksForInput => {
                let Some(first) = self.running.first_mut().filter(|first| !first.asks) else {
                    return false;
                };
                first.asks = true;
                let (request, by_person) = (first.request.clone(), first.by_person);
                self.b.engine_asks(&request, "?");
                self.moved();
                if by_person {
                    self.touched();
                }
            }
            Op::Answer => {
                let asks = self.running.first_mut().filter(|first| first.asks);
                let Some(first) = asks.filter(|_| self.attached) else {
                    return false;
                };
                first.asks = false;
                self.b.input(self.client, "x", None);
                self.engine_gets("input_reply");
                self.touched();
            }
            Op::Finish if self.running.is_empty() => return false,
            Op::Finish => {
                let over = self.running.remove(0);
                self.b.engine_ends_ok(&over.request);
                self.moved();
                if over.by_person {
                    self.touched();
                }
                self.probe_behind = self.probe_behind.map(|before| before - 1);
                self.engine_answers_probes();
                self.engine_takes_the_next();
            }
            Op::Attach if self.attached => return false,
            Op::Attach => {
                self.client = self.b.attach();
                self.attached = true;
                self.touched();
            }
            Op::Detach if !self.attached => return false,
            Op::Detach => {
                self.b.detach(self.client);
                self.attached = false;
                self.touched();
            }
            Op::Extend(seconds) => {
                self.b.command(Command::Extend { seconds: *seconds });
                self.model.extended += seconds * SECOND;
                let until = awake + seconds * SECOND;
                self.model.stay_until = self.model.stay_until.max(until);
                self.moved();
            }
            Op::SetIdle(_) if !self.attached => return false,
            Op::SetIdle(seconds) => {
                let code = format!("%farside set idle_timeout {seconds}s");
                self.b.execute(self.client, &code);
                self.model.idle_timeout = *seconds;
                self.touched();
            }
            Op::Use(_) if !self.engine_lives => return false,
            Op::Use(seconds) => {
                self.model.used += seconds * SECOND;
                self.model.used_by_engine += seconds * SECOND;
                self.b.event(Event::Usage(Usage {
                    generation: self.b.core.state().generation,
                    cpu: self.model.used_by_engine,
                    ..Usage::default()
                }));
            }
            Op::EngineDies if !self.engine_lives => return false,
            Op::EngineDies => {
                self.b.engine_dies();
                self.engine_lives = false;
                self.probe_behind = None;
                self.model.used_by_engine = 0;
                self.moved();
                if std::mem::take(&mut self.running)
                    .iter()
                    .any(|run| run.by_person)
                {
                    self.touched();
                }
            }
            Op::HostDies => {
                self.b.host_dies();
                if self.engine_lives {
                    self.b.adopted_engine_connects();
                    self.probe_behind = Some(self.running.len());
                    self.engine_answers_probes();
                }
            }
            Op::Ask if !self.attached => return false,
            Op::Ask => {
                self.b
                    .ask(self.client, Channel::Shell, "kernel_info_request");
            }
        }
        true
    }

    fn execute(&mut self, by_person: bool) {
        if by_person {
            self.b.execute(self.client, "1");
            self.touched();
        } else {
            silently(&mut self.b, self.client, "1");
        }
        if !self.engine_lives {
            let generation = self.b.core.state().generation + 1;
            self.b.engine_starts(generation);
            self.engine_lives = true;
        }
        let request = self.engine_gets("execute_request");
        let is_first = self.running.is_empty();
        self.running.push(Execution {
            request,
            by_person,
            asks: false,
        });
        if is_first {
            self.engine_takes_the_next();
        }
    }

    fn engine_takes_the_next(&mut self) {
        if let Some(first) = self.running.first() {
            let (request, by_person) = (first.request.clone(), first.by_person);
            self.b.status(&request, "busy");
            if by_person {
                self.touched();
            }
        }
    }

    fn engine_answers_probes(&mut self) {
        if self.probe_behind == Some(0) {
            self.probe_behind = None;
            while !self.b.to_engine.is_empty() {
                self.b.answer_probe();
            }
        }
    }

    /// The next of this type that the engine was sent; a new host's probe waits for its turn.
    fn engine_gets(&mut self, msg_type: &str) -> Message {
        let is_it =
            |(_, message): &(Channel, Message)| message.header().unwrap().msg_type == msg_type;
        let at = self.b.to_engine.iter().position(is_it).unwrap();
        self.b.to_engine.remove(at).unwrap().1
    }

    /// A person did something, or something was done for one.
    fn touched(&mut self) {
        self.model.quiet_since = self.b.clocks().awake;
        self.moved();
    }

    fn moved(&mut self) {
        self.model.moved_at = self.b.clocks().awake;
    }

    fn idle_deadline(&self) -> Option<Micros> {
        let timeout = match (self.running.first(), self.attached) {
            (None, true) => self.model.idle_timeout,
            (None, false) => IDLE_DETACHED,
            (Some(first), false) if first.asks => INPUT,
            (Some(_), _) => return None,
        };
        let deadline = self.model.quiet_since + timeout * SECOND;
        Some(deadline.max(self.model.stay_until))
    }

    fn lifetime_deadline(&self) -> Micros {
        self.model.began + LIFETIME * SECOND + self.model.extended
    }

    /// Compares with the model. `true`: the session has begun to end, as it must.
    fn check(&mut self, op: &Op) -> bool {
        self.check_notices();
        let now = self.b.clocks();
        let idle_over = self
            .idle_deadline()
            .is_some_and(|deadline| now.awake + MOMENT >= deadline);
        let lifetime_over = now.elapsed >= self.lifetime_deadline();
        let used_up = self.model.used >= BUDGET * SECOND;
        if let Some(ending) = &self.b.core.state().lifetime.ending {
            match ending.reason.split(':').next().unwrap() {
                "idle" => assert!(idle_over, "{op:?} at {now:?}: {ending:?}"),
                "lifetime" => assert!(lifetime_over, "{op:?} at {now:?}: {ending:?}"),
                "budget" => assert!(used_up, "{op:?} at {now:?}: {ending:?}"),
                other => panic!("{other}"),
            }
            return true;
        }
        assert!(
            !used_up,
            "{op:?}: its CPU time is used up, and it should have ended"
        );
        let noticed = now.awake >= self.model.moved_at + NOTICES[2] * SECOND + MOMENT;
        let is_late = now.elapsed >= self.lifetime_deadline() + MOMENT;
        assert!(
            !(noticed && is_late),
            "{op:?}: its lifetime is over, and it should have ended"
        );
        let is_late = self
            .idle_deadline()
            .is_some_and(|deadline| now.awake >= deadline + MOMENT);
        assert!(
            !(noticed && is_late),
            "{op:?}: it is idle, and should have ended"
        );
        self.check_deadlines(op);
        false
    }

    fn check_deadlines(&mut self, op: &Op) {
        let may_move_back = match op {
            // A session without a frontend has less time, and who changes a setting may want less.
            Op::Attach | Op::Detach | Op::SetIdle(_) => true,
            Op::Wait(_) | Op::Sleep(_) | Op::SetClock(_) | Op::Execute | Op::Silently => false,
            // From here on it has something else to wait for.
            Op::AsksForInput | Op::Answer | Op::Finish | Op::EngineDies => false,
            Op::Extend(_) | Op::Use(_) | Op::HostDies | Op::Ask => false,
        };
        let now = self.b.clocks();
        let ends = self.b.core.ends(now);
        let kinds: Vec<EndKind> = ends.iter().map(|end| end.kind).collect();
        assert!(kinds.contains(&EndKind::Lifetime) && kinds.contains(&EndKind::Budget));
        let mut deadlines = BTreeMap::new();
        for end in ends {
            let before = self.deadlines.get(&end.kind);
            let is_back = before.is_some_and(|before| end.deadline < *before);
            assert!(
                !is_back || may_move_back && end.kind == EndKind::Idle,
                "{:?} moved back by {op:?}: {before:?} to {end:?}",
                end.kind
            );
            deadlines.insert(end.kind, end.deadline);
            self.notice_is_given(end.kind, end.deadline, end.left, end.limit);
        }
        self.deadlines = deadlines;
    }

    /// The shortest notice whose time has come was given.
    fn notice_is_given(&self, kind: EndKind, deadline: Micros, left: Micros, limit: Micros) {
        let due = |before: &&u64| left + MOMENT <= **before * SECOND && **before * SECOND < limit;
        let Some(due) = NOTICES.iter().rfind(due) else {
            return;
        };
        let name = match kind {
            EndKind::Input => "input",
            EndKind::Idle | EndKind::Lifetime | EndKind::Budget => kind.name(),
        };
        let given = self.notices.last.get(&(name.to_owned(), deadline));
        assert!(
            given.is_some_and(|(before, _)| before <= due),
            "no notice {due} s before its end: {kind:?}, {left} left; {given:?}"
        );
    }

    /// Looks at what is new in the journal.
    fn check_notices(&mut self) {
        let new = self.b.records[self.seen..].to_vec();
        self.seen = self.b.records.len();
        for record in new {
            // Since the last look the clocks did not move against one another but where `moved_at` says so.
            let wall = record.time.saturating_add_signed(-self.b.set_forward);
            let awake = wall - self.b.slept;
            match &record.body {
                Body::Note(Note::Notice {
                    kind,
                    deadline,
                    before,
                    said,
                    ..
                }) => {
                    let is_new = self.notice(kind, *deadline, *before, *said, awake);
                    let clock = match kind.as_str() {
                        "budget" => continue,
                        "lifetime" => wall,
                        _ => awake,
                    };
                    let left = deadline.saturating_sub(clock);
                    let is_early = left > *before * SECOND + MOMENT;
                    assert!(!is_early, "{kind} {before}: {left} before its end");
                    // Late only where something moved it, or where the machine slept.
                    let is_late = left + MOMENT < *before * SECOND;
                    let has_moved = self.model.moved_at + MOMENT >= awake;
                    assert!(
                        !(is_new && is_late) || has_moved,
                        "{kind} {before}: {left} before its end"
                    );
                }
                Body::Note(Note::Ending { reason, .. }) => self.was_noticed(reason, awake),
                _ => {}
            }
        }
    }

    /// Of each deadline, each notice once, and the longer one first. `false`: the same once more, said now.
    fn notice(
        &mut self,
        kind: &str,
        deadline: Micros,
        before: u64,
        said: bool,
        at: Micros,
    ) -> bool {
        let of = (kind.to_owned(), deadline);
        let is_new = match self.notices.last.get(&of) {
            Some((last, _)) => {
                let again = before == *last;
                assert!(
                    before < *last || again && said,
                    "{kind} {before} after {last}"
                );
                !again
            }
            None => true,
        };
        if is_new {
            self.notices.last.insert(of, (before, at));
        }
        let is_first = !said
            || self
                .notices
                .said
                .insert((kind.to_owned(), deadline, before));
        assert!(is_first, "{kind} {before} was said twice");
        is_new
    }

    /// The last notice of an end was out for its whole time. (CPU time goes by its own pace.)
    fn was_noticed(&self, reason: &str, at: Micros) {
        let kinds: &[&str] = match reason.split(':').next().unwrap() {
            "idle" => &["idle", "input"],
            "lifetime" => &["lifetime"],
            _ => return,
        };
        let mut given = self.notices.last.iter();
        let in_time = given.any(|((kind, _), (before, given_at))| {
            kinds.contains(&kind.as_str())
                && *before == NOTICES[2]
                && given_at + NOTICES[2] * SECOND <= at + MOMENT
        });
        assert!(in_time, "an end without its last notice: {reason}");
    }
}

/// Runs the operations and checks after each; `true`: the session came to its end.
fn policy_holds(ops: &[Op]) -> bool {
    let mut trial = Trial::new();
    trial.b.checks_recovery = ops.len() < 100;
    for op in ops {
        if !trial.apply(op) {
            continue;
        }
        trial.b.event(Event::Tick);
        if trial.check(op) {
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_session_ends_when_it_must_and_not_before(ops in prop::collection::vec(op(), 1..80)) {
        policy_holds(&ops);
    }
}

/// Numbers that look random, and are the same each time (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A lifetime and more in steps of a minute, with somebody who works, pauses, and comes back.
fn day(seed: u64) -> Vec<Op> {
    let mut dice = Dice(seed);
    let mut ops = Vec::new();
    for _ in 0..LIFETIME / 60 {
        ops.push(Op::Wait(1 + dice.throw(119)));
        match dice.throw(40) {
            0..5 => ops.push(Op::Execute),
            5..11 => ops.push(Op::Finish),
            11..13 => ops.push(Op::Silently),
            13 => ops.push(Op::AsksForInput),
            14 => ops.push(Op::Answer),
            15 => ops.push(Op::SetClock(dice.throw(100_000) as i64 - 50_000)),
            16 => ops.push(Op::Use(1 + dice.throw(300))),
            17 if dice.throw(8) == 0 => ops.push(Op::HostDies),
            18 if dice.throw(8) == 0 => ops.push(Op::EngineDies),
            19 if dice.throw(8) == 0 => ops.push(Op::Sleep(1 + dice.throw(HOUR))),
            20 => ops.push(Op::Detach),
            21..24 => ops.push(Op::Attach),
            24..30 => ops.push(Op::Ask),
            _ => {}
        }
    }
    // What it may have been extended by sleep and chance; and nothing that still works keeps it.
    ops.extend([Op::Wait(4 * HOUR), Op::Wait(4 * HOUR)]);
    ops
}

#[test]
fn random_days() {
    for seed in 0..8 {
        assert!(policy_holds(&day(seed)), "seed {seed}: a day is a lifetime");
    }
}
