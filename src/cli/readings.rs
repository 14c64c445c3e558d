//! What the sessions' files say at one moment: the source of `ls`, `top` and `metrics`. No process is asked.

use std::fs;
use std::time::UNIX_EPOCH;

use crate::journal::record::Micros;
use crate::state_dir::{Session, SessionFacts, Sessions, StateError, Status};

/// One session.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What is true of it.
    pub facts: SessionFacts,
    /// What its host last wrote; `None` before its first word.
    pub status: Option<Status>,
    /// When it wrote that, by the file's own time.
    pub written: Micros,
}

impl Reading {
    /// Reads one session's files.
    pub fn of(session: &Session) -> Self {
        // The time before the text: if it is replaced in between, the next look sees that there is news.
        let written = fs::metadata(session.dir.status_json())
            .and_then(|file| file.modified())
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_micros() as Micros);
        Self {
            facts: session.facts(),
            status: session.status(),
            written,
        }
    }

    /// Every session, oldest first.
    pub fn all(sessions: &Sessions) -> Result<Vec<Self>, StateError> {
        Ok(sessions.list()?.iter().map(Self::of).collect())
    }

    /// Whether something runs for it.
    pub fn is_live(&self) -> bool {
        self.facts.state.is_live()
    }
}
