//! PURE. How long to wait before something that died is started again.

use std::time::Duration;

/// What lived this long was good: its death is no reason to wait.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// Waiting time before the n-th attempt in a row, the last one from then on: a single death is answered at once,
/// and something that cannot live costs next to nothing.
const DELAYS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// Counts the deaths in a row that came soon after the start.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: usize,
}

impl Backoff {
    /// Notes a death after `lived`; how long to wait now.
    pub fn died_after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY_AFTER {
            self.failures = 0;
        }
        let delay = DELAYS[self.failures.min(DELAYS.len() - 1)];
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// Deaths in a row that came soon.
    pub fn failures(&self) -> usize {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_at_once_then_slower_up_to_a_minute_and_a_good_life_forgives() {
        let mut backoff = Backoff::default();
        let mut die = |lived| backoff.died_after(Duration::from_secs(lived)).as_millis();
        let delays: Vec<u128> = (0..8).map(|_| die(4)).collect();
        assert_eq!(delays, [0, 100, 500, 2_000, 10_000, 60_000, 60_000, 60_000]);
        assert_eq!((die(5), die(0)), (0, 100));
        assert_eq!(backoff.failures(), 2);
    }
}
