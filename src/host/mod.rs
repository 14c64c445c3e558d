//! The host: one detached process a session, the async driver around the session core.
//!
//! Owns the engine, the journal and the link's socket. All decisions are the core's ([`crate::session::core`]); here
//! is only what carries them out: `driver` the loop, `alarm` its timers, `engine` the engine's process and sockets,
//! `ingest` the thread that reads its iopub, `clients` the link, `cursor` what each reader of the journal gets, `log` the
//! journal's writing end, `compaction` what bounds it, `lookup` the index thread, `elsewhere` the journals of other
//! sessions, `shell` a person's commands, `hook` those before an end, `notify` the thread that tells people, `upkeep` the
//! records of sessions that are long over, `usage` and `gpu` what the engine's processes use, `ground` whether the folders
//! are still there, `health` its heartbeat, `status_file` the thread that writes status.json.

mod acks;
mod alarm;
mod clients;
mod clocks;
mod compaction;
mod cursor;
mod digest;
mod driver;
mod elsewhere;
mod engine;
mod gpu;
mod ground;
mod health;
mod held;
mod hook;
mod inbox;
mod ingest;
mod log;
mod lookup;
mod notify;
mod shell;
mod source;
mod status_file;
mod upkeep;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use tokio::runtime::LocalOptions;

use self::driver::Over;
use crate::config::{Config, Flags};
use crate::keeper::{EXIT_OTHER_HOST, EXIT_REPLACED, HostArgs};
use crate::state_dir::{HostLock, Session};

/// The host's `main`: `args` are those after [`crate::keeper::HOST_COMMAND`]. Called before any thread or runtime is
/// started. Exit code 0: the session has ended.
pub fn main(args: &[OsString]) -> ExitCode {
    let args = match HostArgs::take(args) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("farside host: {error}");
            return ExitCode::from(2);
        }
    };
    crate::logging::to_stderr(&log_filter(&args));
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(4)
        }
    }
}

/// As the session's own settings have it.
fn log_filter(args: &HostArgs) -> String {
    let flags = Session::open(&args.dirs.session_dir)
        .map(|session| Flags::from_pairs(&session.json.settings))
        .unwrap_or_default();
    Config::log_filter(&flags)
}

fn run(args: HostArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let session = Session::open(&args.dirs.session_dir)?;
    let Some(lock) = HostLock::acquire(&session.dir)? else {
        tracing::info!("another host holds this session");
        return Ok(ExitCode::from(EXIT_OTHER_HOST));
    };
    crate::process::keep_memory_small();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    upkeep::start(&session);
    runtime.spawn_local(crate::process::settle());
    // A task among the others: what wakes the future that a runtime was given costs a look at the sockets each time.
    let driver = runtime.spawn_local(driver::run(session.clone(), lock, args));
    let over = match runtime.block_on(driver) {
        Ok(over) => over?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    // A reader may still be in a file of the journal: nothing waits for it any more.
    runtime.shutdown_background();
    if over == Over::Replaced {
        return Ok(ExitCode::from(EXIT_REPLACED));
    }
    // The session has ended and its lock is free: nobody waits for this either.
    upkeep::prune(&session);
    Ok(ExitCode::SUCCESS)
}
