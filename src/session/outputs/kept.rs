//! PURE. Owns the bound on what is kept of one execution: the head and the tail of a sequence of items, each
//! within a budget, and the count of what was left out between them. Refuses to know what the items are.
//!
//! Invariants: ids are consecutive and never reused until [`Kept::clear`]; head and tail never cost more than
//! their budgets; only [`Kept::push`], [`Kept::resize`] and [`Kept::leave_out`] leave items out, always the oldest of
//! the tail.

use std::collections::VecDeque;
use std::ops::{AddAssign, SubAssign};

/// What items cost, or may cost, in the three measures that are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of stream text.
    pub text_bytes: usize,
    /// Bytes of everything else: content, metadata and buffers of displays, results, errors, comm messages.
    pub rich_bytes: usize,
    /// Messages.
    pub messages: usize,
}

impl Budget {
    fn fits(self, more: Self, max: Self) -> bool {
        self.text_bytes + more.text_bytes <= max.text_bytes
            && self.rich_bytes + more.rich_bytes <= max.rich_bytes
            && self.messages + more.messages <= max.messages
    }
}

impl AddAssign for Budget {
    fn add_assign(&mut self, more: Self) {
        self.text_bytes += more.text_bytes;
        self.rich_bytes += more.rich_bytes;
        self.messages += more.messages;
    }
}

impl SubAssign for Budget {
    fn sub_assign(&mut self, less: Self) {
        self.text_bytes -= less.text_bytes;
        self.rich_bytes -= less.rich_bytes;
        self.messages -= less.messages;
    }
}

/// What was left out, in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub bytes: u64,
    pub messages: u64,
    /// Of the last item left out.
    pub order: u64,
}

impl LeftOut {
    pub fn add(&mut self, order: u64, cost: Budget) {
        *self += Self {
            bytes: (cost.text_bytes + cost.rich_bytes) as u64,
            messages: cost.messages as u64,
            order,
        };
    }
}

impl AddAssign for LeftOut {
    /// Not beyond the largest number: a cell can forge the line of an earlier round.
    fn add_assign(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.messages = self.messages.saturating_add(more.messages);
        self.order = self.order.max(more.order);
    }
}

#[derive(Debug)]
pub(super) struct Slot<T> {
    /// Place among all messages of the execution.
    pub order: u64,
    pub cost: Budget,
    pub item: T,
}

#[derive(Debug)]
pub(super) struct Kept<T> {
    head_max: Budget,
    tail_max: Budget,
    head: Vec<Slot<T>>,
    head_cost: Budget,
    head_full: bool,
    tail: VecDeque<Slot<T>>,
    tail_cost: Budget,
    /// Id of the first item of the tail.
    tail_id: u64,
    left_out: LeftOut,
}

impl<T> Kept<T> {
    pub fn new(head_max: Budget, tail_max: Budget) -> Self {
        Self {
            head_max,
            tail_max,
            head: Vec::new(),
            head_cost: Budget::default(),
            head_full: false,
            tail: VecDeque::new(),
            tail_cost: Budget::default(),
            tail_id: 0,
            left_out: LeftOut::default(),
        }
    }

    /// Whether an item of this cost can be kept at all.
    pub fn could_hold(&self, cost: Budget) -> bool {
        Budget::default().fits(cost, self.tail_max)
    }

    /// Appends an item; the oldest of the tail give way, each told to `gone` with its id.
    pub fn push(&mut self, order: u64, cost: Budget, item: T, gone: impl FnMut(u64, T)) -> u64 {
        let slot = Slot { order, cost, item };
        if !self.head_full && self.head_cost.fits(cost, self.head_max) {
            self.head_cost += cost;
            self.head.push(slot);
            self.tail_id = self.head.len() as u64;
            return self.tail_id - 1;
        }
        self.head_full = true;
        self.tail_cost += cost;
        self.tail.push_back(slot);
        let id = self.tail_id + self.tail.len() as u64 - 1;
        self.trim(gone);
        id
    }

    /// Lets the last item grow by `more` in place; `false`: no room for that in the head, or `grow` declined.
    pub fn grow_last(
        &mut self,
        more: Budget,
        grow: impl FnOnce(&mut T) -> bool,
        gone: impl FnMut(u64, T),
    ) -> bool {
        if let Some(slot) = self.tail.back_mut() {
            if !grow(&mut slot.item) {
                return false;
            }
            slot.cost += more;
            self.tail_cost += more;
            self.trim(gone);
            return true;
        }
        let Some(slot) = self.head.last_mut() else {
            return false;
        };
        if self.head_full || !self.head_cost.fits(more, self.head_max) || !grow(&mut slot.item) {
            return false;
        }
        slot.cost += more;
        self.head_cost += more;
        true
    }

    /// The item of this id, unless it was left out.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.slot_mut(id).map(|slot| &mut slot.item)
    }

    /// Changes the cost of an item that is about to be replaced; `false`: it does not fit there, nothing changed.
    pub fn resize(&mut self, id: u64, cost: Budget, gone: impl FnMut(u64, T)) -> bool {
        let in_head = id < self.head.len() as u64;
        let could_hold = self.could_hold(cost);
        let (head_cost, head_max) = (self.head_cost, self.head_max);
        let Some(slot) = self.slot_mut(id) else {
            return false;
        };
        if in_head {
            let mut others = head_cost;
            others -= slot.cost;
            if !others.fits(cost, head_max) {
                return false;
            }
            slot.cost = cost;
            others += cost;
            self.head_cost = others;
        } else {
            if !could_hold {
                return false;
            }
            let old = std::mem::replace(&mut slot.cost, cost);
            self.tail_cost -= old;
            self.tail_cost += cost;
            self.trim(gone);
        }
        true
    }

    /// Here something was left out already: the head ends before it, and the tail begins behind it.
    pub fn leave_out(&mut self, left_out: LeftOut, mut gone: impl FnMut(u64, T)) {
        self.head_full = true;
        while self.leave_out_oldest(&mut gone) {}
        self.left_out += left_out;
    }

    /// Empties it, and forgets what was left out.
    pub fn clear(&mut self) {
        *self = Self::new(self.head_max, self.tail_max);
    }

    pub fn head(&self) -> &[Slot<T>] {
        &self.head
    }

    pub fn tail(&self) -> impl Iterator<Item = &Slot<T>> {
        self.tail.iter()
    }

    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    fn slot_mut(&mut self, id: u64) -> Option<&mut Slot<T>> {
        match usize::try_from(id).ok()? {
            at if at < self.head.len() => self.head.get_mut(at),
            _ => self
                .tail
                .get_mut(usize::try_from(id.checked_sub(self.tail_id)?).ok()?),
        }
    }

    fn trim(&mut self, mut gone: impl FnMut(u64, T)) {
        while !Budget::default().fits(self.tail_cost, self.tail_max)
            && self.leave_out_oldest(&mut gone)
        {}
    }

    /// `false`: the tail is empty.
    fn leave_out_oldest(&mut self, gone: &mut impl FnMut(u64, T)) -> bool {
        let Some(slot) = self.tail.pop_front() else {
            return false;
        };
        self.tail_cost -= slot.cost;
        self.left_out.add(slot.order, slot.cost);
        gone(self.tail_id, slot.item);
        self.tail_id += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(n: usize) -> Budget {
        Budget {
            text_bytes: usize::MAX / 2,
            rich_bytes: usize::MAX / 2,
            messages: n,
        }
    }

    fn one(text_bytes: usize) -> Budget {
        Budget {
            text_bytes,
            rich_bytes: 0,
            messages: 1,
        }
    }

    #[test]
    fn head_and_tail_stay() {
        let mut kept = Kept::new(messages(2), messages(3));
        let mut gone = Vec::new();
        let ids: Vec<u64> = (0..10)
            .map(|n| kept.push(n, one(10), n, |id, item| gone.push((id, item))))
            .collect();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
        assert_eq!(gone, [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
        assert_eq!(
            kept.left_out(),
            LeftOut {
                bytes: 50,
                messages: 5,
                order: 6
            }
        );
        assert_eq!(kept.get_mut(1), Some(&mut 1));
        assert_eq!(kept.get_mut(6), None);
        assert_eq!(kept.get_mut(7), Some(&mut 7));
        assert_eq!(kept.get_mut(10), None);
    }

    #[test]
    fn an_item_that_grows_pushes_out_older_ones() {
        let max = Budget {
            text_bytes: 100,
            ..messages(10)
        };
        let mut kept = Kept::new(messages(0), max);
        let ids: Vec<u64> = (0..5)
            .map(|n| kept.push(n, one(20), n, |_, _| ()))
            .collect();
        let mut gone = Vec::new();
        assert!(kept.resize(ids[4], one(60), |id, _| gone.push(id)));
        assert_eq!(gone, [0, 1]);
        assert!(!kept.resize(ids[3], one(101), |_, _| ()));
        let grown = kept.grow_last(
            Budget {
                text_bytes: 10,
                ..Budget::default()
            },
            |_| true,
            |id, _| gone.push(id),
        );
        assert!(grown);
        assert_eq!(gone, [0, 1, 2]);
    }
}
