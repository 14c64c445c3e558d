use std::collections::HashSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use super::*;

struct Sandbox {
    folder: tempfile::TempDir,
    sessions: Sessions,
}

fn sandbox() -> Sandbox {
    let folder = tempfile::tempdir().unwrap();
    let sessions =
        Sessions::open_at(&folder.path().join("state"), &folder.path().join("run")).unwrap();
    Sandbox { folder, sessions }
}

fn guard(sandbox: &Sandbox) -> CreationGuard {
    sandbox
        .sessions
        .lock_creation(Duration::from_secs(5))
        .unwrap()
}

fn new(name: Option<&str>, key: Option<&str>) -> NewSession {
    NewSession {
        name: name.map(str::to_owned),
        engine: "python3".to_owned(),
        argv: vec!["python".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
        interrupt_by_message: false,
        cwd: PathBuf::from("/"),
        key: key.map(str::to_owned),
        settings: vec![("idle_timeout".to_owned(), "2h".to_owned())],
        predecessor: None,
        header_session: None,
    }
}

fn create(sandbox: &Sandbox, name: Option<&str>, key: Option<&str>) -> Session {
    sandbox
        .sessions
        .create(&guard(sandbox), new(name, key))
        .unwrap()
}

fn end(session: &Session) {
    let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
    let status = Status {
        state: SessionState::Ended,
        end_reason: Some("stopped".to_owned()),
        ..Status::starting()
    };
    session.dir.write_status(&lock, &status).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_new_session_is_private_whole_and_found_again() {
    let sandbox = sandbox();
    let session = create(&sandbox, Some("train"), Some("/n/book.ipynb"));
    for dir in [
        sandbox.sessions.state_dir(),
        session.dir.root(),
        session.dir.sockets(),
        &session.dir.journal(),
    ] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
    }
    assert_eq!(mode(&session.dir.session_json()), 0o600);
    assert!(is_id(&session.json.id));
    assert!(session.dir.link_socket().as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
    let again = sandbox.sessions.find("train").unwrap();
    assert_eq!(again.json, session.json);
    assert_eq!(
        Session::open(session.dir.root()).unwrap().json,
        session.json
    );
    let facts = serde_json::to_value(again.facts()).unwrap();
    let names: Vec<&str> = facts
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        names.join(" "),
        "id name engine state attached executions created last_activity ends_at end_reason host_pid engine_pid key"
    );
    assert_eq!(facts["state"], "starting");
    // Nothing but the session and the lock is left in the state folder.
    let left: HashSet<String> = fs::read_dir(sandbox.sessions.state_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        left,
        HashSet::from([session.json.id.clone(), "create.lock".to_owned()])
    );
}

#[test]
fn folders_that_are_not_ours_alone_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    // Whoever could write may have left something there.
    for mode in [0o770, 0o720, 0o702] {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        let error = Sessions::open_at(&open, &run).unwrap_err().to_string();
        assert!(
            error.contains(&format!("mode {mode:04o}")) && error.contains("chmod 700"),
            "{error}"
        );
    }
    // A place like /tmp nobody makes his own.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    let error = Sessions::open_at(&open, &run).unwrap_err().to_string();
    assert!(
        error.contains("mode 1777") && error.contains("set FARSIDE_STATE_DIR"),
        "{error}"
    );
    // Whoever could only read cannot; from now on he cannot do that either.
    for readable in [0o755, 0o750, 0o701] {
        fs::set_permissions(&open, fs::Permissions::from_mode(readable)).unwrap();
        Sessions::open_at(&open, &run).unwrap();
        assert_eq!(mode(&open), 0o700);
    }
    // But nobody's home is closed to others.
    fs::write(open.join("letter"), "").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Sessions::open_at(&open, &run).unwrap_err().to_string();
    assert!(
        error.contains("has other things in it") && error.contains("FARSIDE_STATE_DIR"),
        "{error}"
    );
    assert_eq!(mode(&open), 0o755);
    fs::write(open.join("create.lock"), "").unwrap();
    Sessions::open_at(&open, &run).unwrap();
    assert_eq!(mode(&open), 0o700);

    let link = folder.path().join("link");
    let real = folder.path().join("real");
    ensure_private_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let error = Sessions::open_at(&link, &run).unwrap_err().to_string();
    assert!(error.contains("symbolic link"), "{error}");
    // The folder of the sockets is held to the same.
    let sessions = Sessions::open_at(&real, &link).unwrap();
    let guard = sessions.lock_creation(Duration::from_secs(5)).unwrap();
    assert!(matches!(
        sessions.create(&guard, new(None, None)),
        Err(StateError::Insecure { .. })
    ));

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        Sessions::open_at(&file, &run),
        Err(StateError::Insecure { .. })
    ));
    if crate::process::effective_uid() == 0 {
        std::os::unix::fs::chown(&real, Some(12345), None).unwrap();
        let error = Sessions::open_at(&real, &run).unwrap_err().to_string();
        assert!(error.contains("belongs to user 12345"), "{error}");
    }
}

#[test]
fn sockets_go_where_their_path_is_short_enough() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let long = folder.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
    let sessions = Sessions::open_at(&state, &long).unwrap();
    let guard = sessions.lock_creation(Duration::from_secs(5)).unwrap();
    let error = sessions.create(&guard, new(None, None)).unwrap_err();
    assert!(
        matches!(error, StateError::NoSocketFolder { .. }),
        "{error}"
    );

    let short = folder.path().join("s");
    let not_there = folder.path().join("none");
    let sessions = Sessions {
        state,
        runtime: vec![
            RuntimeChoice {
                dir: not_there.join("farside"),
                base: Some(not_there),
            },
            RuntimeChoice {
                base: None,
                dir: long,
            },
            RuntimeChoice {
                base: None,
                dir: short.clone(),
            },
        ],
    };
    let session = sessions.create(&guard, new(None, None)).unwrap();
    assert!(session.dir.sockets().starts_with(&short));
}

#[test]
fn names_come_from_the_notebook_and_stay_unique_among_the_living() {
    let sandbox = sandbox();
    let first = create(&sandbox, None, Some("/home/me/My notes.ipynb"));
    assert_eq!(first.json.name, "My notes");
    let second = create(&sandbox, None, Some("/home/me/My notes.ipynb"));
    assert_eq!(second.json.name, "My notes-2");
    let plain = create(&sandbox, None, None);
    assert_eq!(plain.json.name, format!("python3-{}", plain.json.id));
    let odd = create(&sandbox, None, Some("/n/abc12345.ipynb"));
    assert_eq!(
        odd.json.name,
        format!("python3-{}", odd.json.id),
        "a name must not look like an id"
    );
    end(&first);
    assert_eq!(
        create(&sandbox, None, Some("/x/My notes.ipynb")).json.name,
        "My notes"
    );

    for bad in [
        "",
        "a/b",
        "a\nb",
        "abc12345",
        "-x",
        " x",
        &"x".repeat(NAME_BYTES_MAX + 1),
    ] {
        let refused = sandbox
            .sessions
            .create(&guard(&sandbox), new(Some(bad), None));
        assert!(
            matches!(refused, Err(StateError::BadName { .. })),
            "{bad:?}"
        );
    }
    assert!(
        check_name("training").is_ok(),
        "a word of eight letters is no id"
    );
}

#[test]
fn a_selector_is_an_id_a_name_or_a_unique_beginning() {
    let sandbox = sandbox();
    let old = create(&sandbox, Some("train"), None);
    end(&old);
    let live = create(&sandbox, Some("train"), None);
    let find = |selector: &str| sandbox.sessions.find(selector).map(|s| s.json.id);
    assert_eq!(find("train").unwrap(), live.json.id, "the living one wins");
    assert_eq!(find(&old.json.id).unwrap(), old.json.id);
    let prefix = (1..=ID_CHARS)
        .map(|n| &old.json.id[..n])
        .find(|p| !live.json.id.starts_with(p))
        .unwrap();
    assert_eq!(find(prefix).unwrap(), old.json.id);
    end(&live);
    let error = find("train").unwrap_err();
    assert!(matches!(error, StateError::Ambiguous { .. }));
    assert!(
        error.to_string().contains(&old.json.id) && error.to_string().contains(&live.json.id),
        "{error}"
    );
    let error = find("nonesuch").unwrap_err();
    assert!(
        matches!(error, StateError::NotFound { .. }) && error.to_string().contains("train"),
        "{error}"
    );
    for odd in ["", "..", "../state", "/"] {
        assert!(
            matches!(find(odd), Err(StateError::NotFound { .. })),
            "{odd:?}"
        );
    }
}

#[test]
fn a_key_finds_the_living_newest_first() {
    let sandbox = sandbox();
    let (a, b) = (
        create(&sandbox, None, Some("/n/a.ipynb")),
        create(&sandbox, None, Some("/n/a.ipynb")),
    );
    create(&sandbox, None, Some("/n/other.ipynb"));
    let ids = || -> Vec<String> {
        let found = sandbox.sessions.of_key("/n/a.ipynb", "python3").unwrap();
        (found.into_iter().filter(Session::is_live))
            .map(|s| s.json.id)
            .collect()
    };
    let mut expected = [b.json.clone(), a.json.clone()];
    expected.sort_by_key(|json| std::cmp::Reverse((json.created, json.id.clone())));
    assert_eq!(
        ids(),
        expected
            .iter()
            .map(|json| json.id.clone())
            .collect::<Vec<_>>()
    );
    end(&b);
    assert_eq!(ids(), [a.json.id]);
    assert!(
        sandbox
            .sessions
            .of_key("/n/a.ipynb", "ir")
            .unwrap()
            .is_empty()
    );
}

#[test]
fn the_host_lock_has_one_holder_and_testing_it_takes_nothing() {
    let sandbox = sandbox();
    let session = create(&sandbox, None, None);
    assert!(!HostLock::is_held(&session.dir));
    let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
    assert!(HostLock::is_held(&session.dir));
    assert!(HostLock::acquire(&session.dir).unwrap().is_none());
    drop(lock);
    assert!(!HostLock::is_held(&session.dir));
}

#[test]
fn the_state_follows_from_who_lives() {
    let sandbox = sandbox();
    let session = create(&sandbox, None, None);
    let at = |now| derive_state(&session, now);
    let created = session.json.created;
    assert_eq!(at(created), SessionState::Starting);
    assert_eq!(
        at(created + HOST_START_GRACE_MICROS),
        SessionState::Lost,
        "no host ever came"
    );

    let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
    assert_eq!(
        at(created + HOST_START_GRACE_MICROS),
        SessionState::Starting
    );
    let mut engine = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = Status {
        state: SessionState::Busy,
        attached: 2,
        engine: ProcessId::of(engine.id()),
        ends_at: Some(created),
        ..Status::starting()
    };
    session.dir.write_status(&lock, &status).unwrap();
    assert_eq!(session.status(), Some(Status { ..status.clone() }));
    let facts = session.facts();
    assert_eq!((facts.state, facts.attached), (SessionState::Busy, 2));
    assert_eq!(
        (facts.host_pid, facts.engine_pid),
        (Some(std::process::id()), Some(engine.id()))
    );

    drop(lock);
    let facts = session.facts();
    assert_eq!(
        (facts.state, facts.host_pid),
        (SessionState::Busy, None),
        "the engine still runs"
    );
    drop(engine.stdin.take());
    engine.wait().unwrap();
    let facts = session.facts();
    assert_eq!(
        (facts.state, facts.engine_pid, facts.attached, facts.ends_at),
        (SessionState::Lost, None, 0, None)
    );
    assert!(facts.end_reason.unwrap().starts_with("host_lost"));
    end(&session);
    assert_eq!(session.facts().state, SessionState::Ended);
    assert_eq!(session.facts().end_reason.as_deref(), Some("stopped"));
}

fn derive_state(session: &Session, now: Micros) -> SessionState {
    facts::derive(session, now).state
}

#[test]
fn a_damaged_session_is_listed_and_can_be_removed() {
    let sandbox = sandbox();
    let session = create(&sandbox, None, None);
    fs::write(session.dir.session_json(), "{\"id\":").unwrap();
    let [listed] = sandbox.sessions.list().unwrap().try_into().unwrap();
    let listed: Session = listed;
    assert_eq!(listed.facts().state, SessionState::Lost);
    assert!(listed.facts().end_reason.unwrap().contains("session.json"));
    assert!(sandbox.sessions.remove_ended(&listed).unwrap());
    assert!(sandbox.sessions.list().unwrap().is_empty());
    assert!(
        sandbox.folder.path().join("run").is_dir(),
        "only the session's own folders are removed"
    );
}

#[test]
fn the_creation_lock_is_waited_for_and_given_up_on() {
    let sandbox = sandbox();
    let held = guard(&sandbox);
    let error = sandbox
        .sessions
        .lock_creation(Duration::from_millis(20))
        .unwrap_err();
    assert!(matches!(error, StateError::LockTimeout { .. }), "{error}");
    let sessions = sandbox.sessions.clone();
    let waiter =
        std::thread::spawn(move || sessions.lock_creation(Duration::from_secs(30)).is_ok());
    drop(held);
    assert!(waiter.join().unwrap());
}

#[test]
fn keys_and_times_have_one_form() {
    assert_eq!(notebook_key("/a/b.ipynb", Path::new("/c")), "/a/b.ipynb");
    assert_eq!(
        notebook_key("./x/../b.ipynb", Path::new("/c/d")),
        "/c/d/b.ipynb"
    );
    assert_eq!(iso::format(1_000_000), "1970-01-01T00:00:01.000000Z");
    assert_eq!(
        iso::parse("1970-01-01T01:00:01.5+01:00").unwrap(),
        1_500_000
    );
    assert_eq!(
        iso::parse(&iso::format(Micros::MAX))
            .map(iso::format)
            .unwrap(),
        iso::format(Micros::MAX)
    );
    assert!(iso::parse("yesterday").is_err());
}

#[test]
fn only_what_is_over_is_removed() {
    let sandbox = sandbox();
    let session = create(&sandbox, None, None);
    let remove = || sandbox.sessions.remove_ended(&session).unwrap();
    assert!(!remove(), "its host may be on its way");
    let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
    let status = Status {
        state: SessionState::Ended,
        ..Status::starting()
    };
    session.dir.write_status(&lock, &status).unwrap();
    assert!(!remove(), "its host still tidies up");
    drop(lock);
    assert!(remove());
    assert!(!session.dir.root().exists() && !session.dir.sockets().exists());
}

/// As `end`, with executions, at a time and for a reason.
fn end_at(session: &Session, executions: u64, ended_at: Micros, reason: &str) {
    let lock = HostLock::acquire(&session.dir).unwrap().unwrap();
    let status = Status {
        state: SessionState::Retired,
        executions,
        ended_at: Some(ended_at),
        end_reason: Some(reason.to_owned()),
        ..Status::starting()
    };
    session.dir.write_status(&lock, &status).unwrap();
}

#[test]
fn a_new_session_comes_after_the_last_that_ended_and_did_anything() {
    let sandbox = sandbox();
    let key = Some("/n/a.ipynb");
    let made: Vec<Session> = (0..4).map(|_| create(&sandbox, None, key)).collect();
    let predecessor = || {
        let all = sandbox.sessions.of_key("/n/a.ipynb", "python3").unwrap();
        Sessions::predecessor(&all).map(|session| session.json.id.clone())
    };
    assert_eq!(predecessor(), None, "they live");
    end_at(&made[2], 3, 50, "idle: for 1h");
    end_at(&made[0], 5, 100, "idle: for 1h");
    end_at(&made[1], 0, 200, "idle: for 1h");
    assert_eq!(predecessor(), Some(made[0].json.id.clone()));
    let past = made[0].past().unwrap();
    assert_eq!((past.executions, past.ended_at, past.lost), (5, 100, false));
    assert!(!past.was_asked_for());
    end_at(&made[0], 5, 100, "stopped: by `farside stop`");
    assert!(made[0].past().unwrap().was_asked_for());
    assert_eq!(made[3].past(), None);
}

#[test]
fn the_sessions_before_are_those_of_the_notebook_and_those_a_launcher_had() {
    let sandbox = sandbox();
    let key = Some("/n/a.ipynb");
    let ids = |sessions: Vec<Session>| -> Vec<String> {
        sessions.into_iter().map(|s| s.json.id).collect()
    };
    let after = |key: Option<&str>, predecessor: Option<&Session>| {
        let new = NewSession {
            predecessor: predecessor.map(|session| session.json.id.clone()),
            ..new(None, key)
        };
        sandbox.sessions.create(&guard(&sandbox), new).unwrap()
    };
    let first = after(key, None);
    let second = after(key, Some(&first));
    let other = after(Some("/n/other.ipynb"), None);
    let now = after(key, Some(&second));
    for (session, at) in [(&first, 100), (&second, 200), (&other, 300)] {
        end_at(session, 1, at, "idle");
    }
    let of = |session: &Session| Sessions::around(&session.dir).before(session).unwrap();
    assert_eq!(
        ids(of(&now)),
        [&second.json.id, &first.json.id].map(String::clone)
    );
    // Without a key, what a launcher had one after the other.
    let (a, b) = (after(None, None), after(None, None));
    end_at(&a, 1, 100, "idle");
    let c = after(None, Some(&a));
    end_at(&c, 1, 200, "idle");
    end_at(&b, 1, 300, "idle");
    let d = after(None, Some(&c));
    assert_eq!(ids(of(&d)), [&c.json.id, &a.json.id].map(String::clone));
    // What is gone, or points at itself, ends the chain.
    sandbox.sessions.remove_ended(&c).unwrap();
    assert_eq!(ids(of(&d)), Vec::<String>::new());
}

#[test]
fn a_header_session_that_frontends_know_is_kept() {
    let sandbox = sandbox();
    let first = create(&sandbox, None, None);
    let known = first.json.header_session();
    let new = NewSession {
        header_session: Some(known.clone()),
        ..new(None, None)
    };
    let second = sandbox.sessions.create(&guard(&sandbox), new).unwrap();
    let read = sandbox.sessions.get(&second.json.id).unwrap();
    assert_eq!(read.json.header_session(), known);
}

/// Ended so long ago, with so many bytes in its journal.
fn kept(sandbox: &Sandbox, age: Duration, bytes: usize, settings: &[(&str, &str)]) -> Session {
    let new = NewSession {
        settings: settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..new(None, None)
    };
    let session = sandbox.sessions.create(&guard(sandbox), new).unwrap();
    fs::write(session.dir.journal().join("segment"), vec![7; bytes]).unwrap();
    end_at(&session, 1, now() - age.as_micros() as Micros, "idle");
    session
}

fn left(sandbox: &Sandbox) -> Vec<String> {
    let mut ids: Vec<String> = (sandbox.sessions.list().unwrap().into_iter())
        .map(|session| session.json.id)
        .collect();
    ids.sort();
    ids
}

fn ids<'a>(sessions: impl IntoIterator<Item = &'a Session>) -> Vec<String> {
    let mut ids: Vec<String> = (sessions.into_iter())
        .map(|session| session.json.id.clone())
        .collect();
    ids.sort();
    ids
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn records_are_kept_as_long_as_the_session_was_told_to_or_else_as_long_as_all_are() {
    let sandbox = sandbox();
    let live = create(&sandbox, None, None);
    let _lock = HostLock::acquire(&live.dir).unwrap().unwrap();
    let young = kept(&sandbox, HOUR, 0, &[]);
    let old = kept(&sandbox, 30 * HOUR, 0, &[]);
    let old_for_ever = kept(&sandbox, 30 * HOUR, 0, &[("keep_records", "none")]);
    let old_for_long = kept(&sandbox, 30 * HOUR, 0, &[("keep_records", "2d")]);
    let young_for_short = kept(&sandbox, HOUR, 0, &[("keep_records", "10m")]);
    let prune = |age| {
        let retention = Retention { age, bytes: None };
        let pruned = sandbox.sessions.prune(&retention).unwrap();
        assert!(pruned.failed.is_empty());
        let mut ids: Vec<String> = pruned.removed.into_iter().map(|json| json.id).collect();
        ids.sort();
        ids
    };
    assert_eq!(prune(Age::Any), Vec::<String>::new());
    assert_eq!(prune(Age::Own(None)), ids([&young_for_short]));
    assert_eq!(prune(Age::Own(Some(24 * HOUR))), ids([&old]));
    assert_eq!(
        left(&sandbox),
        ids([&live, &young, &old_for_ever, &old_for_long])
    );
    assert_eq!(
        prune(Age::All(24 * HOUR)),
        ids([&old_for_ever, &old_for_long])
    );
    let of_tomorrow = kept(&sandbox, Duration::ZERO, 0, &[]);
    end_at(
        &of_tomorrow,
        1,
        now() + 24 * HOUR.as_micros() as Micros,
        "idle",
    );
    assert_eq!(
        prune(Age::All(Duration::ZERO)),
        ids([&young, &of_tomorrow]),
        "the clock was set back"
    );
    assert_eq!(left(&sandbox), ids([&live]));
}

#[test]
fn of_too_many_bytes_the_longest_ended_go_first_and_a_living_session_never() {
    let sandbox = sandbox();
    let live = create(&sandbox, None, None);
    let _lock = HostLock::acquire(&live.dir).unwrap().unwrap();
    fs::write(live.dir.journal().join("segment"), vec![7; 400_000]).unwrap();
    let newest = kept(&sandbox, HOUR, 100_000, &[]);
    let oldest = kept(&sandbox, 9 * HOUR, 100_000, &[]);
    let middle = kept(&sandbox, 5 * HOUR, 100_000, &[]);
    let prune = |bytes| {
        let retention = Retention {
            age: Age::Any,
            bytes: Some(bytes),
        };
        let pruned = sandbox.sessions.prune(&retention).unwrap();
        pruned
            .removed
            .into_iter()
            .map(|json| json.id)
            .collect::<Vec<_>>()
    };
    // Each folder has some files beside its journal.
    assert_eq!(prune(800_000), Vec::<String>::new());
    assert_eq!(prune(650_000), ids([&oldest]));
    assert_eq!(left(&sandbox), ids([&live, &middle, &newest]));
    // Nothing helps here but what lives: the rest goes nevertheless, the oldest first.
    assert_eq!(
        prune(1000),
        [middle.json.id.clone(), newest.json.id.clone()]
    );
    assert_eq!(left(&sandbox), ids([&live]));
}

#[test]
fn two_prunings_at_once_remove_each_session_once() {
    let sandbox = sandbox();
    let sessions: Vec<Session> = (0..20)
        .map(|_| kept(&sandbox, 30 * HOUR, 10_000, &[]))
        .collect();
    let young = kept(&sandbox, HOUR, 0, &[]);
    // What a killed pruning had left.
    fs::create_dir_all(sandbox.sessions.state_dir().join(".gone-dead1dead/journal")).unwrap();
    let retention = Retention {
        age: Age::Own(Some(24 * HOUR)),
        bytes: Some(1_000_000_000),
    };
    let mut removed: Vec<String> = std::thread::scope(|scope| {
        let prunings: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| sandbox.sessions.prune(&retention).unwrap()))
            .collect();
        (prunings.into_iter())
            .flat_map(|pruning| {
                let pruned = pruning.join().unwrap();
                assert!(pruned.failed.is_empty(), "{:?}", pruned.failed);
                pruned.removed.into_iter().map(|json| json.id)
            })
            .collect()
    });
    removed.sort();
    assert_eq!(removed, ids(&sessions));
    assert_eq!(left(&sandbox), ids([&young]));
    let all = fs::read_dir(sandbox.sessions.state_dir()).unwrap();
    let hidden: Vec<_> = all
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert_eq!(hidden, Vec::<String>::new());
}

#[test]
fn who_reads_a_session_reads_on_when_it_is_removed() {
    use std::io::Read as _;
    let sandbox = sandbox();
    let session = kept(&sandbox, 30 * HOUR, 300_000, &[]);
    let mut open = fs::File::open(session.dir.journal().join("segment")).unwrap();
    let mut half = vec![0; 150_000];
    open.read_exact(&mut half).unwrap();
    let retention = Retention {
        age: Age::All(HOUR),
        bytes: None,
    };
    assert_eq!(sandbox.sessions.prune(&retention).unwrap().removed.len(), 1);
    assert!(!session.dir.root().exists());
    let mut rest = Vec::new();
    open.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, vec![7; 150_000]);
}

#[test]
fn a_text_is_written_over_another_one_as_far_as_the_disk_has_room_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("status.json");
    fs::write(&path, "0123456789").unwrap();
    secure::overwrite_within(&path, b"abc".to_vec()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abc       ");
    // A file has a block at least, and a longer text fits into it.
    secure::overwrite_within(&path, vec![b'x'; 400]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [b'x'; 400]);
    let error = secure::overwrite_within(&path, vec![b'y'; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(fs::read(&path).unwrap(), [b'x'; 400], "as it was");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(secure::overwrite_within(&link, b"z".to_vec()).is_err());
}
