//! PURE. What `farside top` knows of each session, and how fast it goes.
//!
//! A host writes its status when something has changed, and otherwise seldom. So a rate is the difference of two of
//! its writings, by their own times, and not of two looks: between two looks there may have been none, or five.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::super::readings::Reading;
use crate::journal::record::Micros;
use crate::state_dir::{SessionState, iso};

/// A host whose numbers have changed says so within this time. Longer silence means that they have not.
pub const QUIET_MICROS: Micros = 6_000_000;
/// Rates are over this time at least, less the jitter of a look each second.
const SPAN_MICROS: Micros = 900_000;

/// One session as `top` shows it. This is the object of `--json`, with these names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Sample {
    pub id: String,
    pub name: String,
    pub engine: String,
    pub state: SessionState,
    pub attached: u32,
    /// The one that runs.
    pub execution: Option<Execution>,
    /// Of a processor: 200 is two of them. `null` here and below: too little has been seen to tell.
    pub cpu_percent: Option<f64>,
    pub cpu_seconds: f64,
    /// `null`: no budget.
    pub cpu_seconds_left: Option<f64>,
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    /// `null`: nobody can tell.
    pub gpu_memory_bytes: Option<u64>,
    pub outputs: u64,
    pub output_bytes: u64,
    pub outputs_per_second: Option<f64>,
    pub output_bytes_per_second: Option<f64>,
    #[serde(with = "iso::option")]
    pub ends_at: Option<Micros>,
    /// `idle`, `lifetime` or `budget`.
    pub ends_by: Option<String>,
    #[serde(with = "iso::option")]
    pub unresponsive_since: Option<Micros>,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Execution {
    pub n: Option<u64>,
    pub code: Option<String>,
    #[serde(with = "iso::micros")]
    pub started: Micros,
}

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The oldest session first.
    #[default]
    Age,
    /// The busiest first.
    Cpu,
    /// The largest first.
    Memory,
    /// The most talkative first.
    Output,
    /// The one that ends next first.
    Left,
}

impl Order {
    /// The heading of the column that it goes by.
    pub fn heading(self) -> Option<&'static str> {
        match self {
            Self::Age => None,
            Self::Cpu => Some("CPU%"),
            Self::Memory => Some("MEM"),
            Self::Output => Some("OUT/S"),
            Self::Left => Some("LEFT"),
        }
    }

    /// Sorts; equals stay as they are.
    pub fn sort(self, samples: &mut [Sample]) {
        let most = |a: f64, b: f64| b.total_cmp(&a);
        samples.sort_by(|a, b| match self {
            Self::Age => Ordering::Equal,
            Self::Cpu => most(
                a.cpu_percent.unwrap_or_default(),
                b.cpu_percent.unwrap_or_default(),
            ),
            Self::Memory => b.memory_bytes.cmp(&a.memory_bytes),
            Self::Output => most(
                a.output_bytes_per_second.unwrap_or_default(),
                b.output_bytes_per_second.unwrap_or_default(),
            ),
            Self::Left => {
                let end = |sample: &Sample| sample.ends_at.unwrap_or(Micros::MAX);
                end(a).cmp(&end(b))
            }
        });
    }
}

/// What was read so far, as far as it is needed for rates.
#[derive(Debug, Default)]
pub struct History {
    tracks: BTreeMap<String, VecDeque<Writing>>,
}

/// What a host wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Writing {
    written: Micros,
    /// Until when it is known to have been the last word.
    seen: Micros,
    cpu_seconds: f64,
    outputs: u64,
    output_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    cpu_percent: f64,
    outputs: f64,
    output_bytes: f64,
}

impl History {
    /// Takes in what was read at `now`, and gives the live sessions with their rates.
    pub fn samples(&mut self, readings: &[Reading], now: Micros) -> Vec<Sample> {
        let live = || readings.iter().filter(|reading| reading.is_live());
        self.tracks
            .retain(|id, _| live().any(|reading| reading.facts.id == *id));
        live().map(|reading| self.sample(reading, now)).collect()
    }

    fn sample(&mut self, reading: &Reading, now: Micros) -> Sample {
        let (facts, status) = (&reading.facts, reading.status.as_ref());
        let rates = status.and_then(|status| {
            let track = self.tracks.entry(facts.id.clone()).or_default();
            let writing = Writing {
                written: reading.written,
                seen: now,
                cpu_seconds: status.cpu_seconds,
                outputs: status.outputs,
                output_bytes: status.output_bytes,
            };
            observe(track, writing);
            rates(track, now)
        });
        let execution = status.and_then(|status| {
            Some(Execution {
                n: status.running,
                code: status.code.clone(),
                started: status.busy_since?,
            })
        });
        Sample {
            id: facts.id.clone(),
            name: facts.name.clone(),
            engine: facts.engine.clone(),
            state: facts.state,
            attached: facts.attached,
            execution,
            cpu_percent: rates.map(|rates| rates.cpu_percent),
            cpu_seconds: status.map_or(0.0, |s| s.cpu_seconds),
            cpu_seconds_left: status.and_then(|s| s.cpu_seconds_left),
            memory_bytes: status.map_or(0, |s| s.memory_bytes),
            memory_peak_bytes: status.map_or(0, |s| s.memory_peak_bytes),
            gpu_memory_bytes: status.and_then(|s| s.gpu_memory_bytes),
            outputs: status.map_or(0, |s| s.outputs),
            output_bytes: status.map_or(0, |s| s.output_bytes),
            outputs_per_second: rates.map(|rates| rates.outputs),
            output_bytes_per_second: rates.map(|rates| rates.output_bytes),
            ends_at: facts.ends_at,
            ends_by: status
                .filter(|_| facts.ends_at.is_some())
                .and_then(|s| s.ends_by.clone()),
            unresponsive_since: status.and_then(|s| s.unresponsive_since),
        }
    }
}

/// Adds what was read. Keeps the newest writing, and those before it up to the first that is old enough to count from.
fn observe(track: &mut VecDeque<Writing>, new: Writing) {
    match track.back_mut() {
        Some(last) if last.written == new.written => last.seen = new.seen,
        Some(last) if last.written > new.written || last.outputs > new.outputs => {
            // The clock was set back, or the count began anew: nothing before can be compared.
            track.clear();
            track.push_back(new);
        }
        Some(_) | None => track.push_back(new),
    }
    while track.len() > 2 && new.written.saturating_sub(track[1].written) >= SPAN_MICROS {
        track.pop_front();
    }
}

fn rates(track: &VecDeque<Writing>, now: Micros) -> Option<Rates> {
    let (first, last) = (track.front()?, track.back()?);
    if now.saturating_sub(last.written) > QUIET_MICROS {
        return Some(Rates::default());
    }
    if track.len() < 2 {
        return None;
    }
    // Where the first was written long before it was last seen, nothing changed for most of that time.
    let from = first.written.max(first.seen.saturating_sub(QUIET_MICROS));
    let seconds = last.written.saturating_sub(from).max(SPAN_MICROS) as f64 / 1e6;
    let count = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    Some(Rates {
        cpu_percent: (last.cpu_seconds - first.cpu_seconds).max(0.0) / seconds * 100.0,
        outputs: count(first.outputs, last.outputs),
        output_bytes: count(first.output_bytes, last.output_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn look(
        track: &mut VecDeque<Writing>,
        now: f64,
        written: f64,
        cpu: f64,
        outputs: u64,
    ) -> Option<Rates> {
        let micros = |seconds: f64| (seconds * 1e6) as Micros + 1_000 * SECOND;
        let new = Writing {
            written: micros(written),
            seen: micros(now),
            cpu_seconds: cpu,
            outputs,
            output_bytes: outputs * 10,
        };
        observe(track, new);
        rates(track, micros(now))
    }

    #[test]
    fn a_rate_takes_two_writings() {
        let mut track = VecDeque::new();
        assert_eq!(look(&mut track, 0.5, 0.0, 0.0, 0), None);
        assert_eq!(
            look(&mut track, 1.5, 0.0, 0.0, 0),
            None,
            "no news is no zero yet"
        );
        let rates = look(&mut track, 2.5, 2.0, 3.0, 8).unwrap();
        assert_eq!(
            (rates.cpu_percent, rates.outputs, rates.output_bytes),
            (150.0, 4.0, 40.0)
        );
    }

    #[test]
    fn a_steady_rate_is_steady_however_looks_and_writings_fall() {
        for (look_every, write_every) in [
            (1.0, 0.03),
            (1.0, 0.7),
            (1.0, 1.0),
            (1.0, 2.0),
            (1.0, 5.0),
            (0.3, 1.3),
        ] {
            let mut track = VecDeque::new();
            for n in 1..200 {
                let now = f64::from(n) * look_every;
                let written = (now / write_every).floor() * write_every;
                let rates = look(
                    &mut track,
                    now,
                    written,
                    written * 0.5,
                    (written * 100.0) as u64,
                );
                if now > 2.0 * write_every + 2.0 {
                    let rates = rates.unwrap();
                    assert!(
                        (rates.cpu_percent - 50.0).abs() < 0.1,
                        "{look_every} {write_every} {now}: {rates:?}"
                    );
                    assert!(
                        (rates.outputs - 100.0).abs() < 2.5,
                        "{look_every} {write_every} {now}: {rates:?}"
                    );
                }
                assert!(track.len() <= 5, "{} kept", track.len());
            }
        }
    }

    #[test]
    fn a_host_that_has_nothing_to_say_does_nothing() {
        let mut track = VecDeque::new();
        assert_eq!(look(&mut track, 100.0, 1.0, 5.0, 5), Some(Rates::default()));
        // After an hour's silence the first news are of the last seconds, not of the hour.
        look(&mut track, 3_600.0, 1.0, 5.0, 5);
        let burst = look(&mut track, 3_601.0, 3_601.0, 12.0, 705).unwrap();
        assert_eq!((burst.cpu_percent, burst.outputs), (100.0, 100.0));
        assert_eq!(
            look(&mut track, 3_610.0, 3_601.0, 12.0, 705),
            Some(Rates::default())
        );
    }

    #[test]
    fn a_lone_output_is_no_flood() {
        let mut track = VecDeque::new();
        look(&mut track, 1.0, 0.99, 0.0, 0);
        let rates = look(&mut track, 2.0, 1.01, 0.0, 1).unwrap();
        assert!(rates.outputs < 1.2, "{rates:?}");
    }

    #[test]
    fn a_clock_set_back_begins_anew() {
        let mut track = VecDeque::new();
        look(&mut track, 10.0, 10.0, 5.0, 50);
        assert_eq!(look(&mut track, 4.0, 4.0, 6.0, 60), None);
        let rates = look(&mut track, 5.0, 5.0, 7.0, 70).unwrap();
        assert_eq!((rates.cpu_percent, rates.outputs), (100.0, 10.0));
    }
}
