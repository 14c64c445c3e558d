//! The queue in front of the core: bounded in bytes, whoever sends.
//!
//! At the bound senders wait: a frontend's link is not read on, and the engine's iopub thread stops (then the
//! engine's own socket queues, and drops past its high-water mark, as it does for any slow subscriber).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that may wait.
const INBOX_BYTES_MAX: usize = 16 << 20;

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
