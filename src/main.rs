//! The `farside` binary: parse, run, exit code.

fn main() {}
