//! PURE. Ids, names and keys of sessions: how each is made, and told from the others.

use std::path::{Component, Path, PathBuf};

use super::StateError;

/// Bytes of a session's name: it stands in tables and messages.
pub const NAME_BYTES_MAX: usize = 100;

/// Characters of a session id: 36^8 of them, so a collision needs tens of thousands of kept sessions.
pub const ID_CHARS: usize = 8;

/// The key of a notebook: the connection file's `jupyter_session`, a relative one counted from `cwd`.
pub fn notebook_key(jupyter_session: &str, cwd: &Path) -> String {
    let mut path = PathBuf::new();
    for part in cwd.join(jupyter_session).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path.to_string_lossy().into_owned()
}

/// Whether a text has the form of an id: eight of [a-z0-9], at least one a digit (so that words can be names).
pub fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.bytes().any(|b| b.is_ascii_digit())
}

pub(super) fn id_from(mut random: u128) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut id = String::with_capacity(ID_CHARS);
    for _ in 0..ID_CHARS {
        id.push(char::from(ALPHABET[(random % 36) as usize]));
        random /= 36;
    }
    id
}

/// Refuses names that could not be typed back, or that would be read as an id.
pub fn check_name(name: &str) -> Result<(), StateError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it is longer than 100 bytes"
    } else if name.contains('/') {
        "it has a `/` in it"
    } else if name.chars().any(char::is_control) {
        "it has a control character in it"
    } else if name.starts_with('-') || name.trim() != name {
        "it begins with `-`, or begins or ends with a space"
    } else if is_id(name) {
        "it looks like a session's id (eight lower case letters and digits)"
    } else {
        return Ok(());
    };
    Err(StateError::BadName {
        name: name.to_owned(),
        why,
    })
}

/// A notebook's file name without its ending, if that can be a name.
pub(super) fn name_from_key(key: &str) -> Option<String> {
    let stem = Path::new(key)
        .file_stem()?
        .to_str()?
        .trim()
        .trim_start_matches('-');
    let name: String = stem
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_BYTES_MAX / 4)
        .collect();
    let name = name.trim().to_owned();
    check_name(&name).is_ok().then_some(name)
}

pub(super) fn unique_name(wanted: String, taken: &[String]) -> String {
    if !taken.contains(&wanted) {
        return wanted;
    }
    (2u64..)
        .map(|n| format!("{wanted}-{n}"))
        .find(|name| !taken.contains(name) && !is_id(name))
        .expect("fewer sessions than numbers")
}
