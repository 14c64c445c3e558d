//! The engine's heartbeat: asks for an echo now and then, and says when it stops and comes back.
//!
//! It never ends an engine. What counts are pings that were sent and found unanswered when the next one was due, not
//! the clock: a machine that slept, or a host that was stopped, finds no ping missed. Nothing is said of an engine
//! that never answered.
//!
//! An engine that has nothing to do is asked ever less often, for as long as it answers: nobody waits for it, and a hundred
//! sessions that do nothing must not wake each other's machine all the time.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::transport::{self, Incoming, Reader, Writer};
use crate::wire::connection_file::Endpoint;
use crate::wire::zmtp::{Limits, SocketType};

/// How often, and how much patience.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From ping to ping, while something runs or no answer has come.
    pub every: Duration,
    /// And twice as long after each ping that an idle engine has answered, so many times.
    pub doublings_max: u32,
    /// So many in a row without an answer make an engine unresponsive.
    pub missed_max: u32,
}

impl Default for Pace {
    /// 15 s, and 40 s more where it idles. An engine's heartbeat is a thread that waits for nothing else, and answers within a millisecond also
    /// while the engine computes; but one on a machine that swaps may take seconds.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            doublings_max: 3,
            missed_max: 3,
        }
    }
}

impl Pace {
    /// From a ping that was answered to the next one, where so many were sent since something ran, or since one was not.
    fn after(&self, idle_pings: u32) -> Duration {
        self.every * (1 << idle_pings.saturating_sub(1).min(self.doublings_max))
    }
}

/// The first attempt to reach a heartbeat that is not there yet; then each time twice as long, up to
/// [`Pace::every`].
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// Our pings carry their number; whoever echoes more than this is no heartbeat.
const ECHO_BYTES_MAX: usize = 4096;

/// Watches one engine until it is dropped. `report` hears `false` when it stops answering and `true` when it answers
/// again; of an engine that an earlier host had (`adopted`) also `true` at its first answer, for that host may have
/// said `false`. `active`: whether it has something to do.
pub(super) async fn watch(
    endpoint: Endpoint,
    pace: Pace,
    adopted: bool,
    mut active: watch::Receiver<bool>,
    report: impl Fn(bool),
) {
    let mut pulse = Pulse::new(pace.missed_max, adopted);
    let mut retry = FIRST_RETRY.min(pace.every);
    let mut connection = loop {
        match connect(&endpoint, pace.every).await {
            Ok(connection) => break Some(connection),
            // Somebody has bound it and does not answer. A new engine may be about to; an old one had its time.
            Err(Unreached::NoHandshake) if adopted => {
                pulse.is_there();
                break None;
            }
            Err(Unreached::NoHandshake | Unreached::NoSocket) => tokio::time::sleep(retry).await,
        }
        retry = (retry * 2).min(pace.every);
    };
    let mut sent_at = Instant::now();
    let mut due = sent_at;
    let mut idle_pings = 0;
    loop {
        tokio::select! {
            // An answer that is there counts before the time that has passed.
            biased;
            answer = answer(&mut connection) => match answer {
                Some(number) => {
                    if let Some(responsive) = pulse.answered(number) {
                        report(responsive);
                    }
                    due = sent_at + pace.after(idle_pings);
                }
                None => connection = None,
            },
            changed = active.changed() => {
                if changed.is_err() {
                    return;
                }
                idle_pings = 0;
                due = due.min(sent_at + pace.every);
            }
            () = tokio::time::sleep_until(due) => {
                idle_pings = match (*active.borrow(), pulse.is_answered()) {
                    (true, _) => 0,
                    (false, false) => 1,
                    (false, true) => idle_pings + 1,
                };
                // After a pause of ours there is one ping, not many.
                sent_at = Instant::now();
                due = sent_at + pace.every;
                let (number, verdict) = pulse.next();
                if let Some(responsive) = verdict {
                    report(responsive);
                }
                // Each at most half of the time to the next one.
                if connection.is_none() {
                    connection = connect(&endpoint, pace.every / 2).await.ok();
                }
                if let Some((_, writer)) = &mut connection {
                    // An empty part first, as REQ would send it: a REP needs it, a ROUTER that echoes does not mind.
                    let ping = [Bytes::new(), Bytes::copy_from_slice(&number.to_be_bytes())];
                    let sent = tokio::time::timeout(pace.every / 2, writer.send(&ping)).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        connection = None;
                    }
                }
            }
        }
    }
}

/// What the answers say.
#[derive(Debug)]
struct Pulse {
    missed_max: u32,
    sent: u64,
    answered: u64,
    missed: u32,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It never answered.
    None,
    /// Nor did it to us, but an earlier host may have spoken of it.
    Inherited {
        /// There is a heartbeat, so its silence says something.
        there: bool,
    },
    Responsive,
    Unresponsive,
}

impl Pulse {
    fn new(missed_max: u32, adopted: bool) -> Self {
        let verdict = if adopted {
            Verdict::Inherited { there: false }
        } else {
            Verdict::None
        };
        Self {
            missed_max,
            sent: 0,
            answered: 0,
            missed: 0,
            verdict,
        }
    }

    /// An adopted engine has a heartbeat, though it does not answer.
    fn is_there(&mut self) {
        self.verdict = Verdict::Inherited { there: true };
    }

    /// Whether the newest ping has come back.
    fn is_answered(&self) -> bool {
        self.answered == self.sent
    }

    /// The number of the next ping, and what follows from the one before.
    fn next(&mut self) -> (u64, Option<bool>) {
        if !self.is_answered() {
            self.missed += 1;
        }
        self.sent += 1;
        let expected = match self.verdict {
            Verdict::Responsive | Verdict::Inherited { there: true } => true,
            Verdict::None | Verdict::Inherited { there: false } | Verdict::Unresponsive => false,
        };
        let fell_silent = expected && self.missed >= self.missed_max;
        if fell_silent {
            self.verdict = Verdict::Unresponsive;
        }
        (self.sent, fell_silent.then_some(false))
    }

    /// A ping came back.
    fn answered(&mut self, number: u64) -> Option<bool> {
        self.answered = self.answered.max(number.min(self.sent));
        self.missed = 0;
        match std::mem::replace(&mut self.verdict, Verdict::Responsive) {
            Verdict::Unresponsive | Verdict::Inherited { .. } => Some(true),
            Verdict::None | Verdict::Responsive => None,
        }
    }
}

enum Unreached {
    NoSocket,
    NoHandshake,
}

async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<(Reader, Writer), Unreached> {
    let stream = match tokio::time::timeout(limit, transport::connect(endpoint)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) | Err(_) => return Err(Unreached::NoSocket),
    };
    let limits = Limits {
        frame_bytes_max: ECHO_BYTES_MAX,
        ..Limits::default()
    };
    // No identity of our own: a ROUTER refuses a second connection with one that it still knows.
    match transport::handshake(stream, SocketType::Dealer, &[], limits, limit).await {
        Ok((reader, writer, _)) => Ok((reader, writer)),
        Err(error) => {
            tracing::debug!(%error, "no handshake with the engine's heartbeat");
            Err(Unreached::NoHandshake)
        }
    }
}

/// The next echo's number; `None`: the connection is over. Waits for ever where there is none.
async fn answer(connection: &mut Option<(Reader, Writer)>) -> Option<u64> {
    let Some((reader, _)) = connection else {
        return std::future::pending().await;
    };
    loop {
        match reader.recv().await {
            Ok(Some(Incoming::Message(parts))) => {
                let number = parts.last().and_then(|part| part.as_ref().try_into().ok());
                // Any sign of life is one; but only what echoes counts as an answer to a certain ping.
                return Some(number.map_or(0, u64::from_be_bytes));
            }
            Ok(Some(Incoming::Subscribe(_) | Incoming::Unsubscribe(_))) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
