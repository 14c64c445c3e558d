//! Executions of other sessions: of those before this one in its notebook, and of any that a person names.
//!
//! Reads files only, and never writes to another session's folder. What is found can be gone when it is wanted (it
//! may be pruned at any time): then the replay says so.

use std::path::{Path, PathBuf};

use crate::journal::record::{Body, ExecutionState, Extent};
use crate::journal::{self, ExecutionInfo, Reader, View};
use crate::session::core::Predecessor;
use crate::session::event::{Answer, ExecutionSummary, PastExecution, Selector};
use crate::state_dir::{Session, Sessions, is_id};

pub(super) type Failure = Box<dyn std::error::Error>;

/// See the module.
pub(super) struct Elsewhere {
    session: Session,
    sessions: Sessions,
}

/// The session that a person named.
pub(super) enum Named {
    /// It is the one that was asked.
    This,
    /// Another one.
    Other(Box<Session>),
    /// There is none, or not the only one: what to do.
    None(String),
}

impl Elsewhere {
    /// `session`: the one that asks.
    pub fn new(session: Session) -> Self {
        let sessions = Sessions::around(&session.dir);
        Self { session, sessions }
    }

    /// The session with this id, beginning of an id, or name.
    pub fn named(&self, name: &str) -> Named {
        match self.sessions.find(name) {
            Ok(session) if session.json.id == self.session.json.id => Named::This,
            Ok(session) => Named::Other(Box::new(session)),
            Err(error) => Named::None(error.to_string()),
        }
    }

    /// An execution of a session that has ended.
    pub fn execution(&self, session: &Session, selector: &Selector) -> Result<Answer, Failure> {
        let id = &session.json.id;
        if session.is_live() {
            return Ok(Answer::NotThere(format!(
                "session {id} ({}) lives: `farside attach {id}` in a terminal follows it",
                session.json.name
            )));
        }
        Ok(match past_execution(session, selector)? {
            Some(past) => Answer::Execution(Some(Box::new(past))),
            None => Answer::NotThere(match selector {
                Selector::Latest | Selector::Before => {
                    format!("nothing was executed in session {id}")
                }
                Selector::Number(_) | Selector::MsgId(_) => format!(
                    "there is no such execution in session {id}; `%farside history {id}` lists those there are"
                ),
            }),
        })
    }

    /// What is not in this session may be in one before it: what was asked for under this msg_id, or, where this one
    /// has nothing at all, the last execution.
    pub fn before(&self, selector: &Selector) -> Result<Answer, Failure> {
        let before = self.sessions.before(&self.session)?;
        if !matches!(selector, Selector::Number(_)) {
            for session in &before {
                match past_execution(session, selector) {
                    Ok(Some(past)) => return Ok(Answer::Execution(Some(Box::new(past)))),
                    Ok(None) => {}
                    // One that is damaged, or just being removed, does not hide those before it.
                    Err(error) => {
                        tracing::warn!(%error, session = session.json.id, "not readable")
                    }
                }
            }
        }
        if let Selector::MsgId(word) = selector
            && self.sessions.find(word).is_ok()
        {
            return Ok(Answer::NotThere(format!(
                "`{word}` is a session: `%farside attach {word}:` shows its last execution, `%farside history {word}` \
                 lists them"
            )));
        }
        let Some(last) = before.first().map(|session| &session.json.id) else {
            return Ok(Answer::Execution(None));
        };
        Ok(match selector {
            Selector::Latest | Selector::Before => Answer::NotThere(
                "nothing was executed in this session, nor in those before it that are kept; `farside ls --all` \
                 shows all sessions"
                    .into(),
            ),
            Selector::Number(n) => Answer::NotThere(format!(
                "there is no execution {n} in this session; `%farside history` lists those there are. That of the \
                 session before it is `%farside attach {last}:{n}`"
            )),
            Selector::MsgId(_) => Answer::NotThere(format!(
                "there is no such execution in this session, nor in those before it that are kept; `%farside history` \
                 and `%farside history {last}` list those there are"
            )),
        })
    }

    /// The last executions of another session, newest first.
    pub fn history(&self, session: &Session, limit: usize) -> Result<Answer, Failure> {
        let is_over = !session.is_live();
        let filter = journal::Filter {
            limit: Some(limit),
            ..journal::Filter::default()
        };
        let executions = View::open(&session.dir.journal())?
            .executions(&filter)
            .into_iter()
            .map(|info| if is_over { over(info) } else { info })
            .map(summary)
            .collect();
        Ok(Answer::History {
            session: serde_json::to_value(session.facts())?,
            executions,
        })
    }
}

fn past_execution(
    session: &Session,
    selector: &Selector,
) -> Result<Option<PastExecution>, Failure> {
    let dir = session.dir.journal();
    let Some(info) = View::open(&dir)?.execution(&journal_selector(selector)) else {
        return Ok(None);
    };
    let past = with_reply(&dir, over(info))?;
    Ok(Some(PastExecution {
        session: session.json.id.clone(),
        ..past
    }))
}

/// What was under way when everything died has no last word in the journal.
fn over(info: ExecutionInfo) -> ExecutionInfo {
    let state = match info.state {
        state if state.is_final() => state,
        _ => ExecutionState::Lost,
    };
    ExecutionInfo { state, ..info }
}

/// The session before this one, where a person should hear of its end: those who ended it know.
pub(super) fn predecessor(session: &Session) -> Option<Predecessor> {
    let json = &session.json;
    let before = Sessions::around(&session.dir).get(json.predecessor.as_deref()?)?;
    let past = before.past().filter(|past| !past.was_asked_for())?;
    Some(Predecessor {
        id: before.json.id.clone(),
        of_notebook: json.key.is_some() && json.key == before.json.key,
        executions: past.executions,
        ended_at: past.ended_at,
        lost: past.lost,
        reason: past.reason,
    })
}

/// The journal's selector.
pub(super) fn journal_selector(selector: &Selector) -> journal::Selector {
    match selector {
        Selector::Latest | Selector::Before => journal::Selector::Latest,
        Selector::Number(n) => journal::Selector::Number(*n),
        Selector::MsgId(msg_id) => journal::Selector::ById(msg_id.clone()),
    }
}

/// An execution with its reply, of the journal in `dir`.
pub(super) fn with_reply(dir: &Path, info: ExecutionInfo) -> Result<PastExecution, Failure> {
    let reply_content = match info.places.reply {
        Some(position) => match Reader::open_at(dir, position)?.read_at(position)? {
            Some(record) => match record.body {
                Body::Reply { message, .. } => Some(message.content),
                Body::Request { .. } | Body::Iopub { .. } | Body::Note(_) => None,
            },
            None => None,
        },
        None => None,
    };
    let places = info.places;
    let extent = places.request.or(places.start).map(|first| Extent {
        first,
        last_seq: places.last_seq,
    });
    Ok(PastExecution {
        session: String::new(),
        summary: summary(info),
        first_seq: places.first_seq,
        extent,
        reply_content,
    })
}

/// What lists show of an execution.
pub(super) fn summary(info: ExecutionInfo) -> ExecutionSummary {
    let ExecutionInfo {
        n,
        msg_id,
        cell_id,
        code,
        state,
        started,
        ended,
        ..
    } = info;
    ExecutionSummary {
        n,
        msg_id,
        cell_id,
        code,
        state,
        started,
        ended,
    }
}

/// The journal of another session, from this one's.
pub(super) fn journal_of(own: &Path, session: &str) -> std::io::Result<PathBuf> {
    let all = own.parent().and_then(Path::parent);
    let Some(all) = all.filter(|_| is_id(session)) else {
        let why = format!("`{session}` is no session's id");
        return Err(std::io::Error::other(why));
    };
    let dir = all.join(session).join("journal");
    if !dir.is_dir() {
        let why = format!("session {session} is not kept any more");
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, why));
    }
    Ok(dir)
}
