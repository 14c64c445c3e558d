//! The `farside` binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The keeper must fork before there is any thread, so `farside host ...` goes to it before all else:
    //     if std::env::args_os().nth(1).is_some_and(|arg| arg == "host") { return farside::keeper::main(); }
    farside::cli::main()
}
