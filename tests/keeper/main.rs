//! The keeper with real processes: this program is test, keeper, host and engine, each in a process of its own
//! (`harness = false`, since a keeper forks and so must not have libtest's threads). The host's role only relays
//! between its keeper and the test.
//!
//! Everything started here is a descendant of the test (a subreaper), so that a test can see that nothing is
//! left, and its [`Sandbox`] can clear up after a failure.

mod cases;
mod roles;
mod sandbox;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let role = args
        .first()
        .and_then(|arg| arg.to_str())
        .unwrap_or_default();
    match role {
        farside::keeper::KEEPER_COMMAND => farside::keeper::main(&args[1..]),
        farside::keeper::HOST_COMMAND => roles::host(&args[1..]),
        "engine" => roles::engine(&args[1..]),
        _ => run_tests(&args),
    }
}

/// What cargo test and nextest ask of a test binary: `--list`, `--exact`, and names to filter by.
fn run_tests(args: &[OsString]) -> ExitCode {
    let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let has = |flag: &str| args.contains(&flag);
    let filters: Vec<&str> = args
        .iter()
        .copied()
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let filters = if has("--format") {
        &[]
    } else {
        filters.as_slice()
    };
    let chosen = cases::ALL.iter().filter(|(name, _)| {
        filters.is_empty()
            || filters.iter().any(|&filter| {
                if has("--exact") {
                    *name == filter
                } else {
                    name.contains(filter)
                }
            })
    });
    if has("--list") {
        // nextest asks a second time for the ignored ones, of which there are none.
        for (name, _) in chosen.filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
