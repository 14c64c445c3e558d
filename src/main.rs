//! The `farside` binary: parse, run, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The keeper forks, so it must come before there is any thread, any runtime, any file open.
    if args
        .get(1)
        .is_some_and(|command| command == farside::keeper::KEEPER_COMMAND)
    {
        return farside::keeper::main(&args[2..]);
    }
    // Here too goes the host, once it exists: `farside::keeper::HOST_COMMAND`.
    farside::cli::main()
}
