"""A frontend on bare ZMQ sockets: sees and says exactly what is on the wire, well-formed or not."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"
CHANNELS = ("shell", "control", "stdin", "iopub")


@dataclass
class Msg:
    """One received message, with its bytes."""

    channel: str
    identities: list[bytes]
    raw: list[bytes]
    header: dict
    parent: dict
    metadata: dict
    content: dict
    buffers: list[bytes] = field(default_factory=list)

    @property
    def type(self) -> str:
        return self.header["msg_type"]

    @property
    def parent_id(self) -> str | None:
        return self.parent.get("msg_id")

    @property
    def state(self) -> str | None:
        """execution_state of a status message."""
        return self.content.get("execution_state") if self.type == "status" else None

    def __repr__(self) -> str:
        return f"<{self.channel} {self.type} of {str(self.parent_id)[:8]} {json.dumps(self.content)[:160]}>"


@dataclass
class Result:
    """What one request brought about: its reply and what was published for it, in order."""

    msg_id: str
    reply: Msg | None
    iopub: list[Msg]

    @property
    def text(self) -> str:
        return stream_text(self.iopub, "stdout")

    @property
    def types(self) -> list[str]:
        return [m.state or m.type for m in self.iopub]


def stream_text(messages: Sequence[Msg], name: str = "stdout") -> str:
    return "".join(m.content["text"] for m in messages if m.type == "stream" and m.content["name"] == name)


def is_reply(message: Msg, msg_id: str) -> bool:
    return message.channel in ("shell", "control") and message.parent_id == msg_id


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def endpoint(connection: dict, channel: str) -> str:
    port = connection[f"{channel}_port"]
    if connection["transport"] == "ipc":
        return f"ipc://{connection['ip']}-{port}"
    return f"tcp://{connection['ip']}:{port}"


class Client:
    """One frontend: shell, control and stdin with one identity, and an iopub subscription."""

    def __init__(
        self, connection: dict, *, identity: bytes | None = None, session_id: str | None = None,
        username: str = "tester", iopub: bool = True, receive_high_water: int = 0,
    ):
        self.connection = connection
        self.key = connection["key"].encode()
        self.identity = identity or uuid.uuid4().hex.encode()
        self.session_id = session_id or uuid.uuid4().hex
        self.username = username
        self.messages: list[Msg] = []
        self.sent: list[str] = []
        self.context = zmq.Context()
        self.sockets: dict[str, zmq.Socket] = {}
        self.poller = zmq.Poller()
        for channel in CHANNELS:
            if channel == "iopub" and not iopub:
                continue
            socket = self.context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
            socket.linger = 0
            # Nothing may be lost on this side: what is missing then, the kernel has lost.
            socket.rcvhwm = receive_high_water
            if channel == "iopub":
                socket.subscribe(b"")
            else:
                socket.identity = self.identity
            socket.connect(endpoint(connection, channel))
            self.sockets[channel] = socket
            self.poller.register(socket, zmq.POLLIN)

    # Sending.

    def header(self, msg_type: str, **fields: Any) -> dict:
        return {
            "msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": self.session_id,
            "username": self.username, "date": "2026-01-01T00:00:00.000000Z", "version": "5.4", **fields,
        }

    def sign(self, parts: Sequence[bytes]) -> bytes:
        if not self.key:
            return b""
        return hmac.new(self.key, b"".join(parts), hashlib.sha256).hexdigest().encode()

    def send(
        self, channel: str, msg_type: str, content: Any = None, *, metadata: Any = None, parent: dict | None = None,
        buffers: Sequence[bytes] = (), **header: Any,
    ) -> str:
        head = self.header(msg_type, **header)
        self.sent.append(head["msg_id"])
        parts = [dumps(head), dumps(parent or {}), dumps(metadata or {}), dumps({} if content is None else content)]
        self.send_raw(channel, [DELIMITER, self.sign(parts), *parts, *buffers])
        return head["msg_id"]

    def send_raw(self, channel: str, frames: Sequence[bytes]) -> None:
        self.sockets[channel].send_multipart(frames)

    def execute(self, code: str, *, metadata: Any = None, buffers: Sequence[bytes] = (), header: dict | None = None, **content: Any) -> str:
        body = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True,
            "stop_on_error": True, **content,
        }
        return self.send("shell", "execute_request", body, metadata=metadata, buffers=buffers, **(header or {}))

    # Receiving.

    def pump(self, seconds: float) -> bool:
        """Takes in what is there; waits up to `seconds` for the first message."""
        ready = dict(self.poller.poll(max(0, int(seconds * 1000))))
        for channel, socket in self.sockets.items():
            if socket in ready:
                with suppress(zmq.Again):
                    while True:
                        self.messages.append(self.parse(channel, socket.recv_multipart(zmq.NOBLOCK)))
        return bool(ready)

    def parse(self, channel: str, frames: list[bytes]) -> Msg:
        at = frames.index(DELIMITER)
        signature, parts = frames[at + 1], frames[at + 2 : at + 6]
        assert signature == self.sign(parts), f"wrong signature on {channel}: {parts}"
        return Msg(channel, frames[:at], parts, *(json.loads(part) for part in parts), frames[at + 6 :])

    def wait_for(self, predicate: Callable[[Msg], bool], what: str, seconds: float = 20.0, start: int = 0) -> Msg:
        """The first message from `messages[start]` on, here or to come, that the predicate accepts."""
        deadline = time.monotonic() + seconds
        while True:
            while start < len(self.messages):
                if predicate(self.messages[start]):
                    return self.messages[start]
                start += 1
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; last: {self.messages[-8:]}")
            self.pump(left)

    def reply(self, msg_id: str, seconds: float = 20.0) -> Msg:
        return self.wait_for(lambda m: is_reply(m, msg_id), f"a reply to {msg_id}", seconds)

    def replies(self, msg_id: str) -> list[Msg]:
        """Those that have come so far."""
        return [m for m in self.messages if is_reply(m, msg_id)]

    def idle(self, msg_id: str, seconds: float = 20.0) -> Msg:
        return self.wait_for(lambda m: m.state == "idle" and m.parent_id == msg_id, f"idle of {msg_id}", seconds)

    def input_request(self, msg_id: str, seconds: float = 20.0) -> Msg:
        return self.wait_for(
            lambda m: m.type == "input_request" and m.parent_id == msg_id, f"input_request of {msg_id}", seconds
        )

    def of(self, msg_id: str) -> list[Msg]:
        """What was published for one request so far."""
        return [m for m in self.messages if m.channel == "iopub" and m.parent_id == msg_id]

    def result(self, msg_id: str, seconds: float = 20.0) -> Result:
        """Waits for reply and idle of a request."""
        reply = self.reply(msg_id, seconds)
        self.idle(msg_id, seconds)
        return Result(msg_id, reply, self.of(msg_id))

    def run(self, code: str, seconds: float = 20.0, **kw: Any) -> Result:
        return self.result(self.execute(code, **kw), seconds)

    def value(self, expression: str, seconds: float = 20.0) -> str:
        """The text/plain of a Python expression in the kernel's namespace."""
        reply = self.reply(
            self.execute("", silent=True, store_history=False, user_expressions={"v": expression}), seconds
        )
        assert reply.content["status"] == "ok", reply
        answer = reply.content["user_expressions"]["v"]
        assert answer["status"] == "ok", answer
        return answer["data"]["text/plain"]

    def wait_text(self, msg_id: str, text: str, seconds: float = 20.0) -> None:
        """Waits until the streams of a request contain `text`."""
        self.wait_for(
            lambda m: m.type == "stream" and m.parent_id == msg_id and text in stream_text(self.of(msg_id)),
            f"{text!r} from {msg_id}", seconds,
        )

    def kernel_info(self, channel: str = "shell", seconds: float = 20.0) -> Msg:
        return self.reply(self.send(channel, "kernel_info_request"), seconds)

    def wait_ready(
        self, seconds: float, alive: Callable[[], bool] = lambda: True, log: Path | None = None, busy: bool = False
    ) -> None:
        """As frontends do it: asks for kernel_info until one was answered on shell and its idle seen on iopub.
        `busy`: a cell runs, so that no idle can come; any message on iopub will do."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not alive():
                break
            asked = self.send("shell", "kernel_info_request")
            again = time.monotonic() + 1.0
            while (left := again - time.monotonic()) > 0:
                self.pump(left)
                answered = any(m.channel == "shell" and m.parent_id == asked for m in self.messages)
                subscribed = "iopub" not in self.sockets or any(
                    m.channel == "iopub" and (busy or (m.state == "idle" and m.parent_id == asked))
                    for m in self.messages
                )
                if answered and subscribed:
                    # Earlier questions were answered before this one: what follows starts clean.
                    if not busy:
                        self.messages.clear()
                    return
        raise AssertionError(f"not ready: {self.messages[-5:]} {log.read_text()[-3000:] if log else ''}")

    def close(self) -> None:
        self.context.destroy(linger=0)
