use super::*;
use crate::journal::record::{ExecutionState, Note, Record};
use crate::journal::writer::tests::samples::{
    checkpoint, input, note, output, reply, request, state,
};
use crate::journal::{Writer, WriterOptions};

/// A session with three executions: done, running, queued.
fn session() -> Vec<Record> {
    use ExecutionState::{Ok, Queued, Running};
    vec![
        note(
            1,
            Note::SessionStarted {
                id: "id".into(),
                name: "name".into(),
                engine: "python3".into(),
            },
        ),
        request(2, 1, "first"),
        state(3, 1, Queued),
        state(4, 1, Running),
        input(5, 1, 7),
        output(6, 1, "one"),
        output(7, 1, vec![b'x'; 100_000]),
        request(8, 2, "second"),
        reply(9, 1),
        state(10, 1, Ok),
        state(11, 2, Running),
        output(12, 2, "two"),
        request(13, 3, "third"),
        checkpoint(14),
    ]
}

fn write(dir: &Path, records: &[Record]) -> (Writer, Vec<Position>) {
    let (mut writer, _) = Writer::open(dir, WriterOptions::default()).unwrap();
    let positions = writer.append(records).unwrap();
    (writer, positions)
}

fn grown(dir: &Path) -> Index {
    let mut index = Index::open(dir).unwrap();
    index.catch_up().unwrap();
    index
}

fn all(index: &Index) -> Vec<ExecutionInfo> {
    index.executions(&Filter::default()).unwrap()
}

#[test]
fn executions_are_found_with_state_times_and_places() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, at) = write(dir.path(), &session());
    let mut index = grown(dir.path());

    let first = index.execution(&Selector::Number(1)).unwrap().unwrap();
    assert_eq!(
        serde_json::to_string(&first).unwrap(),
        format!(
            r#"{{"msg_id":"request-1","n":1,"cell_id":"cell-1","code":"first","state":"ok","started":"2026-01-01T00:00:04.000000Z","ended":"2026-01-01T00:00:10.000000Z","queued":"2026-01-01T00:00:02.000000Z","reason":null,"execution_count":7,"outputs":2,"bytes":{}}}"#,
            first.bytes
        )
    );
    assert!(
        first.bytes > 100_003 && first.bytes < 101_000,
        "{}",
        first.bytes
    );
    let places = first.places;
    assert_eq!((places.request, places.start), (Some(at[1]), Some(at[3])));
    assert_eq!((places.reply, places.last), (Some(at[8]), Some(at[9])));
    assert_eq!((places.first_seq, places.last_seq), (2, 10));

    let numbers = |filter| {
        index
            .executions(&filter)
            .unwrap()
            .iter()
            .map(|e| e.n)
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers(Filter::default()), [3, 2, 1]);
    assert_eq!(
        numbers(Filter {
            unfinished: true,
            ..Filter::default()
        }),
        [3, 2]
    );
    assert_eq!(
        numbers(Filter {
            limit: Some(1),
            ..Filter::default()
        }),
        [3]
    );
    assert_eq!(
        numbers(Filter {
            cell_id: Some("no".into()),
            ..Filter::default()
        }),
        [] as [u64; 0]
    );
    assert_eq!(
        index.execution(&Selector::Latest).unwrap().map(|e| e.n),
        Some(3)
    );
    // What a frontend runs by itself is not what a person comes back for.
    let mut silent = request(15, 4, "");
    if let crate::journal::record::Body::Request { message, .. } = &mut silent.body {
        message.content = r#"{"code":"dir()","silent":true}"#.into();
    }
    writer.append(&[silent]).unwrap();
    index.catch_up().unwrap();
    let number = |selector| index.execution(&selector).unwrap().map(|e| e.n);
    assert_eq!(number(Selector::Number(4)), Some(4));
    assert_eq!(number(Selector::Latest), Some(3));
    let view = View::open(dir.path()).unwrap();
    assert_eq!(view.execution(&Selector::Latest).map(|e| e.n), Some(3));
    assert_eq!(number(Selector::ById("request-2".into())), Some(2));
    assert_eq!(number(Selector::ById("no".into())), None);
    assert_eq!(index.session().unwrap().name, "name");
}

#[test]
fn a_rebuilt_index_equals_the_grown_one_and_a_view() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    let mut index = Index::open(dir.path()).unwrap();
    for record in session() {
        writer.append(&[record]).unwrap();
        assert_eq!(index.catch_up().unwrap(), 1);
        let view = View::open(dir.path()).unwrap();
        assert_eq!(view.executions(&Filter::default()), all(&index));
    }
    let before = all(&index);
    drop(index);
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    assert_eq!(
        View::open(dir.path())
            .unwrap()
            .executions(&Filter::default()),
        before
    );
    assert_eq!(all(&grown(dir.path())), before);
}

#[test]
fn an_index_that_is_of_no_use_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (_writer, _) = write(dir.path(), &session());
    let expected = all(&grown(dir.path()));
    let path = dir.path().join(FILE_NAME);
    let good = std::fs::read(&path).unwrap();

    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle..].fill(0xAA);
    for damaged in [
        b"garbage".to_vec(),
        Vec::new(),
        good[..5000].to_vec(),
        flipped,
    ] {
        std::fs::write(&path, &damaged).unwrap();
        let view = View::open(dir.path()).unwrap();
        assert_eq!(view.executions(&Filter::default()), expected);
        assert_eq!(all(&grown(dir.path())), expected);
    }

    let other = Connection::open(&path).unwrap();
    other
        .execute("UPDATE executions SET code = 'of another schema'", [])
        .unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    drop(other);
    assert_eq!(
        View::open(dir.path())
            .unwrap()
            .executions(&Filter::default()),
        expected
    );
    assert_eq!(all(&grown(dir.path())), expected);
}

/// A power cut can take the log's tail and leave the index that was made of it.
#[test]
fn an_index_that_is_ahead_of_the_log_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, positions) = write(dir.path(), &session());
    drop(writer);
    assert_eq!(all(&grown(dir.path())).len(), 3);
    let segment = crate::journal::segments::path(dir.path(), 1);
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.set_len(positions[7].offset).unwrap();
    let view = View::open(dir.path()).unwrap();
    assert_eq!(
        view.executions(&Filter::default())
            .iter()
            .map(|e| e.n)
            .collect::<Vec<_>>(),
        [1]
    );

    // Other records of the same seqs have come since.
    let (mut writer, recovered) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    assert_eq!(recovered.next_seq, 8);
    let others: Vec<_> = (8..20).map(|seq| output(seq, 1, "again")).collect();
    writer.append(&others).unwrap();
    let index = grown(dir.path());
    let executions = all(&index);
    assert_eq!(executions.len(), 1);
    assert_eq!(executions[0].outputs, 2 + 12);
}

#[test]
fn a_view_reads_what_the_host_has_not_indexed_and_writes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let files = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let see = || {
        let before = files();
        let view = View::open(dir.path()).unwrap();
        assert_eq!(files(), before);
        assert_eq!(view.session().name, "name");
        view.executions(&Filter::default())
            .iter()
            .map(|e| (e.n, e.outputs))
            .collect::<Vec<_>>()
    };
    let records = session();
    let (mut writer, _) = write(dir.path(), &records[..6]);
    assert_eq!(see(), [(1, 1)]);
    let mut index = grown(dir.path());
    writer.append(&records[6..9]).unwrap();
    assert_eq!(see(), [(2, 0), (1, 2)]);
    index.catch_up().unwrap();
    writer.append(&records[9..]).unwrap();
    assert_eq!(see(), [(3, 0), (2, 1), (1, 2)]);
    let mut view = View::open(dir.path()).unwrap();
    writer.append(&[output(15, 2, "more")]).unwrap();
    view.refresh().unwrap();
    assert_eq!(
        view.execution(&Selector::Number(2))
            .map(|e| (e.n, e.outputs)),
        Some((2, 2))
    );

    // No host any more, and a folder of someone else's.
    drop((writer, index));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(see(), [(3, 0), (2, 2), (1, 2)]);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn input_requests_and_states_are_followed() {
    use crate::journal::record::Body;
    use crate::wire::Channel;
    let dir = tempfile::tempdir().unwrap();
    let mut prompt = reply(4, 1);
    let Body::Reply { channel, .. } = &mut prompt.body else {
        panic!("not a reply")
    };
    *channel = Channel::Stdin;
    let lost = Note::Execution {
        n: 1,
        msg_id: "request-1".into(),
        state: ExecutionState::Lost,
        reason: Some("the engine died".into()),
    };
    let records = [
        request(1, 1, "input()"),
        state(2, 1, ExecutionState::Running),
        input(3, 1, 1),
        prompt,
        state(5, 1, ExecutionState::WaitingInput),
        note(6, lost),
        note(
            7,
            Note::SessionEnded {
                reason: "engine_died: killed".into(),
            },
        ),
        // A second reply is not the execution's.
        reply(8, 1),
        reply(9, 1),
    ];
    let (mut writer, _) = Writer::open(dir.path(), WriterOptions::default()).unwrap();
    let mut index = Index::open(dir.path()).unwrap();
    let mut at = writer.append(&records[..5]).unwrap();
    index.catch_up().unwrap();
    let row = index.execution(&Selector::Latest).unwrap().unwrap();
    assert_eq!(
        (row.state, row.places.input),
        (ExecutionState::WaitingInput, Some(at[3]))
    );
    assert_eq!((row.started.is_some(), row.ended), (true, None));
    at.extend(writer.append(&records[5..]).unwrap());
    index.catch_up().unwrap();
    let row = index.execution(&Selector::Latest).unwrap().unwrap();
    assert_eq!(
        (row.state, row.reason.as_deref()),
        (ExecutionState::Lost, Some("the engine died"))
    );
    assert_eq!(
        (row.ended, row.places.reply),
        (Some(1_767_225_606_000_000), Some(at[7]))
    );
    assert_eq!(
        index.session().unwrap().end_reason.as_deref(),
        Some("engine_died: killed")
    );
}

#[test]
fn the_index_belongs_to_the_user_alone_and_can_move_to_a_thread() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (_writer, _) = write(dir.path(), &session());
    let index = std::thread::scope(|scope| scope.spawn(|| grown(dir.path())).join().unwrap());
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    assert_eq!(all(&index).len(), 3);
}

/// A mistaken "damaged" would throw the index away under a reader.
#[test]
fn an_index_that_is_being_read_is_opened_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (_writer, _) = write(dir.path(), &session());
    let expected = all(&grown(dir.path()));
    let reader = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM executions;")
        .unwrap();
    let mut index = Index::open(dir.path()).unwrap();
    assert_eq!(all(&index), expected);
    assert_eq!(index.catch_up().unwrap(), 0);
}
