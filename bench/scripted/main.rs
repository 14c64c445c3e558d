//! The bench's own engine and frontends, so fast that what is measured between them is farside.
//!
//! - `scripted engine CONNECTION_FILE`: an engine whose code is a list of things to publish (`engine`);
//! - `scripted client CONNECTION_FILE [SUBSCRIBERS]`: a frontend that executes each line of its stdin and prints what
//!   came, and when, as a line of JSON (`client`);
//! - `scripted raw LINK_SOCKET SEQ COUNT`: a client of the link that reads so many of a session's messages behind
//!   record SEQ, as they are (`raw`);
//! - `scripted relay CONNECTION_FILE CONNECTION_FILE`: a process that copies bytes between the kernel of the first one and
//!   the frontends of the second one (`relay`).

mod client;
mod engine;
mod raw;
mod relay;

use std::process::ExitCode;

/// What can go wrong ends the process, with its text.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    keep_memory();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(Into::into)
        .and_then(|runtime| match args[..] {
            ["engine", file] => local(&runtime, engine::run(file)),
            ["client", file] => local(&runtime, client::run(file, 1)),
            ["client", file, subscribers] => {
                local(&runtime, client::run(file, subscribers.parse()?))
            }
            ["raw", socket, from, count] => {
                local(&runtime, raw::run(socket, from.parse()?, count.parse()?))
            }
            ["relay", there, here] => relay::run(there, here),
            _ => Err("what it can do is said at the beginning of bench/scripted/main.rs".into()),
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripted: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Buffers are used again and again: what the system takes to give new ones is not to be measured.
fn keep_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain numbers to the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 8 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
}

fn local(
    runtime: &tokio::runtime::Runtime,
    future: impl Future<Output = Result<()>>,
) -> Result<()> {
    tokio::task::LocalSet::new().block_on(runtime, future)
}
