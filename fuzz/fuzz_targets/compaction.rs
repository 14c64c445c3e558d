#![no_main]

#[path = "../../tests/fuzzed/compaction.rs"]
mod compaction;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| compaction::check(bytes));
