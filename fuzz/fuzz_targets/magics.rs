#![no_main]

#[path = "../../tests/fuzzed/magics.rs"]
mod magics;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| magics::check(bytes));
