"""What a person waits for: small requests, idle and while a cell runs."""

from __future__ import annotations

import json
import statistics
import time
import uuid

import zmq
from bed import BARE, FARSIDE, RELAYED, Bed, Fast, execute_content
from rows import Pairs, Row, most, ratio

# Keeps the engine's main thread busy until the file is there.
BUSY = "import os\nwhile not os.path.exists({gate!r}): sum(range(10_000))"


def measure(bed: Bed) -> None:
    executions(bed)
    fast = bed.pair()
    infos(bed, fast)
    completions(bed, fast)
    while_busy(bed, fast)
    bed.end_all()


def executions(bed: Bed) -> None:
    """By five of each kind of engine: of two of a kind, one after the other, one is often 3 % slower than the other for
    all its life, and the limit is not much more. What any two processes in between cost, the relayed engine says."""
    measured = [by_one_of_each(bed, bed.rounds(100)) for _ in range(bed.rounds(5))]
    for name, of_one in (("request to reply", 0), ("request to reply and idle", 1)):
        seconds = {
            kernel: [second for one in measured for second in one[of_one][kernel]] for kernel in (BARE, FARSIDE, RELAYED)
        }
        floor = Pairs(seconds[BARE], seconds[RELAYED]).ratio
        of_each = ", ".join(f"{Pairs(one[of_one][BARE], one[of_one][FARSIDE]).ratio:.2f}" for one in measured)
        note = f"of each pair {of_each}; two processes that only copy bytes: {floor:.2f}"
        pairs = Pairs(seconds[BARE], seconds[FARSIDE])
        bed.add(Row.of(f"execute `pass`, {name}, median", "ms", pairs, ratio(1.05), 1e3, note=note))


def by_one_of_each(bed: Bed, count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds to the reply, and to reply and idle."""
    fast = {**bed.pair(), RELAYED: bed.relayed()}
    replies: dict[str, list[float]] = {kernel: [] for kernel in fast}

    def execute(kernel: str) -> float:
        """Both at once: the reply's time is noted when it comes, and what is measured ends with the idle too."""
        one = fast[kernel]
        poller = zmq.Poller()
        begun = time.perf_counter()
        msg_id, shell = one.request("execute_request", execute_content("pass"))
        poller.register(shell, zmq.POLLIN)
        poller.register(one.iopub, zmq.POLLIN)
        replied = idle = 0.0
        while not (replied and idle):
            ready = dict(poller.poll(60_000))
            assert ready, f"{kernel} does not answer"
            if shell in ready:
                one.reply(msg_id, shell)
                replied = time.perf_counter() - begun
            if one.iopub in ready and one.is_idle(msg_id, one.iopub.recv_multipart()):
                idle = time.perf_counter() - begun
        replies[kernel].append(replied)
        return max(replied, idle)

    bed.each_in_turn(20, execute, tuple(fast))
    for seconds in replies.values():
        seconds.clear()
    both = bed.each_in_turn(count, execute, tuple(fast))
    bed.end_all()
    return replies, both


def infos(bed: Bed, fast: dict[str, Fast]) -> None:
    def info(kernel: str) -> float:
        one = fast[kernel]
        begun = time.perf_counter()
        msg_id, socket = one.request("kernel_info_request", {})
        one.reply(msg_id, socket)
        seconds = time.perf_counter() - begun
        one.until_idle(msg_id)
        return seconds

    pairs = bed.in_turns(bed.rounds(500), info)
    bed.add(Row.of("kernel_info while idle, median", "ms", pairs, ratio(0.20), 1e3))


def complete(one: Fast, **header: str) -> float:
    begun = time.perf_counter()
    msg_id, socket = one.request("complete_request", {"code": "prin", "cursor_pos": 4}, **header)
    content = json.loads(one.reply(msg_id, socket))
    assert "print" in content["matches"], content
    return time.perf_counter() - begun


def completions(bed: Bed, fast: dict[str, Fast]) -> None:
    pairs = bed.in_turns(bed.rounds(200), lambda kernel: complete(fast[kernel]))
    bed.add(Row.of("completion while idle, median", "ms", pairs, None, 1e3))


def while_busy(bed: Bed, fast: dict[str, Fast]) -> None:
    """A cell runs. The engine's own thread for shell requests is the one that runs it: what is asked of it waits for
    the cell's end, with and without farside; but on a subshell (JEP 91) it answers in between."""
    one, times = fast[FARSIDE], []
    with Cell(bed, one):
        for turn in range(bed.rounds(1000)):
            begun = time.perf_counter()
            msg_id, asked_on = one.request("kernel_info_request", {}, "control" if turn % 2 else "shell")
            one.reply(msg_id, asked_on)
            times.append(time.perf_counter() - begun)
    worst = statistics.quantiles(times, n=100)[98]
    name = "kernel_info while a cell runs, 99th percentile"
    bed.add(Row(name, "ms", worst * 1e3, limit=most(5.0), samples=len(times)))

    subshells = {}
    for kernel, one in fast.items():
        msg_id, control = one.request("create_subshell_request", {}, "control")
        subshells[kernel] = json.loads(one.reply(msg_id, control))["subshell_id"]

    def completion(kernel: str) -> float:
        """One cell runs at a time: two would leave no core for what is measured."""
        one = fast[kernel]
        with Cell(bed, one):
            return statistics.median(complete(one, subshell_id=subshells[kernel]) for _ in range(3))

    note = "on a subshell; on the main shell it waits for the cell's end, as with the bare engine"
    pairs = bed.in_turns(bed.rounds(5), completion)
    bed.add(Row.of("completion while a cell runs, median", "ms", pairs, None, 1e3, note=note))


class Cell:
    """A cell that runs as long as the block does."""

    def __init__(self, bed: Bed, one: Fast):
        self.one = one
        self.gate = bed.sandbox.work / uuid.uuid4().hex

    def __enter__(self) -> None:
        self.msg_id, self.shell = self.one.request("execute_request", execute_content(BUSY.format(gate=str(self.gate))))
        # Its execute_input: from here on the engine is at it.
        while b"execute_input" not in self.one.iopub.recv_multipart()[-4]:
            pass

    def __exit__(self, *_) -> None:
        self.gate.touch()
        self.one.until_idle(self.msg_id)
        self.one.reply(self.msg_id, self.shell)
