//! How long the records of sessions that are over are kept, and how much of them.
//!
//! A session that lives is never touched, whatever it takes: both its locks are held while it is removed. Any number
//! of processes may prune at once. Who reads a removed session's files reads on in those that it has open.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Session, SessionJson, Sessions, StateError, now};
use crate::config::parse_duration;
use crate::journal::record::Micros;

/// Removing waits so long for others that create or remove sessions, which takes them milliseconds. The next time will do.
const PRUNE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What is kept of sessions that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub age: Age,
    /// How many bytes the folders of all sessions may have; the longest ended ones go first. `None`: any.
    pub bytes: Option<u64>,
}

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// As long as the session was told to by a setting (`keep_records`) of its own, and the others so long; `None`:
    /// for ever.
    Own(Option<Duration>),
    /// All of them so long, whatever they were told.
    All(Duration),
    /// For ever.
    Any,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Pruned {
    /// These are gone.
    pub removed: Vec<SessionJson>,
    /// These ought to be.
    pub failed: Vec<(SessionJson, StateError)>,
}

/// A session that is over.
struct Kept {
    session: Session,
    ended_at: Micros,
}

impl Sessions {
    /// Removes what is not to be kept.
    pub fn prune(&self, retention: &Retention) -> Result<Pruned, StateError> {
        let mut pruned = Pruned::default();
        self.sweep();
        let mut live_bytes = 0;
        let mut kept = Vec::new();
        for session in self.list()? {
            if session.is_live() {
                live_bytes += retention.bytes.map_or(0, |_| bytes_in(session.dir.root()));
            } else {
                let ended_at = session.ended_at();
                kept.push(Kept { session, ended_at });
            }
        }
        kept.sort_by_key(|kept| kept.ended_at);
        let now = now();
        kept.retain(|kept| !retention.is_too_old(kept, now) || !self.remove(kept, &mut pruned));
        if let Some(bytes_max) = retention.bytes {
            let sizes: Vec<u64> = (kept.iter())
                .map(|kept| bytes_in(kept.session.dir.root()))
                .collect();
            let mut total = live_bytes + sizes.iter().sum::<u64>();
            for (kept, size) in kept.iter().zip(sizes) {
                if total <= bytes_max {
                    break;
                }
                if self.remove(kept, &mut pruned) {
                    total = total.saturating_sub(size);
                }
            }
        }
        Ok(pruned)
    }

    fn remove(&self, kept: &Kept, pruned: &mut Pruned) -> bool {
        let json = kept.session.json.clone();
        match self.remove_within(&kept.session, PRUNE_LOCK_TIMEOUT) {
            Ok(true) => {
                pruned.removed.push(json);
                true
            }
            Ok(false) => false,
            Err(error) => {
                pruned.failed.push((json, error));
                false
            }
        }
    }

    /// What a process left that was killed while it removed a session: in no listing any more.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.state) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".gone-") {
                // Whoever is at it just now removes what we do not.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Retention {
    fn is_too_old(&self, kept: &Kept, now: Micros) -> bool {
        let own = || kept.session.json.settings.get("keep_records");
        let age = match self.age {
            Age::Any => None,
            Age::All(age) => Some(age),
            Age::Own(others) => match own().map(String::as_str) {
                Some("none") => None,
                // A value of another version's is none of ours.
                Some(own) => parse_duration(own).or(others),
                None => others,
            },
        };
        age.is_some_and(|age| {
            let age = Micros::try_from(age.as_micros()).unwrap_or(Micros::MAX);
            // Where the clock was set back, an end may lie before us.
            kept.ended_at.min(now) <= now.saturating_sub(age)
        })
    }
}

/// Bytes of all files in a folder. What vanishes meanwhile counts as nothing.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
