//! The thread that reads the engine's iopub, and does nothing else: an engine's PUB socket drops what is not read
//! in time. While the core has enough before it, it goes on reading into the spool.

use tokio::sync::watch;

use super::driver::Input;
use super::engine::{Endpoints, EngineInput, RETRY_EVERY};
use super::held::{Connection, Stream};
use super::inbox::Inbox;
use crate::transport::Incoming;
use crate::wire::{Message, frame};

/// Messages that were read together go to the core together, up to so many bytes.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Starts the thread. It ends when `until` closes.
pub(super) fn start(
    endpoints: Endpoints,
    stream: Stream,
    inbox: Inbox<Input>,
    until: watch::Receiver<()>,
) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("iopub".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(&endpoints, stream, &inbox, until)),
                Err(error) => tracing::error!(%error, "no runtime for the engine's iopub"),
            }
        })?;
    Ok(())
}

async fn run(
    endpoints: &Endpoints,
    mut stream: Stream,
    inbox: &Inbox<Input>,
    mut until: watch::Receiver<()>,
) {
    loop {
        tokio::select! {
            _ = until.changed() => return,
            () = read(endpoints, &mut stream, inbox) => {}
        }
        tokio::select! {
            _ = until.changed() => return,
            () = tokio::time::sleep(RETRY_EVERY) => {}
        }
    }
}

/// One connection, from its beginning to its end.
async fn read(endpoints: &Endpoints, stream: &mut Stream, inbox: &Inbox<Input>) {
    let generation = endpoints.generation;
    let channel = stream.channel;
    // PONGs that are owed go out with the reads.
    let Some((mut connection, _writer)) = stream.connect(endpoints).await else {
        return;
    };
    inbox.send_now(Input::Engine(EngineInput::Up {
        generation,
        channel,
        hold: connection.hold.take(),
    }));
    while let Some((messages, bytes)) = batch(&mut connection, endpoints).await {
        let kept = connection.kept();
        let input = Input::Iopub {
            generation,
            messages,
            kept,
        };
        tokio::select! {
            biased;
            sent = inbox.send(input, bytes) => if !sent {
                return;
            },
            never = connection.reader.read_ahead() => match never {},
        }
    }
    stream.ended(&connection.reader);
    inbox.send_now(Input::Engine(EngineInput::Down {
        generation,
        channel,
    }));
}

/// What has come: at least one thing, and all that came with it, each with its end in the stream. `None`: the connection
/// ended.
async fn batch(
    connection: &mut Connection,
    endpoints: &Endpoints,
) -> Option<(Vec<(Message, u32)>, usize)> {
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut next = match connection.reader.recv().await {
        Ok(next) => next?,
        Err(error) => {
            tracing::warn!(%error, "the engine's iopub broke");
            return None;
        }
    };
    loop {
        if let Incoming::Message(parts) = next
            && !connection.was_heard()
        {
            match frame::decode_trusted(parts, &endpoints.key) {
                Ok(message) => {
                    bytes += message.queue_bytes();
                    messages.push((message, connection.heard_now()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the engine sent something that is no message; dropped")
                }
            }
        }
        if bytes >= BATCH_BYTES_MAX {
            return Some((messages, bytes));
        }
        match connection.reader.buffered() {
            Ok(Some(more)) => next = more,
            // An error comes again with the next read, after these messages.
            Ok(None) | Err(_) => return Some((messages, bytes)),
        }
    }
}
