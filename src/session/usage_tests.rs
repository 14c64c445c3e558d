//! The fold against scenarios, and against a model of how the system accounts for processes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HOST: u32 = 3;
const KEEPER: u32 = 2;
const ENGINE: u32 = 10;

fn process(pid: u32, parent: u32, own: Micros, waited: Micros) -> ProcessStat {
    ProcessStat {
        pid,
        start_time: u64::from(pid) * 100,
        parent,
        threads: 1,
        session: if pid < ENGINE { KEEPER } else { ENGINE },
        own_cpu: own,
        waited_cpu: waited,
        resident_bytes: u64::from(pid),
    }
}

fn roots() -> Roots {
    Roots {
        keeper: Some(KEEPER),
        host: HOST,
        engine: Some((ENGINE, 1000)),
    }
}

/// A table with keeper, host and some process of no concern beside these.
fn table(keeper_waited: Micros, others: &[ProcessStat]) -> Vec<ProcessStat> {
    let mut all = vec![
        process(1, 0, 9_000_000, 9_000_000),
        process(KEEPER, 1, 777, keeper_waited),
        process(HOST, KEEPER, 888, 999),
        process(9, 1, 5_000_000, 0),
    ];
    all.extend_from_slice(others);
    all
}

fn step(tree: &mut Tree, keeper_waited: Micros, others: &[ProcessStat]) -> Micros {
    tree.step(&roots(), &table(keeper_waited, others), |_| false)
        .cpu
}

fn pids(sample: &Sample) -> Vec<u32> {
    sample.resident.iter().map(|(pid, _)| *pid).collect()
}

#[test]
fn the_line_of_a_process_is_read() {
    let units = Units {
        tick: 10_000,
        page_bytes: 4096,
    };
    let line =
        b"4242 (a) R 1 (b c) S 17 4242 4240 0 -1 4194560 900 11 22 33 7 5 300 40 20 0 3 0 123456 \
                 99999744 2500 18446744073709551615 1 1\n";
    assert_eq!(
        ProcessStat::parse(line, units),
        Some(ProcessStat {
            pid: 4242,
            start_time: 123_456,
            parent: 17,
            threads: 3,
            session: 4240,
            own_cpu: 120_000,
            waited_cpu: 3_400_000,
            resident_bytes: 10_240_000,
        })
    );
    for cut in 0..line.len() {
        let memory = line.len() - b"2500 18446744073709551615 1 1\n".len();
        let read = ProcessStat::parse(&line[..cut], units);
        assert_eq!(read.is_some(), cut > memory, "{cut}");
    }
}

#[test]
fn descendants_orphans_and_members_of_their_sessions_belong_to_it() {
    let mut tree = Tree::new(1, 0);
    let mut daemon = process(13, 1, 30, 0);
    daemon.session = 12;
    let mut leader = process(12, ENGINE, 20, 0);
    leader.session = 12;
    let mut stray = process(14, 1, 40, 0);
    let orphan = process(11, KEEPER, 10, 0);
    let sample = tree.step(
        &roots(),
        &table(0, &[process(ENGINE, KEEPER, 1, 0), orphan, leader]),
        |_| false,
    );
    assert_eq!((pids(&sample), sample.cpu), (vec![10, 11, 12], 31));
    // Nobody of its ancestors is there any more, but it is in a session that one of ours was in.
    let all = [process(ENGINE, KEEPER, 1, 0), orphan, daemon, stray];
    let sample = tree.step(&roots(), &table(0, &all), |_| false);
    assert_eq!(pids(&sample), [10, 11, 13, 14]);
    // A stranger's session, and a parent that is not ours.
    stray.pid = 15;
    stray.session = 9;
    let sample = tree.step(
        &roots(),
        &table(0, &[process(ENGINE, KEEPER, 1, 0), stray]),
        |_| false,
    );
    assert_eq!(pids(&sample), [10]);
}

#[test]
fn who_belonged_once_belongs_also_after_its_keeper_was_replaced() {
    let mut tree = Tree::new(1, 0);
    let mut daemon = process(13, ENGINE, 30, 0);
    daemon.session = 13;
    step(&mut tree, 0, &[process(ENGINE, KEEPER, 1, 0), daemon]);
    daemon.parent = 1;
    daemon.own_cpu = 50;
    let mut engine = process(ENGINE, 1, 2, 0);
    let other = Roots {
        keeper: Some(200),
        ..roots()
    };
    let keeper = process(200, 1, 5, 70);
    let sample = tree.step(&other, &table(0, &[engine, daemon, keeper]), |_| false);
    assert_eq!((pids(&sample), sample.cpu), (vec![10, 13], 52));
    // Another process with that pid is another one.
    daemon.start_time += 1;
    engine.own_cpu = 3;
    let sample = tree.step(&other, &table(0, &[engine, daemon, keeper]), |_| false);
    assert_eq!((pids(&sample), sample.cpu), (vec![10], 53));
}

#[test]
fn a_session_that_a_cell_starts_counts_for_itself() {
    let mut tree = Tree::new(1, 0);
    let of = |pid, parent, session, own| ProcessStat {
        session,
        ..process(pid, parent, own, 0)
    };
    let mut engine = process(ENGINE, KEEPER, 1, 0);
    // Its keeper came to ours as an orphan; its engine is in a session of its own.
    let theirs = [
        of(20, KEEPER, 20, 100),
        of(21, 20, 20, 1000),
        of(22, 20, 22, 10_000),
        of(23, 22, 22, 100_000),
    ];
    let mut asked = Vec::new();
    let mut all = vec![engine];
    all.extend(theirs);
    let sample = tree.step(&roots(), &table(0, &all), |process| {
        asked.push(process.pid);
        process.pid == 20
    });
    assert_eq!((pids(&sample), sample.cpu), (vec![10], 1));
    assert_eq!(asked, [20], "their own are not asked for");
    // Their keeper is killed, and what it kept comes to ours. Nobody is asked again.
    engine.own_cpu = 5;
    let left = [
        of(22, KEEPER, 22, 20_000),
        of(23, 22, 22, 200_000),
        of(24, 1, 22, 7),
    ];
    let mut all = vec![engine];
    all.extend(left);
    let sample = tree.step(&roots(), &table(1100, &all), |_| panic!("asked again"));
    assert_eq!((pids(&sample), sample.cpu), (vec![10], 5));
    // They end, and all that they used is in our keeper's books.
    engine.own_cpu = 6;
    assert_eq!(step(&mut tree, 3_000_000, &[engine]), 6);
    // It may take one more look until it is.
    engine.own_cpu = 7;
    assert_eq!(step(&mut tree, 6_000_000, &[engine]), 7);
    // Our own orphans count again.
    assert_eq!(step(&mut tree, 6_000_500, &[engine]), 507);
}

#[test]
fn a_child_counts_once_whether_it_is_waited_for_or_not() {
    let mut tree = Tree::new(1, 0);
    let child = |own| process(11, ENGINE, own, 0);
    assert_eq!(
        step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 0), child(50)]),
        150
    );
    // Waited for, and it had worked on.
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 80)]), 180);
    // One came and went between two looks.
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 90)]), 190);
    // One ends and nobody waits: what was seen of it stays.
    let other = |own| process(12, ENGINE, own, 0);
    assert_eq!(
        step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 90), other(7)]),
        197
    );
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 90)]), 197);
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 101, 90)]), 198);
}

#[test]
fn a_child_that_ended_while_the_table_was_read_counts_once() {
    let mut tree = Tree::new(1, 0);
    step(
        &mut tree,
        0,
        &[process(ENGINE, KEEPER, 100, 0), process(11, ENGINE, 50, 0)],
    );
    // Its parent was read before it waited, the child's entry after it was gone.
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 0)]), 150);
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 60)]), 160);
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 70)]), 170);
}

#[test]
fn an_orphan_goes_into_the_keepers_books() {
    let mut tree = Tree::new(1, 0);
    let engine = process(ENGINE, KEEPER, 1, 0);
    let all = [engine, process(11, ENGINE, 10, 0), process(12, 11, 100, 0)];
    assert_eq!(step(&mut tree, 5000, &all), 111);
    // Both ended: the engine waited for its child, the keeper for the grandchild.
    assert_eq!(
        step(&mut tree, 5140, &[process(ENGINE, KEEPER, 1, 20)]),
        161
    );
}

#[test]
fn the_engines_last_work_is_in_the_keepers_books_too() {
    let mut tree = Tree::new(1, 0);
    assert_eq!(step(&mut tree, 0, &[process(ENGINE, KEEPER, 100, 10)]), 110);
    assert_eq!(step(&mut tree, 150, &[]), 150);
    // A new engine counts anew, also what the old one left behind.
    tree.begin(2);
    assert_eq!(tree.cpu(), 0);
    let next = process(30, KEEPER, 5, 0);
    let other = Roots {
        engine: Some((30, 3000)),
        ..roots()
    };
    assert_eq!(tree.step(&other, &table(150, &[next]), |_| false).cpu, 5);
    tree.begin(2);
    assert_eq!(tree.cpu(), 5);
}

#[test]
fn a_new_host_goes_on_from_what_the_journal_has() {
    let engine = |own| process(ENGINE, KEEPER, own, 40);
    // More is known than can still be seen: some of it nobody waited for.
    let mut tree = Tree::new(3, 500);
    assert_eq!(tree.cpu(), 500);
    assert_eq!(step(&mut tree, 9000, &[engine(100)]), 500);
    assert_eq!(step(&mut tree, 9000, &[engine(101)]), 501);
    // More can be seen: it worked in the gap.
    let mut tree = Tree::new(3, 50);
    assert_eq!(step(&mut tree, 9000, &[engine(100)]), 140);
    // What an engine before it left behind counts from now on.
    let mut tree = Tree::new(3, 50);
    let mut older = process(40, KEEPER, 1000, 1000);
    older.start_time = 999;
    assert_eq!(step(&mut tree, 9000, &[engine(100), older]), 140);
    older.own_cpu += 2;
    older.waited_cpu += 3;
    assert_eq!(step(&mut tree, 9000, &[engine(100), older]), 145);
}

#[test]
fn a_family_is_enough_where_everybody_is_below_the_keeper() {
    let engine = process(ENGINE, KEEPER, 1, 0);
    let family = |others: &[ProcessStat], at: &Roots| {
        let mut tree = Tree::new(1, 0);
        assert_eq!(tree.family(&roots()), None, "at first");
        let is_foreign = |process: &ProcessStat| process.pid == 20;
        tree.step(&roots(), &table(0, others), is_foreign);
        tree.family(at)
    };
    // A child that got its number when numbers had begun again, an orphan, and the keeper of a session that a cell began.
    let mut child = process(5, ENGINE, 0, 0);
    child.start_time = 1001;
    let mut all = [
        engine,
        child,
        process(11, 5, 0, 0),
        process(12, KEEPER, 0, 0),
        process(20, KEEPER, 0, 0),
        process(21, 20, 0, 0),
    ];
    all[4..].iter_mut().for_each(|p| p.session = 20);
    let known = [(10, 1000), (5, 1001), (11, 1100), (12, 1200)];
    let theirs = [(20, 2000), (21, 2100)];
    let expected = Family {
        keeper: (KEEPER, 200),
        host: HOST,
        known: [&known[..], &theirs].concat(),
    };
    assert_eq!(family(&all, &roots()), Some(expected));

    let (keeper, host) = (Some(9), 9);
    for changed in [
        Roots { keeper, ..roots() },
        Roots { host, ..roots() },
        Roots {
            engine: Some((ENGINE, 1001)),
            ..roots()
        },
    ] {
        assert_eq!(family(&all, &changed), None, "{changed:?}");
    }
    // The engine of a keeper that was killed; what one before it left; nobody; a child of the host.
    let adopted = process(ENGINE, 1, 1, 0);
    let elsewhere = process(13, 1, 0, 0);
    assert_eq!(family(&[adopted], &roots()), None);
    assert_eq!(family(&[engine, elsewhere], &roots()), None);
    assert_eq!(family(&[process(12, KEEPER, 0, 0)], &roots()), None);
    assert_eq!(family(&[engine, process(13, HOST, 0, 0)], &roots()), None);
    // No keeper.
    let mut tree = Tree::new(1, 0);
    tree.step(&roots(), &[engine], |_| false);
    assert_eq!(tree.family(&roots()), None);
    tree.step(&roots(), &table(0, &[engine]), |_| false);
    assert!(tree.family(&roots()).is_some());
}

#[test]
fn looks_come_closer_together_as_a_budget_ends() {
    let second = Duration::from_secs(1);
    let left = |seconds: u64| Some(seconds * 1_000_000);
    assert_eq!(interval(true, 9, None, 8, Duration::ZERO), ACTIVE_EVERY);
    assert_eq!(interval(false, 0, None, 8, Duration::ZERO), IDLE_EVERY);
    assert_eq!(interval(false, 1, None, 8, Duration::ZERO), 2 * IDLE_EVERY);
    assert_eq!(interval(false, 99, None, 8, Duration::ZERO), 8 * IDLE_EVERY);
    assert_eq!(
        interval(true, 0, left(1000), 2, Duration::ZERO),
        ACTIVE_EVERY
    );
    assert_eq!(interval(false, 0, left(16), 2, Duration::ZERO), 2 * second);
    assert_eq!(interval(true, 0, left(8), 2, Duration::ZERO), second);
    assert_eq!(
        interval(true, 0, left(0), 2, Duration::ZERO),
        SHORTEST_EVERY
    );
    assert_eq!(interval(true, 0, left(1), 0, Duration::ZERO), second / 4);
    // A machine with very many processes.
    assert_eq!(interval(true, 0, left(0), 2, second / 10), 5 * second);
}

/// How the system accounts for processes.
struct Model {
    next: u32,
    processes: BTreeMap<u32, Modelled>,
    keeper_waited: Micros,
    /// What all of them ever used.
    truth: Micros,
}

#[derive(Clone, Copy)]
struct Modelled {
    parent: u32,
    own: Micros,
    waited: Micros,
    zombie: bool,
    ignores_children: bool,
}

#[derive(Debug, Clone)]
enum Act {
    Work(usize, Micros),
    Fork(usize),
    Exit(usize),
    /// A process waits for all of its children that have ended.
    Wait(usize),
    Ignore(usize),
    Look,
    /// One that finds the family only, and not somebody who is new, nor what is below that one.
    LookAndMiss(usize),
}

impl Model {
    fn new() -> Self {
        let engine = Modelled {
            parent: KEEPER,
            own: 0,
            waited: 0,
            zombie: false,
            ignores_children: false,
        };
        Self {
            next: ENGINE + 1,
            processes: BTreeMap::from([(ENGINE, engine)]),
            keeper_waited: 12_345,
            truth: 0,
        }
    }

    fn pick(&self, at: usize) -> u32 {
        let living: Vec<u32> = (self.processes.iter())
            .filter(|(_, p)| !p.zombie)
            .map(|(pid, _)| *pid)
            .collect();
        living[at % living.len()]
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Work(at, time) => {
                let pid = self.pick(at);
                self.processes.get_mut(&pid).unwrap().own += time;
                self.truth += time;
            }
            Act::Fork(at) => {
                let parent = self.pick(at);
                let child = Modelled {
                    parent,
                    own: 0,
                    waited: 0,
                    zombie: false,
                    ignores_children: false,
                };
                self.processes.insert(self.next, child);
                self.next += 1;
            }
            Act::Exit(at) => {
                let pid = self.pick(at);
                if pid != ENGINE {
                    self.exit(pid);
                }
            }
            Act::Wait(at) => {
                let pid = self.pick(at);
                let ended: Vec<u32> = (self.processes.iter())
                    .filter(|(_, p)| p.zombie && p.parent == pid)
                    .map(|(pid, _)| *pid)
                    .collect();
                for child in ended {
                    let child = self.processes.remove(&child).unwrap();
                    self.processes.get_mut(&pid).unwrap().waited += child.own + child.waited;
                }
            }
            Act::Ignore(at) => {
                let pid = self.pick(at);
                self.processes.get_mut(&pid).unwrap().ignores_children = true;
            }
            Act::Look | Act::LookAndMiss(_) => {}
        }
    }

    fn exit(&mut self, pid: u32) {
        for process in self.processes.values_mut().filter(|p| p.parent == pid) {
            process.parent = KEEPER;
        }
        let gone = self.processes.get_mut(&pid).unwrap();
        gone.zombie = true;
        let parent = gone.parent;
        if self
            .processes
            .get(&parent)
            .is_some_and(|p| p.ignores_children)
        {
            self.processes.remove(&pid);
        }
        // The keeper waits at once.
        let ended = |p: &Modelled| p.zombie && p.parent == KEEPER;
        self.keeper_waited += (self.processes.values().filter(|p| ended(p)))
            .map(|p| p.own + p.waited)
            .sum::<Micros>();
        self.processes.retain(|_, p| !ended(p));
    }

    fn table(&self) -> Vec<ProcessStat> {
        let others: Vec<_> = (self.processes.iter())
            .map(|(pid, p)| process(*pid, p.parent, p.own, p.waited))
            .collect();
        table(self.keeper_waited, &others)
    }

    /// What a look at the family finds that misses one of those who are new.
    fn table_without(&self, family: &Family, at: usize) -> Vec<ProcessStat> {
        let mut all = self.table();
        all.retain(|p| p.id() == family.keeper || p.pid == family.host || p.pid >= ENGINE);
        let is_known = |p: &ProcessStat| p.pid < ENGINE || family.known.contains(&p.id());
        let new: Vec<u32> = (all.iter().filter(|p| !is_known(p)))
            .map(|p| p.pid)
            .collect();
        let mut missed: Vec<u32> = new
            .get(at % new.len().max(1))
            .copied()
            .into_iter()
            .collect();
        while let Some(pid) = missed.pop() {
            let below = all.iter().filter(|p| p.parent == pid).map(|p| p.pid);
            missed.extend(below);
            assert!(all.iter().all(|p| p.pid != pid || !is_known(p)));
            all.retain(|p| p.pid != pid);
        }
        all
    }
}

fn act(ignore: u32) -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (any::<usize>(), 1..1000u64).prop_map(|(at, time)| Act::Work(at, time)),
        4 => any::<usize>().prop_map(Act::Fork),
        4 => any::<usize>().prop_map(Act::Exit),
        3 => any::<usize>().prop_map(Act::Wait),
        ignore => any::<usize>().prop_map(Act::Ignore),
        3 => Just(Act::Look),
        3 => any::<usize>().prop_map(Act::LookAndMiss),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whoever forks, ends, is waited for or orphaned between whichever looks: the sum is exact, also after looks that missed
    /// somebody.
    #[test]
    fn all_that_is_waited_for_is_counted_exactly_once(acts in prop::collection::vec(act(0), 0..120)) {
        let (mut model, mut tree) = (Model::new(), Tree::new(1, 0));
        tree.step(&roots(), &model.table(), |_| false);
        let mut before = 0;
        for act in &acts {
            model.act(act);
            match act {
                Act::Look => {
                    before = tree.step(&roots(), &model.table(), |_| false).cpu;
                    prop_assert_eq!(before, model.truth);
                }
                Act::LookAndMiss(at) => {
                    let table = model.table_without(&tree.family(&roots()).unwrap(), *at);
                    let cpu = tree.step(&roots(), &table, |_| false).cpu;
                    prop_assert!(before <= cpu && cpu <= model.truth);
                    before = cpu;
                }
                _ => {}
            }
        }
    }

    /// Where some ends are ignored: never too much, never less than before, and what was seen stays.
    #[test]
    fn what_nobody_waits_for_is_counted_at_most_once(acts in prop::collection::vec(act(1), 0..120)) {
        let (mut model, mut tree) = (Model::new(), Tree::new(1, 0));
        tree.step(&roots(), &model.table(), |_| false);
        let mut before = 0;
        for act in &acts {
            model.act(act);
            if let Act::LookAndMiss(at) = act {
                let table = model.table_without(&tree.family(&roots()).unwrap(), *at);
                let cpu = tree.step(&roots(), &table, |_| false).cpu;
                prop_assert!(before <= cpu && cpu <= model.truth);
                before = cpu;
            }
            if matches!(act, Act::Look) {
                let cpu = tree.step(&roots(), &model.table(), |_| false).cpu;
                let visible: Micros = model.processes.values().map(|p| p.own + p.waited).sum();
                prop_assert!(before <= cpu && cpu <= model.truth && visible <= cpu,
                    "{before} {visible} {cpu} {}", model.truth);
                before = cpu;
            }
        }
    }
}

#[test]
fn an_idle_engine_is_quiet_and_one_whose_threads_work_is_not() {
    let usage = |cpu, memory_bytes| Usage {
        generation: 1,
        cpu,
        memory_bytes,
        gpu_memory_bytes: None,
    };
    let (before, time) = (usage(1_000_000, 64 << 20), Duration::from_secs(30));
    assert!(is_quiet(&before, &usage(1_150_000, 65 << 20), time));
    assert!(!is_quiet(&before, &usage(1_150_001, 64 << 20), time));
    assert!(!is_quiet(&before, &usage(1_000_000, 66 << 20), time));
    assert!(!is_quiet(&before, &usage(1_000_000, 60 << 20), time));
    let other = Usage {
        generation: 2,
        ..before
    };
    assert!(!is_quiet(&before, &other, time));
}
