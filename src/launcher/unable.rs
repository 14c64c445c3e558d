//! What a launcher says that can have no session: its settings are refused, its engine is not installed, the disk is full.
//!
//! Frontends show nothing of a kernel that does not come up: JupyterLab says "No Kernel" after its server has tried five
//! times, and the reason is in the server's log. So the launcher is there all the same, and every request gets the reason as
//! its error; each execution tries again.

use serde_json::{Value, json};

use super::Shared;
use super::host_link::Outgoing;
use crate::session::error_reply;
use crate::wire::Message;

/// So many messages wait for a subscriber that does not read; it misses what was before them.
pub(super) const WORDS_MAX: usize = 256;

const ENAME: &str = "FarsideError";

impl Shared {
    /// Answers a request with the reason why there is no session, as a kernel does whose every cell fails.
    pub(super) fn answer_unable(&self, request: &Outgoing, why: &str) {
        let Outgoing {
            channel, message, ..
        } = request;
        let Ok(header) = message.header() else {
            return;
        };
        let evalue = format!(
            "{}. Run the cell again when this is mended (after a change to the kernelspec: restart the kernel first)",
            why.trim_end_matches('.')
        );
        let reply = format!("{}_reply", header.msg_type.trim_end_matches("_request"));
        let error = error_reply(&reply, ENAME, &evalue);
        self.publish(message, "status", &json!({ "execution_state": "busy" }));
        if request.is_execution() {
            let output =
                json!({ "ename": ENAME, "evalue": evalue, "traceback": error["traceback"] });
            self.publish(message, "error", &output);
        }
        let reply = self.own_reply(message, &reply, error.to_string());
        // The session that has ended may have said beforehand what to answer.
        if !self.kernel_info.was_answered(*channel, &reply) {
            self.peers.borrow_mut().deliver(*channel, reply);
        }
        self.publish(message, "status", &json!({ "execution_state": "idle" }));
    }

    /// To subscribers that hear no session.
    fn publish(&self, parent: &Message, msg_type: &str, content: &Value) {
        let mut word = self.own_message(&parent.header, msg_type, content.to_string());
        word.identities.push(msg_type.to_owned().into());
        // Nobody subscribes, then.
        let _ = self.own_words.send(word);
    }
}
