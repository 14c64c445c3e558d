//! The transport against two other implementations of ZMTP: the zeromq crate, and libzmq through pyzmq.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use farside::transport::{Incoming, Limits, Listener, Peer, Reader, Writer, connect, handshake};
use farside::wire::Endpoint;
use farside::wire::zmtp::SocketType;
use zeromq::{Socket, SocketOptions, SocketRecv, SocketSend, ZmqMessage};

/// No test waits longer for anything that is due.
const PATIENCE: Duration = Duration::from_secs(60);

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("this should have happened long ago")
}

/// A tcp endpoint with any free port and an ipc endpoint in a folder of its own.
fn both_transports() -> (tempfile::TempDir, [Endpoint; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let tcp = Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    };
    let ipc = ipc(&dir, "s");
    (dir, [tcp, ipc])
}

fn ipc(dir: &tempfile::TempDir, name: &str) -> Endpoint {
    let path = dir.path().join(name).to_str().unwrap().into();
    Endpoint::Ipc { path }
}

/// What the other implementations call an endpoint, as ours.
fn parse(endpoint: &str) -> Endpoint {
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        return Endpoint::Ipc { path: path.into() };
    }
    let (host, port) = endpoint
        .strip_prefix("tcp://")
        .unwrap()
        .rsplit_once(':')
        .unwrap();
    Endpoint::Tcp {
        host: host.into(),
        port: port.parse().unwrap(),
    }
}

async fn accept(listener: &Listener, ours: SocketType) -> (Reader, Writer, Peer) {
    let stream = due(listener.accept()).await.unwrap();
    handshake(stream, ours, b"", Limits::default(), PATIENCE)
        .await
        .unwrap()
}

async fn join(endpoint: &str, ours: SocketType, identity: &[u8]) -> (Reader, Writer, Peer) {
    let stream = due(connect(&parse(endpoint))).await.unwrap();
    handshake(stream, ours, identity, Limits::default(), PATIENCE)
        .await
        .unwrap()
}

async fn recv(reader: &mut Reader) -> Incoming {
    due(reader.recv())
        .await
        .unwrap()
        .expect("the peer should still be there")
}

async fn recv_message(reader: &mut Reader) -> Vec<Bytes> {
    match recv(reader).await {
        Incoming::Message(parts) => parts,
        other => panic!("a message was due, not {other:?}"),
    }
}

fn parts(parts: &[&[u8]]) -> Vec<Bytes> {
    parts.iter().map(|p| Bytes::copy_from_slice(p)).collect()
}

fn zmq(parts: Vec<Bytes>) -> ZmqMessage {
    ZmqMessage::try_from(parts).unwrap()
}

/// Messages with every shape of frame head, and one of 50 MB.
fn corpus() -> Vec<Vec<Bytes>> {
    let big: Vec<u8> = (0..50_000_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    vec![
        parts(&[b"one"]),
        vec![
            Bytes::new(),
            vec![b'x'; 255].into(),
            vec![b'y'; 256].into(),
            Bytes::new(),
        ],
        vec![
            b"head".to_vec().into(),
            vec![b'z'; 70_000].into(),
            b"tail".to_vec().into(),
        ],
        vec![b"head".to_vec().into(), big.into(), b"tail".to_vec().into()],
    ]
}

#[tokio::test]
async fn our_router_and_the_crates_dealer() {
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let listener = Listener::bind(&endpoint).await.unwrap();
        let at = listener.local_endpoint().unwrap().to_string();
        let mut options = SocketOptions::default();
        options.peer_identity("client-7".parse().unwrap());
        let mut dealer = zeromq::DealerSocket::with_options(options);
        let (connected, (mut reader, mut writer, peer)) =
            tokio::join!(dealer.connect(&at), accept(&listener, SocketType::Router));
        connected.unwrap();
        assert_eq!(peer.socket_type, SocketType::Dealer);
        assert_eq!(peer.identity.as_deref(), Some(&b"client-7"[..]));
        for message in corpus() {
            let (sent, got) =
                tokio::join!(dealer.send(zmq(message.clone())), recv_message(&mut reader));
            sent.unwrap();
            assert!(got == message);
            let (sent, got) = tokio::join!(writer.send(&message), due(dealer.recv()));
            sent.unwrap();
            assert!(got.unwrap().into_vec() == message);
        }
    }
}

#[tokio::test]
async fn our_dealer_and_the_crates_router() {
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let mut router = zeromq::RouterSocket::new();
        let at = router
            .bind(&endpoint.to_string())
            .await
            .unwrap()
            .to_string();
        let (mut reader, mut writer, peer) = join(&at, SocketType::Dealer, b"farside").await;
        assert_eq!(peer.socket_type, SocketType::Router);
        for message in corpus() {
            let (sent, got) = tokio::join!(writer.send(&message), due(router.recv()));
            sent.unwrap();
            let got = got.unwrap();
            assert_eq!(got.get(0).unwrap(), "farside");
            assert!(got.iter().skip(1).eq(&message));
            let (sent, got) = tokio::join!(router.send(got), recv_message(&mut reader));
            sent.unwrap();
            assert!(got == message);
        }
    }
}

#[tokio::test]
async fn our_xpub_and_the_crates_sub() {
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let listener = Listener::bind(&endpoint).await.unwrap();
        let at = listener.local_endpoint().unwrap().to_string();
        let mut sub = zeromq::SubSocket::new();
        let (connected, (mut reader, mut writer, peer)) =
            tokio::join!(sub.connect(&at), accept(&listener, SocketType::Xpub));
        connected.unwrap();
        assert_eq!(peer.socket_type, SocketType::Sub);
        sub.subscribe("stream").await.unwrap();
        assert_eq!(
            recv(&mut reader).await,
            Incoming::Subscribe("stream".into())
        );
        for message in corpus() {
            let (sent, got) = tokio::join!(writer.send(&message), due(sub.recv()));
            sent.unwrap();
            assert!(got.unwrap().into_vec() == message);
        }
        sub.unsubscribe("stream").await.unwrap();
        assert_eq!(
            recv(&mut reader).await,
            Incoming::Unsubscribe("stream".into())
        );
    }
}

#[tokio::test]
async fn our_sub_and_the_crates_xpub() {
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let mut xpub = zeromq::XPubSocket::new();
        let at = xpub.bind(&endpoint.to_string()).await.unwrap().to_string();
        let (mut reader, mut writer, _) = join(&at, SocketType::Sub, b"").await;
        writer.subscribe(b"a").await.unwrap();
        assert_eq!(
            due(xpub.recv()).await.unwrap().into_vec(),
            parts(&[b"\x01a"])
        );
        xpub.send(zmq(parts(&[b"b", b"not for you"])))
            .await
            .unwrap();
        let big = vec![b"a.1".to_vec().into(), Bytes::from(vec![3; 50_000_000])];
        let (sent, got) = tokio::join!(xpub.send(zmq(big.clone())), recv_message(&mut reader));
        sent.unwrap();
        assert!(got == big);
        writer.unsubscribe(b"a").await.unwrap();
        assert_eq!(
            due(xpub.recv()).await.unwrap().into_vec(),
            parts(&[b"\x00a"])
        );
    }
}

#[tokio::test]
async fn our_req_and_rep_and_the_crates() {
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let mut rep = zeromq::RepSocket::new();
        let at = rep.bind(&endpoint.to_string()).await.unwrap().to_string();
        let (mut reader, mut writer, _) = join(&at, SocketType::Req, b"").await;
        // A REQ's messages begin with an empty part.
        writer.send(&parts(&[b"", b"beat"])).await.unwrap();
        let beat = due(rep.recv()).await.unwrap();
        assert_eq!(beat.clone().into_vec(), parts(&[b"beat"]));
        rep.send(beat).await.unwrap();
        assert_eq!(recv_message(&mut reader).await, parts(&[b"", b"beat"]));
    }
    let (_dir, endpoints) = both_transports();
    for endpoint in endpoints {
        let listener = Listener::bind(&endpoint).await.unwrap();
        let at = listener.local_endpoint().unwrap().to_string();
        let mut req = zeromq::ReqSocket::new();
        let (connected, (mut reader, mut writer, _)) =
            tokio::join!(req.connect(&at), accept(&listener, SocketType::Rep));
        connected.unwrap();
        req.send(zmq(parts(&[b"beat"]))).await.unwrap();
        // Echoed as it came, as the heartbeat is.
        let beat = recv_message(&mut reader).await;
        writer.send(&beat).await.unwrap();
        assert_eq!(due(req.recv()).await.unwrap().into_vec(), parts(&[b"beat"]));
    }
}

/// A Python process that runs tests/zmtp_peer.py; killed if the test fails.
struct Python(Child);

impl Python {
    /// `None`, with a line that says so: no Python was named.
    fn run(mode: &str, endpoints: [String; 3]) -> Option<Self> {
        let Some(python) = std::env::var_os("FARSIDE_TEST_PYTHON") else {
            println!("skipped: FARSIDE_TEST_PYTHON names no Python with pyzmq");
            return None;
        };
        let import = Command::new(&python).args(["-c", "import zmq"]).status();
        assert!(
            import.as_ref().is_ok_and(ExitStatus::success),
            "FARSIDE_TEST_PYTHON={} cannot import zmq: {import:?}",
            python.display()
        );
        let child = Command::new(&python)
            .args([
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/zmtp_peer.py"),
                mode,
            ])
            .args(endpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("FARSIDE_TEST_PYTHON={}: {e}", python.display()));
        Some(Self(child))
    }

    /// The endpoints that it says it has bound.
    async fn bound(&mut self) -> [String; 3] {
        let mut stdout = BufReader::new(self.0.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::task::spawn_blocking(move || stdout.read_line(&mut line).map(|_| line));
        let line = due(read).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("the Python peer said {line:?}: {e}"))
    }

    async fn succeeds(mut self) {
        let ended = due(tokio::task::spawn_blocking(move || (self.0.wait(), self))).await;
        assert!(
            ended.unwrap().0.unwrap().success(),
            "the Python peer failed, see above"
        );
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn libzmq_connects_to_us() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = || Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    };
    let rounds = [
        [tcp(), tcp(), tcp()],
        [ipc(&dir, "router"), ipc(&dir, "xpub"), ipc(&dir, "rep")],
    ];
    for endpoints in rounds {
        let [router, xpub, rep] = [
            Listener::bind(&endpoints[0]).await.unwrap(),
            Listener::bind(&endpoints[1]).await.unwrap(),
            Listener::bind(&endpoints[2]).await.unwrap(),
        ];
        let at = [&router, &xpub, &rep].map(|l| l.local_endpoint().unwrap().to_string());
        let Some(python) = Python::run("connect", at) else {
            return;
        };

        let (mut reader, mut writer, peer) = accept(&router, SocketType::Router).await;
        assert_eq!(peer.identity.as_deref(), Some(&b"py-1"[..]));
        for expected_bytes in [3, 511, 8 + 51_200_000] {
            let message = recv_message(&mut reader).await;
            assert_eq!(
                message.iter().map(Bytes::len).sum::<usize>(),
                expected_bytes
            );
            writer.send(&message).await.unwrap();
        }
        // On the same connection, after many heartbeats.
        let (mut beaten, _to_beating, _) = accept(&router, SocketType::Router).await;
        assert_eq!(recv_message(&mut beaten).await, parts(&[b"still here"]));
        let (mut again, mut to_again, peer) = accept(&router, SocketType::Router).await;
        assert_eq!(peer.identity.as_deref(), Some(&b"py-1"[..]));
        let message = recv_message(&mut again).await;
        to_again.send(&message).await.unwrap();

        let (mut subscriptions, mut publish, _) = accept(&xpub, SocketType::Xpub).await;
        assert_eq!(
            recv(&mut subscriptions).await,
            Incoming::Subscribe("a".into())
        );
        publish.send(&parts(&[b"a.1", b"payload"])).await.unwrap();
        assert_eq!(
            recv(&mut subscriptions).await,
            Incoming::Unsubscribe("a".into())
        );
        assert_eq!(
            recv(&mut subscriptions).await,
            Incoming::Subscribe("b".into())
        );
        publish.send(&parts(&[b"b.1", b""])).await.unwrap();

        let (mut beats, mut echo, _) = accept(&rep, SocketType::Rep).await;
        for _ in 0..2 {
            let beat = recv_message(&mut beats).await;
            echo.send(&beat).await.unwrap();
        }
        python.succeeds().await;
        assert!(matches!(due(reader.recv()).await, Ok(None)));
    }
}

#[tokio::test]
async fn we_connect_to_libzmq() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = || "tcp://127.0.0.1:*".to_string();
    let rounds = [
        [tcp(), tcp(), tcp()],
        ["router", "xpub", "rep"].map(|name| ipc(&dir, name).to_string()),
    ];
    for endpoints in rounds {
        let Some(mut python) = Python::run("bind", endpoints) else {
            return;
        };
        let [router, xpub, rep] = python.bound().await;

        let (mut reader, mut writer, _) = join(&router, SocketType::Dealer, b"farside").await;
        for message in corpus().split_off(1) {
            let (sent, got) = tokio::join!(writer.send(&message), recv_message(&mut reader));
            sent.unwrap();
            assert!(got == message);
        }
        let (mut reader, mut writer, peer) = join(&xpub, SocketType::Sub, b"").await;
        assert_eq!(peer.socket_type, SocketType::Xpub);
        writer.subscribe(b"topic").await.unwrap();
        let message = recv_message(&mut reader).await;
        assert_eq!(
            (&message[0][..], message[1].len()),
            (&b"topic.x"[..], 51_200_000)
        );
        writer.unsubscribe(b"topic").await.unwrap();

        let (mut reader, mut writer, _) = join(&rep, SocketType::Req, b"").await;
        for beat in [parts(&[b"", b"ping"]), parts(&[b"", b""])] {
            writer.send(&beat).await.unwrap();
            assert_eq!(recv_message(&mut reader).await, beat);
        }
        python.succeeds().await;
    }
}
