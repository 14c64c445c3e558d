"""An engine that says what it was told: every request's frames come back as hex in its reply's content, and an
`emit_request` has it send frames of the test's choice. What farside changes on the way, it shows.

    python mirror_kernel.py CONNECTION_FILE
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import uuid

import zmq

info = json.load(open(sys.argv[1]))
key, session_id = info["key"].encode(), uuid.uuid4().hex
context = zmq.Context()


def bind(kind: int, port: str) -> zmq.Socket:
    one = context.socket(kind)
    one.linger = 1000
    joint = "-" if info["transport"] == "ipc" else ":"
    one.bind(f"{info['transport']}://{info['ip']}{joint}{info[port]}")
    return one


shell, control = bind(zmq.ROUTER, "shell_port"), bind(zmq.ROUTER, "control_port")
stdin, iopub = bind(zmq.ROUTER, "stdin_port"), bind(zmq.PUB, "iopub_port")
heartbeat = bind(zmq.REP, "hb_port")


def send(socket: zmq.Socket, idents: list[bytes], parts: list[bytes], buffers: list[bytes]) -> None:
    signature = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode() if key else b""
    socket.send_multipart([*idents, b"<IDS|MSG>", signature, *parts, *buffers])


def message(kind: str, parent: bytes, content: dict) -> list[bytes]:
    header = {
        "msg_id": uuid.uuid4().hex, "msg_type": kind, "session": session_id, "username": "mirror",
        "date": "2026-01-01T00:00:00.000000Z", "version": "5.4",
    }
    return [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]


KERNEL_INFO = {
    "status": "ok", "protocol_version": "5.4", "implementation": "mirror", "implementation_version": "1",
    "language_info": {"name": "mirror", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"},
    "banner": "mirror", "help_links": [],
}
poller = zmq.Poller()
for one in (shell, control, stdin, heartbeat):
    poller.register(one, zmq.POLLIN)
while True:
    for socket, _ in poller.poll():
        frames = socket.recv_multipart()
        if socket is heartbeat:
            socket.send_multipart(frames)
            continue
        at = frames.index(b"<IDS|MSG>")
        idents, (header, parent, metadata, content), buffers = frames[:at], frames[at + 2 : at + 6], frames[at + 6 :]
        kind = json.loads(header)["msg_type"]
        send(iopub, [b"mirror.status"], message("status", header, {"execution_state": "busy"}), [])
        if kind == "kernel_info_request":
            answer = KERNEL_INFO
        else:
            seen = [header, parent, metadata, content, *buffers]
            answer = {"status": "ok", "execution_count": 1, "frames": [frame.hex() for frame in seen]}
        if kind == "emit_request":
            order = json.loads(content)
            parts = [bytes.fromhex(part) for part in order["parts"]]
            target, first = (iopub, [bytes.fromhex(order["topic"])]) if order["channel"] == "iopub" else (socket, idents)
            send(target, first, parts, buffers)
        send(socket, idents, message(kind.replace("_request", "_reply"), header, answer), [])
        send(iopub, [b"mirror.status"], message("status", header, {"execution_state": "idle"}), [])
        if kind == "shutdown_request":
            context.destroy()
            sys.exit(0)
