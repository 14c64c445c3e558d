"""Millions of tiny messages, and a host that is killed in the middle of them.

The engine is bench/scripted, which waits for its subscribers: nothing is dropped before farside has it. The journal is
much smaller than what comes, so it is compacted all the while.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import struct
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field

import zmq
from bounds import MEMORY_BYTES_MAX, Peak
from disk import IOPUB, NOTE, Disk, Missing
from rig import SETTLE_SECONDS
from sandbox import SCRIPTED_ARGV, START_SECONDS, Launcher, Lost, Sandbox, kill, wait_until
from wire import DELIMITER, Client

# So long the subscriber may be without a message while there are some: a new host takes a part of it.
SILENT_SECONDS_MAX = 5.0

# A line's number, and little more.
TEXT_BYTES = 16

# Where the host is killed, as a share of what has come.
KILLED_AT = (0.2, 0.8)

# A thousand a second is a machine on which nothing can be said.
MESSAGES_A_SECOND_MIN = 1000

# What a message takes in the journal; a third of it is the bound. So ten million have the setting's default, 2 GB.
RECORD_BYTES = 600

LINE = re.compile(rb"(\d+) x+\\n")


@dataclass
class Tiny:
    """What came of it."""

    messages: int
    seconds: float = 0.0
    peak_bytes: int = 0
    journal_bytes: int = 0
    # Of what the subscriber saw: how many, and runs of numbers that it did not.
    seen: int = 0
    unseen: list[tuple[int, int]] = field(default_factory=list)
    # And the longest time without any.
    silent_seconds: float = 0.0
    # Outputs that the journal has as they came, and those that it has compacted.
    kept: int = 0
    compacted: int = 0
    marks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.messages / self.seconds if self.seconds else 0
        return (
            f"{self.messages:,} messages in {self.seconds:.0f} s ({rate:,.0f}/s), host killed once: {self.seen:,} seen, not for "
            f"{self.silent_seconds:.1f} s at most, "
            f"{self.kept:,} in the journal as they came and {self.compacted:,} compacted; launcher and host had "
            f"{self.peak_bytes / 1e6:.1f} MB at most, the journal {self.journal_bytes / 1e9:.2f} GB; said to be missing: "
            f"{self.marks or 'nothing'}"
        )


class Subscriber:
    """Reads iopub in a process of its own, as fast as Python can, and holds every number against the one before."""

    def __init__(self, launcher: Launcher, total: int):
        self.total = total
        self._count = mmap.mmap(-1, 8)
        self._result = tempfile.TemporaryFile()
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._result.write(json.dumps(self._read(launcher, told)).encode())
                self._result.flush()
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        assert os.read(ready, 1) == b"r", "the subscriber has ended"
        os.close(ready)

    def _read(self, launcher: Launcher, told: int) -> dict:
        client = Client(launcher.connection, receive_high_water=1000)
        client.wait_for(lambda m: m.type == "iopub_welcome", "welcome")
        os.write(told, b"r")
        socket = client.sockets["iopub"]
        seen, following, unseen, wrong = 0, 0, [], []
        silent, last = 0.0, time.monotonic()
        while following < self.total:
            frames = socket.recv_multipart()
            at = frames.index(DELIMITER)
            line = LINE.search(frames[at + 5])
            if line is None:
                if seen and b'"idle"' in frames[at + 5] and b"execute_request" in frames[at + 3]:
                    break
                continue
            now = time.monotonic()
            silent, last = max(silent, now - last if seen else 0.0), now
            number = int(line[1])
            if number != following:
                (unseen if number > following else wrong).append((following, number))
            following = max(following, number + 1)
            seen += 1
            self._count[:] = struct.pack("<Q", seen)
        if following < self.total:
            unseen.append((following, self.total))
        return {"seen": seen, "unseen": unseen, "wrong": wrong, "silent": silent}

    @property
    def count(self) -> int:
        return struct.unpack("<Q", self._count[:])[0]

    def result(self) -> dict:
        """Once it has seen the end."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert status == 0, "the subscriber has failed"
        self._result.seek(0)
        return json.loads(self._result.read())

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


def tiny(sandbox: Sandbox, messages: int, rng: random.Random) -> Tiny:
    bound = messages * RECORD_BYTES // 3
    sandbox.env["FARSIDE_JOURNAL_BYTES_MAX"] = str(bound)
    sandbox.add_kernelspec("scripted", SCRIPTED_ARGV)
    launcher = sandbox.launch("farside-scripted")
    client = launcher.client(iopub=False)
    session = sandbox.wait_session(lambda one: one["state"] == "idle", "the engine")
    host = session["host_pid"]
    journal = sandbox.state / session["id"] / "journal"
    subscriber = Subscriber(launcher, messages)
    done = Tiny(messages)

    def outputs() -> int:
        return json.loads((journal.parent / "status.json").read_text())["outputs"]

    def look() -> None:
        with suppress(FileNotFoundError):
            done.journal_bytes = max(done.journal_bytes, sum(path.stat().st_size for path in journal.glob("*.seg")))

    try:
        began = time.monotonic()
        with Peak([launcher.pid, host]) as peak:
            asked = client.execute(f"stream {messages} {TEXT_BYTES}")
            kill_at, is_killed = int(messages * rng.uniform(*KILLED_AT)), False
            deadline = began + START_SECONDS + messages / MESSAGES_A_SECOND_MIN
            while not any(m.parent_id == asked for m in client.messages):
                # A subscriber that is slower than the engine lags far behind the host.
                if not is_killed and outputs() >= kill_at:
                    is_killed = True
                    kill(host)
                    after = sandbox.wait_session(lambda one: one["host_pid"] not in (None, host), "the next host")
                    peak.pids = [launcher.pid, after["host_pid"]]
                if time.monotonic() > deadline:
                    raise Lost(f"no reply after {subscriber.count} of {messages} messages")
                client.pump(0.2)
                look()
            saw = subscriber.result()
            done.seconds = time.monotonic() - began
            with suppress(Lost):
                wait_until(
                    lambda: sum(p.stat().st_size for p in journal.glob("*.seg")) <= bound,
                    "the journal to be compacted", SETTLE_SECONDS,
                )
    finally:
        subscriber.end()
    done.peak_bytes, done.seen, done.unseen, done.silent_seconds = peak.bytes, saw["seen"], saw["unseen"], saw["silent"]
    if not is_killed:
        done.problems.append("it was over before the host could be killed")
    done.problems += [f"{after} was seen where {before} was next" for before, after in saw["wrong"][:3]]
    reply = client.reply(asked)
    if reply.content["status"] != "ok":
        done.problems.append(f"the reply is {reply.content}")
    _judge(done, sandbox, session["id"], bound)
    attached = launcher.client().run("%farside attach 1", seconds=START_SECONDS)
    if f"{messages - 1} x" not in attached.text:
        done.problems.append(f"an attachment shows another end: {attached.text[-200:]!r}")
    return done


def _judge(done: Tiny, sandbox: Sandbox, session: str, bound: int) -> None:
    """Against the journal: each number is there as it came, or counted as compacted, or said to be missing."""
    numbers: list[int] = []
    state = None
    for entry in Disk(sandbox.state / session / "journal").look():
        if isinstance(entry, Missing):
            done.marks.append(entry.why)
        elif entry.kind == NOTE:
            note = entry.note
            if note["note"] == "gap":
                done.marks.append(note["why"])
            elif note["note"] == "compacted" and note["n"] == 1:
                done.compacted += note["outputs"]
            elif note["note"] == "execution" and note["n"] == 1:
                state = note["state"]
        elif entry.kind == IOPUB and entry.execution == 1 and entry.header["msg_type"] == "stream":
            done.kept += 1
            numbers += [int(number) for number in LINE.findall(entry.content)]
    if state != "ok":
        done.problems.append(f"the execution's end is {state}")
    if numbers != sorted(set(numbers)):
        done.problems.append("outputs are in the journal twice, or in another order")
    if not numbers or (numbers[0], numbers[-1]) != (0, done.messages - 1):
        done.problems.append(f"the journal begins with {numbers[:1]} and ends with {numbers[-1:]}")
    missing = done.messages - done.kept - done.compacted
    if (missing or done.unseen) and not done.marks:
        done.problems.append(f"{missing} outputs are not in the journal, {done.unseen} were not seen, and nothing says so")
    if done.silent_seconds > SILENT_SECONDS_MAX:
        done.problems.append(f"the subscriber got nothing for {done.silent_seconds:.1f} s")
    if done.peak_bytes > MEMORY_BYTES_MAX:
        done.problems.append(f"launcher and host had {done.peak_bytes / 1e6:.1f} MB")
    if done.journal_bytes > bound:
        done.problems.append(f"the journal had {done.journal_bytes / 1e9:.2f} GB")
