//! `farside connect`: a connection file for any Jupyter client.

use std::fs;
use std::future::Future;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use super::client::{block_on, require_live};
use super::{Exit, Output, find_session};
use crate::launcher;
use crate::state_dir::Session;
use crate::wire::connection_file::ConnectionFile;

/// Print the path of a connection file for any Jupyter client, and keep it working till Ctrl-C.
///
/// It is for you alone: loopback ports, a fresh key, a file that only you can read. It is removed at the end; the
/// session goes on, also where a client asks for its shutdown (`farside stop` ends it).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farside connect train          # in one terminal: prints FILE\n  \
                        jupyter console --existing FILE"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    require_live(&session)?;
    block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let until = async move {
            interrupt.recv().await;
        };
        serve(&session, "connect", |path| {
            out.line(&path.display().to_string())?;
            out.flush()?;
            Ok(until)
        })
        .await
    })?;
    if !session.is_live() {
        out.message(&format!("session {} has ended", session.json.name));
    }
    Ok(Exit::Done)
}

/// Serves a connection file until the session ends, a signal says to leave, or the future that `ready` gives is
/// done. `ready` gets the file's path as soon as clients can connect; the file is removed at the end.
pub(super) async fn serve<F: Future<Output = ()>>(
    session: &Session,
    kind: &str,
    ready: impl FnOnce(&Path) -> io::Result<F>,
) -> anyhow::Result<()> {
    let path = session
        .dir
        .sockets()
        .join(format!("{kind}-{}.json", std::process::id()));
    let _removed = Removed(path.clone());
    let served = launcher::connect(session.clone(), kind, |file: &ConnectionFile| {
        write_private(&path, &file.to_text())?;
        ready(&path)
    });
    Ok(served.await?)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Removes a file when it is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The session's folder goes with its end, and the file with it.
        let _ = fs::remove_file(&self.0);
    }
}
