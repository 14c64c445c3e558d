//! What a host does for all sessions: it prunes the records of those that are long over, some time after its start
//! and when its own session has ended. No daemon does it, so whoever is there does.

use std::time::Duration;

use crate::config::{Config, Flags};
use crate::state_dir::{Age, Retention, Session, Sessions};

/// Starting the engine and reading the journal come first.
const AFTER_START: Duration = Duration::from_secs(10);

/// Prunes after a while, on a thread of its own. It ends with the process; what it is at then, the next one finishes.
pub(super) fn start(session: &Session) {
    let session = session.clone();
    let thread = std::thread::Builder::new()
        .name("upkeep".into())
        .spawn(move || {
            std::thread::sleep(AFTER_START);
            prune(&session);
        });
    if let Err(error) = thread {
        tracing::warn!(%error, "old records are not pruned now");
    }
}

/// Prunes now. `session`: whose settings say how much may be kept. How long each session's records are kept is that
/// session's own affair, and config.toml's: what this one was told by its environment is for itself.
pub(super) fn prune(session: &Session) {
    let own = Config::load(&Flags::from_pairs(&session.json.settings));
    let (own, shared) = match (own, Config::load_shared()) {
        (Ok(own), Ok(shared)) => (own.config, shared.config),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "old records are not pruned");
            return;
        }
    };
    let retention = Retention {
        age: Age::Own(shared.keep_records),
        bytes: own.keep_records_bytes,
    };
    match Sessions::around(&session.dir).prune(&retention) {
        Ok(pruned) => {
            for json in &pruned.removed {
                tracing::info!(
                    session = json.id,
                    name = json.name,
                    "its records were removed"
                );
            }
            for (json, error) in &pruned.failed {
                tracing::warn!(session = json.id, %error, "its records could not be removed");
            }
        }
        Err(error) => tracing::warn!(%error, "old records are not pruned"),
    }
}
