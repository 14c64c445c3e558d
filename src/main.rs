//! The `farside` binary: parse, run, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use farside::keeper::{HOST_COMMAND, KEEPER_COMMAND};

fn main() -> ExitCode {
    // The keeper forks, so it must come before there is any thread; the host takes its socket out of stdin.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((command, rest)) if command == KEEPER_COMMAND => farside::keeper::main(rest),
        Some((command, rest)) if command == HOST_COMMAND => farside::host::main(rest),
        Some(_) | None => farside::cli::main(),
    }
}
