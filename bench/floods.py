"""Much output: how long it takes until the frontend has all of it, and what launcher and host need for that."""

from __future__ import annotations

import time

from bed import BARE, FARSIDE, MB, Bed, Fast, execute_content
from processes import Watch
from rows import Limit, Pairs, Row, ratio

DISPLAYS = """\
from IPython.display import publish_display_data
for i in range({count}): publish_display_data({{'text/plain': {text}}})"""

# A target that sends back what it got.
ECHO = """\
def echo(comm, message):
    comm.on_msg(lambda message: comm.send({}, buffers=message["buffers"]))
get_ipython().kernel.comm_manager.register_target("echo", echo)"""


def displays(bed: Bed) -> None:
    wanted = 20_000
    flood(
        bed, "20,000 display_data in one cell", DISPLAYS.format(count=wanted, text="str(i)"), b'"display_data"', ratio(1.05),
        rounds=7, wanted=wanted,
    )


def prints(bed: Bed) -> None:
    count = bed.size(1_000_000)
    name = f"{count:,} short prints"
    flood(bed, name, f"for i in range({count}): print(i)", b'"stream"', None, rounds=5, note="some tens of messages")
    count = bed.size(20_000)
    code = f"for i in range({count}): print(i, flush=True)"
    flood(bed, f"{count:,} short prints, each flushed", code, b'"stream"', None, rounds=5, wanted=count)


def stdout(bed: Bed) -> None:
    size = bed.size(200 * MB)
    code = f"print('x' * {size - 1})"
    flood(bed, f"{size // MB} MB of stdout in one print", code, b'"stream"', ratio(1.20), rounds=5, wanted_bytes=size)


def flood(
    bed: Bed, name: str, code: str, kind: bytes, limit: Limit | None, rounds: int, wanted: int = 0, wanted_bytes: int = 0, note: str = ""
) -> None:
    fast = bed.pair()
    watch = bed.watch(fast_launcher(bed, fast[FARSIDE]))
    lost = 0

    def measure(kernel: str) -> float:
        nonlocal lost
        if wanted_bytes:
            bed.touch_memory()
        seconds, count, size = fast[kernel].execute(code, kind)
        # An engine's own PUB socket drops what a busy client does not take in time. farside's must not.
        if kernel == BARE:
            lost += max(0, wanted - count)
        else:
            assert count >= wanted and size >= wanted_bytes, f"{kernel}: {count} messages of {size} bytes arrived"
        return seconds

    measure(BARE), measure(FARSIDE)
    watch.reset_peak()
    pairs = bed.in_turns(bed.rounds(rounds), measure)
    if lost:
        note = "; ".join(filter(None, (note, f"the bare engine lost {lost}")))
    bed.add(Row.of(name, "s", pairs, limit, note=note, peak_mb=watch.peak_mb()))
    bed.end_all()


def fast_launcher(bed: Bed, fast: Fast):
    return next(one for one in bed.sandbox.launchers if one.connection == fast.client.connection)


def buffers(bed: Bed) -> None:
    """Binary buffers through a comm, as widgets with images or arrays send them: to the engine, and back."""
    size = bed.size(100 * MB)
    fast = bed.pair()
    watch = bed.watch(fast_launcher(bed, fast[FARSIDE]))
    data = bytes(range(256)) * (size // 256)
    for one in fast.values():
        one.execute(ECHO)
        msg_id, _ = one.request("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
        one.until_idle(msg_id)

    def measure(kernel: str) -> float:
        one = fast[kernel]
        bed.touch_memory()
        begun = time.perf_counter()
        msg_id, _ = one.request("comm_msg", {"comm_id": "c", "data": {}}, buffers=(data,))
        count, came = one.until_idle(msg_id, b'"comm_msg"')
        assert count == 1 and came >= len(data), f"{kernel}: {count} comm_msg of {came} bytes"
        return time.perf_counter() - begun

    measure(BARE), measure(FARSIDE)
    watch.reset_peak()
    pairs = bed.in_turns(bed.rounds(5), measure)
    name = f"{size // MB} MB of binary buffers through a comm and back"
    bed.add(Row.of(name, "s", pairs, None, peak_mb=watch.peak_mb()))
    bed.end_all()


def cpu(bed: Bed) -> None:
    """CPU seconds for a GB of 100 kB messages: what launcher and host take, beside what the bare engine itself takes
    to make it."""
    count, size = bed.size(10_000), 100_000
    fast = bed.pair()
    watch = bed.watch(fast_launcher(bed, fast[FARSIDE]))
    engine = Watch((fast_launcher(bed, fast[BARE]).pid,))
    code = DISPLAYS.format(count=count, text=f"'x' * {size}")
    gigabytes = count * size / 1e9

    def measure(kernel: str) -> float:
        watched = engine if kernel == BARE else watch
        before = watched.cpu()
        _, came, _ = fast[kernel].execute(code, b'"display_data"')
        assert kernel == BARE or came == count, f"{came} of {count} arrived"
        return (watched.cpu() - before) / gigabytes

    pairs: Pairs = bed.in_turns(bed.rounds(3), measure)
    note = "launcher and host; bare: the engine that makes it"
    bed.add(Row.of("CPU seconds for a GB in 100 kB messages", "s", pairs, note=note, peak_mb=watch.peak_mb()))
    bed.end_all()
