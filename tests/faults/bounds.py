"""What must not grow: memory, the journal, descriptors, threads.

Small sizes are tested in `make test`; `make bounds` plays the full ones and prints what it found:

    make bounds                                       # 10 GB, 1,000 attachments
    make bounds BOUNDS_ARGS="--megabytes 1000 --rounds 100"
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "e2e")]

from disk import IOPUB, Disk, Record
from sandbox import START_SECONDS, Launcher, Sandbox, wait_until
from wire import Client

# Launcher and host together, beside a small multiple of the largest single message.
MEMORY_BYTES_MAX = 64_000_000

# How often memory is looked at.
SAMPLE_SECONDS = 0.02


def resident_bytes(pid: int) -> int:
    """What the process has of its own, and what it shares with its keeper (the spools): files that it has mapped, which is
    its program, count for nobody."""
    with suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssShmem:"))
    return 0


class Peak:
    """The most that `measure` found while the block ran."""

    def __init__(self, measure: Callable[[], int], every: float = SAMPLE_SECONDS):
        self.measure, self.every, self.most = measure, every, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(self.every):
            self.most = max(self.most, self.measure())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def memory_of(*pids: int) -> Callable[[], int]:
    return lambda: sum(map(resident_bytes, pids))


@dataclass
class Flood:
    megabytes: int
    seconds: float
    peak_bytes: int
    peak_journal_bytes: int
    # Outputs that the cell said, that are in the journal at the end, and that the readers got (each in order, and none
    # twice).
    said: int
    kept: int
    fast: int
    slow: int
    stalled: int


class Reader:
    """A subscriber in a process of its own, so that the others' speed is not its own. `pace`: seconds between looks."""

    def __init__(self, launcher: Launcher, pace: float):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(reader)
                os.write(writer, self._read(launcher, pace, writer).to_bytes(8, "little", signed=True))
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        self.pipe = reader
        assert os.read(reader, 1) == b"r"

    @staticmethod
    def _read(launcher: Launcher, pace: float, writer: int) -> int:
        # One message at a time is taken, so that the rest waits in the launcher and not in here.
        client = Client(launcher.connection, receive_high_water=1)
        client.wait_for(lambda m: m.type == "iopub_welcome", "welcome")
        os.write(writer, b"r")
        seen, last = 0, -1
        while True:
            client.pump(600)
            for message in client.messages:
                if message.type == "display_data" and "n" in message.content["metadata"]:
                    if message.content["metadata"]["n"] <= last:
                        return -1
                    seen, last = seen + 1, message.content["metadata"]["n"]
                if seen and message.state == "idle":
                    return seen
            client.messages.clear()
            time.sleep(pace)

    def stop(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def count(self) -> int:
        """How many outputs it got, once it has got the last one; -1: not in order, or one twice."""
        data = os.read(self.pipe, 8)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        self.pid = 0
        return int.from_bytes(data, "little", signed=True) if len(data) == 8 else -1

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)


# The engine's iopub drops nothing here: it waits for us, and the cell for it.
FLOOD = """
import threading
import zmq
from IPython.display import publish_display_data
iopub = get_ipython().kernel.iopub_thread
def soon(what):
    done = threading.Event()
    iopub.schedule(lambda: (what(), done.set()))
    done.wait()
soon(lambda: iopub.socket.setsockopt(zmq.XPUB_NODROP, 1))
for n in range({count}):
    publish_display_data({{'text/plain': 'x' * {size}}}, metadata={{'n': n}})
    if n % 20 == 0:
        soon(lambda: None)
print('printed {count}.')
"""


def flood(sandbox: Sandbox, megabytes: int, size: int = 50_000) -> Flood:
    """That much output, with one subscriber that reads it, one that reads slowly, and one that stands still."""
    launcher = sandbox.launch()
    client = launcher.client()
    client.run("1")
    host = sandbox.session()["host_pid"]
    count = megabytes * 1_000_000 // size
    readers = [Reader(launcher, 0.0), Reader(launcher, 0.01), Reader(launcher, 0.0)]
    fast, slow, stalled = readers
    try:
        stalled.stop(signal.SIGSTOP)
        began = time.monotonic()
        memory, disk = Peak(memory_of(launcher.pid, host)), Peak(sandbox.journal_bytes, every=0.2)
        with memory, disk:
            running = client.send(
                "shell", "execute_request", {"code": FLOOD.format(count=count, size=size), "silent": False}
            )
            # Its own subscription is one more reader, and takes everything: nothing of it is kept here.
            while not any(m.channel == "shell" and m.parent_id == running for m in client.messages):
                client.messages.clear()
                client.pump(60)
            got_fast = fast.count()
        seconds = time.monotonic() - began
        stalled.stop(signal.SIGCONT)
        got_stalled, got_slow = stalled.count(), slow.count()
    finally:
        for reader in readers:
            reader.end()
    kept = 0
    for path in sandbox.state.glob("*/journal"):
        for entry in Disk(path).look():
            kept += isinstance(entry, Record) and entry.kind == IOPUB and entry.header["msg_type"] == "display_data"
    return Flood(megabytes, seconds, memory.most, disk.most, count, kept, got_fast, got_slow, got_stalled)


@dataclass
class Counts:
    rounds: int
    before: dict[str, int]
    after: dict[str, int]


def counts(pids: dict[str, int]) -> dict[str, int]:
    found = {}
    for name, pid in pids.items():
        found[f"{name}'s descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"{name}'s threads"] = len(os.listdir(f"/proc/{pid}/task"))
    return found


def attach_and_leave(sandbox: Sandbox, rounds: int) -> Counts:
    """That many frontends that come, attach to a past execution, and go; every tenth is a command line."""
    launcher = sandbox.launch()
    client = launcher.client()
    client.run("for n in range(100): print(n, flush=True)")
    session = sandbox.session()
    pids = {"launcher": launcher.pid, "host": session["host_pid"], "keeper": sandbox.keeper_pid(session)}

    def come_and_go(turn: int) -> None:
        if turn % 10 == 9:
            assert sandbox.cli("attach", session["id"], check=True)[1].startswith("0\n1\n")
            return
        passing = Client(launcher.connection)
        try:
            passing.wait_ready(START_SECONDS)
            assert passing.run("%farside attach 1").text.startswith("0\n1\n")
        finally:
            passing.close()

    # What comes once and stays (a thread that reads files) is there after the first ones.
    for turn in range(12):
        come_and_go(turn)
    before = _settled(pids)
    for turn in range(rounds):
        come_and_go(turn)
    after = before

    def is_back() -> bool:
        nonlocal after
        after = counts(pids)
        return after == before

    with suppress(AssertionError):
        wait_until(is_back, "descriptors and threads to be given back", 30)
    return Counts(rounds, before, after)


def _settled(pids: dict[str, int]) -> dict[str, int]:
    """Counts that have not changed for a while: idle threads end after some seconds, connections sooner."""
    last, since = counts(pids), time.monotonic()

    def is_still() -> bool:
        nonlocal last, since
        now = counts(pids)
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 12

    wait_until(is_still, "descriptors and threads to settle", 60)
    return last


@dataclass
class Asked:
    megabytes: int
    peak_bytes: int
    asked: int
    answered: int


def ask_a_busy_engine(sandbox: Sandbox, megabytes: int, stands_still: bool, size: int = 1_000_000) -> Asked:
    """Questions of that many bytes to an engine that does not come to them, which it then answers: one that runs a cell
    (ipykernel's sockets have threads of their own, so it takes them all), or one that was stopped, and takes nothing.
    """
    launcher = sandbox.launch()
    client = launcher.client()
    client.run("1")
    session = sandbox.session()
    gate = sandbox.work / "gate"
    running = client.execute(
        f"import os, time\nprint('in', flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    )
    client.wait_text(running, "in\n")
    if stands_still:
        os.kill(session["engine_pid"], signal.SIGSTOP)
    with Peak(memory_of(launcher.pid, session["host_pid"])) as peak:
        asked = []
        for _ in range(megabytes * 1_000_000 // size):
            asked.append(client.send("shell", "is_complete_request", {"code": "x" * size}))
            client.pump(0)
        # Whatever waits on shell, this is answered.
        client.reply(client.send("control", "kernel_info_request"), seconds=120)
        if stands_still:
            # No event tells that all has come that will.
            time.sleep(3)
            os.kill(session["engine_pid"], signal.SIGCONT)
        else:
            # All of it is in the journal, and so in the host, when what was asked last is.
            client.reply(client.send("shell", "kernel_info_request"), seconds=120)
        gate.touch()
        client.reply(running, seconds=60)
        wanted = set(asked)
        deadline = time.monotonic() + 240
        answered: set[str] = set()
        while len(answered) < len(wanted) and time.monotonic() < deadline:
            client.pump(0.5)
            answered |= {m.parent_id for m in client.messages if m.channel == "shell" and m.parent_id in wanted}
            client.messages.clear()
    return Asked(megabytes, peak.most, len(wanted), len(answered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=10_000, help="output of the flood")
    parser.add_argument("--rounds", type=int, default=1_000, help="frontends that come, attach and go")
    args = parser.parse_args()
    # Large ones, since the slow reader takes its time for each.
    size = max(50_000, args.megabytes * 50)
    for play in (
        lambda sandbox: flood(sandbox, args.megabytes, size),
        lambda sandbox: attach_and_leave(sandbox, args.rounds),
        lambda sandbox: ask_a_busy_engine(sandbox, args.megabytes // 10, stands_still=False),
        # Half as many: they wait in the frontend's own socket, which takes 1,000.
        lambda sandbox: ask_a_busy_engine(sandbox, args.megabytes // 20, stands_still=True),
    ):
        sandbox = Sandbox()
        try:
            print(play(sandbox), flush=True)
        finally:
            left = sandbox.close()
        assert not left, left


if __name__ == "__main__":
    main()
