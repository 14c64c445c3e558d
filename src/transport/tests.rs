use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::spool::Spool;
use crate::unix_stream;
use crate::wire::Endpoint;
use crate::wire::zmtp::{Decoder, Event, Outgoing, greeting, ready};

/// No test waits longer for anything that is due.
const PATIENCE: Duration = Duration::from_secs(20);

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("this should have happened long ago")
}

fn unix(stream: UnixStream) -> Stream {
    Stream::Unix(unix_stream::UnixStream::new(stream).unwrap())
}

fn streams() -> (Stream, Stream) {
    let (a, b) = UnixStream::pair().unwrap();
    (unix(a), unix(b))
}

async fn shake(
    stream: Stream,
    ours: SocketType,
    identity: &[u8],
) -> Result<(Reader, Writer, Peer), TransportError> {
    handshake(stream, ours, identity, Limits::default(), PATIENCE).await
}

/// Two ends of one connection.
async fn connected(
    a: SocketType,
    b: SocketType,
) -> ((Reader, Writer, Peer), (Reader, Writer, Peer)) {
    let (left, right) = streams();
    let (left, right) =
        due(async { tokio::join!(shake(left, a, b"left"), shake(right, b, b"")) }).await;
    (left.unwrap(), right.unwrap())
}

/// Our end, and the bare stream at the other one, past the handshake.
async fn with_bare_peer(ours: SocketType, theirs: SocketType) -> (Reader, Writer, UnixStream) {
    let (stream, mut bare) = UnixStream::pair().unwrap();
    bare.write_all(&[&greeting()[..], &ready(theirs, b"")].concat())
        .await
        .unwrap();
    let (reader, writer, _) = shake(unix(stream), ours, b"").await.unwrap();
    let mut said = vec![0; greeting().len() + ready(ours, b"").len()];
    bare.read_exact(&mut said).await.unwrap();
    (reader, writer, bare)
}

fn message(parts: &[&[u8]]) -> Vec<Bytes> {
    parts.iter().map(|p| Bytes::copy_from_slice(p)).collect()
}

async fn recv(reader: &mut Reader) -> Option<Incoming> {
    due(reader.recv()).await.unwrap()
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let ((_r, _w, seen_left), (_r2, _w2, seen_right)) =
        connected(SocketType::Dealer, SocketType::Router).await;
    assert_eq!(
        seen_left,
        Peer {
            socket_type: SocketType::Router,
            identity: None
        }
    );
    assert_eq!(
        seen_right,
        Peer {
            socket_type: SocketType::Dealer,
            identity: Some("left".into())
        }
    );
}

#[tokio::test]
async fn sockets_that_do_not_match_are_refused() {
    let (a, b) = streams();
    let (a, b) = due(async {
        tokio::join!(
            shake(a, SocketType::Router, b""),
            shake(b, SocketType::Sub, b"")
        )
    })
    .await;
    let (a, b) = (a.unwrap_err().to_string(), b.unwrap_err().to_string());
    assert_eq!(a, "a ROUTER socket cannot talk to the peer's SUB socket");
    assert_eq!(b, "a SUB socket cannot talk to the peer's ROUTER socket");
}

#[tokio::test]
async fn a_probe_is_told_from_a_broken_handshake() {
    let (stream, bare) = UnixStream::pair().unwrap();
    drop(bare);
    let refused = shake(unix(stream), SocketType::Router, b"").await;
    assert!(matches!(refused, Err(TransportError::Probe)), "{refused:?}");

    let (stream, mut bare) = UnixStream::pair().unwrap();
    bare.write_all(&greeting()).await.unwrap();
    bare.shutdown().await.unwrap();
    let refused = shake(unix(stream), SocketType::Router, b"").await;
    assert!(
        matches!(refused, Err(TransportError::Truncated("the handshake"))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_tcp_probe_is_one_too() {
    let listener = Listener::bind(&Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    })
    .await
    .unwrap();
    drop(connect(&listener.local_endpoint().unwrap()).await.unwrap());
    let stream = due(listener.accept()).await.unwrap();
    let refused = shake(stream, SocketType::Router, b"").await;
    assert!(matches!(refused, Err(TransportError::Probe)), "{refused:?}");
}

#[tokio::test]
async fn a_stranger_and_a_silent_peer_are_refused() {
    let (stream, mut bare) = UnixStream::pair().unwrap();
    bare.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let refused = shake(unix(stream), SocketType::Router, b"").await;
    assert!(
        matches!(refused, Err(TransportError::Zmtp(ZmtpError::NotZmtp))),
        "{refused:?}"
    );

    let (stream, _silent) = streams();
    let limit = Duration::from_millis(5);
    let refused = due(handshake(
        stream,
        SocketType::Router,
        b"",
        Limits::default(),
        limit,
    ))
    .await;
    assert!(
        matches!(refused, Err(TransportError::HandshakeTimeout(t)) if t == limit),
        "{refused:?}"
    );
}

#[tokio::test]
async fn messages_go_both_ways_and_the_end_is_seen() {
    let ((mut ra, mut wa, _), (mut rb, mut wb, _)) =
        connected(SocketType::Dealer, SocketType::Router).await;
    wa.send(&message(&[b"a", b"", b"c"])).await.unwrap();
    wa.send_many([message(&[b"second"]), message(&[b"third"])])
        .await
        .unwrap();
    assert_eq!(
        recv(&mut rb).await,
        Some(Incoming::Message(message(&[b"a", b"", b"c"])))
    );
    assert_eq!(
        rb.buffered().unwrap(),
        Some(Incoming::Message(message(&[b"second"])))
    );
    assert_eq!(
        rb.buffered().unwrap(),
        Some(Incoming::Message(message(&[b"third"])))
    );
    assert_eq!(rb.buffered().unwrap(), None);
    wb.send(&message(&[b"back"])).await.unwrap();
    drop((rb, wb));
    assert_eq!(
        recv(&mut ra).await,
        Some(Incoming::Message(message(&[b"back"])))
    );
    assert_eq!(recv(&mut ra).await, None);
    assert_eq!(recv(&mut ra).await, None);
}

#[tokio::test]
async fn an_end_within_a_message_is_an_error() {
    let (mut reader, _writer, mut bare) =
        with_bare_peer(SocketType::Router, SocketType::Dealer).await;
    bare.write_all(b"\x00\x01a\x01\x01b").await.unwrap();
    drop(bare);
    assert_eq!(
        recv(&mut reader).await,
        Some(Incoming::Message(message(&[b"a"])))
    );
    let end = reader.recv().await;
    assert!(
        matches!(end, Err(TransportError::Truncated("a message"))),
        "{end:?}"
    );
    assert!(matches!(reader.recv().await, Ok(None)));
}

#[tokio::test]
async fn subscriptions_of_both_versions_are_understood() {
    let (mut reader, _writer, mut bare) = with_bare_peer(SocketType::Xpub, SocketType::Sub).await;
    bare.write_all(
        b"\x00\x03\x01ab\x04\x0b\x09SUBSCRIBEc\x00\x01\x00\x04\x08\x06CANCELc\x00\x02\x02x",
    )
    .await
    .unwrap();
    for expected in [
        Incoming::Subscribe("ab".into()),
        Incoming::Subscribe("c".into()),
        Incoming::Unsubscribe("".into()),
        Incoming::Unsubscribe("c".into()),
        Incoming::Message(message(&[b"\x02x"])),
    ] {
        assert_eq!(recv(&mut reader).await, Some(expected));
    }
}

#[tokio::test]
async fn a_subscriber_subscribes() {
    let ((_ra, mut wa, _), (mut rb, _wb, _)) = connected(SocketType::Sub, SocketType::Xpub).await;
    wa.subscribe(b"stream").await.unwrap();
    wa.unsubscribe(b"stream").await.unwrap();
    assert_eq!(
        recv(&mut rb).await,
        Some(Incoming::Subscribe("stream".into()))
    );
    assert_eq!(
        recv(&mut rb).await,
        Some(Incoming::Unsubscribe("stream".into()))
    );
}

#[tokio::test]
async fn a_dropped_recv_loses_nothing() {
    let (mut reader, _writer, mut bare) =
        with_bare_peer(SocketType::Router, SocketType::Dealer).await;
    let sent: Vec<u8> = (0..20u8).flat_map(|i| [1, 2, i, i, 0, 1, i]).collect();
    let feed = tokio::spawn(async move {
        for byte in sent {
            bare.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        bare
    });
    let mut dropped = 0;
    for i in 0..20u8 {
        let incoming = loop {
            tokio::select! {
                biased;
                incoming = reader.recv() => break incoming.unwrap(),
                () = tokio::task::yield_now() => dropped += 1,
            }
        };
        assert_eq!(incoming, Some(Incoming::Message(message(&[&[i, i], &[i]]))));
    }
    assert!(dropped > 0, "no recv was ever dropped");
    feed.await.unwrap();
}

/// Fills the socket, so that the next flush has to wait.
async fn stall(writer: &mut Writer) -> usize {
    let big = [Bytes::from(vec![5; 50_000])];
    let mut sent = 0;
    loop {
        sent += 1;
        tokio::select! {
            biased;
            done = writer.send(&big) => done.unwrap(),
            () = tokio::task::yield_now() => return sent,
        }
    }
}

#[tokio::test]
async fn a_dropped_send_goes_out_whole_with_the_next() {
    let ((_ra, mut wa, _), (mut rb, _wb, _)) =
        connected(SocketType::Dealer, SocketType::Router).await;
    let sent = stall(&mut wa).await;
    assert!(wa.queued_bytes() > 0);
    let flush = tokio::spawn(async move {
        wa.send(&message(&[b"last"])).await.unwrap();
        assert_eq!(wa.queued_bytes(), 0);
        wa
    });
    for _ in 0..sent {
        let expected = Incoming::Message(vec![Bytes::from(vec![5; 50_000])]);
        assert!(recv(&mut rb).await == Some(expected));
    }
    assert_eq!(
        recv(&mut rb).await,
        Some(Incoming::Message(message(&[b"last"])))
    );
    due(flush).await.unwrap();
}

const PING: &[u8] = b"\x04\x0a\x04PING\x00\x10ctx";
const PONG: &[u8] = b"\x04\x08\x04PONGctx";

#[tokio::test]
async fn a_ping_is_answered_while_nobody_sends() {
    let (mut reader, _writer, mut bare) =
        with_bare_peer(SocketType::Router, SocketType::Dealer).await;
    let reading = tokio::spawn(async move { reader.recv().await.unwrap() });
    for _ in 0..3 {
        bare.write_all(PING).await.unwrap();
        let mut answer = vec![0; PONG.len()];
        due(bare.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, PONG);
    }
    bare.write_all(b"\x00\x01a").await.unwrap();
    assert_eq!(
        due(reading).await.unwrap(),
        Some(Incoming::Message(message(&[b"a"])))
    );
}

#[tokio::test]
async fn a_pong_waits_for_the_end_of_a_message_and_pings_do_not_pile_up() {
    let (mut reader, mut writer, mut bare) =
        with_bare_peer(SocketType::Router, SocketType::Dealer).await;
    let sent = stall(&mut writer).await;
    // The peer asks and asks, and reads nothing.
    let reading = tokio::spawn(async move {
        let got = reader.recv().await.unwrap();
        let queued = reader.link_queued_bytes();
        // From here on only the reader is there to write what is left.
        (got, queued, reader.recv().await.unwrap())
    });
    let (mut from, mut to) = bare.split();
    for _ in 0..1000 {
        due(to.write_all(PING)).await.unwrap();
    }
    due(to.write_all(b"\x00\x01a")).await.unwrap();
    let mut decoder = Decoder::new(Limits::default());
    decoder
        .extend(&[&greeting()[..], &ready(SocketType::Router, b"")].concat())
        .unwrap();
    let (mut messages, mut pongs) = (0, 0);
    let mut buf = vec![0; 100_000];
    while (messages, pongs) != (sent, 1) {
        let n = due(from.read(&mut buf)).await.unwrap();
        for event in decoder.extend(&buf[..n]).unwrap() {
            match event {
                Event::Message(parts) => {
                    assert!(parts == [vec![5; 50_000]]);
                    messages += 1;
                }
                Event::Pong => pongs += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    due(to.write_all(b"\x00\x01b")).await.unwrap();
    let (first, queued, second) = due(reading).await.unwrap();
    assert_eq!(first, Some(Incoming::Message(message(&[b"a"]))));
    assert!(queued < 50_000 + 100, "{queued} bytes wait");
    assert_eq!(second, Some(Incoming::Message(message(&[b"b"]))));
}

#[tokio::test]
async fn what_came_before_a_peer_left_is_still_read() {
    let (mut reader, _writer, mut bare) =
        with_bare_peer(SocketType::Router, SocketType::Dealer).await;
    bare.write_all(&[PING, b"\x00\x01a"].concat())
        .await
        .unwrap();
    drop(bare);
    assert_eq!(
        recv(&mut reader).await,
        Some(Incoming::Message(message(&[b"a"])))
    );
    assert_eq!(recv(&mut reader).await, None);
}

#[tokio::test]
async fn a_reader_does_not_starve_its_thread() {
    let ((_ra, mut wa, _), (mut rb, _wb, _)) =
        connected(SocketType::Dealer, SocketType::Router).await;
    for _ in 0..1000 {
        wa.enqueue(&message(&[b"x"]));
    }
    wa.flush().await.unwrap();
    assert!(recv(&mut rb).await.is_some());
    let read = std::rc::Rc::new(std::cell::Cell::new(0));
    let reading = async {
        while read.get() < 999 {
            rb.recv().await.unwrap().unwrap();
            read.set(read.get() + 1);
        }
    };
    let other = async {
        tokio::task::yield_now().await;
        read.get()
    };
    let local = tokio::task::LocalSet::new();
    let ((), at) = local
        .run_until(async { tokio::join!(reading, other) })
        .await;
    assert!(at < 999, "another task had to wait for {at} messages");
}

#[tokio::test]
async fn an_idle_reader_holds_little_memory_again_after_a_flood() {
    let ((_ra, mut wa, _), (mut rb, _wb, _)) =
        connected(SocketType::Dealer, SocketType::Router).await;
    let flood = tokio::spawn(async move {
        for _ in 0..200 {
            wa.send(&[Bytes::from(vec![0; 40_000])]).await.unwrap();
        }
        wa
    });
    for _ in 0..200 {
        assert!(recv(&mut rb).await.is_some());
    }
    let mut wa = due(flood).await.unwrap();
    assert!(
        rb.memory_bytes() > 100_000,
        "the flood should have made reads grow: {}",
        rb.memory_bytes()
    );
    for _ in 0..100 {
        wa.send(&message(&[b"x"])).await.unwrap();
        assert!(recv(&mut rb).await.is_some());
    }
    assert!(rb.memory_bytes() <= 20_000, "{} bytes", rb.memory_bytes());
}

#[tokio::test]
async fn a_unix_socket_is_private_replaces_a_dead_one_and_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel-ipc-1");
    let endpoint = Endpoint::Ipc {
        path: path.to_str().unwrap().into(),
    };
    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&endpoint).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(listener.local_endpoint().unwrap(), endpoint);

    let second = Listener::bind(&endpoint).await.unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    assert!(
        second.to_string().starts_with("cannot bind ipc://"),
        "{second}"
    );
    let (client, server) = due(async { tokio::join!(connect(&endpoint), listener.accept()) }).await;
    client.unwrap();
    server.unwrap();

    drop(listener);
    assert!(!path.exists());
    let refused = connect(&endpoint).await.unwrap_err().to_string();
    assert!(refused.starts_with("cannot connect to ipc://"), "{refused}");
}

#[tokio::test]
async fn a_socket_that_took_the_place_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let endpoint = Endpoint::Ipc {
        path: path.to_str().unwrap().into(),
    };
    let first = Listener::bind(&endpoint).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Listener::bind(&endpoint).await.unwrap();
    drop(first);
    connect(&endpoint).await.unwrap();
    // Nor is a file that is no socket at all.
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    Listener::bind(&Endpoint::Ipc {
        path: file.to_str().unwrap().into(),
    })
    .await
    .unwrap_err();
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn a_tcp_port_can_be_bound_again_at_once() {
    let any = Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    };
    let listener = Listener::bind(&any).await.unwrap();
    let endpoint = listener.local_endpoint().unwrap();
    let (client, server) = due(async { tokio::join!(connect(&endpoint), listener.accept()) }).await;
    let Stream::Tcp(mut client) = client.unwrap() else {
        panic!("tcp")
    };
    let Stream::Tcp(server) = server.unwrap() else {
        panic!("tcp")
    };
    assert!(client.nodelay().unwrap() && server.nodelay().unwrap());
    // The side that closes first has the port in TIME_WAIT.
    drop((server, listener));
    assert_eq!(due(client.read(&mut [0; 1])).await.unwrap(), 0);
    drop(client);
    Listener::bind(&endpoint).await.unwrap();
}

/// A reader that holds what it reads in a ring of `capacity` bytes.
async fn holding(capacity: usize) -> (Reader, Writer, UnixStream) {
    let (mut reader, writer, bare) = with_bare_peer(SocketType::Dealer, SocketType::Router).await;
    assert!(reader.hold(Spool::create(7, capacity).unwrap()));
    (reader, writer, bare)
}

/// What another process makes of a reader's socket and spool, when this one is gone without a word.
fn resumed(reader: Reader, writer: Writer) -> Option<(Reader, Writer)> {
    let socket = reader.socket().try_clone_to_owned().unwrap();
    let memory = reader.spool().unwrap().fd().try_clone_to_owned().unwrap();
    drop((reader, writer));
    resume(
        socket,
        Spool::open(memory).unwrap(),
        SocketType::Dealer,
        Limits::default(),
    )
    .unwrap()
}

#[tokio::test]
async fn what_nobody_can_take_yet_is_read_into_the_spool() {
    const CAPACITY: usize = 64 << 10;
    let (mut reader, _writer, mut bare) = holding(CAPACITY).await;
    let mut outgoing = Outgoing::default();
    for number in 0..40_u8 {
        outgoing.push_message(&message(&[&[number; 3000]]));
    }
    let bytes = encoded(&outgoing);
    bare.write_all(&bytes).await.unwrap();
    let is_full = async |reader: &mut Reader| {
        for _ in 0..1000 {
            let ahead = tokio::time::timeout(Duration::from_millis(1), reader.read_ahead());
            assert!(ahead.await.is_err(), "it is never done");
            if reader.spool().unwrap().is_full() {
                return true;
            }
        }
        false
    };
    assert!(is_full(&mut reader).await);
    for number in 0..40 {
        let next = due(reader.recv()).await.unwrap();
        assert_eq!(next, Some(Incoming::Message(message(&[&[number; 3000]]))));
        let spool = reader.spool().unwrap();
        spool.mark().consume(reader.position());
    }
    drop(bare);
    let ahead = tokio::time::timeout(Duration::from_millis(1), reader.read_ahead());
    assert!(ahead.await.is_err(), "the end is not for it");
    assert_eq!(due(reader.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn a_held_stream_goes_on_in_another_process() {
    let (mut reader, writer, mut bare) = holding(4096).await;
    let mut outgoing = Outgoing::default();
    for part in [&b"one"[..], b"two", b"three"] {
        outgoing.push_message(&message(&[part]));
    }
    let bytes = encoded(&outgoing);
    // The last message by half.
    let (first, rest) = bytes.split_at(bytes.len() - 2);
    bare.write_all(first).await.unwrap();
    let next = due(reader.recv()).await.unwrap();
    assert_eq!(next, Some(Incoming::Message(message(&[b"one"]))));
    reader.spool().unwrap().mark().consume(reader.position());
    // Read, and not consumed.
    let next = due(reader.recv()).await.unwrap();
    assert_eq!(next, Some(Incoming::Message(message(&[b"two"]))));
    let position = reader.position();
    let (mut reader, mut writer) = resumed(reader, writer).unwrap();
    bare.write_all(rest).await.unwrap();
    let next = due(reader.recv()).await.unwrap();
    assert_eq!(next, Some(Incoming::Message(message(&[b"two"]))));
    assert_eq!(reader.position(), position);
    let next = due(reader.recv()).await.unwrap();
    assert_eq!(next, Some(Incoming::Message(message(&[b"three"]))));
    // The other direction goes on, too.
    writer.send(&message(&[b"answer"])).await.unwrap();
    let mut said = [0; 8];
    due(bare.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said[2..], b"answer");
    drop(bare);
    assert_eq!(due(reader.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn a_connection_on_which_a_message_may_be_out_by_half_is_not_gone_on_with() {
    let (reader, mut writer, _bare) = holding(4096).await;
    let large = message(&[&[1; 8 << 20]]);
    let send = writer.send(&large);
    // The peer does not read.
    assert!(
        tokio::time::timeout(Duration::from_millis(50), send)
            .await
            .is_err()
    );
    assert!(resumed(reader, writer).is_none());
}

fn encoded(outgoing: &Outgoing) -> Vec<u8> {
    let mut slices = [std::io::IoSlice::new(&[]); 64];
    let filled = outgoing.slices(&mut slices);
    slices[..filled]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect()
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// Messages of any sizes beside the ring's, consumed now and then, the process replaced now and then: each comes, in
    /// order, none is lost; those that were not consumed come again. Only over one that passes the ring by nothing can
    /// be gone on with.
    #[test]
    fn nothing_held_is_lost(
        messages in proptest::collection::vec((proptest::collection::vec(proptest::prop_oneof![12 => 0..400_usize, 1 => 0..5000_usize], 1..6), 0..3_u8, proptest::bool::weighted(0.2)), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            const CAPACITY: usize = 6000;
            let in_ring = |parts: &[Bytes]| parts.iter().map(|part| part.len() + 9).sum::<usize>();
            let (mut reader, mut writer, mut bare) = holding(CAPACITY).await;
            let all: Vec<Vec<Bytes>> = (0..).zip(&messages).map(|(n, (parts, ..))| {
                parts.iter().map(|length| vec![n as u8; *length].into()).collect()
            }).collect();
            let to_send = all.clone();
            let sending = tokio::spawn(async move {
                for parts in to_send {
                    let mut outgoing = Outgoing::default();
                    outgoing.push_message(&parts);
                    bare.write_all(&encoded(&outgoing)).await.unwrap();
                }
                bare
            });
            let mut consumed = 0;
            let mut next = 0;
            let mut replaced_at = std::collections::HashSet::new();
            while next < all.len() {
                let got = due(reader.recv()).await.unwrap();
                assert_eq!(got, Some(Incoming::Message(all[next].clone())), "message {next}");
                let (_, what, replaced) = &messages[next];
                next += 1;
                // A reader that waits for room needs somebody who consumes; here nobody else does.
                let held: usize = all[consumed..].iter().take(next - consumed + 1).map(|parts| in_ring(parts)).sum();
                if *what == 0 || held > CAPACITY {
                    reader.spool().unwrap().mark().consume(reader.position());
                    consumed = next;
                }
                if *replaced && replaced_at.insert(next) {
                    let Some(new) = resumed(reader, writer) else {
                        // What comes behind a large one may have passed by with it.
                        assert!(all.iter().any(|parts| in_ring(parts) > CAPACITY / 2), "nothing passed by");
                        return;
                    };
                    (reader, writer) = new;
                    next = consumed;
                }
            }
            drop(sending.await.unwrap());
            assert_eq!(due(reader.recv()).await.unwrap(), None);
        });
    }
}
