//! Real processes. The keeper is this program in a process of its own, for the whole process is a subreaper then; the
//! engine is a shell that does what it is told, line by line.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::snapshot::{scan, take, walk};
use super::*;
use crate::session::usage::Family;

/// Makes this program's next run of [`the_keeper`] one.
const ROLE: &str = "FARSIDE_TEST_USAGE_KEEPER";

/// Makes this program's next run of [`the_forker`] one.
const FORKER: &str = "FARSIDE_TEST_USAGE_FORKER";

const PATIENCE: Duration = Duration::from_secs(60);

/// A fraction of a second of CPU time, a few ticks on any machine.
const BURN: &str = "burn() { i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; }";

/// Not a test of its own: the process above the engine. Starts it, waits for whatever ends, says what all of them
/// used, and stays.
#[test]
fn the_keeper() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    crate::process::set_subreaper().unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "{BURN}; while read -r line; do eval \"$line\"; echo done; done"
    ));
    // SAFETY: async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        })
    };
    // Waited for below, with all others.
    #[allow(clippy::zombie_processes)]
    let engine = command.spawn().unwrap();
    println!("engine {}", engine.id());
    // SAFETY: a null pointer is allowed.
    while unsafe { libc::wait(std::ptr::null_mut()) } > 0 {}
    // SAFETY: plain data, filled in by the call.
    let used = unsafe {
        let mut used = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut used), 0);
        used
    };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    println!("used {}", micros(used.ru_utime) + micros(used.ru_stime));
    loop {
        std::thread::park();
    }
}

/// Not a test of its own: a process whose child is another thread's than the first. Both stay until `end`.
#[test]
fn the_forker() {
    if std::env::var_os(FORKER).is_none() {
        return;
    }
    let thread = std::thread::spawn(|| {
        let mut child = Command::new("cat").arg("end").spawn().unwrap();
        // SAFETY: no arguments.
        let thread = unsafe { libc::gettid() };
        assert!(list_of(thread as u32).contains(&child.id()));
        assert!(!list_of(std::process::id()).contains(&child.id()));
        // libtest's own words may stand in the same line.
        println!("\nthere");
        child.wait().unwrap();
    });
    thread.join().unwrap();
}

/// Of this process: the children of one of its threads.
fn list_of(thread: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap();
    let pids = list.split_ascii_whitespace();
    pids.map(|pid| pid.parse().unwrap()).collect()
}

struct World {
    keeper: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    roots: Roots,
    tree: Tree,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let mut keeper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::usage::tests::the_keeper", "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = keeper.stdin.take();
        let output = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let mut world = Self {
            roots: Roots {
                keeper: Some(keeper.id()),
                host: std::process::id(),
                engine: None,
            },
            keeper,
            input,
            output,
            tree: Tree::new(1, 0),
            dir: tempfile::tempdir().unwrap(),
        };
        let pid: u32 = world.said("engine ").parse().unwrap();
        world.roots.engine = Some((pid, crate::process::start_time(pid).unwrap()));
        // What the others wait for, until it is there.
        let fifo = world.dir.path().join("end");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        world.tell(&format!("cd '{}'", world.dir.path().display()));
        world
    }

    /// The rest of the next line that begins with this.
    fn said(&mut self, word: &str) -> String {
        // libtest's own words stand before, on the same line too.
        let found = |line: String| line.split_once(word).map(|(_, rest)| rest.to_owned());
        self.output
            .by_ref()
            .find_map(|line| found(line.unwrap()))
            .unwrap()
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.said("done");
    }

    /// Starts something that says `there` when it has worked.
    fn start(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        let mut left = vec!["there", "done"];
        while !left.is_empty() {
            let line = self.output.next().unwrap().unwrap();
            left.retain(|word| *word != line);
        }
    }

    fn look(&mut self) -> Sample {
        let table = take(self.tree.family(&self.roots).as_ref()).unwrap();
        self.step(&table)
    }

    fn step(&mut self, table: &[ProcessStat]) -> Sample {
        let dir = self.dir.path();
        (self.tree).step(&self.roots, table, |process| is_foreign(process.pid, dir))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whoever still waits goes on, and ends.
        let _ = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.path().join("end"));
        self.input = None;
        let table = scan().unwrap();
        for (pid, _) in self.step(&table).resident {
            let _ = crate::process::signal(pid, libc::SIGKILL);
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// All kinds of descendants, looked at now and then, add up to what the system says in the end.
#[test]
fn a_tree_of_real_processes_adds_up() {
    let mut world = World::new();
    let mut before = world.look().cpu;
    let mut members = Vec::new();
    let rest = "echo there; exec cat end";
    let acts = [
        // Itself, a child that ended, and one that stays with a child of its own.
        ("burn; echo there".to_owned(), 0),
        ("(burn); echo there".to_owned(), 0),
        (format!("(sh -c '{BURN}; burn; {rest}'; :) &"), 2),
        // In a session of its own; an orphan; a parent that does not wait, and its zombie.
        (format!("setsid sh -c '{BURN}; burn; {rest}' &"), 1),
        (format!("( (burn; {rest}) & )"), 1),
        (
            format!("sh -c '{BURN}; (burn; echo there) & exec cat end' &"),
            2,
        ),
    ];
    for (act, more) in acts {
        world.start(&act);
        let sample = world.look();
        assert!(sample.cpu >= before + 30_000, "{act}: {before} {sample:?}");
        before = sample.cpu;
        // A setsid may have forked for a moment.
        assert!(
            sample.resident.len() >= members.len() + more,
            "{act}: {members:?} {sample:?}"
        );
        members = sample.resident;
    }
    // It is one some moments after its last word.
    let zombies = |members: &[(u32, u64)]| members.iter().filter(|(_, bytes)| *bytes == 0).count();
    for _ in 0..1000 {
        if zombies(&members) == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        members = world.look().resident;
    }
    assert_eq!(zombies(&members), 1, "{members:?}");
    assert!(members.iter().map(|(_, bytes)| bytes).sum::<u64>() > 1 << 20);

    // All of them end, the engine last.
    let end = std::fs::OpenOptions::new()
        .write(true)
        .open(world.dir.path().join("end"))
        .unwrap();
    drop(end);
    world.tell("wait; burn");
    world.input = None;
    let used: u64 = world.said("used ").parse().unwrap();
    let sample = world.look();
    assert_eq!(sample.resident, []);
    assert!(sample.cpu >= before + 30_000);
    // The table counts in ticks of 10 ms, rounded down, two numbers a process.
    let apart = sample.cpu.abs_diff(used);
    assert!(apart <= 200_000, "{} and {used}", sample.cpu);
    assert!(used >= 7 * 30_000);
}

fn pids(sample: &Sample) -> Vec<u32> {
    sample.resident.iter().map(|(pid, _)| *pid).collect()
}

/// Looks again until it is so. What was started a moment ago may fork once more, or be about to end.
fn until<T>(mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < until, "{why}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever is found by going from parents to children, is found in all of /proc, and the other way round.
#[test]
fn a_family_has_the_members_that_the_whole_table_has() {
    let mut world = World::new();
    let mut by_scan = Tree::new(1, 0);
    assert_eq!(world.look().resident.len(), 1, "the engine");
    let forker = format!(
        "{FORKER}=1 '{}' --exact host::usage::tests::the_forker --nocapture &",
        std::env::current_exe().unwrap().display()
    );
    let rest = "echo there; exec cat end";
    let acts = [
        // A child with one of its own.
        (format!("sh -c 'sh -c \"{rest}\"; :' &"), 2),
        // A daemon in a session of its own whose parent has ended, with a child.
        (format!("(setsid sh -c 'cat end & {rest}' &)"), 2),
        (forker, 2),
    ];
    let mut expected = 1;
    for (act, more) in acts {
        world.start(&act);
        expected += more;
        until(|| {
            let Some(family) = world.tree.family(&world.roots) else {
                world.look();
                return Err("somebody is not below the keeper".into());
            };
            let walked = walk(&family).unwrap().unwrap();
            let walked = pids(&world.step(&walked));
            let scanned = scan().unwrap();
            let dir = world.dir.path();
            let is_foreign = |process: &ProcessStat| is_foreign(process.pid, dir);
            let scanned = pids(&by_scan.step(&world.roots, &scanned, is_foreign));
            let same = walked == scanned && walked.len() == expected;
            let why = || format!("{act}: {walked:?} {scanned:?}, not {expected}");
            same.then_some(()).ok_or_else(why)
        });
    }
}

/// Whoever is missing counts as gone, and all that it used counts again when it turns up again.
#[test]
fn whoever_is_known_is_read_wherever_it_is() {
    let mut world = World::new();
    world.look();
    // Children of ours, which no list of the keeper's family has.
    let sleeper = |command: &str| {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        (child, line.trim().parse::<u32>().unwrap_or_default())
    };
    let (mut parent, below) = sleeper("sh -c 'echo $$; read -r line'; :");
    let (mut other, _) = sleeper("echo there; read -r line");
    let id = |pid| (pid, crate::process::start_time(pid).unwrap());
    let mut family = world.tree.family(&world.roots).unwrap();
    let found = |family: &Family| {
        let table = walk(family).unwrap().unwrap();
        let mut pids: Vec<u32> = table.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        assert!(pids.is_sorted_by(|a, b| a < b), "each once: {pids:?}");
        pids
    };
    let without = found(&family);
    let (keeper, engine) = (world.keeper.id(), world.roots.engine.unwrap().0);
    let mut expected = vec![keeper, world.roots.host, engine];
    expected.sort_unstable();
    assert_eq!(without, expected);

    family.known.push(id(parent.id()));
    // Its number is somebody else's by now.
    let (pid, start_time) = id(other.id());
    family.known.push((pid, start_time - 1));
    // It has ended.
    family.known.push((u32::MAX, 1));
    let with = found(&family);
    for child in [&mut parent, &mut other] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    expected.extend([parent.id(), below]);
    expected.sort_unstable();
    assert_eq!(with, expected);
}

/// An orphan went to init while its keeper was dead, and no list of the next one has it.
#[test]
fn without_the_keeper_that_it_began_with_the_whole_table_is_looked_at() {
    let mut world = World::new();
    assert_eq!(world.tree.family(&world.roots), None, "at first");
    let engine = world.roots.engine.unwrap().0;
    assert_eq!(pids(&world.look()), [engine]);
    let family = world.tree.family(&world.roots).unwrap();
    let no_keeper = Roots {
        keeper: None,
        ..world.roots
    };
    assert_eq!(world.tree.family(&no_keeper), None);
    let has = |family: &Family, pid| {
        let table = take(Some(family)).unwrap();
        table.iter().any(|process| process.pid == pid)
    };
    let stranger = crate::process::parent_pid();
    assert!(!has(&family, stranger), "the family is enough");
    // Another process has the keeper's number.
    let (keeper, start_time) = family.keeper;
    let other = Family {
        keeper: (keeper, start_time + 1),
        ..family.clone()
    };
    assert!(has(&other, stranger) && has(&other, engine));

    world.keeper.kill().unwrap();
    world.keeper.wait().unwrap();
    assert_eq!(walk(&family).unwrap(), None);
    // In its place comes one that is above nobody.
    let mut next = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    world.roots.keeper = Some(next.id());
    for orphans in 1..4 {
        world.start("( (echo there; exec cat end) & )");
        let found = pids(&world.look());
        assert_eq!(found.len(), 1 + orphans, "{found:?}");
        assert_eq!(world.tree.family(&world.roots), None);
    }
    drop(next.stdin.take());
    next.wait().unwrap();
}

#[test]
fn a_keeper_of_another_session_is_told_by_its_command_line() {
    let dirs = tempfile::tempdir().unwrap();
    let (own, other) = (dirs.path().join("own"), dirs.path().join("other"));
    for dir in [&own, &other] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("session.json"), "{}").unwrap();
    }
    for name in ["host", "host-worker", "else"] {
        std::fs::write(dirs.path().join(name), "echo there; read -r line").unwrap();
    }
    let foreign = |name: &str, dir: &Path| {
        let mut child = Command::new("sh")
            .args([name, "--session-dir"])
            .arg(dir)
            .args(["--runtime-dir", "/x"])
            .current_dir(dirs.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(first_line(&mut child), "there\n");
        let found = is_foreign(child.id(), &own);
        drop(child.stdin.take());
        child.wait().unwrap();
        found
    };
    assert!(foreign("host", &other));
    assert!(foreign("host-worker", &other));
    assert!(!foreign("host", &own));
    assert!(!foreign("host", &dirs.path().join("nowhere")));
    assert!(!foreign("else", &other));
}

#[test]
fn processes_that_share_their_memory_do_not_count_it_twice() {
    // Half of what the two have is shared between them (test programs share more, and with other processes).
    let part = share(std::process::id()).unwrap();
    assert!(part > 0.0 && part <= 1.0, "{part}");
    assert_eq!(share(u32::MAX), None);
    let inner = RefCell::new(Inner::new(Path::new("/nowhere"), 1, 0));
    let large = SHARED_FROM_BYTES * 2;
    inner.borrow_mut().shares = Shares {
        parts: HashMap::from([(1, 0.5), (2, 0.25)]),
        at: Some(Instant::now()),
    };
    let sample = Sample {
        cpu: 0,
        resident: vec![(1, large), (2, large), (3, 1000)],
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let count =
        |sample: &Sample| runtime.block_on(memory(&inner, sample, &mut Duration::default()));
    assert_eq!(count(&sample), large / 2 + large / 4 + 1000);
    // Alone again, all of it is its own.
    let alone = Sample {
        cpu: 0,
        resident: vec![(1, large), (3, 1000)],
    };
    assert_eq!(count(&alone), large + 1000);
}

/// The sampler tells of what a process uses while it runs, and at its end.
/// An idle session showed for half a minute what its engine had used at the very beginning.
#[test]
fn what_happened_since_the_last_look_is_a_reason_for_another() {
    let idle = Target {
        seen: (3, true),
        ..Target::default()
    };
    assert!(!idle.has_done_since(&idle));
    let begun = Target {
        active: true,
        ..idle
    };
    let done = Target {
        seen: (4, true),
        ..idle
    };
    let not_ready = Target {
        seen: (3, false),
        ..idle
    };
    for (last, now) in [(begun, idle), (idle, done), (not_ready, idle)] {
        assert!(last.has_done_since(&now), "{last:?} {now:?}");
    }
}

#[test]
fn the_sampler_tells_of_an_engine_from_its_start_to_its_end() {
    let mut child = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let pid = child.id();
    let runtime = (tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build())
    .unwrap();
    let seen = tokio::task::LocalSet::new().block_on(&runtime, async {
        let (inbox, mut receiver) = Inbox::new();
        let sampler = Sampler::start(inbox, Path::new("/nowhere"), 6, 0);
        let target = Target {
            generation: 7,
            roots: Roots {
                keeper: None,
                host: std::process::id(),
                engine: Some((pid, crate::process::start_time(pid).unwrap())),
            },
            active: true,
            seen: (1, true),
            // As often as it may.
            left: Some(0),
        };
        sampler.look_at(target);
        let mut seen: Vec<Usage> = Vec::new();
        while seen.last().is_none_or(|usage| usage.cpu < 50_000) {
            let next = tokio::time::timeout(PATIENCE, receiver.recv())
                .await
                .unwrap()
                .unwrap();
            match next.into_parts().0 {
                Input::Event(Event::Usage(usage)) => seen.push(usage),
                other => panic!("{other:?}"),
            }
        }
        child.kill().unwrap();
        // A zombie: all that it used can still be seen.
        seen.push(sampler.last_look().unwrap());
        seen
    });
    child.wait().unwrap();
    assert!(seen.iter().all(|usage| usage.generation == 7));
    assert!(seen.is_sorted_by_key(|usage| usage.cpu), "{seen:?}");
    assert!(seen[0].memory_bytes > 100_000, "{seen:?}");
}

/// It is there when it has said something.
fn first_line(child: &mut std::process::Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}
