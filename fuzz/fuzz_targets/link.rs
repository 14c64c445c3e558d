#![no_main]

#[path = "../../tests/fuzzed/link.rs"]
mod link;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| link::check(bytes));
