"""How long it takes until a kernel answers: a new one, and one that is still there."""

from __future__ import annotations

import statistics
import time

import zmq
from bed import BARE, FARSIDE, Bed
from rows import Row, most, ratio
from sandbox import Launcher
from wire import DELIMITER, Client, dumps, endpoint


def first_answer(bed: Bed, kernel: str, **kw) -> tuple[float, Launcher]:
    begun = time.perf_counter()
    launcher = bed.launch(kernel, **kw)
    with zmq.Context() as context, context.socket(zmq.DEALER) as shell:
        shell.linger = 0
        # The default, 100 ms, would round every start up to its next multiple.
        shell.reconnect_ivl = 2
        shell.connect(endpoint(launcher.connection, "shell"))
        client = Client.__new__(Client)
        client.key, client.session_id, client.username = launcher.connection["key"].encode(), "s", "u"
        parts = [dumps(client.header("kernel_info_request")), b"{}", b"{}", b"{}"]
        shell.send_multipart([DELIMITER, client.sign(parts), *parts])
        assert shell.poll(60_000), f"{kernel} did not answer"
        return time.perf_counter() - begun, launcher


def measure(bed: Bed) -> None:
    def launch(kernel: str) -> float:
        seconds, launcher = first_answer(bed, kernel)
        bed.end(launcher)
        return seconds

    count = bed.rounds(15)
    launch(BARE), launch(FARSIDE)
    pairs = bed.in_turns(count, launch)
    bed.add(Row.of("launch to first kernel_info_reply", "s", pairs, ratio(1.15)))

    key = str(bed.sandbox.work / "bench.ipynb")
    launcher = bed.launch(FARSIDE, jupyter_session=key)
    client = launcher.client()
    client.execute("import threading; threading.Event().wait()")
    client.wait_for(lambda m: m.type == "execute_input", "the cell to run")
    session = bed.sandbox.session()["id"]
    times = []
    for _ in range(count):
        launcher.kill()
        bed.sandbox.wait_session(lambda s: not s["attached"], "detached", session)
        seconds, launcher = first_answer(bed, FARSIDE, jupyter_session=key)
        assert bed.sandbox.session()["id"] == session
        times.append(seconds)
    again = statistics.median(times)
    name = "reattach to a running session, beside a bare launch"
    bed.add(Row(name, "ms", again * 1e3, pairs.bare * 1e3, limit=most(60), samples=count))
    bed.sandbox.cli("stop", session, "--now", check=True)
    bed.end_all()
