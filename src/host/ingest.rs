//! The thread that reads the engine's iopub, and does nothing else: an engine's PUB socket drops what is not read
//! in time.

use std::time::Duration;

use tokio::sync::watch;

use super::driver::Input;
use super::engine::{Endpoints, EngineInput, RETRY_EVERY};
use super::inbox::Inbox;
use crate::transport::{self, Incoming, Reader};
use crate::wire::connection_file::Socket;
use crate::wire::zmtp::{Limits, SocketType};
use crate::wire::{Message, frame};

/// Messages that were read together go to the core together, up to so many bytes.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// How long the engine may take for the handshake: it is a process on this machine.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the thread. It ends when `until` closes.
pub(super) fn start(
    endpoints: Endpoints,
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
                Ok(runtime) => runtime.block_on(run(&endpoints, &inbox, until)),
                Err(error) => tracing::error!(%error, "no runtime for the engine's iopub"),
            }
        })?;
    Ok(())
}

async fn run(endpoints: &Endpoints, inbox: &Inbox<Input>, mut until: watch::Receiver<()>) {
    loop {
        tokio::select! {
            _ = until.changed() => return,
            () = read(endpoints, inbox) => {}
        }
        tokio::select! {
            _ = until.changed() => return,
            () = tokio::time::sleep(RETRY_EVERY) => {}
        }
    }
}

/// One connection, from its beginning to its end.
async fn read(endpoints: &Endpoints, inbox: &Inbox<Input>) {
    let generation = endpoints.generation;
    let Ok(stream) = transport::connect(&endpoints.file.endpoint(Socket::Iopub)).await else {
        return;
    };
    let shaken = transport::handshake(
        stream,
        SocketType::Sub,
        b"",
        Limits::default(),
        HANDSHAKE_TIMEOUT,
    )
    .await;
    let (mut reader, mut writer) = match shaken {
        Ok((reader, writer, _)) => (reader, writer),
        Err(error) => {
            tracing::debug!(%error, "no handshake with the engine's iopub yet");
            return;
        }
    };
    if writer.subscribe(b"").await.is_err() {
        return;
    }
    inbox.send_now(Input::Engine(EngineInput::Up {
        generation,
        channel: crate::wire::Channel::Iopub,
    }));
    while let Some((messages, bytes)) = batch(&mut reader, endpoints).await {
        if !inbox
            .send(
                Input::Iopub {
                    generation,
                    messages,
                },
                bytes,
            )
            .await
        {
            return;
        }
    }
    inbox.send_now(Input::Engine(EngineInput::Down {
        generation,
        channel: crate::wire::Channel::Iopub,
    }));
}

/// What has come: at least one thing, and all that came with it. `None`: the connection ended.
async fn batch(reader: &mut Reader, endpoints: &Endpoints) -> Option<(Vec<Message>, usize)> {
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut next = match reader.recv().await {
        Ok(next) => next?,
        Err(error) => {
            tracing::warn!(%error, "the engine's iopub broke");
            return None;
        }
    };
    loop {
        if let Incoming::Message(parts) = next {
            match frame::decode_trusted(parts, &endpoints.key) {
                Ok(message) => {
                    bytes += message.size_bytes();
                    messages.push(message);
                }
                Err(error) => {
                    tracing::warn!(%error, "the engine sent something that is no message; dropped")
                }
            }
        }
        if bytes >= BATCH_BYTES_MAX {
            return Some((messages, bytes));
        }
        match reader.buffered() {
            Ok(Some(more)) => next = more,
            // An error comes again with the next read, after these messages.
            Ok(None) | Err(_) => return Some((messages, bytes)),
        }
    }
}
