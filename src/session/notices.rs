//! What the core says of the session's end: notices, in whose output, and when the end will be.

use std::time::Duration;

use serde_json::json;

use super::clock::Now;
use super::core::Core;
use super::event::NotifyOn;
use super::lifetime::{End, EndKind};
use super::text::{clock_time, span_long};
use crate::duration::format_duration;
use crate::journal::record::{ExecutionNumber, Micros, Note};

/// What a notice says can be asked for.
const OFFER: Duration = Duration::from_secs(2 * 3600);

impl Core {
    /// Says it where a person sees it, in the journal, and by `notify`.
    pub(super) fn give_notice(&mut self, end: End, before: Micros, now: Now) {
        let text = self.notice_text(&end, now);
        let said = self.say_in_running(&text);
        self.note_notice(&end, before, &text, said);
        self.notify(NotifyOn::Notice, text, |notification| {
            notification.reason = Some(end.kind.name().to_owned());
        });
    }

    fn note_notice(&mut self, end: &End, before: Micros, text: &str, said: bool) {
        self.note(Note::Notice {
            kind: end.kind.note_name().to_owned(),
            deadline: end.deadline,
            before: before / 1_000_000,
            text: text.to_owned(),
            said,
        });
    }

    fn notice_text(&self, end: &End, now: Now) -> String {
        let left = self.state.lifetime.left(&self.limits, end, now);
        let (limit, left_text) = (span_long(end.limit), span_long(left));
        let at = clock_time(now.wall.saturating_add(left), now.wall);
        let more = self.extension_to_ask_for();
        let or_extend = |before: &str, after: &str| {
            let text = more.as_ref();
            text.map_or_else(String::new, |more| {
                format!("{before}`%farside extend {more}`{after}")
            })
        };
        match end.kind {
            EndKind::Idle => format!(
                "this session ends in {left_text} (at {at}), for nothing was run in it for long ({limit} is the limit). Run \
                 something{} to keep it.",
                or_extend(", or ", ",")
            ),
            EndKind::Input => format!(
                "this session ends in {left_text} (at {at}), for it waits for input() and nobody is attached ({limit} is the \
                 limit). `farside attach {}` in a terminal answers it.",
                self.facts.id
            ),
            EndKind::Lifetime => format!(
                "this session ends in {left_text} (at {at}): then its {limit} are over. Save what you need{}.",
                or_extend(", or move the end with ", "")
            ),
            EndKind::Budget => format!(
                "this session ends when it has used {left_text} more of CPU time: its budget is {limit}. Save what you \
                 need, or `%farside set cpu_budget {}`.",
                format_duration(Duration::from_micros(end.limit.saturating_mul(2)))
            ),
        }
    }

    /// What a notice offers, within the cap; `None`: nothing is left to ask for.
    fn extension_to_ask_for(&self) -> Option<String> {
        let most = self.state.lifetime.can_extend_by(&self.limits);
        let offer = most.map_or(OFFER, |most| Duration::from_micros(most).min(OFFER));
        (offer.as_secs() > 0).then(|| format_duration(offer))
    }

    /// A line of farside's in the output of what runs for a person. `false`: nothing does, so nobody could see it.
    pub(super) fn say_in_running(&mut self, text: &str) -> bool {
        let Some((n, header)) = self
            .state
            .running_for_person()
            .map(|(n, execution)| (n, execution.asked.header.clone()))
        else {
            return false;
        };
        self.say(n, &header, text);
        true
    }

    /// A line of farside's in an execution's output.
    pub(super) fn say(&mut self, n: ExecutionNumber, header: &str, text: &str) {
        let content = json!({ "name": "stderr", "text": format!("[farside] {text}\n") });
        self.publish(None, n, "stream", header, &content);
    }

    /// Notices that nobody could see yet are said with the first execution that is to come.
    pub(super) fn say_notices(&mut self, n: ExecutionNumber) {
        let Some(execution) = self.state.live.get(&n) else {
            return;
        };
        let header = execution.asked.header.clone();
        let now = self.clocks;
        for end in self.ends(now) {
            let noticed = self.state.lifetime.noticed.get(&end.kind);
            let unsaid = noticed
                .filter(|noticed| noticed.deadline == end.deadline && !noticed.said)
                .map(|noticed| noticed.before);
            if let Some(before) = unsaid {
                let text = self.notice_text(&end, now);
                self.say(n, &header, &text);
                self.note_notice(&end, before, &text, true);
            }
        }
    }

    /// When the session will end, in a few lines.
    pub(super) fn describe_ends(&self) -> String {
        let now = self.clocks;
        if let Some(ending) = &self.state.lifetime.ending {
            return format!("it is ending: {}\n", ending.reason);
        }
        let mut text = String::new();
        for (i, end) in self.ends(now).into_iter().enumerate() {
            if i > 0 {
                text.push_str("or ");
            }
            let (left, limit) = (span_long(end.left), span_long(end.limit));
            let at = clock_time(now.wall.saturating_add(end.left), now.wall);
            text.push_str(&match end.kind {
                EndKind::Idle => {
                    format!("in {left} (at {at}) if nothing is run until then (limit: {limit})\n")
                }
                EndKind::Input => {
                    format!("in {left} (at {at}) if nobody answers its input() (limit: {limit})\n")
                }
                EndKind::Lifetime => {
                    format!("in {left} (at {at}) in any case (lifetime: {limit})\n")
                }
                EndKind::Budget => {
                    format!("after {left} more of CPU time (budget: {limit})\n")
                }
            });
        }
        if text.is_empty() {
            text.push_str("not before it is stopped\n");
        }
        text
    }
}
