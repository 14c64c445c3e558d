//! One session after the other, on the same sockets.
//!
//! A session that retired by itself (idle, lifetime, budget) takes its host and engine with it, but not the launcher:
//! a frontend takes the end of its kernel process for a crash, and a Jupyter Server would start the kernel anew, for
//! nobody. The same where a session of a Jupyter Server was stopped by somebody else. So the launcher sleeps: connections stay, the heartbeat echoes, nothing else runs. The next request wakes
//! it, and gets a session as a launcher's start does. Where there can be none it sleeps on, and the request hears why
//! (`unable`). All other ends of a session are the launcher's end too.

use std::rc::Rc;

use serde_json::json;
use tokio::sync::mpsc;

use super::choice::{Chosen, Wanted, choose};
use super::host_link::{Heard, HostLink, LinkEnd, Outgoing};
use super::leaving::Frontend;
use super::presence::Presence;
use super::reach::Stream;
use super::{Shared, Stage, wants_restart};
use crate::state_dir::Session;
use crate::wire::{Channel, Message};

/// The words that an end reason begins with where nobody asked for the end.
const RETIRED: [&str; 3] = ["idle", "lifetime", "budget"];

/// And where somebody ended it, but not by its frontend (`farside stop`, `%farside retire`).
const STOPPED: &str = "stopped";

/// The session that is served, for the launcher's parts.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// Counts them, from 1.
    pub number: u32,
    pub session: Rc<Session>,
    /// The launcher came to the session behind this record.
    pub since: u64,
}

/// Serves the session, and those that come after it. Returns when the launcher has nothing more to do.
pub(super) async fn serve(
    shared: Rc<Shared>,
    mut chosen: Chosen,
    mut requests: mpsc::UnboundedReceiver<Outgoing>,
    wanted: Option<Wanted>,
) {
    let mut waiting = Vec::new();
    loop {
        let why = match chosen {
            Ok((session, stream)) => {
                shared.now_serves(&session, &stream);
                let link = HostLink::new(Rc::new(session), shared.hello.clone(), &stream);
                let hear = |heard| match heard {
                    Heard::Reply(channel, message) => shared.on_reply(channel, message),
                    Heard::KernelInfo(content) => shared.kernel_info.learn(content),
                };
                let presence = Presence::new(&shared.peers);
                let served = link.run(stream, waiting, &mut requests, presence, hear);
                let (reason, unsent) = match served.await {
                    LinkEnd::Ended { reason, unsent } => (reason, unsent),
                    LinkEnd::Lost(error) => {
                        tracing::error!(%error, "the session is out of reach");
                        return;
                    }
                };
                tracing::info!(reason, "the session has ended");
                if !shared.sleeps_after(&reason) || shared.stage.get() != Stage::Serving {
                    return;
                }
                waiting = unsent;
                None
            }
            Err(error) => {
                tracing::error!(%error, "there can be no session; requests hear why");
                let why = error.to_string();
                let meanwhile = std::iter::from_fn(|| requests.try_recv().ok());
                for request in std::mem::take(&mut waiting).into_iter().chain(meanwhile) {
                    if shared.is_for_a_session(&request) {
                        shared.answer_unable(&request, &why);
                    }
                }
                Some(why)
            }
        };
        let Some(wanted) = &wanted else { return };
        if shared.stage.get() != Stage::Detaching {
            shared.stage.set(Stage::Dormant);
        }
        waiting = called(&shared, waiting, &mut requests, why.as_deref()).await;
        tracing::info!("a request wakes the launcher: it gets a session");
        // From here on a shutdown_request is for the session to come.
        shared.stage.set(Stage::Serving);
        let known = shared.session_id.borrow().clone();
        chosen = choose(wanted, &shared.hello, Some(known)).await;
    }
}

/// Waits for a request that is worth a session; gives all that have come by then. `why`: the last one was in vain, so
/// nothing less than an execution is.
async fn called(
    shared: &Shared,
    unsent: Vec<Outgoing>,
    requests: &mut mpsc::UnboundedReceiver<Outgoing>,
    why: Option<&str>,
) -> Vec<Outgoing> {
    let wakes = |request: &Outgoing| match why {
        _ if !shared.is_for_a_session(request) => false,
        Some(why) if !request.is_execution() => {
            shared.answer_unable(request, why);
            false
        }
        _ => true,
    };
    let mut waiting: Vec<Outgoing> = unsent.into_iter().filter(wakes).collect();
    while waiting.is_empty() {
        match requests.recv().await {
            Some(request) if wakes(&request) => waiting.push(request),
            Some(_) => {}
            // The sockets are gone.
            None => std::future::pending().await,
        }
    }
    waiting
}

fn retired_by_itself(reason: &str) -> bool {
    RETIRED.contains(&first_word(reason))
}

fn first_word(reason: &str) -> &str {
    reason
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default()
}

impl Shared {
    /// Whether the launcher is to be there for a session that comes after the one that ended so.
    fn sleeps_after(&self, reason: &str) -> bool {
        let server = (self.frontend.as_ref()).is_some_and(Frontend::is_jupyter_server);
        retired_by_itself(reason) || (server && first_word(reason) == STOPPED)
    }

    fn now_serves(&self, session: &Session, stream: &Stream) {
        self.session_id.replace(stream.welcome.session_id.clone());
        self.served.send_modify(|served| {
            *served = Some(Served {
                number: served.as_ref().map_or(0, |served| served.number) + 1,
                session: Rc::new(session.clone()),
                since: stream.welcome.seq,
            });
        });
    }

    /// Answers what none is needed for. Comm messages and answers to prompts are for an engine that is gone.
    fn is_for_a_session(&self, request: &Outgoing) -> bool {
        let Outgoing {
            channel, message, ..
        } = request;
        *channel != Channel::Stdin
            && !self.answers_asleep(*channel, message)
            && message
                .header()
                .is_ok_and(|header| header.msg_type.ends_with("_request"))
    }

    /// Answers what no session is needed for. `true`: that was it.
    pub(super) fn answers_asleep(&self, channel: Channel, message: &Message) -> bool {
        let Ok(header) = message.header() else {
            return false;
        };
        match header.msg_type.as_ref() {
            "shutdown_request" => {
                let content = json!({ "status": "ok", "restart": wants_restart(message) });
                self.answer(channel, message, "shutdown_reply", content.to_string());
                self.stage.set(Stage::Detaching);
                self.leaving.notify_one();
                true
            }
            "interrupt_request" => {
                let content = json!({ "status": "ok" });
                self.answer(channel, message, "interrupt_reply", content.to_string());
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::retired_by_itself;

    #[test]
    fn only_an_end_that_nobody_asked_for_leaves_the_launcher() {
        for reason in ["idle: for 1h", "lifetime: 24h", "budget", "idle for 1h"] {
            assert!(retired_by_itself(reason), "{reason}");
        }
        for reason in [
            "",
            "stopped: by `farside stop`",
            "shutdown: a frontend asked for it",
            "idleness",
            "engine: died while idle",
        ] {
            assert!(!retired_by_itself(reason), "{reason}");
        }
    }
}
