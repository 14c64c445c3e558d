//! The clocks of this machine.

use std::sync::OnceLock;

use crate::session::clock::Now;

/// What they show now.
pub(super) fn now() -> Now {
    Now {
        wall: crate::state_dir::now(),
        awake: crate::process::clock_micros(libc::CLOCK_MONOTONIC),
        elapsed: crate::process::clock_micros(libc::CLOCK_BOOTTIME),
    }
}

/// What tells this boot of the machine from others; empty where the system does not say.
pub(super) fn boot_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().to_owned()
    };
    ID.get_or_init(read).clone()
}
