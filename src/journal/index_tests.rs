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
    let (_writer, at) = write(dir.path(), &session());
    let index = grown(dir.path());

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
    let number = |selector| index.execution(&selector).unwrap().map(|e| e.n);
    assert_eq!(number(Selector::Running), Some(2));
    assert_eq!(number(Selector::Latest), Some(3));
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
