"""libzmq's side of tests/zmtp_interop.rs: every check that fails here ends this process with a traceback."""

import json
import sys

import zmq

PATIENCE_MS = 20_000
BIG = bytes(range(256)) * 200_000  # 51.2 MB


def socket(context, kind):
    s = context.socket(kind)
    s.linger = PATIENCE_MS
    s.rcvtimeo = s.sndtimeo = PATIENCE_MS
    return s


def connect(context, router, xpub, rep):
    """Clients of farside's sockets."""
    dealer = socket(context, zmq.DEALER)
    dealer.routing_id = b"py-1"
    dealer.connect(router)
    for parts in ([b"one"], [b"", b"x" * 255, b"y" * 256, b""], [b"head", BIG, b"tail"]):
        dealer.send_multipart(parts, copy=False)
        assert dealer.recv_multipart() == parts

    # A socket of its own, since libzmq counts whole frames only: a large one that takes longer than the time-out
    # ends the connection, whoever sends it.
    beating = socket(context, zmq.DEALER)
    beating.setsockopt(zmq.HEARTBEAT_IVL, 50)
    beating.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1000)
    events = beating.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    beating.connect(router)
    # A time-out that is meant: heartbeats, none of which may go unanswered.
    assert not events.poll(1500), "farside did not answer PING"
    beating.disable_monitor()
    beating.send(b"still here")

    # The same identity once more while the first connection is still there.
    again = socket(context, zmq.DEALER)
    again.routing_id = b"py-1"
    again.connect(router)
    again.send(b"again")
    assert again.recv() == b"again"

    sub = socket(context, zmq.SUB)
    sub.subscribe(b"a")
    sub.connect(xpub)
    assert sub.recv_multipart() == [b"a.1", b"payload"]
    sub.unsubscribe(b"a")
    sub.subscribe(b"b")
    assert sub.recv_multipart() == [b"b.1", b""]

    req = socket(context, zmq.REQ)
    req.connect(rep)
    for beat in (b"ping", b""):
        req.send(beat)
        assert req.recv() == beat


def bind(context, router, xpub, rep):
    """Servers for farside's clients. Says on stdout where each one is."""
    sockets = [socket(context, kind) for kind in (zmq.ROUTER, zmq.XPUB, zmq.REP)]
    for s, endpoint in zip(sockets, (router, xpub, rep)):
        s.bind(endpoint)
    print(json.dumps([s.last_endpoint.decode() for s in sockets]), flush=True)
    router, xpub, rep = sockets
    for _ in range(3):
        identity, *parts = router.recv_multipart(copy=False)
        assert identity.bytes == b"farside"
        router.send_multipart([identity, *parts], copy=False)
    assert xpub.recv() == b"\x01topic"
    xpub.send_multipart([b"other", b"not for you"])
    xpub.send_multipart([b"topic.x", BIG])
    assert xpub.recv() == b"\x00topic"
    for _ in range(2):
        rep.send(rep.recv())


if __name__ == "__main__":
    with zmq.Context() as context:
        {"connect": connect, "bind": bind}[sys.argv[1]](context, *sys.argv[2:])
        context.destroy(linger=PATIENCE_MS)
