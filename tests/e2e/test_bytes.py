"""Covers item 3: messages farside does not act on arrive unchanged, byte for byte, in both directions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sandbox import Launcher, Sandbox
from wire import DELIMITER, Client, Msg, dumps

# JSON as no library would write it, so that parsing and writing it again would show: odd spacing, doubled keys,
# numbers beyond any float, escapes that need not be, an unknown field.
ODD_JSON = (
    b'{ "big":123456789012345678901234567890,"float":1.000 , "exp":1E+2,"tiny":1e-400,"twice":1,"twice":2,'
    b'"escaped":"\\u00e4\\/\\ud834\\udd1e","lone":"\\ud800","plain":"\xc3\xa4","nested":[ [ ],{ } ,null,true ],"":"" }'
)
BUFFERS = [b"", b"\x00", b"<IDS|MSG>", bytes(range(256)) * 16, b"\xff" * 1_000_000]


def odd_header(msg_type: str, msg_id: str, session_id: str) -> bytes:
    return (
        f'{{"made_up" : [1.00,{{"x":null}}],"msg_type":"{msg_type}",   "msg_id":"{msg_id}","username":"\\u00e4",'
        f'"session":"{session_id}","date":"2026-01-01T00:00:00.000000Z","version":"5.4","buffers_of":0}}'
    ).encode()


@pytest.fixture
def mirror(sandbox: Sandbox) -> Launcher:
    folder = sandbox.data / "kernels/mirror"
    folder.mkdir(parents=True)
    engine = str(Path(__file__).with_name("mirror_kernel.py"))
    spec = {"argv": [sys.executable, engine, "{connection_file}"], "display_name": "Mirror", "language": "mirror"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    return sandbox.launch("farside-mirror")


def send_parts(client: Client, channel: str, parts: list[bytes], buffers: list[bytes]) -> str:
    client.send_raw(channel, [DELIMITER, client.sign(parts), *parts, *buffers])
    return json.loads(parts[0])["msg_id"]


@pytest.mark.parametrize("channel", ["shell", "control"])
@pytest.mark.parametrize("kind", ["comm_request", "made_up_request", "debug_request", "history_request"])
def test_a_request_reaches_the_engine_as_it_was_sent(mirror: Launcher, channel: str, kind: str) -> None:
    client = mirror.client()
    parts = [odd_header(kind, "id-1", client.session_id), ODD_JSON, ODD_JSON, ODD_JSON]
    reply = client.reply(send_parts(client, channel, parts, BUFFERS))
    assert [bytes.fromhex(frame) for frame in reply.content["frames"]] == [*parts, *BUFFERS]
    assert reply.channel == channel


def test_an_execute_request_reaches_the_engine_as_it_was_sent(mirror: Launcher) -> None:
    """farside reads this one, and must still not rewrite it."""
    client = mirror.client()
    content = b'{ "code" : "x = \\u00e4" ,"silent":false, "made_up":1.00, "store_history" :true}'
    parts = [odd_header("execute_request", "id-1", client.session_id), b"{}", ODD_JSON, content]
    reply = client.reply(send_parts(client, "shell", parts, BUFFERS))
    assert [bytes.fromhex(frame) for frame in reply.content["frames"]] == [*parts, *BUFFERS]


def emitted(client: Client, channel: str, kind: str, buffers: list[bytes]) -> tuple[Msg, list[bytes]]:
    """Has the engine send an oddly written message; gives what arrived, and what was sent."""
    # The engine's own header.session: the one farside pins for this frontend.
    engine_session = client.kernel_info().header["session"]
    header = client.header("emit_request")
    parts = [odd_header(kind, "from-the-engine", engine_session), dumps(header), ODD_JSON, ODD_JSON]
    order = {"channel": channel, "topic": b"odd\x00topic".hex(), "parts": [part.hex() for part in parts]}
    send_parts(client, "shell", [dumps(header), b"{}", b"{}", dumps(order)], buffers)
    return client.wait_for(lambda m: m.type == kind, f"{kind} on {channel}"), parts


@pytest.mark.parametrize("kind", ["display_data", "comm_msg", "made_up_type"])
def test_a_broadcast_arrives_as_the_engine_sent_it(mirror: Launcher, kind: str) -> None:
    message, parts = emitted(mirror.client(), "iopub", kind, BUFFERS)
    assert message.channel == "iopub"
    assert message.raw == parts
    assert message.buffers == BUFFERS
    assert message.identities == [b"odd\x00topic"]


def test_an_unknown_reply_arrives_as_the_engine_sent_it(mirror: Launcher) -> None:
    message, parts = emitted(mirror.client(), "shell", "made_up_reply", BUFFERS)
    assert message.channel == "shell"
    assert (message.raw, message.buffers) == (parts, BUFFERS)
