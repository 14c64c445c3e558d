//! The queue in front of the core: bounded in bytes, whoever sends.
//!
//! At the bound senders wait: a frontend's link is not read on, and the engine's iopub thread reads only as far as its
//! spool has room (then the engine's own socket queues, and drops past its high-water mark, as it does for any slow
//! subscriber).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that may wait: more than one turn takes (`TURN_BYTES_MAX`, driver.rs), and not much more. What the engine has
/// said is in its spool until it is in the journal (spool.rs), and here it is once more.
const INBOX_BYTES_MAX: usize = 4 << 20;

/// The semaphore counts in these, for its permits are 32 bit numbers.
const UNIT_BYTES: usize = 1024;

const UNITS_MAX: usize = INBOX_BYTES_MAX / UNIT_BYTES;

/// Sending end; cheap to clone, from any thread.
#[derive(Debug)]
pub struct Inbox<T> {
    sender: mpsc::UnboundedSender<Queued<T>>,
    room: Arc<Semaphore>,
}

/// An entry and its share of the bound, given back when it is dropped.
#[derive(Debug)]
pub struct Queued<T> {
    item: T,
    share: Option<OwnedSemaphorePermit>,
}

impl<T> Queued<T> {
    /// The item, and what gives its share back when it is dropped.
    pub fn into_parts(self) -> (T, Share) {
        (self.item, Share(self.share))
    }
}

/// A share of the bound.
#[derive(Debug)]
pub struct Share(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            room: self.room.clone(),
        }
    }
}

impl<T> Inbox<T> {
    /// An empty queue.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Queued<T>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                sender,
                room: Arc::new(Semaphore::new(UNITS_MAX)),
            },
            receiver,
        )
    }

    /// Queues an item that holds `bytes`, when there is room; one larger than the bound waits for an empty queue.
    /// `false`: nobody reads any more.
    pub async fn send(&self, item: T, bytes: usize) -> bool {
        // At most UNITS_MAX, so it fits.
        let units = (bytes / UNIT_BYTES + 1).min(UNITS_MAX) as u32;
        let Ok(share) = self.room.clone().acquire_many_owned(units).await else {
            return false;
        };
        self.sender
            .send(Queued {
                item,
                share: Some(share),
            })
            .is_ok()
    }

    /// Queues something small that must not wait: the end of a process, a timer.
    pub fn send_now(&self, item: T) -> bool {
        self.sender.send(Queued { item, share: None }).is_ok()
    }
}

/// Waits for an entry, and takes those that have come with it: at most so many, and about so many bytes. Cancelled, it
/// has taken none.
pub async fn receive_some<T>(
    receiver: &mut mpsc::UnboundedReceiver<Queued<T>>,
    into: &mut Vec<Queued<T>>,
    entries_max: usize,
    bytes_max: usize,
) {
    let mut next = receiver.recv().await;
    let mut bytes = 0;
    while let Some(queued) = next {
        bytes += queued
            .share
            .as_ref()
            .map_or(0, |share| share.num_permits() * UNIT_BYTES);
        into.push(queued);
        if bytes >= bytes_max || into.len() >= entries_max {
            return;
        }
        next = receiver.try_recv().ok();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Whether a future is done at its first poll.
    fn is_ready(future: impl Future) -> bool {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        matches!(future.as_mut().poll(&mut context), Poll::Ready(_))
    }

    #[test]
    fn senders_wait_at_the_bound_until_what_was_taken_is_done_with() {
        let (inbox, mut receiver) = Inbox::new();
        assert!(is_ready(inbox.send(1, INBOX_BYTES_MAX / 2)));
        assert!(!is_ready(inbox.send(2, INBOX_BYTES_MAX / 2)));
        assert!(inbox.send_now(3), "the end of a process does not wait");
        let (item, share) = receiver.try_recv().unwrap().into_parts();
        assert_eq!(item, 1);
        assert!(
            !is_ready(inbox.send(4, INBOX_BYTES_MAX / 2)),
            "taken, but not done with"
        );
        drop(share);
        assert!(is_ready(inbox.send(5, INBOX_BYTES_MAX / 2)));
        let rest: Vec<i32> = std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|queued| queued.into_parts().0)
            .collect();
        assert_eq!(rest, [3, 5]);
    }

    #[test]
    fn one_larger_than_the_bound_goes_through_an_empty_queue() {
        let (inbox, mut receiver) = Inbox::new();
        assert!(is_ready(inbox.send("large", INBOX_BYTES_MAX * 3)));
        assert!(!is_ready(inbox.send("small", 1)));
        drop(receiver.try_recv());
        assert!(is_ready(inbox.send("small", 1)));
    }

    #[test]
    fn what_is_taken_at_once_is_bounded_in_number_and_in_bytes() {
        let (inbox, mut receiver) = Inbox::new();
        let mut taken = Vec::new();
        assert!(!is_ready(receive_some(
            &mut receiver,
            &mut taken,
            3,
            1 << 20
        )));
        for item in 0..10 {
            assert!(is_ready(inbox.send(item, 100 << 10)));
        }
        let mut taken = |entries_max, bytes_max| -> Vec<i32> {
            let mut taken = Vec::new();
            assert!(is_ready(receive_some(
                &mut receiver,
                &mut taken,
                entries_max,
                bytes_max
            )));
            taken
                .into_iter()
                .map(|queued| queued.into_parts().0)
                .collect()
        };
        assert_eq!(taken(3, usize::MAX), [0, 1, 2]);
        assert_eq!(taken(100, 150 << 10), [3, 4]);
        assert_eq!(taken(100, 1), [5], "one is always taken");
        assert_eq!(taken(100, usize::MAX), [6, 7, 8, 9]);
    }

    #[test]
    fn nobody_reads_any_more() {
        let (inbox, receiver) = Inbox::new();
        drop(receiver);
        assert!(!inbox.send_now(()));
    }
}
