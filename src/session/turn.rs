//! PURE. What a turn of the host has to do, in the order that keeps the promise: append before publish.
//!
//! Invariant: nothing is done, and nothing is said to anybody, before all records that stood before it were appended;
//! also where carrying one thing out brings new records.

use std::collections::VecDeque;
use std::sync::Arc;

use super::event::Effect;
use crate::journal::record::Record;

/// See the module.
#[derive(Debug, Default)]
pub struct Turn {
    records: Vec<Arc<Record>>,
    after: VecDeque<Effect>,
}

/// What to do next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one at a time, and never kept
pub enum Todo {
    /// Append these, and then show them to the readers.
    Append(Vec<Arc<Record>>),
    /// Carry this out. Never an [`Effect::Record`].
    Do(Effect),
}

impl Turn {
    /// Takes in what the core wants.
    pub fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Record(record) => self.records.push(Arc::new(record)),
                later => self.after.push_back(later),
            }
        }
    }

    /// What comes next; `None`: the turn is done.
    #[allow(clippy::should_implement_trait)] // taking more in between calls is what it is for
    pub fn next(&mut self) -> Option<Todo> {
        if self.records.is_empty() {
            return self.after.pop_front().map(Todo::Do);
        }
        Some(Todo::Append(std::mem::take(&mut self.records)))
    }

    /// The records that wait, for who appends some of them apart.
    pub fn records(&mut self) -> &mut Vec<Arc<Record>> {
        &mut self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::record::{Body, Note};

    fn record(seq: u64) -> Effect {
        Effect::Record(Record {
            seq,
            time: 0,
            heard: 0,
            body: Body::Note(Note::Interrupted),
        })
    }

    fn next(turn: &mut Turn) -> String {
        match turn.next() {
            None => "done".into(),
            Some(Todo::Append(records)) => {
                let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
                format!("append {seqs:?}")
            }
            Some(Todo::Do(effect)) => format!("{effect:?}"),
        }
    }

    #[test]
    fn records_always_come_first() {
        let mut turn = Turn::default();
        turn.take(vec![
            record(1),
            Effect::InterruptEngine,
            record(2),
            Effect::End,
        ]);
        assert_eq!(next(&mut turn), "append [1, 2]");
        assert_eq!(next(&mut turn), "InterruptEngine");
        // Carrying that out brought something.
        turn.take(vec![record(3), Effect::InterruptEngine]);
        assert_eq!(next(&mut turn), "append [3]");
        assert_eq!(next(&mut turn), "End");
        assert_eq!(next(&mut turn), "InterruptEngine");
        assert_eq!(next(&mut turn), "done");
    }
}
