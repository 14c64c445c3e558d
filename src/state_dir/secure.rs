//! Folders that only their owner can enter.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use super::StateError;
use crate::process::effective_uid;

/// Creates the folder (and its parents) with mode 0700 if it is missing, and refuses one that is not safe.
pub fn ensure_private_dir(path: &Path) -> Result<(), StateError> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    let made = match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                builder
                    .recursive(true)
                    .create(parent)
                    .map_err(StateError::io("create", parent))?;
            }
            builder.recursive(false).create(path)
        }
        other => other,
    };
    match made {
        // A umask can only have taken bits away from 0700; give the owner back what is his.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(StateError::io("set the permissions of", path))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(StateError::io("create", path)(e)),
    }
    check_private_dir(path)
}

/// Refuses a folder that is a link, somebody else's, or that others can write to. One that others can merely read
/// (0755, as a plain `mkdir` makes it) is closed to them: nobody can have put anything into it.
pub fn check_private_dir(path: &Path) -> Result<(), StateError> {
    let meta = fs::symlink_metadata(path).map_err(StateError::io("look at", path))?;
    let refuse = |why: String, fix: String| {
        Err(StateError::Insecure {
            path: path.to_owned(),
            why,
            fix,
        })
    };
    let elsewhere = || {
        "set FARSIDE_STATE_DIR (or XDG_RUNTIME_DIR, for the sockets) to a folder of your own"
            .to_owned()
    };
    if meta.is_symlink() {
        return refuse(
            "is a symbolic link, where a folder is needed".to_owned(),
            elsewhere(),
        );
    }
    if !meta.is_dir() {
        return refuse("is not a folder".to_owned(), elsewhere());
    }
    if meta.uid() != effective_uid() {
        return refuse(
            format!(
                "belongs to user {}, not to you (user {})",
                meta.uid(),
                effective_uid()
            ),
            elsewhere(),
        );
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o1022 == 0o1022 {
        return refuse(
            format!("is a folder for everybody (mode {mode:04o})"),
            elsewhere(),
        );
    }
    if mode & 0o022 != 0 {
        return refuse(
            format!("can be written by other users (mode {mode:04o})"),
            format!(
                "see that nothing of theirs is in it, and make it your own with `chmod 700 {}`",
                path.display()
            ),
        );
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(StateError::io("set the permissions of", path))?;
    }
    Ok(())
}

/// Refuses a folder that is there for something else, before [`ensure_private_dir`] closes it to others: a home, say.
/// One that is closed already, or has nothing but sessions, or `mark`, in it, is for us.
pub(super) fn check_is_for_us(path: &Path, mark: &str) -> Result<(), StateError> {
    // (One that others can write to is refused in any case.)
    let is_open =
        |meta: fs::Metadata| meta.is_dir() && meta.mode() & 0o077 != 0 && meta.mode() & 0o022 == 0;
    let is_session = |entry: &fs::DirEntry| entry.path().join("session.json").exists();
    let has_things = || {
        fs::read_dir(path).is_ok_and(|entries| entries.flatten().any(|entry| !is_session(&entry)))
    };
    let is_other = fs::symlink_metadata(path).is_ok_and(is_open)
        && is_own_dir(path)
        && !path.join(mark).exists()
        && has_things();
    if !is_other {
        return Ok(());
    }
    Err(StateError::Insecure {
        path: path.to_owned(),
        why: "has other things in it, and is open to other users, as farside's state must not be"
            .to_owned(),
        fix: format!(
            "set FARSIDE_STATE_DIR to a folder of farside's own, e.g. {}",
            path.join("farside").display()
        ),
    })
}

/// Whether an existing folder is ours; its mode and links in its path do not matter.
pub(super) fn is_own_dir(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == effective_uid())
}

/// Writes over a file, with blanks up to its old end, where that takes no more of the disk. A reader may see the old text
/// in part, for a moment.
pub(super) fn overwrite_within(path: &Path, mut text: Vec<u8>) -> io::Result<()> {
    /// Of [`fs::Metadata`], whatever the file system has.
    const BLOCK_BYTES: u64 = 512;
    let file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let meta = file.metadata()?;
    if text.len() as u64 > meta.blocks() * BLOCK_BYTES {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // It is at most the file's length, which is small.
    text.resize(text.len().max(meta.len() as usize), b' ');
    file.write_all_at(&text, 0)
}

/// Writes a file that only its owner can read, from its first moment.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}
