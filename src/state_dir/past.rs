//! Sessions that are over: when and how they ended, and which session came after which.

use super::{Session, SessionDir, SessionState, Sessions, StateError};
use crate::journal::record::Micros;

/// How many sessions of a notebook are looked through for an execution that is not in the newest: each is a file to
/// open, and at the defaults of keep_records there are about so many.
const PREDECESSORS_MAX: usize = 16;

/// What is known of the end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// How many executions it had.
    pub executions: u64,
    /// When it ended; of a lost one, when it was last heard of.
    pub ended_at: Micros,
    /// Nobody saw its end.
    pub lost: bool,
    /// Why it ended.
    pub reason: String,
}

impl Past {
    /// Whether the session ended since somebody asked for it, who so knows of it.
    pub fn was_asked_for(&self) -> bool {
        ["shutdown", "stopped"]
            .iter()
            .any(|word| self.reason.starts_with(word))
    }
}

impl Session {
    /// How it ended; `None`: it lives.
    pub fn past(&self) -> Option<Past> {
        let facts = self.facts();
        (!facts.state.is_live()).then(|| Past {
            executions: facts.executions,
            ended_at: self.ended_at(),
            lost: facts.state == SessionState::Lost,
            reason: facts.end_reason.unwrap_or_default(),
        })
    }

    /// When a session that is over ended, as far as can be known.
    pub fn ended_at(&self) -> Micros {
        let status = self.status();
        let known = status.as_ref().and_then(|s| s.ended_at.or(s.last_activity));
        known.unwrap_or(self.json.created)
    }
}

impl Sessions {
    /// The sessions in whose midst this one is, whatever the environment says. For looking, locking and removing:
    /// no session can be created in it.
    pub fn around(dir: &SessionDir) -> Self {
        Self {
            state: dir.root().parent().unwrap_or_else(|| dir.root()).to_owned(),
            runtime: Vec::new(),
        }
    }

    /// All sessions with this key and engine, the newest first.
    pub fn of_key(&self, key: &str, engine: &str) -> Result<Vec<Session>, StateError> {
        let mut found = self.list()?;
        found.retain(|s| s.json.key.as_deref() == Some(key) && s.json.engine == engine);
        found.reverse();
        Ok(found)
    }

    /// Of these, the session that a new one comes after: the last one that ended, of those that did anything.
    pub fn predecessor<'a>(
        candidates: impl IntoIterator<Item = &'a Session>,
    ) -> Option<&'a Session> {
        candidates
            .into_iter()
            .filter_map(|session| Some((session, session.past()?)))
            .filter(|(_, past)| past.executions > 0)
            .max_by_key(|(_, past)| past.ended_at)
            .map(|(session, _)| session)
    }

    /// The sessions that ended before this one, the last one first, but not all that ever were: those of the same
    /// key, and those to which `predecessor` leads.
    pub fn before(&self, session: &Session) -> Result<Vec<Session>, StateError> {
        let json = &session.json;
        let mut found = match &json.key {
            Some(key) => self.of_key(key, &json.engine)?,
            None => Vec::new(),
        };
        found.retain(|other| other.json.id != json.id);
        let mut next = json.predecessor.clone();
        // Each was there when the one after it was created, so there is no circle; but files can be damaged.
        for _ in 0..PREDECESSORS_MAX {
            let Some(linked) = next.take().and_then(|id| self.get(&id)) else {
                break;
            };
            next.clone_from(&linked.json.predecessor);
            if linked.json.id != json.id && found.iter().all(|s| s.json.id != linked.json.id) {
                found.push(linked);
            }
        }
        let mut ended: Vec<(Micros, Session)> = found
            .into_iter()
            .filter_map(|session| Some((session.past()?.ended_at, session)))
            .collect();
        ended.sort_by_key(|(ended_at, _)| std::cmp::Reverse(*ended_at));
        ended.truncate(PREDECESSORS_MAX);
        Ok(ended.into_iter().map(|(_, session)| session).collect())
    }
}
