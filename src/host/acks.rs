//! Acknowledgements that are owed: of each request that is in the journal, in the order in which they came.
//!
//! The last requests are not acknowledged while too much waits for the engine. Who sends them may have only so much
//! that is not acknowledged, so nothing here grows without a bound.

use std::collections::{BTreeMap, VecDeque};

use super::clients::StreamId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Acks {
    owed: VecDeque<Owed>,
    bytes: usize,
}

#[derive(Debug)]
struct Owed {
    stream: StreamId,
    number: u64,
    bytes: usize,
}

impl Acks {
    /// A request has come.
    pub fn taken(&mut self, stream: StreamId, number: u64, bytes: usize) {
        self.bytes += bytes;
        self.owed.push_back(Owed {
            stream,
            number,
            bytes,
        });
    }

    /// What can be acknowledged now that all of them are kept: for each stream up to which number. The last ones are
    /// held back, `too_many` bytes of them at least where there are so many.
    ///
    /// Requests wait for the engine in the order in which they came, so those held back are the last that it will see:
    /// it has taken none of them.
    pub fn due(&mut self, too_many: usize) -> BTreeMap<StreamId, u64> {
        let mut due = BTreeMap::new();
        while let Some(first) = self.owed.front()
            && (too_many == 0 || self.bytes - first.bytes >= too_many)
        {
            due.insert(first.stream, first.number);
            self.bytes -= first.bytes;
            self.owed.pop_front();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_held_back_and_each_stream_hears_its_own_number() {
        let mut acks = Acks::default();
        for (stream, number) in [(7, 1), (8, 1), (7, 2), (7, 3)] {
            acks.taken(stream, number, 10);
        }
        assert_eq!(acks.due(100), BTreeMap::new(), "nothing of them");
        // Of 40 bytes 11 are too many: two requests.
        assert_eq!(acks.due(11), BTreeMap::from([(7, 1), (8, 1)]));
        assert_eq!(acks.due(20), BTreeMap::new(), "nothing new");
        assert_eq!(acks.due(10), BTreeMap::from([(7, 2)]));
        assert_eq!(acks.due(1), BTreeMap::new());
        assert_eq!(acks.due(0), BTreeMap::from([(7, 3)]));
        acks.taken(7, 4, 0);
        assert_eq!(acks.due(0), BTreeMap::from([(7, 4)]));
        assert_eq!(acks.bytes, 0);
    }
}
