"""What all measurements stand on: kernels of each kind in a sandbox, clients for them, and turns."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/e2e"))

import zmq
from processes import Watch
from rows import Pairs, Row
from sandbox import SCRIPTED, SCRIPTED_ARGV, Launcher, Sandbox
from wire import DELIMITER, Client, dumps

BARE, FARSIDE = "python3", "farside-python3"
# BARE, behind `Bed.relayed`.
RELAYED = "relayed-python3"
# The same engine without Python: what is measured with it is what stands between it and the client.
BARE_SCRIPTED, FARSIDE_SCRIPTED = "scripted", "farside-scripted"
TOUCHED_BYTES = 2_000_000_000
MB = 1_000_000

# Nothing here takes longer on a machine that is worth measuring on.
LONGEST_SECONDS = 600.0


class Fast:
    """Sends prepared requests and counts what comes back, without parsing it: a client library's own cost would hide
    what is to be seen."""

    def __init__(self, client: Client):
        self.client = client
        self.iopub = client.sockets["iopub"]

    def request(
        self, kind: str, content: dict, channel: str = "shell", buffers: tuple[bytes, ...] = (), **header: str
    ) -> tuple[bytes, zmq.Socket]:
        head = self.client.header(kind, **header)
        parts = [dumps(head), b"{}", b"{}", dumps(content)]
        socket = self.client.sockets[channel]
        socket.send_multipart([DELIMITER, self.client.sign(parts), *parts, *buffers], copy=False)
        return head["msg_id"].encode(), socket

    def reply(self, msg_id: bytes, socket: zmq.Socket, seconds: float = LONGEST_SECONDS) -> bytes:
        """Waits for the reply; gives its content."""
        deadline = time.monotonic() + seconds
        while socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            frames = socket.recv_multipart()
            at = frames.index(DELIMITER)
            if msg_id in frames[at + 3]:
                return frames[at + 5]
        raise AssertionError("no reply")

    def until_idle(self, msg_id: bytes, kind: bytes = b"", seconds: float = LONGEST_SECONDS) -> tuple[int, int]:
        """(messages of `kind`, bytes of their contents and buffers) up to the idle of `msg_id`."""
        count = size = 0
        deadline = time.monotonic() + seconds
        while self.iopub.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            frames = self.iopub.recv_multipart()
            at = frames.index(DELIMITER)
            if kind and kind in frames[at + 2]:
                count += 1
                size += sum(map(len, frames[at + 5 :]))
            if self.is_idle(msg_id, frames):
                return count, size
        raise AssertionError("no idle")

    def is_idle(self, msg_id: bytes, frames: list[bytes]) -> bool:
        at = frames.index(DELIMITER)
        parent, content = frames[at + 3], frames[at + 5]
        return len(content) < 100 and b'"idle"' in content and msg_id in parent

    def execute(self, code: str, kind: bytes = b"") -> tuple[float, int, int]:
        """Seconds from request to reply and idle, whichever is later; and what was counted."""
        begun = time.perf_counter()
        msg_id, socket = self.request("execute_request", execute_content(code))
        counted = self.until_idle(msg_id, kind)
        content = self.reply(msg_id, socket)
        seconds = time.perf_counter() - begun
        assert b'"status": "ok"' in content or b'"status":"ok"' in content, content[:2000]
        return seconds, *counted


def execute_content(code: str) -> dict:
    return {
        "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
        "stop_on_error": True,
    }


class Frontend:
    """`scripted client` on a kernel: as fast as a frontend can be."""

    def __init__(self, bed: Bed, launcher: Launcher, subscribers: int = 1):
        self.process = subprocess.Popen(
            [str(SCRIPTED), "client", str(launcher.connection_file), str(subscribers)],
            env=bed.sandbox.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        bed.sandbox.children.append(self.process)
        self.answer()

    def answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the scripted client has ended"
        return json.loads(line)

    def execute(self, code: str) -> dict:
        """Seconds to `first` output, `reply`, `idle` and `end`; `outputs` and `bytes`. With `?` before the code it does
        not wait for more than the first output."""
        self.begin(code)
        return self.answer()

    def begin(self, code: str) -> None:
        """As `execute`; the `answer` is for later."""
        assert self.process.stdin is not None
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class Bed:
    def __init__(self, quick: bool):
        self.quick = quick
        self.rows: list[Row] = []
        # Of `--scaling`: (title, columns, rows).
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []
        self.sandbox = Sandbox()
        self.relays: list[subprocess.Popen] = []
        self.folders = {kernel: self.sandbox.ipython(f"ipython-{kernel}") for kernel in (BARE, FARSIDE, RELAYED)}
        self.sandbox.add_kernelspec(BARE_SCRIPTED, SCRIPTED_ARGV)
        for kernel in (BARE, FARSIDE, BARE_SCRIPTED, FARSIDE_SCRIPTED):
            self.sandbox.kernelspec(kernel)

    def rounds(self, full: int) -> int:
        return max(3, full // 10) if self.quick else full

    def size(self, full: int) -> int:
        """Of what grows with its size: a tenth when it has to be quick."""
        return full // 10 if self.quick else full

    # Kernels.

    def launch(self, kernel: str, env: dict[str, str] | None = None, **kw) -> Launcher:
        """With an IPython folder of its own: two engines would wait for each other's history database."""
        folder = {"IPYTHONDIR": self.folders[kernel]} if kernel in self.folders else {}
        return self.sandbox.launch(kernel, env={**folder, **(env or {})}, **kw)

    def pair(self) -> dict[str, Fast]:
        return {kernel: Fast(self.launch(kernel).client()) for kernel in (BARE, FARSIDE)}

    def relayed(self) -> Fast:
        """The bare engine behind two processes that copy bytes and do nothing else: as many as farside's."""
        launcher = self.launch(BARE, {"IPYTHONDIR": self.folders[RELAYED]})
        launcher.client()
        there = launcher.connection_file
        for transport in ("ipc", "tcp"):
            here = self.sandbox.runtime / f"relay-{uuid.uuid4()}.json"
            self.sandbox.write_connection_file(here, transport, launcher.connection["key"], BARE, None)
            command = [str(SCRIPTED), "relay", str(there), str(here)]
            relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.sandbox.children.append(relay)
            self.relays.append(relay)
            assert relay.stdout is not None and relay.stdout.readline(), "the relay has ended"
            there = here
        client = Client(json.loads(there.read_text()))
        self.sandbox.clients.append(client)
        client.wait_ready(LONGEST_SECONDS, alive=launcher.running, log=launcher.log)
        return Fast(client)

    def watch(self, launcher: Launcher, session: str | None = None) -> Watch:
        """Launcher and host of a session (the only one, if none is named)."""
        found = self.sandbox.session(session) if session else self.sandbox.session()
        return Watch((launcher.pid, found["host_pid"]))

    def end(self, launcher: Launcher) -> None:
        """Ends a kernel, and with farside its session."""
        client = Client(launcher.connection)
        client.send("control", "shutdown_request", {"restart": False})
        launcher.wait_exit(60)
        client.close()

    def end_all(self) -> None:
        for client in self.sandbox.clients:
            client.close()
        for launcher in self.sandbox.launchers:
            if launcher.running():
                self.end(launcher)
        self.sandbox.clients.clear()
        for relay in self.relays:
            relay.kill()
            relay.wait()
        self.relays.clear()

    # Measuring.

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"  {row.line()}", file=sys.stderr, flush=True)

    def touch_memory(self) -> None:
        """Virtual machines give memory that is free for a while back to their host, and get it again page by page: what
        is written then comes at 0.6 GB/s instead of 4.6 (seen here). That is not what is to be measured, and whoever
        needs more memory would look worse by it. So there is free memory that was just used."""
        path, block = self.sandbox.work / "touched", bytes(16 * MB)
        with path.open("wb", buffering=0) as file:
            for _ in range(TOUCHED_BYTES // len(block)):
                file.write(block)
        path.unlink()

    def in_turns(self, count: int, measure: Callable[[str], float], kernels: tuple[str, str] = (BARE, FARSIDE)) -> Pairs:
        """`count` measurements of each."""
        seconds = self.each_in_turn(count, measure, kernels)
        return Pairs(seconds[kernels[0]], seconds[kernels[1]])

    def each_in_turn(
        self, count: int, measure: Callable[[str], float], kernels: tuple[str, ...]
    ) -> dict[str, list[float]]:
        """In every order, one after the other: who comes after itself finds the caches warm."""
        seconds: dict[str, list[float]] = {kernel: [] for kernel in kernels}
        orders = itertools.cycle(itertools.permutations(kernels))
        for _, order in zip(range(count), orders):
            for kernel in order:
                seconds[kernel].append(measure(kernel))
        return seconds
