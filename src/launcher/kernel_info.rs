//! Answers to kernel_info_request that do not wait for the host: it has said beforehand what it would answer.
//!
//! A frontend asks it to see whether the kernel is there, and waits; on the way to the host and back two processes more
//! are woken. The request goes to the host all the same. Its statuses and its reply are records as ever, only that this
//! reply is dropped here.
//!
//! Owns: what the host has said, and which replies were given. Refuses to know what they say.
//! Invariants: the answer is the one that the host would give, for it has seen all that was asked before: where
//! something is still on its way to it (a restart, say), it answers itself. Each request gets one reply, whichever host
//! makes the second one.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use serde_json::Value;

use crate::wire::{Channel, Message};

/// Replies that are to come and to be dropped; while there are more, the host answers.
const ANSWERED_MAX: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct KernelInfo {
    /// Content of the reply; `None`: the host answers.
    content: RefCell<Option<Bytes>>,
    answered: RefCell<Vec<Answered>>,
    underway: Underway,
}

/// Held by each request that the host may not have seen yet, but for those that were answered here.
#[derive(Clone, Default)]
pub(super) struct Underway(Rc<()>);

/// A request, as its reply names it.
struct Answered {
    channel: Channel,
    identities: Vec<Bytes>,
    header: Bytes,
}

impl KernelInfo {
    /// What the host answers from now on. `None` also where it cannot be asked.
    pub fn learn(&self, content: Option<Value>) {
        self.content
            .replace(content.map(|content| content.to_string().into()));
    }

    /// The content to answer this request with, now.
    pub fn answer(&self, channel: Channel, request: &Message) -> Option<Bytes> {
        let content = self.content.borrow().clone()?;
        let mut answered = self.answered.borrow_mut();
        let is_asked = channel != Channel::Stdin
            && request
                .header()
                .is_ok_and(|header| header.msg_type == "kernel_info_request");
        if !is_asked || Rc::strong_count(&self.underway.0) > 1 || answered.len() >= ANSWERED_MAX {
            return None;
        }
        answered.push(Answered {
            channel,
            identities: request.identities.clone(),
            header: request.header.clone(),
        });
        Some(content)
    }

    /// For a request that goes to the host without an answer.
    pub fn underway(&self) -> Underway {
        self.underway.clone()
    }

    /// Whether a reply of the host's is to a request that has its answer. It is asked once for each.
    pub fn was_answered(&self, channel: Channel, reply: &Message) -> bool {
        let mut answered = self.answered.borrow_mut();
        let at = answered.iter().position(|answered| {
            answered.channel == channel
                && answered.header == reply.parent_header
                && answered.identities == reply.identities
        });
        at.map(|at| answered.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(msg_type: &str, msg_id: &str) -> Message {
        let header = format!(r#"{{"msg_id":"{msg_id}","msg_type":"{msg_type}"}}"#);
        Message {
            identities: vec![Bytes::from_static(b"page")],
            header: header.into(),
            ..Message::default()
        }
    }

    fn request(msg_id: &str) -> Message {
        message("kernel_info_request", msg_id)
    }

    fn reply_to(request: &Message) -> Message {
        Message {
            parent_header: request.header.clone(),
            ..message("kernel_info_reply", "reply")
        }
    }

    fn known() -> KernelInfo {
        let known = KernelInfo::default();
        known.learn(Some(json!({ "status": "ok" })));
        known
    }

    #[test]
    fn it_is_answered_once_in_the_hosts_words() {
        let known = known();
        let (first, second) = (request("1"), request("2"));
        for request in [&first, &second] {
            let content = known.answer(Channel::Shell, request);
            assert_eq!(content.as_deref(), Some(&br#"{"status":"ok"}"#[..]));
        }
        let mut other_socket = reply_to(&first);
        other_socket.identities = vec![Bytes::from_static(b"console")];
        assert!(!known.was_answered(Channel::Shell, &other_socket));
        assert!(!known.was_answered(Channel::Control, &reply_to(&first)));
        assert!(known.was_answered(Channel::Shell, &reply_to(&second)));
        assert!(known.was_answered(Channel::Shell, &reply_to(&first)));
        assert!(
            !known.was_answered(Channel::Shell, &reply_to(&first)),
            "once"
        );
    }

    #[test]
    fn the_host_answers_where_it_has_not_said_how() {
        let known = KernelInfo::default();
        assert_eq!(known.answer(Channel::Shell, &request("1")), None);
        known.learn(Some(json!({})));
        assert!(known.answer(Channel::Shell, &request("2")).is_some());
        known.learn(None);
        assert_eq!(known.answer(Channel::Control, &request("3")), None);
        assert!(
            known.was_answered(Channel::Shell, &reply_to(&request("2"))),
            "also after a broken link"
        );
    }

    #[test]
    fn nothing_else_is_answered() {
        let known = known();
        let other = message("execute_request", "1");
        assert_eq!(known.answer(Channel::Shell, &other), None);
        assert_eq!(known.answer(Channel::Stdin, &request("2")), None);
        let torn = Message::default();
        assert_eq!(known.answer(Channel::Shell, &torn), None);
    }

    #[test]
    fn what_was_asked_before_is_seen_by_the_host_before() {
        let known = known();
        let restart = known.underway();
        let another = known.underway();
        assert_eq!(known.answer(Channel::Shell, &request("1")), None);
        drop(restart);
        assert_eq!(known.answer(Channel::Shell, &request("2")), None);
        drop(another);
        assert!(known.answer(Channel::Shell, &request("3")).is_some());
    }

    #[test]
    fn replies_that_never_come_have_a_bound() {
        let known = known();
        for n in 0..ANSWERED_MAX {
            let request = request(&n.to_string());
            assert!(known.answer(Channel::Shell, &request).is_some());
        }
        let last = request("last");
        assert_eq!(known.answer(Channel::Shell, &last), None);
        assert!(known.was_answered(Channel::Shell, &reply_to(&request("7"))));
        assert!(known.answer(Channel::Shell, &last).is_some());
    }
}
