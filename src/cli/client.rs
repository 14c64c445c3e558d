//! What the commands that talk to a host share.

use std::future::Future;

/// Messages of the process go to stderr, as far as `filter` lets them.
pub(super) fn log_to_stderr(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Fails only where there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(filter)
        .try_init();
}

/// Runs a command's conversation with a host, on this thread.
pub(super) fn block_on<T>(
    conversation: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, conversation);
    runtime.shutdown_background();
    result
}
