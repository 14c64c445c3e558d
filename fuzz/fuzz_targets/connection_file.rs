#![no_main]

#[path = "../../tests/fuzzed/connection_file.rs"]
mod connection_file;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| connection_file::check(bytes));
