//! PURE. Owns the messages of an execution that are no outputs of its cell: comm messages, unknown types, updates
//! of displays in other cells. They keep their order; those that a later one makes pointless go.
//! Refuses to know what is in the cell.
//!
//! Invariant: costs no more than the two budgets, plus a small key for each message kept.

use std::collections::{BTreeMap, HashMap};

use super::kept::{Budget, LeftOut};

#[derive(Debug)]
pub(super) struct Asides<T> {
    head_max: Budget,
    tail_max: Budget,
    items: BTreeMap<u64, Aside<T>>,
    /// The order from which on items belong to the tail, once the head is full.
    tail_from: Option<u64>,
    head_cost: Budget,
    tail_cost: Budget,
    left_out: LeftOut,
    /// For each subject (a comm, a display) what was last said on each of its aspects.
    latest: HashMap<String, Vec<(String, u64)>>,
}

#[derive(Debug)]
struct Aside<T> {
    cost: Budget,
    item: T,
    subject: Option<String>,
}

/// What a message is about.
pub(super) enum About {
    /// Stands for itself.
    Nothing,
    /// Sets one aspect of a subject: an earlier message that set the same aspect is pointless, as long as nothing
    /// else was said on the subject in between.
    Aspect { subject: String, aspect: String },
    /// Something else on a subject: everything said on it before stays.
    Event { subject: String },
}

impl<T> Asides<T> {
    pub fn new(head_max: Budget, tail_max: Budget) -> Self {
        Self {
            head_max,
            tail_max,
            items: BTreeMap::new(),
            tail_from: None,
            head_cost: Budget::default(),
            tail_cost: Budget::default(),
            left_out: LeftOut::default(),
            latest: HashMap::new(),
        }
    }

    pub fn push(&mut self, order: u64, cost: Budget, item: T, about: About) {
        let subject = match about {
            About::Nothing => None,
            About::Event { subject } => {
                self.latest.remove(&subject);
                None
            }
            About::Aspect { subject, aspect } => {
                let said = self.latest.entry(subject.clone()).or_default();
                let pointless = match said.iter_mut().find(|(a, _)| *a == aspect) {
                    Some((_, at)) => Some(std::mem::replace(at, order)),
                    None => {
                        said.push((aspect, order));
                        None
                    }
                };
                if let Some(pointless) = pointless {
                    self.remove(pointless);
                }
                Some(subject)
            }
        };
        if self.tail_from.is_none() && fits(self.head_cost, cost, self.head_max) {
            self.head_cost += cost;
        } else {
            self.tail_from.get_or_insert(order);
            self.tail_cost += cost;
        }
        self.items.insert(
            order,
            Aside {
                cost,
                item,
                subject,
            },
        );
        self.trim();
    }

    /// All that is kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items
            .iter()
            .map(|(order, aside)| (*order, &aside.item))
    }

    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// So much was left out already.
    pub fn leave_out(&mut self, left_out: LeftOut) {
        self.left_out += left_out;
    }

    fn trim(&mut self) {
        let Some(tail_from) = self.tail_from else {
            return;
        };
        while !fits(self.tail_cost, Budget::default(), self.tail_max) {
            let Some((&order, _)) = self.items.range(tail_from..).next() else {
                break;
            };
            let Some(aside) = self.remove(order) else {
                break;
            };
            self.left_out.add(order, aside.cost);
            if let Some(subject) = aside.subject
                && let Some(said) = self.latest.get_mut(&subject)
            {
                said.retain(|(_, at)| *at != order);
                if said.is_empty() {
                    self.latest.remove(&subject);
                }
            }
        }
    }

    fn remove(&mut self, order: u64) -> Option<Aside<T>> {
        let aside = self.items.remove(&order)?;
        match self.tail_from {
            Some(from) if order >= from => self.tail_cost -= aside.cost,
            _ => self.head_cost -= aside.cost,
        }
        Some(aside)
    }
}

fn fits(have: Budget, more: Budget, max: Budget) -> bool {
    have.rich_bytes + more.rich_bytes <= max.rich_bytes
        && have.messages + more.messages <= max.messages
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Budget = Budget {
        text_bytes: 0,
        rich_bytes: usize::MAX / 2,
        messages: 2,
    };
    const ONE: Budget = Budget {
        text_bytes: 0,
        rich_bytes: 10,
        messages: 1,
    };

    fn set(subject: &str, aspect: &str) -> About {
        About::Aspect {
            subject: subject.into(),
            aspect: aspect.into(),
        }
    }

    fn orders(asides: &Asides<u64>) -> Vec<u64> {
        asides.iter().map(|(order, _)| order).collect()
    }

    #[test]
    fn many_updates_of_one_value_are_one() {
        let mut asides = Asides::new(MAX, MAX);
        for n in 0..100_000 {
            asides.push(
                n,
                ONE,
                n,
                set("comm", if n % 2 == 0 { "value" } else { "description" }),
            );
        }
        assert_eq!(orders(&asides), [99_998, 99_999]);
        assert_eq!(asides.left_out(), LeftOut::default());
    }

    #[test]
    fn an_event_on_the_subject_keeps_what_was_before_it() {
        let mut asides = Asides::new(MAX, MAX);
        asides.push(0, ONE, 0, set("comm", "value"));
        asides.push(
            1,
            ONE,
            1,
            About::Event {
                subject: "comm".into(),
            },
        );
        asides.push(2, ONE, 2, set("comm", "value"));
        asides.push(3, ONE, 3, set("comm", "value"));
        assert_eq!(orders(&asides), [0, 1, 3]);
    }

    #[test]
    fn head_and_tail_stay_and_keys_go_with_their_messages() {
        let mut asides = Asides::new(MAX, MAX);
        for n in 0..1000 {
            asides.push(n, ONE, n, set(&n.to_string(), "value"));
        }
        assert_eq!(orders(&asides), [0, 1, 998, 999]);
        assert_eq!(
            asides.left_out(),
            LeftOut {
                bytes: 9960,
                messages: 996,
                order: 997
            }
        );
        assert_eq!(asides.latest.len(), 4);
    }
}
