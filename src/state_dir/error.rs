//! What can go wrong with the state folder.

use std::path::PathBuf;

use super::SOCKET_PATH_BYTES_MAX;

/// What can go wrong with the state folder, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("no session `{selector}`{}{}", known_sessions(.known), one_execution(.selector))]
    NotFound {
        selector: String,
        known: Vec<String>,
    },
    #[error("`{selector}` is not the only one: {}; say which with more of the id", .candidates.join(", "))]
    Ambiguous {
        selector: String,
        candidates: Vec<String>,
    },
    #[error("{path}: {why}; {fix}")]
    Insecure {
        path: PathBuf,
        why: String,
        fix: String,
    },
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{name}` cannot name a session: {why}")]
    BadName { name: String, why: &'static str },
    #[error(
        "no folder for sockets with a path short enough (a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes); \
         tried {}; set XDG_RUNTIME_DIR to a shorter folder of your own", show_paths(.tried)
    )]
    NoSocketFolder { tried: Vec<PathBuf> },
    #[error(
        "no place for farside's state: neither FARSIDE_STATE_DIR nor XDG_STATE_HOME nor HOME is set; set FARSIDE_STATE_DIR"
    )]
    NoHome,
    #[error(
        "waited {waited_secs} s for {path}, which another farside holds; see which one with `fuser {path}`"
    )]
    LockTimeout { path: PathBuf, waited_secs: u64 },
}

fn known_sessions(known: &[String]) -> String {
    if known.is_empty() {
        "; `farside ls --all` shows that there are none (`farside new` starts one)".to_owned()
    } else {
        format!(
            "; there are: {} (`farside ls --all` shows them all)",
            known.join(", ")
        )
    }
}

/// Who means `SESSION:N` of `%farside attach`.
fn one_execution(selector: &str) -> String {
    match selector.split_once(':') {
        Some((session, n)) if !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()) => {
            format!(". One execution: `farside logs {session} {n}`, with -f as it goes on")
        }
        _ => String::new(),
    }
}

fn show_paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|p| p.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

impl StateError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
