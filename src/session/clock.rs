//! PURE. The clocks that a session's times are told in.
//!
//! A record has the wall clock's time, which anybody may set. Limits count on the other two, which nobody can: how
//! long the machine was awake (an idle session), and how long ago something was (a session's lifetime). A
//! [`Clock`] says how they lay to each other at one moment, so that every record's time can be told in each.

use serde::{Deserialize, Serialize};

use crate::journal::record::Micros;

/// A difference of clocks up to this is none: they are read one after the other, and the wall clock is slewed.
const SAME_WITHIN: u64 = 1_000_000;

/// What the clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall time, microseconds since 1970.
    pub wall: Micros,
    /// Microseconds that the machine was awake since it booted (CLOCK_MONOTONIC).
    pub awake: Micros,
    /// Microseconds since it booted (CLOCK_BOOTTIME).
    pub elapsed: Micros,
}

impl From<Micros> for Now {
    /// A machine that never sleeps, booted in 1970, whose clock nobody sets.
    fn from(wall: Micros) -> Self {
        Self {
            wall,
            awake: wall,
            elapsed: wall,
        }
    }
}

/// How the clocks lay to each other when they were last compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Clock {
    /// Wall time of the comparison.
    wall: Micros,
    awake: Micros,
    elapsed: Micros,
    boot: String,
}

impl Clock {
    /// Compared at `now`.
    pub fn new(now: Now, boot: String) -> Self {
        let Now {
            wall,
            awake,
            elapsed,
        } = now;
        Self {
            wall,
            awake,
            elapsed,
            boot,
        }
    }

    /// Whether the clocks still lie to each other as they did.
    pub fn holds(&self, now: Now, boot: &str) -> bool {
        let same = |then: Micros, is: Micros| then.abs_diff(is) <= SAME_WITHIN;
        self.boot == boot
            && same(self.awake_at(now.wall), now.awake)
            && same(self.elapsed_at(now.wall), now.elapsed)
    }

    /// Which boot of the machine it was.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// What the clock of awake time showed at a wall time.
    pub fn awake_at(&self, wall: Micros) -> Micros {
        shift(wall, self.wall, self.awake)
    }

    /// What the clock since boot showed at a wall time.
    pub fn elapsed_at(&self, wall: Micros) -> Micros {
        shift(wall, self.wall, self.elapsed)
    }

    /// A wall time, told by the clock as it was set in `later`. Over a boot nobody knows.
    pub fn told_by(&self, later: &Self, wall: Micros) -> Micros {
        let ahead = |clock: &Self| clock.wall.wrapping_sub(clock.elapsed);
        let set_by = ahead(later).wrapping_sub(ahead(self)).cast_signed();
        if self.boot == later.boot && set_by.unsigned_abs() > SAME_WITHIN {
            wall.saturating_add_signed(set_by)
        } else {
            wall
        }
    }

    /// The wall time at which the clock of awake time showed this.
    pub fn wall_of_awake(&self, awake: Micros) -> Micros {
        shift(awake, self.awake, self.wall)
    }

    /// The wall time at which the clock since boot showed this.
    pub fn wall_of_elapsed(&self, elapsed: Micros) -> Micros {
        shift(elapsed, self.elapsed, self.wall)
    }
}

/// `time` on a clock that shows `to` when the one it is from shows `from`.
fn shift(time: Micros, from: Micros, to: Micros) -> Micros {
    if time >= from {
        to.saturating_add(time - from)
    } else {
        to.saturating_sub(from - time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Micros = 3_600_000_000;

    fn clock(wall: Micros, elapsed: Micros, boot: &str) -> Clock {
        let awake = elapsed;
        Clock::new(
            Now {
                wall,
                awake,
                elapsed,
            },
            boot.to_owned(),
        )
    }

    #[test]
    fn a_time_is_told_anew_where_the_clock_was_set() {
        let (first, began) = (clock(100 * HOUR, HOUR, "a"), 100 * HOUR);
        for (wall, told) in [(131, 130), (71, 70), (101, 100)] {
            let later = clock(wall * HOUR, 2 * HOUR, "a");
            assert_eq!(first.told_by(&later, began), told * HOUR, "{wall}");
        }
        let slewed = clock(101 * HOUR + 999, 2 * HOUR, "a");
        assert_eq!(first.told_by(&slewed, began), began);
        let rebooted = clock(131 * HOUR, 60, "b");
        assert_eq!(first.told_by(&rebooted, began), began);
        // Whatever a damaged journal says.
        let odd = clock(0, Micros::MAX, "a");
        assert_eq!(odd.told_by(&clock(Micros::MAX, 0, "a"), 5), 5 - 2 + 2);
    }
}
