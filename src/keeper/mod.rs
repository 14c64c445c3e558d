//! The keeper: the process above a session's host. It is the parent of the host and, asked by the host over a
//! socketpair, of the engine; it learns how each of them ended, tells the host, and has a new host up at once
//! when the old one dies.
//!
//! It knows nothing of Jupyter, the journal or the link. It has one thread, no runtime, and waits in poll(2), so
//! that there is little in it that can break. If it is killed nevertheless, the host ([`Client`]) starts another
//! one, which watches host and engine through pidfds.
//!
//! Invariants: one keeper a session (a file lock); no end of a process is forgotten before a host has
//! acknowledged it; as long as an engine lives, there is a host or one will be started; after a `Bye` nothing
//! is left; what the engine says while no host is there is held for the next one (`held`).

mod args;
mod backoff;
mod client;
mod held;
mod oom;
mod protocol;
mod signals;
mod socket;
mod spawn;
mod start;
mod supervisor;
mod watched;

use std::ffi::OsString;
use std::process::ExitCode;

pub use args::{HostArgs, SessionDirs, session_of_command_line};
pub use client::Client;
pub use protocol::{
    Carries, Ended, Fds, FromKeeper, Hello, Process, STRIPPED_VARIABLES, Spawn, Stream, Text,
    ToKeeper, Usage, describe_end,
};
pub use socket::MESSAGE_BYTES_MAX;
pub use start::start;

/// The hidden command that starts a keeper: `farside host --session-dir DIR --runtime-dir DIR`.
pub const KEEPER_COMMAND: &str = "host";

/// The hidden command by which the keeper starts the host: `farside host-worker --session-dir DIR --runtime-dir
/// DIR`, with the socket to the keeper as its stdin ([`HostArgs::take`]).
pub const HOST_COMMAND: &str = "host-worker";

/// Exit code of a host which found that another host holds the session: its keeper then ends too, unless it
/// knows of an engine.
pub const EXIT_OTHER_HOST: u8 = 75;

/// Exit code of a host that makes room for another one of the same session ([`ToKeeper::HostProgram`]).
pub const EXIT_REPLACED: u8 = 76;

/// Our own program, also where its file has been replaced or removed meanwhile.
pub const SELF_EXE: &str = "/proc/self/exe";

/// The keeper's `main`: `args` are those after [`KEEPER_COMMAND`]. The calling process exits as soon as the
/// keeper is detached from it; the keeper's own end is the return of this function in a process that nobody
/// waits for.
///
/// Must be called before anything else: before any thread or runtime is started or any file is opened, since
/// it forks and closes what it inherited.
pub fn main(args: &[OsString]) -> ExitCode {
    let args = match args::KeeperArgs::parse(args) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("farside {KEEPER_COMMAND}: {error}");
            return ExitCode::from(2);
        }
    };
    match start::become_keeper(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format_args!("{error}"));
            ExitCode::from(4)
        }
    }
}

/// A line in host.log, which is the keeper's stderr. A failure to write it changes nothing.
fn log(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let now = jiff::Timestamp::now();
    let pid = std::process::id();
    // One write: host and keeper append to the same file.
    let line = format!("{now} keeper[{pid}] {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
