//! PURE. Whether all that the engine said has come.
//!
//! An engine's PUB socket drops what is not taken from it in time (a stopped host, a disk that stalls for seconds), and
//! says nothing of it. But kernels that are built on jupyter_client number all their messages: a msg_id is
//! `<session>_<pid>_<number>` (jupyter_client/session.py, `Session.msg_id`). So a hole in the numbers is a loss, and
//! this is how it becomes a gap that a reader is told of. Of engines with other ids nothing can be known.
//!
//! A hole is not a loss at once: what goes over another socket (replies), or was made before and sent after a message
//! of another thread (ipykernel's display_data and its streams), comes a moment later.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::journal::record::Micros;
use crate::wire::message::sent_at;

/// A number that is still missing after this never comes.
const GRACE: Micros = 1_000_000;

/// Losses are told of together, and not more often than this.
const TELL_EVERY: Micros = 10_000_000;

/// Single numbers are no loss: ipykernel makes the message of a result before it knows whether there is one to show.
const LOSS_MIN: u64 = 2;

/// So many are no replies that are on their way over another socket: a loss at once, where what they belong to is over.
const SURE_MIN: u64 = 8;

/// Holes that may fill up yet. Of more, the oldest counts as lost at once.
const HOLES_MAX: usize = 64;

/// Replies that overtook iopub. Of more, the oldest are forgotten; each is a single number, and so no loss.
const AHEAD_MAX: usize = 256;

/// What never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    /// How many messages.
    pub messages: u64,
    /// Wall time of the last message before them: when the engine made it, where it says so. (They come together where
    /// nobody took them for a while.)
    pub from: Micros,
    /// And of the first one behind.
    pub until: Micros,
}

/// How far the engine's iopub is in the journal, and what is missing there that nobody was told of yet: where the next
/// host's account begins. The journal does not have what answered farside's own questions, so small holes are none.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    prefix: String,
    number: u64,
    time: Micros,
    holes: VecDeque<Hole>,
}

impl Said {
    /// Takes in a message of the engine with this pid, if it is one.
    pub fn take(&mut self, msg_id: &str, pid: u32, time: Micros) {
        let Some((prefix, number)) = numbered(msg_id, pid) else {
            return;
        };
        if prefix != self.prefix {
            prefix.clone_into(&mut self.prefix);
            self.holes.clear();
        } else if number <= self.number {
            // Those of different threads may come in another order.
            fill(&mut self.holes, number);
            return;
        } else if number - self.number > SURE_MIN {
            self.holes.push_back(Hole {
                first: self.number + 1,
                end: number,
                from: self.time,
                until: time,
                since: Micros::MAX,
            });
            if self.holes.len() > HOLES_MAX {
                self.holes.pop_front();
            }
        }
        (self.number, self.time) = (number, time);
    }

    /// Readers were told of what is missing between these times. Not of what was missing before: a host that was killed
    /// right after it had noticed something has said nothing of it.
    pub fn told(&mut self, from: Micros, until: Micros) {
        self.holes
            .retain(|hole| hole.from < from || hole.until > until);
    }
}

/// The numbers of one engine's messages.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    /// All of a msg_id before the number.
    prefix: String,
    next: u64,
    /// Where the last host's account ended. It has heard more than the journal has: answers to its own questions.
    taken_over_at: Option<u64>,
    /// Wall time of the newest message.
    last: Micros,
    /// Its header.
    last_header: Bytes,
    holes: VecDeque<Hole>,
    /// Numbers of replies that came before iopub was so far.
    ahead: VecDeque<u64>,
    lost: Option<Loss>,
    told: Option<Micros>,
}

/// Numbers `first..end` have not come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Hole {
    first: u64,
    end: u64,
    from: Micros,
    until: Micros,
    /// On the clock that nobody sets. [`Micros::MAX`]: the last host noticed it, and this one has heard nothing yet.
    since: Micros,
}

fn fill(holes: &mut VecDeque<Hole>, number: u64) {
    let Some(at) = holes
        .iter()
        .position(|hole| (hole.first..hole.end).contains(&number))
    else {
        return;
    };
    let hole = &mut holes[at];
    if number == hole.first {
        hole.first += 1;
    } else if number + 1 == hole.end {
        hole.end -= 1;
    } else {
        let behind = Hole {
            first: number + 1,
            ..*hole
        };
        hole.end = number;
        holes.insert(at + 1, behind);
    }
    holes.retain(|hole| hole.first < hole.end);
}

impl Continuity {
    /// Goes on where the last host's journal ends.
    pub fn after(said: &Said, time: Micros) -> Self {
        if said.prefix.is_empty() {
            return Self::default();
        }
        Self {
            prefix: said.prefix.clone(),
            next: said.number + 1,
            taken_over_at: Some(said.number + 1),
            holes: said.holes.clone(),
            last: time,
            ..Self::default()
        }
    }

    /// Takes in a message of the engine with this pid. `in_order`: it came on iopub, where a number that is left out
    /// is a hole; `wall` and `awake`: the clocks.
    pub fn see(
        &mut self,
        msg_id: &str,
        header: &Bytes,
        pid: u32,
        in_order: bool,
        wall: Micros,
        awake: Micros,
    ) {
        let Some((prefix, number)) = numbered(msg_id, pid) else {
            return;
        };
        if prefix != self.prefix {
            if in_order {
                // Another engine, or the first we hear: what was before nobody was there for.
                prefix.clone_into(&mut self.prefix);
                self.holes.clear();
                self.ahead.clear();
                (self.next, self.last) = (number + 1, wall);
                self.last_header.clone_from(header);
            }
            return;
        }
        for hole in &mut self.holes {
            hole.since = hole.since.min(awake);
        }
        if number < self.next {
            fill(&mut self.holes, number);
        } else if in_order {
            let of_last_host =
                self.taken_over_at.take() == Some(self.next) && number - self.next < SURE_MIN;
            if number > self.next && !of_last_host {
                let made = sent_at(&self.last_header);
                self.holes.push_back(Hole {
                    first: self.next,
                    end: number,
                    from: made.map_or(self.last, |made| made.min(self.last)),
                    until: wall,
                    since: awake,
                });
            }
            self.next = number + 1;
            for reply in std::mem::take(&mut self.ahead) {
                if reply < self.next {
                    fill(&mut self.holes, reply);
                } else {
                    self.ahead.push_back(reply);
                }
            }
        } else {
            self.ahead.push_back(number);
            if self.ahead.len() > AHEAD_MAX {
                self.ahead.pop_front();
            }
            return;
        }
        self.last = wall;
        self.last_header.clone_from(header);
        if self.holes.len() > HOLES_MAX
            && let Some(oldest) = self.holes.pop_front()
        {
            self.lose(&oldest);
        }
    }

    fn lose(&mut self, hole: &Hole) {
        let messages = hole.end - hole.first;
        if messages < LOSS_MIN {
            return;
        }
        let before = self.lost.unwrap_or(Loss {
            messages: 0,
            from: hole.from,
            until: hole.until,
        });
        self.lost = Some(Loss {
            messages: before.messages + messages,
            from: before.from.min(hole.from),
            until: before.until.max(hole.until),
        });
    }

    /// When to ask for [`Self::loss`], on the awake clock.
    pub fn due(&self) -> Option<Micros> {
        let hole = self
            .holes
            .front()
            .map(|hole| hole.since.saturating_add(GRACE));
        let told = self.told.map_or(0, |told| told + TELL_EVERY);
        match (&self.lost, hole) {
            (Some(_), _) => Some(told),
            (None, hole) => hole.map(|due| due.max(told)),
        }
    }

    /// What is to be told of now. `over`: what they belong to is over, and this is the last chance to say so there.
    pub fn loss(&mut self, awake: Micros, over: bool) -> Option<Loss> {
        for hole in std::mem::take(&mut self.holes) {
            let sure = over && hole.end - hole.first >= SURE_MIN;
            if sure || hole.since.saturating_add(GRACE) <= awake {
                self.lose(&hole);
            } else {
                self.holes.push_back(hole);
            }
        }
        if !over && self.told.is_some_and(|told| told + TELL_EVERY > awake) {
            return None;
        }
        let lost = self.lost.take()?;
        self.told = Some(awake);
        Some(lost)
    }
}

/// `<anything>_<pid>_<number>`: the part before the number, and the number.
fn numbered(msg_id: &str, pid: u32) -> Option<(&str, u64)> {
    let (prefix, number) = msg_id.rsplit_once('_')?;
    let (_, its_pid) = prefix.rsplit_once('_')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(number) || its_pid.parse() != Ok(pid) {
        return None;
    }
    Some((prefix, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    fn see(continuity: &mut Continuity, number: u64, in_order: bool, time: Micros) {
        let msg_id = format!("s_1_7_{number}");
        continuity.see(&msg_id, &Bytes::new(), 7, in_order, time, time);
    }

    #[test]
    fn what_waited_long_is_told_with_the_time_at_which_it_was_made() {
        let mut numbers = Continuity::default();
        let header = |date: &str| Bytes::from(format!(r#"{{"date": "{date}"}}"#));
        let day = sent_at(&header("2026-11-26T00:00:00Z")).unwrap();
        let (read_at, last) = (day + 9 * SECOND, header("2026-11-26T00:00:02.500000Z"));
        numbers.see("s_1_7_1", &last, 7, true, read_at, 1);
        numbers.see("s_1_7_50", &header("x"), 7, true, read_at, 1);
        let loss = numbers.loss(9 * SECOND, true).unwrap();
        let expected = (day + 2 * SECOND + 500_000, read_at);
        assert_eq!((loss.from, loss.until), expected);
        // A clock that is wrong is not believed beyond the time at which the message came.
        numbers.see(
            "s_1_7_51",
            &header("2030-01-01T00:00:00Z"),
            7,
            true,
            read_at,
            1,
        );
        numbers.see("s_1_7_90", &header("x"), 7, true, read_at + 1, 1);
        let loss = numbers.loss(99 * SECOND, true).unwrap();
        assert_eq!((loss.from, loss.until), (read_at, read_at + 1));
    }

    #[test]
    fn a_hole_that_does_not_fill_up_is_a_loss() {
        let mut numbers = Continuity::default();
        see(&mut numbers, 5, true, 1);
        see(&mut numbers, 6, true, 2);
        see(&mut numbers, 100, true, 3);
        assert_eq!(numbers.due(), Some(3 + GRACE));
        assert_eq!(numbers.loss(GRACE, false), None);
        let loss = Loss {
            messages: 93,
            from: 2,
            until: 3,
        };
        assert_eq!(numbers.loss(3 + GRACE, false), Some(loss));
        assert_eq!(numbers.loss(9 * SECOND, true), None);
        assert_eq!(numbers.due(), None);
    }

    #[test]
    fn replies_and_messages_of_other_threads_fill_it() {
        let mut numbers = Continuity::default();
        see(&mut numbers, 0, true, 1);
        see(&mut numbers, 4, true, 2);
        for (number, in_order) in [(2, true), (1, false), (3, true)] {
            see(&mut numbers, number, in_order, 3);
        }
        assert_eq!(numbers.loss(9 * SECOND, true), None);
        // A reply overtakes what was said before it.
        see(&mut numbers, 7, false, 4);
        see(&mut numbers, 8, true, 5);
        see(&mut numbers, 5, true, 5);
        assert_eq!(numbers.loss(9 * SECOND, true), None);
    }

    #[test]
    fn a_single_one_is_no_loss_and_what_was_before_us_neither() {
        let mut numbers = Continuity::default();
        see(&mut numbers, 50, false, 1);
        see(&mut numbers, 90, true, 1);
        see(&mut numbers, 92, true, 2);
        assert_eq!(numbers.loss(9 * SECOND, true), None);
        // A new engine counts from 0, under another pid.
        for (msg_id, time) in [("s_1_8_0", 3), ("s_1_8_1", 4)] {
            numbers.see(msg_id, &Bytes::new(), 8, true, time, time);
        }
        assert_eq!(numbers.loss(9 * SECOND, true), None);
    }

    #[test]
    fn at_the_end_large_holes_count_and_small_ones_wait() {
        let mut numbers = Continuity::default();
        for number in [0, 3, 20] {
            see(&mut numbers, number, true, 1);
        }
        assert_eq!(numbers.loss(1, true).map(|loss| loss.messages), Some(16));
        see(&mut numbers, 1, false, 2);
        assert_eq!(numbers.loss(9 * SECOND, true), None);
    }

    #[test]
    fn the_next_host_goes_on_with_the_account() {
        let mut said = Said::default();
        said.take("s_1_7_41", 7, 1);
        said.take("farside-9", 7, 1);
        for (first, lost) in [(42, None), (45, None), (60, Some(18))] {
            let mut numbers = Continuity::after(&said, 1);
            see(&mut numbers, first, true, 5);
            let loss = numbers.loss(9 * SECOND, false);
            assert_eq!(loss.map(|loss| loss.messages), lost, "{first}");
        }
        // What it had noticed and not told.
        said.take("s_1_7_80", 7, 2);
        said.take("s_1_7_50", 7, 2);
        let mut numbers = Continuity::after(&said, 2);
        assert_eq!(numbers.loss(9 * SECOND, false), None, "it may come");
        assert_eq!(
            numbers.loss(9 * SECOND, true).map(|loss| loss.messages),
            Some(37)
        );
        said.told(2, 2);
        assert_ne!(
            Continuity::after(&said, 2).loss(9 * SECOND, true),
            None,
            "a gap behind it"
        );
        said.told(1, 2);
        assert_eq!(Continuity::after(&said, 2).loss(9 * SECOND, true), None);
        let mut numbers = Continuity::after(&Said::default(), 1);
        see(&mut numbers, 99, true, 5);
        assert_eq!(numbers.loss(9 * SECOND, false), None);
    }

    #[test]
    fn losses_are_told_of_together() {
        let mut numbers = Continuity::default();
        for at in 0..5 {
            see(&mut numbers, at * 10, true, at * SECOND);
        }
        let told = numbers.loss(4 * SECOND, false).map(|loss| loss.messages);
        assert_eq!(told, Some(27));
        see(&mut numbers, 60, true, 6 * SECOND);
        assert_eq!(numbers.loss(8 * SECOND, false), None);
        assert_eq!(numbers.due(), Some(14 * SECOND));
        let told = numbers.loss(14 * SECOND, false).map(|loss| loss.messages);
        assert_eq!(told, Some(9 + 19));
    }

    #[test]
    fn other_ids_mean_nothing() {
        for id in [
            "",
            "_",
            "__",
            "x_7_",
            "x_7_+1",
            "x_8_1",
            "7_1",
            "x_7_1_",
            "é_7_99999999999999999999",
        ] {
            assert_eq!(numbered(id, 7), None, "{id:?}");
        }
        assert_eq!(numbered("a_b_7_12", 7), Some(("a_b_7", 12)));
    }

    proptest! {
        /// Against a set of all numbers.
        #[test]
        fn what_is_lost_is_what_never_came(kept in prop::collection::vec(any::<bool>(), 2..60), swaps in prop::collection::vec(0usize..60, 0..20)) {
            let mut order: Vec<u64> = (0..kept.len() as u64).filter(|n| *n == 0 || kept[*n as usize]).collect();
            // The first one is where we begin to listen.
            for at in swaps {
                if at > 0 && at + 1 < order.len() {
                    order.swap(at, at + 1);
                }
            }
            let mut numbers = Continuity::default();
            for number in &order {
                see(&mut numbers, *number, true, 5);
            }
            let last = order.iter().max().copied().unwrap_or(0);
            let mut expected = 0;
            let mut run = 0;
            for number in 0..=last {
                if order.contains(&number) {
                    expected += if run >= LOSS_MIN { run } else { 0 };
                    run = 0;
                } else {
                    run += 1;
                }
            }
            let loss = numbers.loss(10 * SECOND, false).map_or(0, |loss| loss.messages);
            prop_assert_eq!(loss, expected);
        }
    }
}
