//! Real processes. The keeper is this program in a process of its own, for the whole process is a subreaper then; the
//! engine is a shell that does what it is told, line by line.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::*;

/// Makes this program's next run of [`the_keeper`] one.
const ROLE: &str = "FARSIDE_TEST_USAGE_KEEPER";

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
        let table = scan().unwrap();
        let dir = self.dir.path();
        (self.tree).step(&self.roots, &table, |process| is_foreign(process.pid, dir))
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
        for (pid, _) in self.look().resident {
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
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "there\n");
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
