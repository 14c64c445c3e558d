//! What a process of farside's own says about itself: on stderr, which of a host is its log file.

use tracing_subscriber::EnvFilter;

/// Messages go to stderr from now on, as far as `filter` lets them (one that is no filter counts as `info`).
pub fn to_stderr(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only where there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // It would say so on stderr, which is where it could not write, and panic when it cannot: a full disk must not
        // take a thread along.
        .log_internal_errors(false)
        .with_ansi(false)
        .with_env_filter(filter)
        .try_init();
}
