//! Which frontends are connected, for the host: one whose sockets are gone may have left something behind in the engine.
//!
//! Owns: when the host is told. Refuses to know what it makes of it.
//! Invariant: after each change it is told all that are connected then, also if those are the same again: one that came
//! and went may have asked for something.

use std::cell::RefCell;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::frontends::Peers;
use crate::link::Frame;

/// The sockets of one frontend come and go together, and a Jupyter Server's knock comes and goes at once: told of
/// this much later, they are one change.
const SETTLE: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Presence<'a> {
    peers: &'a RefCell<Peers>,
    changes: watch::Receiver<()>,
    /// When to tell of a change.
    due: Option<Instant>,
}

impl<'a> Presence<'a> {
    pub fn new(peers: &'a RefCell<Peers>) -> Self {
        let changes = peers.borrow().watch();
        Self {
            peers,
            changes,
            due: None,
        }
    }

    /// Waits until there is something to tell. May be cancelled.
    pub async fn has_changed(&mut self) {
        let due = match self.due {
            Some(due) => due,
            None if self.changes.changed().await.is_ok() => {
                *self.due.insert(Instant::now() + SETTLE)
            }
            // The sockets are gone.
            None => std::future::pending().await,
        };
        tokio::time::sleep_until(due).await;
    }

    /// What there is to tell.
    pub fn tell(&mut self) -> Frame {
        self.due = None;
        self.changes.borrow_and_update();
        let identities = self.peers.borrow().identities();
        Frame::Frontends { identities }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::super::frontends::Joined;
    use super::*;
    use crate::wire::Channel;

    fn is_ready(future: impl Future) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(pin!(future).poll(&mut context), Poll::Ready(_))
    }

    fn told(presence: &mut Presence<'_>) -> Vec<Vec<u8>> {
        match presence.tell() {
            Frame::Frontends { identities } => identities,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until it is told, as if the time for that were over.
    async fn settle(presence: &mut Presence<'_>) {
        assert!(!is_ready(presence.has_changed()), "it settles first");
        let due = presence.due.expect("there is something to tell");
        // Cancelled, as where much is asked meanwhile, it is not put off.
        assert!(!is_ready(presence.has_changed()));
        assert_eq!(presence.due, Some(due));
        presence.due = Some(Instant::now());
        presence.has_changed().await;
    }

    #[tokio::test]
    async fn what_comes_and_goes_together_is_told_once() {
        let peers = RefCell::new(Peers::default());
        let page = Bytes::from_static(b"page");
        let mut presence = Presence::new(&peers);
        assert!(!is_ready(presence.has_changed()));
        assert_eq!(presence.due, None);

        let join = |channel| peers.borrow_mut().join(channel, Some(page.clone())).number;
        let (shell, control) = (join(Channel::Shell), join(Channel::Control));
        settle(&mut presence).await;
        assert_eq!(told(&mut presence), [b"page"]);
        assert!(!is_ready(presence.has_changed()));
        assert_eq!(presence.due, None, "once");

        peers.borrow_mut().leave(Channel::Shell, &page, shell);
        settle(&mut presence).await;
        assert_eq!(told(&mut presence), [b"page"], "control is there");
        peers.borrow_mut().leave(Channel::Control, &page, control);
        settle(&mut presence).await;
        assert_eq!(told(&mut presence), [b""; 0]);
    }

    #[tokio::test]
    async fn who_came_and_went_is_a_change() {
        let peers = RefCell::new(Peers::default());
        let mut presence = Presence::new(&peers);
        let Joined {
            identity, number, ..
        } = peers.borrow_mut().join(Channel::Shell, None);
        peers.borrow_mut().leave(Channel::Shell, &identity, number);
        settle(&mut presence).await;
        assert_eq!(told(&mut presence), [b""; 0]);
    }
}
