"""A bare client of the link: what no command line asks of a host."""

from __future__ import annotations

import json
import socket
import struct
import uuid
from pathlib import Path

HELLO, WELCOME, REFUSED, RECORD, ACK, COMMAND, ANSWER, ENDED = range(1, 9)


class Link:
    """Sees no records: it asks for none."""

    def __init__(self, path: Path, seconds: float = 20.0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))
        self.send(HELLO, {
            "version": 1, "client": str(uuid.uuid4()), "kind": "test", "pid": 1, "parent_pid": None, "claim": False,
            "connection_file": None, "replies": False, "iopub": False, "resume": None,
        })
        kind, body = self.receive()
        assert kind == WELCOME, (kind, body)

    def send(self, kind: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.socket.sendall(struct.pack("<QBI", len(data) + 5, kind, 0) + data)

    def receive(self) -> tuple[int, object]:
        length, kind, _ = struct.unpack("<QBI", self._exactly(13))
        return kind, json.loads(self._exactly(length - 5))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the host closed the link"
            data += more
        return data

    def stop(self, reason: str) -> None:
        """The session is to end; returns when its end has begun."""
        self.send(COMMAND, {"id": 1, "command": "stop", "now": False, "reason": reason})
        kind, body = self.receive()
        assert kind == ANSWER and body["answer"]["ok"], (kind, body)

    def ended(self) -> str:
        """The reason, once the session has ended."""
        while True:
            kind, body = self.receive()
            if kind == ENDED:
                self.socket.close()
                return body
