"""A rig whose frontend is a page at a real Jupyter Server, which starts the launchers."""

from __future__ import annotations

import json
import select
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket
from cell import TAKE_MAX, Sight, Watcher
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from rig import ROLES, SETTLE_SECONDS, Rig
from sandbox import END_SECONDS, KERNEL, START_SECONDS, Launcher, Server, alive, kill, wait_gone
from wire import Msg, dumps

# As JupyterLab speaks it: messages with their bytes, as the kernel's launcher sent them.
PROTOCOL = "v1.kernel.websocket.jupyter.org"

# A server that is stopped in the middle of a message must not stop its page: the rest is taken another time.
TAKE_SECONDS = 0.05

# What the server itself would drop of a flood is none of farside's losses.
SERVER_ARGS = ("--ZMQChannelsWebsocketConnection.limit_rate=False",)

NOTEBOOK = "n.ipynb"


class Page(Watcher):
    """What `Watcher` is, behind a server's websocket: the server checks the signatures, and dies."""

    def __init__(self, server: Server, kernel_id: str, session_id: str):
        self.session_id, self.username = session_id, ""
        self.messages: list[Msg] = []
        self.sent: list[str] = []
        self.sights: dict[str, Sight] = {}
        self.sockets = {"iopub": None}
        self.socket = server.channels(kernel_id, session_id, (PROTOCOL,))
        assert self.socket.getsubprotocol() == PROTOCOL

    def send(
        self, channel: str, msg_type: str, content: Any = None, *, metadata: Any = None, parent: dict | None = None,
        buffers: Any = (), **header: Any,
    ) -> str:
        head = self.header(msg_type, **header)
        parts = [dumps(one) for one in (head, parent or {}, metadata or {}, {} if content is None else content)]
        self.socket.settimeout(START_SECONDS)
        self.socket.send_binary(serialize_msg_to_ws_v1([*parts, *buffers], channel))
        self.sent.append(head["msg_id"])
        return head["msg_id"]

    def pump(self, seconds: float) -> bool:
        if self.gone:
            time.sleep(max(0.0, seconds))
            return False
        began = len(self.messages)
        for turn in range(TAKE_MAX):
            if not select.select([self.socket.sock], [], [], max(0.0, seconds) if turn == 0 else 0)[0]:
                return turn > 0
            self.socket.settimeout(TAKE_SECONDS)
            try:
                data = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                return len(self.messages) > began
            except (OSError, websocket.WebSocketException):
                self.gone = True
                return False
            if isinstance(data, bytes) and data:
                channel, parts = deserialize_msg_from_ws_v1(data)
                self.take(Msg(channel, [], parts[:4], *(json.loads(part) for part in parts[:4]), parts[4:]))
        return True

    def close(self) -> None:
        self.socket.shutdown()


@dataclass
class ServedLauncher:
    """A launcher that the server started."""

    pid: int
    connection: dict
    log: Path

    def running(self) -> bool:
        return alive(self.pid)


class ServedRig(Rig):
    roles = ("server", *ROLES)

    # A server takes some to start, and three to see that a launcher has died.
    slow_seconds = 15.0

    def __init__(self, offers: frozenset[str]):
        super().__init__(offers)
        self.server: Server | None = None
        self._set_back = 0
        self.kernel_id = ""
        self.sandbox.kernelspec(KERNEL)

    def pids(self) -> dict[str, int]:
        found = super().pids()
        if self.server is not None and self.server_lives():
            found["server"] = self.server.process.pid
        return found

    def server_lives(self) -> bool:
        return self.server is not None and self.server.process.poll() is None

    def frontend_lives(self) -> bool:
        return self.server_lives() and super().frontend_lives()

    def start_server(self) -> None:
        """If there is none. The last one's launcher has gone by itself by then."""
        set_back = self.clock.set_back if self.clock is not None else 0
        if self.server is not None and self.server_lives():
            if set_back == self._set_back:
                return
            # It does not look for dead kernels before the old time has come again (tornado's PeriodicCallback counts
            # in the wall clock's): what a person does then.
            kill(self.server.process.pid)
        self._set_back = set_back
        if self.launcher is not None:
            wait_gone(self.launcher.pid, END_SECONDS)
        self.forget_launcher()
        self.server = self.sandbox.server(args=SERVER_ARGS)

    def open_notebook(self) -> None:
        """As JupyterLab does whenever a page comes: the server has its kernel, or starts one."""
        assert self.server is not None
        self.kernel_id = self.server.open_notebook(NOTEBOOK, KERNEL)["kernel"]["id"]

    def launch(self) -> Launcher | ServedLauncher:
        self.start_server()
        assert self.server is not None
        asked = 0.0

        def found() -> int | None:
            nonlocal asked
            # A server that has started its kernel anew too often gives it up; then this starts one.
            if time.monotonic() - asked > START_SECONDS / 4:
                self.open_notebook()
                asked = time.monotonic()
            return self._launcher_pid()

        pid = self.wait(found, "a launcher of the server's", SETTLE_SECONDS)
        return ServedLauncher(pid, json.loads(self._connection_file.read_text()), self.server.log)

    def open_client(self) -> Watcher:
        assert self.server is not None
        return Page(self.server, self.kernel_id, uuid.uuid4().hex)

    def end_launcher(self) -> None:
        assert self.server is not None
        # It would start another one.
        kill(self.server.process.pid)
        super().end_launcher()

    @property
    def _connection_file(self) -> Path:
        return self.sandbox.runtime / f"kernel-{self.kernel_id}.json"

    def _launcher_pid(self) -> int | None:
        wanted = str(self._connection_file)
        return next((pid for pid, words in self.commands() if words[1:2] == ["launch"] and wanted in words), None)
