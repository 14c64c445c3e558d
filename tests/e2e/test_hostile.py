"""Covers items 4 and 5: wrong signatures, garbage and half-open connections disturb nobody."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq
from sandbox import Launcher, Sandbox, wait_until
from wire import DELIMITER, Client, dumps, endpoint


@pytest.fixture(scope="module")
def shared() -> Iterator[Launcher]:
    """One kernel for all tests of this file that leave it as it was; that they do is part of each test."""
    sandbox = Sandbox()
    yield sandbox.launch()
    wrong = sandbox.close()
    assert not wrong, wrong


def works(client: Client) -> None:
    assert client.run("print(6 * 7)").text == "42\n"


def good(client: Client, msg_id: str = "bad") -> list[bytes]:
    header = client.header("execute_request")
    content = {"code": "raised = 'a message with a bad signature ran'", "silent": False}
    return [dumps(header), b"{}", b"{}", dumps(content)]


BAD: dict[str, Callable[[Client], list[bytes]]] = {
    "wrong signature": lambda c: [DELIMITER, b"0" * 64, *good(c)],
    "signature of another key": lambda c: (lambda p: [DELIMITER, hmac.new(b"other", b"".join(p), hashlib.sha256).hexdigest().encode(), *p])(good(c)),
    "empty signature": lambda c: [DELIMITER, b"", *good(c)],
    "signature cut short": lambda c: (lambda p: [DELIMITER, c.sign(p)[:-2], *p])(good(c)),
    "signature in capitals": lambda c: (lambda p: [DELIMITER, c.sign(p).upper() + b"0", *p])(good(c)),
    "signature over other parts": lambda c: (lambda p: [DELIMITER, c.sign([*p, b"x"]), *p])(good(c)),
    "no signature frame": lambda c: [DELIMITER, *good(c)],
    "no delimiter": lambda c: good(c),
    "only a delimiter": lambda c: [DELIMITER],
    "delimiter and signature": lambda c: [DELIMITER, c.sign([])],
    "three parts": lambda c: (lambda p: [DELIMITER, c.sign(p[:3]), *p[:3]])(good(c)),
    "one empty frame": lambda c: [b""],
    "one byte": lambda c: [b"\xff"],
    "many empty frames": lambda c: [b""] * 300,
    "header is not JSON": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b"{nope", *good(c)[1:]]),
    "header is a list": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b"[]", *good(c)[1:]]),
    "header without msg_id": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b'{"msg_type":"execute_request"}', *good(c)[1:]]),
    "header with a number as msg_id": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b'{"msg_type":"x","msg_id":7}', *good(c)[1:]]),
    "header is not UTF-8": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b'{"msg_type":"\xff\xfe","msg_id":"1"}', *good(c)[1:]]),
    "content is not JSON": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([*good(c)[:3], b"{{{{"]),
    "header nested deeply": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([b"[" * 100_000, *good(c)[1:]]),
    "content nested deeply": lambda c: (lambda p: [DELIMITER, c.sign(p), *p])([*good(c)[:3], b'{"a":' * 100_000]),
}  # fmt: skip


@pytest.mark.parametrize("channel", ["shell", "control"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_is_dropped_and_the_next_good_one_works(shared: Launcher, channel: str, what: str) -> None:
    client = shared.client()
    client.send_raw(channel, BAD[what](client))
    works(client)
    assert client.kernel_info("control").content["status"] == "ok"
    assert client.value("'raised' in dir()") == "False"


def test_a_replayed_message_runs_once(shared: Launcher) -> None:
    client = shared.client()
    client.run("count = 0")
    header = client.header("execute_request")
    parts = [dumps(header), b"{}", b"{}", dumps({"code": "count += 1", "silent": False})]
    frames = [DELIMITER, client.sign(parts), *parts]
    client.send_raw("shell", frames)
    client.result(header["msg_id"])
    client.send_raw("shell", frames)
    shared.client().send_raw("shell", frames)
    assert client.value("count") == "1"
    assert shared.client().value("count") == "1"


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("key", ["", None])
def test_an_empty_key_means_no_signing_on_both_transports(sandbox: Sandbox, transport: str, key: str | None) -> None:
    client = sandbox.launch(transport=transport, key=key).client()
    works(client)
    if key == "":
        # Jupyter ignores a signature where there is no key.
        parts = [dumps(client.header("kernel_info_request")), b"{}", b"{}", b"{}"]
        client.send_raw("shell", [DELIMITER, b"whatever", *parts])
        client.wait_for(lambda m: m.type == "kernel_info_reply", "an answer")


def raw(launcher: Launcher, channel: str) -> socket.socket:
    return socket.create_connection((launcher.connection["ip"], launcher.connection[f"{channel}_port"]), timeout=10)


GREETING = b"\xff" + b"\x00" * 8 + b"\x7f" + b"\x03\x00" + b"NULL" + b"\x00" * 16 + b"\x00" + b"\x00" * 31


def ready(kind: bytes) -> bytes:
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind + b"\x08Identity" + struct.pack(">I", 0)
    return b"\x04" + bytes([len(body)]) + body


INTRUSIONS: dict[str, bytes] = {
    "nothing": b"",
    "half a greeting": GREETING[:9],
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random bytes": bytes((i * 7919) % 251 for i in range(4096)),
    "a greeting and silence": GREETING,
    "a greeting with an unknown mechanism": GREETING[:12] + b"CURVE" + b"\x00" * 15 + GREETING[32:],
    "garbage after the greeting": GREETING + b"\xde\xad\xbe\xef" * 64,
    "garbage after the handshake": GREETING + ready(b"DEALER") + b"\xde\xad\xbe\xef" * 64,
    "a frame that claims 2^60 bytes": GREETING + ready(b"DEALER") + b"\x02" + struct.pack(">Q", 1 << 60) + b"x" * 100,
    "a frame that claims 2^63 bytes": GREETING + ready(b"DEALER") + b"\x03" + struct.pack(">Q", 1 << 63) + b"x" * 100,
    "a handshake that claims 2^60 bytes": GREETING + b"\x06" + struct.pack(">Q", 1 << 60) + b"x" * 100,
    "the wrong socket type": GREETING + ready(b"PULL") + b"\x00\x01x",
    "a metadata value that claims 4 GB": GREETING + b"\x04\x19\x05READY\x0bSocket-Type\xff\xff\xff\xffxx",
}


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.parametrize("channel", ["shell", "control", "stdin", "iopub", "hb"])
def test_intruders_on_every_port_disturb_nobody(shared: Launcher, channel: str) -> None:
    client = shared.client()
    pids = [shared.pid, shared.sandbox.session()["host_pid"]]
    before = sum(map(resident_bytes, pids))
    open_ones = []
    for data in INTRUSIONS.values():
        for stays in (False, True):
            one = raw(shared, channel)
            try:
                one.sendall(data)
            except OSError:  # Closed on us already: just what garbage deserves.
                pass
            if stays:
                open_ones.append(one)
            else:
                one.close()
    works(client)
    works(shared.client())
    for one in open_ones:
        one.close()
    works(client)
    assert sum(map(resident_bytes, pids)) - before < 16_000_000


def test_a_subscriber_that_resets_its_connection_disturbs_nobody(shared: Launcher) -> None:
    client = shared.client()
    for _ in range(20):
        one = raw(shared, "iopub")
        one.sendall(GREETING + ready(b"SUB") + b"\x00\x01\x01")
        # RST instead of FIN.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    works(client)


def test_each_subscriber_gets_its_own_welcome(shared: Launcher) -> None:
    """JEP 65: iopub_welcome with the subscription, to each new subscriber and only to it."""
    first = shared.connect()
    first.wait_for(lambda m: m.type == "iopub_welcome", "the first one's welcome")
    second = shared.connect()
    welcome = second.wait_for(lambda m: m.type == "iopub_welcome", "the second one's welcome")
    assert welcome.content == {"subscription": ""}
    assert welcome.parent == {}
    works(first)
    assert [m.type for m in first.messages].count("iopub_welcome") == 1


def test_a_topic_subscriber_gets_its_topic_only(shared: Launcher) -> None:
    with zmq.Context() as context, closing(context.socket(zmq.SUB)) as topic:
        topic.linger = 0
        topic.connect(endpoint(shared.connection, "iopub"))
        topic.subscribe(b"stream.stdout")
        assert topic.poll(20_000), "no welcome"
        frames = topic.recv_multipart()
        assert b'"iopub_welcome"' in frames[frames.index(DELIMITER) + 2]
        assert b'"stream.stdout"' in frames[frames.index(DELIMITER) + 5]
        client = shared.client()
        client.run("import sys; print('err', file=sys.stderr); 1")
        client.run("print('out')")
        assert topic.poll(20_000), "no stream"
        assert topic.recv_multipart()[0] == b"stream.stdout"
        works(client)
        assert topic.poll(20_000) and topic.recv_multipart()[0] == b"stream.stdout"


def test_a_client_that_reconnects_with_the_same_identity_goes_on(shared: Launcher) -> None:
    identity = b"the-same-frontend"
    first = shared.client(identity=identity)
    works(first)
    first.close()
    for _ in range(5):
        again = shared.client(identity=identity)
        works(again)
        again.close()


def test_the_reply_goes_to_the_connection_that_has_the_identity_now(shared: Launcher) -> None:
    """A page whose websocket broke and came back asks for nothing again: the reply must find it."""
    identity = b"came-back"
    first = shared.client(identity=identity)
    running = first.execute("import threading; gate = threading.Event(); gate.wait(30)")
    first.wait_for(lambda m: m.type == "execute_input", "the cell to run")
    first.close()
    again = shared.client(identity=identity, busy=True)
    other = shared.client(busy=True)
    created = other.reply(other.send("control", "create_subshell_request")).content["subshell_id"]
    other.reply(other.execute("gate.set()", header={"subshell_id": created}, silent=True))
    assert again.reply(running).content["status"] == "ok"
    other.reply(other.send("control", "delete_subshell_request", {"subshell_id": created}))


def test_a_stopped_subscriber_delays_nobody_and_misses_nothing(sandbox: Sandbox) -> None:
    """One subscriber process is stopped with SIGSTOP, another reads at full speed: both get everything, in order."""
    launcher = sandbox.launch()
    client = launcher.client()
    count, size = 3000, 20_000  # 60 MB: far more than any socket buffer holds.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # A subscriber in a process of its own, so that it can be stopped whole.
        status = 1
        try:
            os.close(reader)
            stopped = Client(launcher.connection, iopub=True)
            stopped.wait_for(lambda m: m.type == "iopub_welcome", "welcome")
            os.write(writer, b"r")
            seen = 0
            while seen < count:
                stopped.pump(60)
                for message in stopped.messages:
                    if message.type == "display_data":
                        assert message.content["metadata"]["n"] == seen, (message.content["metadata"], seen)
                        seen += 1
                stopped.messages.clear()
            os.write(writer, b"d")
            status = 0
        finally:
            os._exit(status)
    try:
        os.close(writer)
        assert os.read(reader, 1) == b"r"
        os.kill(child, signal.SIGSTOP)
        result = client.run(
            # With pauses: a busy machine's engine drops past its own high-water mark, whoever reads.
            f"import time; from IPython.display import publish_display_data\n"
            f"for n in range({count}):\n    publish_display_data({{'text/plain': 'x' * {size}}}, metadata={{'n': n}})\n"
            "    if n % 10 == 0: time.sleep(0.01)",
            seconds=60,
        )
        numbers = [m.content["metadata"]["n"] for m in result.iopub if m.type == "display_data"]
        assert numbers == list(range(count))
        works(client)
        memory = sum(map(resident_bytes, (launcher.pid, sandbox.session()["host_pid"])))
        os.kill(child, signal.SIGCONT)
        assert os.read(reader, 1) == b"d", "the stopped subscriber missed or misordered something"
        assert memory < 64_000_000, f"{memory} bytes while a subscriber stood still"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_subscriber_that_never_reads_and_dies_is_forgotten(sandbox: Sandbox) -> None:
    launcher = sandbox.launch()
    client = launcher.client()
    silent = raw(launcher, "iopub")
    silent.sendall(GREETING + ready(b"SUB") + b"\x00\x01\x01")
    client.run("for n in range(400): print('x' * 50_000, flush=True)", seconds=60)
    silent.close()
    descriptors = Path(f"/proc/{launcher.pid}/fd")
    before = len(os.listdir(descriptors))
    for _ in range(10):
        raw(launcher, "iopub").close()
    works(client)
    wait_until(lambda: len(os.listdir(descriptors)) <= before, "the connections to be closed on the launcher's side")
