//! PURE. Requests that are kept in memory until an engine has them, or has begun with them. Each is in the journal too.

use std::collections::BTreeMap;

use crate::journal::record::ExecutionNumber;
use crate::wire::{Channel, Message};

/// What is held for an engine that may have to be started anew. Whose request is not held fails with the engine that
/// dies, as one does that was begun.
const UNSTARTED_BYTES_MAX: usize = 8 << 20;

/// For the engine once it is connected.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: Vec<(Channel, Message)>,
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, channel: Channel, message: Message) {
        self.bytes += message.size_bytes();
        self.messages.push((channel, message));
    }

    /// Empties it.
    pub fn take(&mut self) -> Vec<(Channel, Message)> {
        std::mem::take(self).messages
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Requests of executions that the engine has not begun, and that no engine died of.
#[derive(Debug, Default)]
pub(super) struct Unstarted {
    messages: BTreeMap<ExecutionNumber, Message>,
    bytes: usize,
}

impl Unstarted {
    /// Holds it where there is room.
    pub fn hold(&mut self, n: ExecutionNumber, message: &Message) {
        let bytes = self.bytes + message.size_bytes();
        if bytes <= UNSTARTED_BYTES_MAX {
            self.bytes = bytes;
            self.messages.insert(n, message.clone());
        }
    }

    pub fn remove(&mut self, n: ExecutionNumber) {
        if let Some(message) = self.messages.remove(&n) {
            self.bytes -= message.size_bytes();
        }
    }

    pub fn holds(&self, n: ExecutionNumber) -> bool {
        self.messages.contains_key(&n)
    }

    /// Empties it: the requests in their order.
    pub fn take(&mut self) -> impl Iterator<Item = Message> + use<> {
        std::mem::take(self).messages.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Message {
        Message {
            identities: vec![],
            header: vec![b' '; bytes].into(),
            parent_header: "".into(),
            metadata: "".into(),
            content: "".into(),
            buffers: vec![],
        }
    }

    #[test]
    fn what_has_no_room_is_not_held_and_what_was_begun_gives_room() {
        let mut unstarted = Unstarted::default();
        unstarted.hold(1, &message(UNSTARTED_BYTES_MAX - 1));
        unstarted.hold(2, &message(2));
        unstarted.hold(3, &message(1));
        assert_eq!([1, 2, 3].map(|n| unstarted.holds(n)), [true, false, true]);
        unstarted.remove(1);
        unstarted.remove(2);
        unstarted.hold(4, &message(10));
        let left: Vec<usize> = unstarted.take().map(|held| held.size_bytes()).collect();
        assert_eq!(left, [1, 10]);
        assert_eq!((unstarted.bytes, unstarted.holds(4)), (0, false));
    }

    #[test]
    fn an_outbox_counts_what_waits() {
        let mut outbox = Outbox::default();
        outbox.push(Channel::Shell, message(3));
        outbox.push(Channel::Control, message(4));
        assert_eq!(outbox.bytes(), 7);
        assert_eq!(outbox.take().len(), 2);
        assert_eq!(outbox.bytes(), 0);
        outbox.push(Channel::Shell, message(3));
        outbox.clear();
        assert_eq!((outbox.bytes(), outbox.take().len()), (0, 0));
    }
}
