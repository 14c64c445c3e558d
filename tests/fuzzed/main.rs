//! The fuzz targets' twins, which always run. Each target is one function that takes any bytes and panics where an
//! invariant breaks; cargo-fuzz (fuzz/, `make fuzz`) looks for such bytes with feedback, proptest here without: seeds,
//! changed seeds, and bytes of no origin. What a fuzzer finds becomes a seed in fuzz/seeds/ and is tried here for ever.

mod allocations;
mod compaction;
mod connection_file;
mod journal;
mod link;
mod magics;
mod wire;

use std::path::Path;

use proptest::prelude::*;

/// Nothing that a few kilobytes of input make farside do may take more memory than this at once: a claimed length is not
/// believed. (A read-ahead of the link has 1 MiB and doubles, a replay's limits are 12 MiB.)
const ALLOCATION_BYTES_MAX: usize = 32 << 20;

/// The seeds of a target, the one without a byte among them.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut seeds = vec![Vec::new()];
    for entry in std::fs::read_dir(&dir).expect("each target has seeds") {
        seeds.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    assert!(seeds.len() > 1, "no seeds in {}", dir.display());
    seeds
}

/// A seed with some of its bytes changed, cut out or doubled; or bytes of no origin.
fn input(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let change = (any::<prop::sample::Index>(), 0..4u8, any::<u8>());
    let changed = (
        prop::sample::select(seeds(target)),
        prop::collection::vec(change, 0..6),
    )
        .prop_map(|(mut bytes, changes)| {
            for (at, how, value) in changes {
                let at = at.index(bytes.len() + 1);
                match how {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, value),
                    2 => bytes.extend_from_within(at..),
                    _ if at < bytes.len() => bytes[at] = value,
                    _ => {}
                }
            }
            bytes
        });
    prop_oneof![2 => changed, 1 => prop::collection::vec(any::<u8>(), 0..600)]
}

fn check_bounded(check: fn(&[u8]), bytes: &[u8]) {
    let ((), most) = allocations::largest(|| check(bytes));
    assert!(
        most <= ALLOCATION_BYTES_MAX,
        "{most} bytes were allocated at once for {} bytes",
        bytes.len()
    );
}

macro_rules! twins {
    ($($target:ident),*) => {
        mod seeds_pass {
            $(
                #[test]
                fn $target() {
                    for seed in crate::seeds(stringify!($target)) {
                        crate::check_bounded(crate::$target::check, &seed);
                    }
                }
            )*
        }

        mod any_bytes_pass {
            use proptest::prelude::*;

            proptest! {
                #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
                $(
                    #[test]
                    fn $target(bytes in crate::input(stringify!($target))) {
                        crate::check_bounded(crate::$target::check, &bytes);
                    }
                )*
            }
        }
    };
}

twins!(compaction, connection_file, journal, link, magics, wire);
