"""Millions of tiny messages, and a host that is killed in the middle of them.

The engine is bench/scripted, which waits for its subscribers: nothing is dropped before farside has it. It publishes
them a cell at a time, each when the subscriber has seen the last one's end. The journal is much smaller than what comes,
so it is compacted all the while.
"""

from __future__ import annotations

import collections
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
from bounds import MEMORY_BYTES_MAX, Peak, memory_of
from disk import IOPUB, NOTE, Disk, Missing
from rig import SETTLE_SECONDS
from sandbox import SCRIPTED_ARGV, START_SECONDS, Launcher, Lost, Sandbox, kill, wait_until
from wire import DELIMITER, Client

# So long the subscriber may be without a message while there are some: a new host takes a part of it.
SILENT_SECONDS_MAX = 5.0

# A line's number, and little more.
TEXT_BYTES = 16

# Cells, where it is not said how many messages one has.
CELLS = 50

# In which cell the host is killed, as a share of all, and how long after it has begun. Of ten million messages more than
# 2 GiB come after it: places in a stream are 32 bit numbers in the journal, and their differences have a sign.
KILLED_AT, KILLED_AFTER_SECONDS = (0.1, 0.3), (0.1, 0.8)

# A thousand a second is a machine on which nothing can be said.
MESSAGES_A_SECOND_MIN = 1000

# What a message takes in the journal; a third of it is the bound. So ten million have the setting's default, 2 GB.
RECORD_BYTES = 600

LINE = re.compile(rb"(\d+) x+\\n")

# What a subscriber is told that was too far behind.
TOO_FAR_BEHIND = b"messages are missing here: this frontend was so far behind"


@dataclass
class Tiny:
    """What came of it."""

    messages: int
    # Of each cell.
    cell: int
    seconds: float = 0.0
    peak_bytes: int = 0
    journal_bytes: int = 0
    # Of what the subscriber saw: how many, and runs of numbers that it did not.
    seen: int = 0
    unseen: list[tuple[int, int]] = field(default_factory=list)
    # Those runs in which it was told so.
    told: list[tuple[int, int]] = field(default_factory=list)
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
            f"{self.messages:,} messages in {self.seconds:.0f} s ({rate:,.0f}/s), host killed once: {self.seen:,} seen, "
            f"{sum(until - since for since, until in self.told):,} told to be missing, not for "
            f"{self.silent_seconds:.1f} s at most, "
            f"{self.kept:,} in the journal as they came and {self.compacted:,} compacted; launcher and host had "
            f"{self.peak_bytes / 1e6:.1f} MB at most, the journal {self.journal_bytes / 1e9:.2f} GB; said to be missing: "
            f"{self.marks or 'nothing'}"
        )


class Subscriber:
    """Reads iopub in a process of its own, as fast as Python can, and holds every number against the one before."""

    def __init__(self, launcher: Launcher, total: int, cell: int):
        self.total, self.cell = total, cell
        self._next = mmap.mmap(-1, 8)
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
        seen, following, unseen, told, wrong = 0, 0, [], [], []
        is_told = False
        silent, last = 0.0, 0.0
        while following < self.total:
            frames = socket.recv_multipart()
            at = frames.index(DELIMITER)
            line = LINE.search(frames[at + 5])
            if line is not None:
                now = time.monotonic()
                silent, last = max(silent, now - (last or now)), now
                seen, number = seen + 1, following - following % self.cell + int(line[1])
            elif seen and b'"idle"' in frames[at + 5] and b"execute_request" in frames[at + 3]:
                # Between two cells nothing comes.
                last, number = 0.0, -(-following // self.cell) * self.cell - 1
            else:
                is_told |= TOO_FAR_BEHIND in frames[at + 5]
                continue
            if number > following:
                (told if is_told else unseen).append((following, number))
                is_told = False
            elif number < following and line is not None:
                wrong.append((following, number))
            following = max(following, number + 1)
            self._next[:] = struct.pack("<Q", following)
        return {"seen": seen, "unseen": unseen, "told": told, "wrong": wrong, "silent": silent}

    @property
    def next(self) -> int:
        """What has not come to it yet, nor passed it by."""
        return struct.unpack("<Q", self._next[:])[0]

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


def tiny(sandbox: Sandbox, messages: int, rng: random.Random, cell: int | None = None) -> Tiny:
    cell = cell or messages // CELLS
    cells = messages // cell
    done = Tiny(cells * cell, cell)
    bound = done.messages * RECORD_BYTES // 3
    sandbox.env["FARSIDE_JOURNAL_BYTES_MAX"] = str(bound)
    sandbox.add_kernelspec("scripted", SCRIPTED_ARGV)
    launcher = sandbox.launch("farside-scripted")
    client = launcher.client(iopub=False)
    session = sandbox.wait_session(lambda one: one["state"] == "idle", "the engine")
    journal = sandbox.state / session["id"] / "journal"
    subscriber = Subscriber(launcher, done.messages, cell)
    killed_in = int(cells * rng.uniform(*KILLED_AT))

    def journal_bytes() -> int:
        now = sandbox.journal_bytes()
        done.journal_bytes = max(done.journal_bytes, now)
        return now

    try:
        began = time.monotonic()
        deadline = began + START_SECONDS + messages / MESSAGES_A_SECOND_MIN
        with Peak(memory_of(launcher.pid, session["host_pid"])) as peak:
            for number in range(cells):
                asked = client.execute(f"stream {cell} {TEXT_BYTES}")
                if number == killed_in:
                    time.sleep(rng.uniform(*KILLED_AFTER_SECONDS))
                    peak.measure = memory_of(launcher.pid, _kill_host(sandbox))
                while subscriber.next < (number + 1) * cell or not client.messages:
                    assert time.monotonic() < deadline, f"{subscriber.next} of {messages} messages have come"
                    client.pump(0.02)
                    journal_bytes()
                done.problems += _wrong_replies(client, asked)
            saw = subscriber.result()
            done.seconds = time.monotonic() - began
            with suppress(Lost):
                wait_until(lambda: journal_bytes() <= bound, "the journal to be compacted", SETTLE_SECONDS)
    finally:
        subscriber.end()
    done.peak_bytes, done.seen, done.silent_seconds = peak.most, saw["seen"], saw["silent"]
    done.unseen, done.told = saw["unseen"], saw["told"]
    done.problems += [f"{after} was seen where {before} was next" for before, after in saw["wrong"][:3]]
    _judge(done, Disk(journal), bound)
    attached = launcher.client().run(f"%farside attach {cells}", seconds=START_SECONDS)
    if f"{cell - 1} x" not in attached.text:
        done.problems.append(f"an attachment shows another end: {attached.text[-200:]!r}")
    return done


def _kill_host(sandbox: Sandbox) -> int:
    """Gives the next one."""
    host = sandbox.session()["host_pid"]
    kill(host)
    return sandbox.wait_session(lambda one: one["host_pid"] not in (None, host), "the next host")["host_pid"]


def _wrong_replies(client: Client, asked: str) -> list[str]:
    replies = [(m.parent_id, m.content["status"]) for m in client.messages]
    client.messages.clear()
    return [] if replies == [(asked, "ok")] else [f"the replies to {asked} are {replies}"]


def _judge(done: Tiny, disk: Disk, bound: int) -> None:
    """Against the journal: each number is there as it came, or counted as compacted, or said to be missing."""
    numbers: dict[int, list[int]] = collections.defaultdict(list)
    states: dict[int, str] = {}
    for entry in disk.look():
        if isinstance(entry, Missing):
            done.marks.append(entry.why)
        elif entry.kind == NOTE:
            note = entry.note
            if note["note"] == "gap":
                done.marks.append(note["why"])
            elif note["note"] == "compacted" and note["n"] > 0:
                done.compacted += note["outputs"]
            elif note["note"] == "execution":
                states[note["n"]] = note["state"]
        elif entry.kind == IOPUB and entry.header["msg_type"] == "stream":
            # What was compacted says in a line of its own that it was; what farside says besides is no output of these.
            done.kept += b"[farside] " not in entry.content
            numbers[entry.execution] += map(int, LINE.findall(entry.content))
    cells = done.messages // done.cell
    if states != dict.fromkeys(range(1, cells + 1), "ok"):
        done.problems.append(f"the ends of the executions are {states}")
    for n, those in numbers.items():
        if those != sorted(set(those)):
            done.problems.append(f"outputs of execution {n} are in the journal twice, or in another order")
    last = numbers[cells]
    if not last or last[-1] != done.cell - 1:
        done.problems.append(f"the journal ends with {last[-3:]}")
    missing = done.messages - done.kept - done.compacted
    if (missing or done.unseen) and not done.marks:
        done.problems.append(f"{missing} outputs are not in the journal, {done.unseen[:3]} were not seen, and nothing says so")
    if done.silent_seconds > SILENT_SECONDS_MAX:
        done.problems.append(f"the subscriber got nothing for {done.silent_seconds:.1f} s")
    if done.peak_bytes > MEMORY_BYTES_MAX:
        done.problems.append(f"launcher and host had {done.peak_bytes / 1e6:.1f} MB")
    if done.journal_bytes > bound:
        done.problems.append(f"the journal had {done.journal_bytes / 1e9:.2f} GB, its bound is {bound / 1e9:.2f} GB")
