//! What an engine and all that it started use: a fold over snapshots of the process table.
//!
//! Owns who belongs to an engine, and the sum of CPU time that never goes down. Knows nothing of /proc and no clock:
//! snapshots come in, figures go out.
//!
//! **Who belongs to it**: the engine, every descendant of one that belongs, whoever is in a unix session of theirs, the
//! orphans that came to the session's keeper as the subreaper, and whoever belonged before, whatever its parent is
//! now. Not the keeper and the host themselves, and not what a `farside` inside of a cell started: that has a keeper
//! of its own, and a budget of its own (`foreign`).
//!
//! **CPU time**: a process's own time is known while it is in the table, as a zombie too. When it is gone, its
//! parent's time of waited-for children has grown by all that it used, unless the parent ignores its children's ends;
//! an orphan's has gone to the keeper's. So what each survivor's waited-for time grew by is compared with what was
//! known of those that vanished below it, and only what is new in it counts. What is missed is what a process used
//! between the last snapshot and its end where nobody waited for it. Nothing is counted twice.
//!
//! **Snapshots** need not be of the whole table ([`Tree::family`]). A process that nobody knows yet may be missing from
//! one, with all below it, and counts when it turns up. One that is known may not, while it lives: it would be taken
//! for gone, and count anew at the next one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::event::Usage;
use crate::journal::record::Micros;

/// While an execution runs: fresh enough for people who look, and a fraction of a per cent of one CPU.
pub const ACTIVE_EVERY: Duration = Duration::from_secs(5);

/// While none runs: threads and children of the engine may still work, but slowly found out is good enough.
pub const IDLE_EVERY: Duration = Duration::from_secs(30);

/// And twice as long after each look that found nothing new, so many times: a hundred sessions that do nothing must not
/// look all the time.
const QUIET_DOUBLINGS_MAX: u32 = 3;

/// However little budget is left: the CPU's own accounting has a grain of 10 ms.
pub const SHORTEST_EVERY: Duration = Duration::from_millis(200);

/// A budget is overrun by at most about one part in so many of what was left at the last look.
const LOOKS_PER_BUDGET: u32 = 4;

/// Taking a snapshot takes at most one part in so many of one CPU, on a machine with many thousand processes too.
const COST_SHARE: u32 = 50;

/// What names a process for good: its id and its start time.
pub type Id = (u32, u64);

/// A process as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Process id.
    pub pid: u32,
    /// When it began, in clock ticks since boot.
    pub start_time: u64,
    /// Its parent's id.
    pub parent: u32,
    /// How many threads it has.
    pub threads: u32,
    /// The unix session it is in.
    pub session: u32,
    /// CPU time of all of its threads, ended ones too.
    pub own_cpu: Micros,
    /// CPU time of the children that it has waited for, and of those that they had waited for.
    pub waited_cpu: Micros,
    /// Memory that it has resident, shared with others or not.
    pub resident_bytes: u64,
}

/// What the numbers of the table are counted in.
#[derive(Debug, Clone, Copy)]
pub struct Units {
    /// Microseconds of a clock tick.
    pub tick: Micros,
    /// Bytes of a page.
    pub page_bytes: u64,
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roots {
    /// The session's keeper, to which orphans come.
    pub keeper: Option<u32>,
    /// The session's host.
    pub host: u32,
    /// The engine, while it lives.
    pub engine: Option<Id>,
}

/// Whom a snapshot has to hold that is not of the whole table: these, and all below them but for the host's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The session's keeper. Without it the table is not whole.
    pub keeper: Id,
    /// The session's host.
    pub host: u32,
    /// Who belonged to the engine, or to a session that was started below it, at the last snapshot; the oldest first.
    pub known: Vec<Id>,
}

/// What is used at a snapshot's time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// CPU time since the engine's start, never less than before.
    pub cpu: Micros,
    /// Resident memory of each that belongs to it, by process id.
    pub resident: Vec<(u32, u64)>,
}

/// The fold. See the module.
#[derive(Debug, Default)]
pub struct Tree {
    generation: u32,
    cpu: Micros,
    /// `cpu` when this generation began.
    begun_at: Micros,
    /// What is known from before the first snapshot.
    floor: Micros,
    started: bool,
    ours: HashMap<Id, Seen>,
    foreign: HashMap<Id, Seen>,
    keeper: Option<(Id, Micros)>,
    /// The roots at the last snapshot, where the engine and all that belonged to it were below the keeper.
    gathered: Option<Roots>,
    /// Of processes that vanished at the last snapshot, what nobody's waited-for time had yet.
    debts: Vec<(Id, Micros)>,
    /// Below these something foreign ended at the last snapshot.
    tainted: HashSet<Id>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    parent: u32,
    session: u32,
    own: Micros,
    waited: Micros,
}

impl Tree {
    /// For the engine of this generation, of which so much is known to have been used already.
    pub fn new(generation: u32, known: Micros) -> Self {
        Self {
            generation,
            floor: known,
            ..Self::default()
        }
    }

    /// From here on it is about this generation: counting begins anew, and what is left of the one before counts
    /// from now on.
    pub fn begin(&mut self, generation: u32) {
        if generation != self.generation {
            self.generation = generation;
            self.cpu = self.cpu.max(self.floor);
            self.begun_at = self.cpu;
            self.floor = self.cpu;
        }
    }

    /// Which engine it is about.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// CPU time used by this generation, as far as it is known.
    pub fn cpu(&self) -> Micros {
        self.cpu.max(self.floor) - self.begun_at
    }

    /// What the next snapshot may be confined to; `None`: it has to be of the whole table.
    ///
    /// Who is below the keeper stays there, with all that it starts, for as long as the keeper lives: an orphan goes to
    /// the nearest subreaper above it. So where everybody was there, nobody can be elsewhere, a daemon neither. The engine
    /// of a keeper that was killed is below no keeper any more. What it leaves behind goes to init, and only the unix
    /// session tells whose it is.
    pub fn family(&self, roots: &Roots) -> Option<Family> {
        let (keeper, _) = self.keeper.filter(|_| self.gathered == Some(*roots))?;
        let known = self.ours.keys().chain(self.foreign.keys());
        let mut known: Vec<Id> = known.copied().collect();
        known.sort_unstable_by_key(|(pid, start_time)| (*start_time, *pid));
        Some(Family {
            keeper,
            host: roots.host,
            known,
        })
    }

    /// Takes in a snapshot: of the whole table, or of what [`Self::family`] said last. `is_foreign` is asked once for
    /// each process that would come to belong to the engine: whether it is the keeper or host of another session.
    pub fn step(
        &mut self,
        roots: &Roots,
        table: &[ProcessStat],
        is_foreign: impl FnMut(&ProcessStat) -> bool,
    ) -> Sample {
        let table = Table::new(table);
        let (ours, foreign) = self.members(roots, &table, is_foreign);
        let keeper = roots.keeper.and_then(|pid| table.by_pid.get(&pid).copied());
        self.count(roots, &table, &ours, keeper);
        self.ours = ours.iter().map(|p| (p.id(), p.seen())).collect();
        self.foreign = foreign.iter().map(|p| (p.id(), p.seen())).collect();
        self.keeper = keeper.map(|p| (p.id(), p.waited_cpu));
        self.gathered = is_gathered(roots, &table, &ours).then_some(*roots);
        Sample {
            cpu: self.cpu(),
            resident: ours.iter().map(|p| (p.pid, p.resident_bytes)).collect(),
        }
    }

    /// Who belongs to the engine, and who to other sessions that were started below it.
    fn members<'a>(
        &self,
        roots: &Roots,
        table: &Table<'a>,
        mut is_foreign: impl FnMut(&ProcessStat) -> bool,
    ) -> (Vec<&'a ProcessStat>, Vec<&'a ProcessStat>) {
        let session_of = |pid| table.by_pid.get(&pid).map(|p| p.session);
        let farsides: Vec<u32> = (roots.keeper.into_iter().chain([roots.host]))
            .filter_map(session_of)
            .collect();
        let mut sessions: HashSet<u32> = self.ours.values().map(|seen| seen.session).collect();
        sessions.extend(roots.engine.map(|(pid, _)| pid));
        sessions.retain(|session| {
            // A leader that is new to us began a session of its own, under a number that was free again.
            let is_ours =
                |p: &&ProcessStat| roots.engine == Some(p.id()) || self.ours.contains_key(&p.id());
            !farsides.contains(session) && table.by_pid.get(session).is_none_or(is_ours)
        });
        let others: HashSet<u32> = (self.foreign.values().map(|seen| seen.session))
            .filter(|session| !sessions.contains(session) && !farsides.contains(session))
            .collect();
        let own = |p: &ProcessStat| Some(p.pid) == roots.keeper || p.pid == roots.host;

        let mut foreign: HashMap<u32, &ProcessStat> = HashMap::new();
        let known_foreign = table.all.iter().filter(|p| {
            !own(p) && (self.foreign.contains_key(&p.id()) || others.contains(&p.session))
        });
        let mut waiting: Vec<&ProcessStat> = known_foreign.collect();
        let claim = |waiting: &mut Vec<&'a ProcessStat>, foreign: &mut HashMap<_, _>| {
            while let Some(process) = waiting.pop() {
                if !own(process) && foreign.insert(process.pid, process).is_none() {
                    waiting.extend(table.children(process.pid));
                }
            }
        };
        claim(&mut waiting, &mut foreign);

        let mut ours: HashMap<u32, &ProcessStat> = HashMap::new();
        let mut queue: Vec<&ProcessStat> = (table.all.iter())
            .filter(|p| {
                roots.engine == Some(p.id())
                    || self.ours.contains_key(&p.id())
                    || sessions.contains(&p.session)
                    || Some(p.parent) == roots.keeper
            })
            .collect();
        while let Some(process) = queue.pop() {
            let pid = process.pid;
            if own(process) || foreign.contains_key(&pid) || ours.contains_key(&pid) {
                continue;
            }
            let known = self.ours.contains_key(&process.id()) || roots.engine == Some(process.id());
            if !known && is_foreign(process) {
                waiting.push(process);
                claim(&mut waiting, &mut foreign);
                continue;
            }
            ours.insert(pid, process);
            queue.extend(table.children(pid));
        }
        let in_order = |set: HashMap<u32, &'a ProcessStat>| {
            let mut list: Vec<_> = set.into_values().collect();
            list.sort_unstable_by_key(|p| p.pid);
            list
        };
        (in_order(ours), in_order(foreign))
    }

    /// Adds what is new.
    fn count(
        &mut self,
        roots: &Roots,
        table: &Table<'_>,
        ours: &[&ProcessStat],
        keeper: Option<&ProcessStat>,
    ) {
        // What each survivor's waited-for time grew by, less what was known of those that vanished below it.
        let mut grown: HashMap<Id, i64> = HashMap::new();
        for process in ours {
            let (own, waited) = match self.ours.get(&process.id()) {
                Some(seen) => (seen.own, seen.waited),
                // At our first look: what is left of an engine before this one counts from now on.
                None if !self.started
                    && (roots.engine).is_some_and(|e| process.start_time < e.1) =>
                {
                    (process.own_cpu, process.waited_cpu)
                }
                None => (0, 0),
            };
            self.cpu += process.own_cpu.saturating_sub(own);
            grown.insert(
                process.id(),
                signed(process.waited_cpu.saturating_sub(waited)),
            );
        }
        if let Some(keeper) = keeper {
            let before = match self.keeper {
                Some((id, waited)) if id == keeper.id() => waited,
                // What it waited for before our time was somebody else's to count.
                Some(_) | None => keeper.waited_cpu,
            };
            grown.insert(
                keeper.id(),
                signed(keeper.waited_cpu.saturating_sub(before)),
            );
        }
        let last: HashMap<u32, (Id, Seen)> = (self.ours.iter().chain(&self.foreign))
            .map(|(id, seen)| (id.0, (*id, *seen)))
            .collect();
        let mut tainted = HashSet::new();
        for (id, seen) in self.foreign.iter().filter(|(id, _)| !table.has(**id)) {
            tainted.extend(survivor(*id, seen, &last, &grown, keeper));
        }
        let mut needs: Vec<(Id, Micros)> = std::mem::take(&mut self.debts);
        let old = needs.len();
        for (id, seen) in self.ours.iter().filter(|(id, _)| !table.has(**id)) {
            if let Some(survivor) = survivor(*id, seen, &last, &grown, keeper) {
                *grown.entry(survivor).or_default() -= signed(seen.own + seen.waited);
            }
        }
        for (id, change) in &mut grown {
            if *change < 0 {
                needs.push((*id, change.unsigned_abs()));
                *change = 0;
            } else if tainted.contains(id) || self.tainted.contains(id) {
                // How much of it is the other session's nobody can tell.
                *change = 0;
            }
        }
        // A map has no order of its own; the sum should not depend on one.
        needs[old..].sort_unstable();
        for (at, (id, need)) in needs.into_iter().enumerate() {
            let left = settle(id, need, table, &mut grown, keeper);
            // A process can be seen in the table after its parent was read, or the other way round: so the time may
            // turn up one snapshot later. After that it was not waited for.
            if at >= old && left > 0 {
                self.debts.push((id, left));
            }
        }
        self.tainted = tainted;
        self.cpu += grown
            .values()
            .map(|change| change.unsigned_abs())
            .sum::<u64>();
        self.started |= roots.engine.is_some();
        self.floor = self.floor.max(self.cpu);
        self.cpu = self.floor;
    }
}

/// Whether the engine is there, and all that belong to it are below the keeper, not by way of the host.
fn is_gathered(roots: &Roots, table: &Table<'_>, ours: &[&ProcessStat]) -> bool {
    let mut below = HashSet::new();
    let mut waiting: Vec<u32> = roots.keeper.into_iter().collect();
    while let Some(pid) = waiting.pop() {
        let children = table.children(pid).map(|child| child.pid);
        waiting.extend(children.filter(|child| *child != roots.host && below.insert(*child)));
    }
    let is_there = ours.iter().any(|p| roots.engine == Some(p.id()));
    is_there && ours.iter().all(|p| below.contains(&p.pid))
}

/// The nearest ancestor that is still there of a process that vanished; the keeper, where none is.
fn survivor(
    id: Id,
    seen: &Seen,
    last: &HashMap<u32, (Id, Seen)>,
    grown: &HashMap<Id, i64>,
    keeper: Option<&ProcessStat>,
) -> Option<Id> {
    let mut passed = HashSet::from([id]);
    let mut parent = seen.parent;
    while let Some((id, seen)) = last.get(&parent) {
        if grown.contains_key(id) {
            return Some(*id);
        }
        if !passed.insert(*id) {
            break;
        }
        parent = seen.parent;
    }
    keeper.map(ProcessStat::id)
}

/// Takes `need` out of what has grown at `id` and above it: an orphan is waited for by some ancestor that is a
/// subreaper. What could not be taken is returned.
fn settle(
    id: Id,
    mut need: Micros,
    table: &Table<'_>,
    grown: &mut HashMap<Id, i64>,
    keeper: Option<&ProcessStat>,
) -> Micros {
    let mut passed = HashSet::new();
    let mut next = table.by_pid.get(&id.0).copied().filter(|p| p.id() == id);
    while let Some(process) = next.or(keeper).filter(|p| need > 0 && passed.insert(p.pid)) {
        if let Some(change) = grown.get_mut(&process.id()).filter(|change| **change > 0) {
            let taken = change.unsigned_abs().min(need);
            *change -= signed(taken);
            need -= taken;
        }
        next = (table.by_pid.get(&process.parent).copied())
            .filter(|parent| grown.contains_key(&parent.id()));
    }
    need
}

fn signed(time: Micros) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// A snapshot, to be looked things up in.
struct Table<'a> {
    all: &'a [ProcessStat],
    by_pid: HashMap<u32, &'a ProcessStat>,
    by_parent: HashMap<u32, Vec<&'a ProcessStat>>,
}

impl<'a> Table<'a> {
    fn new(all: &'a [ProcessStat]) -> Self {
        let mut by_parent: HashMap<u32, Vec<&ProcessStat>> = HashMap::new();
        for process in all {
            by_parent.entry(process.parent).or_default().push(process);
        }
        let by_pid = all.iter().map(|process| (process.pid, process)).collect();
        Self {
            all,
            by_pid,
            by_parent,
        }
    }

    fn children(&self, pid: u32) -> impl Iterator<Item = &'a ProcessStat> + use<'a, '_> {
        self.by_parent.get(&pid).into_iter().flatten().copied()
    }

    fn has(&self, id: Id) -> bool {
        self.by_pid.get(&id.0).is_some_and(|p| p.id() == id)
    }
}

impl ProcessStat {
    /// Reads the text of `/proc/<pid>/stat` (proc_pid_stat(5)); `None` where it is none.
    pub fn parse(stat: &[u8], units: Units) -> Option<Self> {
        let open = stat.iter().position(|&byte| byte == b'(')?;
        // The second field, the command's name in parentheses, may itself hold spaces and parentheses.
        let close = stat.iter().rposition(|&byte| byte == b')')?;
        let pid = std::str::from_utf8(stat.get(..open)?).ok()?.trim();
        let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
        // Field 3 of the manual, the state, is the first one here.
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(22).collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = |field| Some(number(field)?.saturating_mul(units.tick));
        Some(Self {
            pid: pid.parse().ok()?,
            start_time: number(22)?,
            parent: number(4)?.try_into().ok()?,
            threads: number(20)?.try_into().ok()?,
            // Negative for some kernel threads of some kernels.
            session: number(6).and_then(|id| id.try_into().ok()).unwrap_or(0),
            own_cpu: ticks(14)?.saturating_add(ticks(15)?),
            // Signed in the manual.
            waited_cpu: ticks(16)
                .unwrap_or(0)
                .saturating_add(ticks(17).unwrap_or(0)),
            resident_bytes: number(24)?.saturating_mul(units.page_bytes),
        })
    }

    /// What names it for good.
    pub fn id(&self) -> Id {
        (self.pid, self.start_time)
    }

    fn seen(&self) -> Seen {
        Seen {
            parent: self.parent,
            session: self.session,
            own: self.own_cpu,
            waited: self.waited_cpu,
        }
    }
}

/// How long to wait before the next snapshot: `active` while an execution runs, `quiet` the number of looks in a row
/// that found nothing new, `left` of the budget where there is one, the machine's CPUs, and what the last snapshot took.
pub fn interval(
    active: bool,
    quiet: u32,
    left: Option<Micros>,
    cpus: u32,
    cost: Duration,
) -> Duration {
    let usual = if active {
        ACTIVE_EVERY
    } else {
        IDLE_EVERY * (1 << quiet.min(QUIET_DOUBLINGS_MAX))
    };
    let by_budget = left.map_or(usual, |left| {
        Duration::from_micros(left) / (LOOKS_PER_BUDGET.saturating_mul(cpus.max(1)))
    });
    usual
        .min(by_budget)
        .max(SHORTEST_EVERY)
        .max(cost.saturating_mul(COST_SHARE))
}

/// Whether an engine has done next to nothing in `time`, and takes about as much memory as before: less than half a per
/// cent of one CPU, which an idle ipykernel's heartbeat takes, and less than one part in 64.
pub fn is_quiet(before: &Usage, now: &Usage, time: Duration) -> bool {
    let cpu = now.cpu.saturating_sub(before.cpu);
    let memory = now.memory_bytes.abs_diff(before.memory_bytes);
    now.generation == before.generation
        && u128::from(cpu) * 200 <= time.as_micros()
        && memory <= before.memory_bytes / 64
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
