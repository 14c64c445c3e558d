//! How much the wire carries: engine -> relay -> frontend, the relay verifying one key and signing with another, as
//! host and launcher do together. Rates mean something in a release build only, and on a quiet machine:
//!
//!     cargo test --release --test zmtp_throughput -- --ignored --nocapture

use std::time::{Duration, Instant};

use bytes::Bytes;
use farside::transport::{Incoming, Limits, Listener, Reader, Writer, connect, handshake};
use farside::wire::zmtp::SocketType;
use farside::wire::{Endpoint, Key, Message, frame};
use tokio::runtime::Builder;

/// What the whole path must carry, on two cores.
const SMALL_MESSAGES_PER_S_MIN: f64 = 150_000.0;
const LARGE_MB_PER_S_MIN: f64 = 500.0;

/// A debug build hashes a hundred times slower: there the tests only show that they run.
const COUNT_DIVISOR: usize = if cfg!(debug_assertions) { 100 } else { 1 };

const BATCH_BYTES: usize = 256 * 1024;

async fn join(endpoint: &Endpoint, ours: SocketType) -> (Reader, Writer) {
    let stream = connect(endpoint).await.unwrap();
    let timeout = Duration::from_secs(10);
    let (reader, writer, _) = handshake(stream, ours, b"", Limits::default(), timeout)
        .await
        .unwrap();
    (reader, writer)
}

async fn accept(listener: &Listener, ours: SocketType) -> (Reader, Writer) {
    let stream = listener.accept().await.unwrap();
    let timeout = Duration::from_secs(10);
    let (reader, writer, _) = handshake(stream, ours, b"", Limits::default(), timeout)
        .await
        .unwrap();
    (reader, writer)
}

/// Takes in what has come, sends it on re-signed in as few writes as may be.
async fn relay(mut reader: Reader, mut writer: Writer, verify: Key, sign: Key) {
    while let Some(first) = reader.recv().await.unwrap() {
        let mut next = Some(first);
        while let Some(Incoming::Message(parts)) = next {
            let message = frame::decode_trusted(parts, &verify).unwrap();
            writer.enqueue(&frame::encode(&message, &sign));
            next = if writer.queued_bytes() < BATCH_BYTES {
                reader.buffered().unwrap()
            } else {
                None
            };
        }
        writer.flush().await.unwrap();
    }
}

/// Seconds that `count` messages with `content_bytes` of content take to get through.
fn carry(count: usize, content_bytes: usize, engine_key: Key) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let engine = Endpoint::Ipc {
        path: path("engine"),
    };
    let engine_for_relay = engine.clone();
    let any = Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    };
    let frontend_key = Key::new("frontend");
    let frontend_key_of_relay = frontend_key.clone();
    let engine_key_of_relay = engine_key.clone();
    let (tell, told) = std::sync::mpsc::channel();

    // The engine and the frontend on one core, the relay on the other.
    let relay_thread = std::thread::spawn(move || {
        Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let listener = Listener::bind(&any).await.unwrap();
                tell.send(listener.local_endpoint().unwrap()).unwrap();
                let (_from_frontend, writer) = accept(&listener, SocketType::Xpub).await;
                let (reader, _to_engine) = join(&engine_for_relay, SocketType::Sub).await;
                relay(reader, writer, engine_key_of_relay, frontend_key_of_relay).await;
            });
    });
    let seconds = Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let listener = Listener::bind(&engine).await.unwrap();
        let (mut from_relay, _writer) = join(&told.recv().unwrap(), SocketType::Sub).await;
        let (_reader, mut to_relay) = accept(&listener, SocketType::Xpub).await;
        let message = Message {
            identities: vec![Bytes::from_static(b"kernel.0f8e.stream.stdout")],
            header: Bytes::from_static(br#"{"msg_id": "f95461b7-db55e196e88d1bcc52d46ca2_19565_12", "msg_type": "stream", "username": "username", "session": "f95461b7-db55e196e88d1bcc52d46ca2", "date": "2026-11-22T08:31:49.486375Z", "version": "5.4"}"#),
            parent_header: Bytes::from_static(br#"{"msg_id": "a95461b7-db55e196e88d1bcc52d46ca2_19565_12", "msg_type": "execute_request", "username": "username", "session": "a95461b7-db55e196e88d1bcc52d46ca2", "date": "2026-11-22T08:31:49.486375Z", "version": "5.4"}"#),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from(vec![b' '; content_bytes]),
            buffers: vec![],
        };
        let parts = frame::encode(&message, &engine_key);
        let start = Instant::now();
        let sending = async {
            let per_batch = (BATCH_BYTES / content_bytes).max(1);
            let mut left = count;
            while left > 0 {
                let n = left.min(per_batch);
                to_relay.send_many(std::iter::repeat_n(&parts, n)).await.unwrap();
                left -= n;
            }
        };
        let receiving = async {
            for _ in 0..count {
                let Some(Incoming::Message(parts)) = from_relay.recv().await.unwrap() else { panic!("a message was due") };
                assert_eq!(parts[6].len(), content_bytes);
            }
        };
        tokio::join!(sending, receiving);
        start.elapsed().as_secs_f64()
    });
    relay_thread.join().unwrap();
    seconds
}

fn assert_at_least(what: &str, rate: f64, min: f64) {
    println!("{what}: {rate:.0} (at least {min})");
    assert!(
        rate >= min || cfg!(debug_assertions),
        "{what}: {rate:.0}, at least {min} is due"
    );
}

#[test]
#[ignore = "measures; needs a release build and a quiet machine"]
fn small_messages() {
    for (name, key) in [
        ("signed", Key::new("engine")),
        ("unsigned engine", Key::none()),
    ] {
        let count = 300_000 / COUNT_DIVISOR;
        let rate = count as f64 / carry(count, 100, key);
        assert_at_least(
            &format!("small messages/s, {name}"),
            rate,
            SMALL_MESSAGES_PER_S_MIN,
        );
    }
}

#[test]
#[ignore = "measures; needs a release build and a quiet machine"]
fn large_messages() {
    for (name, key) in [
        ("signed", Key::new("engine")),
        ("unsigned engine", Key::none()),
    ] {
        for (count, content_bytes) in [
            (10_000 / COUNT_DIVISOR, 100_000),
            (5, 200_000_000 / COUNT_DIVISOR),
        ] {
            let rate =
                (count * content_bytes) as f64 / 1e6 / carry(count, content_bytes, key.clone());
            assert_at_least(
                &format!("MB/s, messages of {content_bytes} bytes, {name}"),
                rate,
                LARGE_MB_PER_S_MIN,
            );
        }
    }
}
