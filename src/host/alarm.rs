//! A timer for times that move with every turn of a loop, and are seldom reached.
//!
//! A timer that is earlier than all others wakes its runtime's driver when it is registered: a write, and another round
//! of epoll. So this one stays where it is when its time moves to later, or away, and looks again when it goes off.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module.
#[derive(Debug)]
pub(super) struct Alarm {
    due: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    /// Not set.
    pub fn new() -> Self {
        Self {
            due: None,
            sleep: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// When it is to go off; `None`: not at all.
    pub fn set(&mut self, due: Option<Instant>) {
        self.due = due;
        if let Some(due) = due
            && due < self.sleep.deadline()
        {
            self.sleep.as_mut().reset(due);
        }
    }

    /// As [`Alarm::set`], where it is not set yet.
    pub fn set_first(&mut self, due: impl FnOnce() -> Instant) {
        if self.due.is_none() {
            self.set(Some(due()));
        }
    }

    /// Waits until it goes off, which unsets it. Never, while it is not set.
    pub async fn rings(&mut self) {
        poll_fn(|context| {
            loop {
                let Some(due) = self.due else {
                    return Poll::Pending;
                };
                ready!(self.sleep.as_mut().poll(context));
                if due <= Instant::now() {
                    self.due = None;
                    return Poll::Ready(());
                }
                self.sleep.as_mut().reset(due);
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When it rings, in seconds from now, if it does within a minute.
    async fn rings_after(alarm: &mut Alarm) -> Option<u64> {
        let begun = Instant::now();
        let rung = timeout(60 * SECOND, alarm.rings()).await;
        rung.is_ok().then(|| begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_once_when_it_is_due() {
        let mut alarm = Alarm::new();
        assert_eq!(rings_after(&mut alarm).await, None, "nobody has set it");
        alarm.set(Some(Instant::now() + 5 * SECOND));
        assert_eq!(rings_after(&mut alarm).await, Some(5));
        assert_eq!(rings_after(&mut alarm).await, None, "it is unset now");
        alarm.set(Some(Instant::now() - SECOND));
        assert_eq!(rings_after(&mut alarm).await, Some(0), "long due");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_set_last_counts() {
        let mut alarm = Alarm::new();
        for (first, then) in [(5, 9), (9, 5), (5, 5)] {
            let begun = Instant::now();
            alarm.set(Some(begun + first * SECOND));
            // It waits for the first one already.
            assert!(timeout(SECOND, alarm.rings()).await.is_err());
            alarm.set(Some(begun + then * SECOND));
            assert_eq!(rings_after(&mut alarm).await, Some(u64::from(then) - 1));
        }
        alarm.set(Some(Instant::now() + 5 * SECOND));
        assert!(timeout(SECOND, alarm.rings()).await.is_err());
        alarm.set(None);
        assert_eq!(rings_after(&mut alarm).await, None);
        alarm.set_first(|| Instant::now() + 3 * SECOND);
        alarm.set_first(|| Instant::now() + 8 * SECOND);
        assert_eq!(rings_after(&mut alarm).await, Some(3));
    }
}
