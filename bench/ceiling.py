"""farside's own ceiling: a scripted engine and a scripted frontend, between which nothing else is slow."""

from __future__ import annotations

from bed import BARE_SCRIPTED, FARSIDE_SCRIPTED, MB, Bed, Frontend
from rows import Limit, Pairs, Row, least

KERNELS = (BARE_SCRIPTED, FARSIDE_SCRIPTED)


def measure(bed: Bed) -> None:
    small = bed.size(1_000_000)
    rate(bed, "small messages through to one subscriber, journalled", "msg/s", f"stream {small} 60", small, least(150_000))
    large = bed.size(10_000)
    rate(bed, "100 kB messages through to one subscriber, journalled", "MB/s", f"display {large} 100000", large / 10, least(500))
    huge = 3
    size = bed.size(200 * MB)
    code = f"stream {huge} {size}"
    rate(bed, f"{size // MB} MB messages through to one subscriber, journalled", "MB/s", code, huge * size / MB, None)


def rate(bed: Bed, name: str, unit: str, code: str, amount: float, limit: Limit | None) -> None:
    launchers = {kernel: bed.launch(kernel) for kernel in KERNELS}
    frontends = {kernel: Frontend(bed, launcher) for kernel, launcher in launchers.items()}
    watch = bed.watch(launchers[FARSIDE_SCRIPTED])
    wanted = int(code.split()[1])

    def run(kernel: str) -> float:
        if unit == "MB/s":
            bed.touch_memory()
        done = frontends[kernel].execute(code)
        assert done["outputs"] == wanted, f"{kernel}: {done}"
        return amount / done["end"]

    watch.reset_peak()
    before = watch.cpu()
    pairs: Pairs = bed.in_turns(bed.rounds(5), run, KERNELS)
    cpu = (watch.cpu() - before) / len(pairs.of_farside) / amount
    what = "µs of CPU a message" if unit == "msg/s" else "CPU seconds a GB"
    note = f"{cpu * (1e6 if unit == 'msg/s' else 1e3):.1f} {what} in launcher and host"
    bed.add(Row.of(name, unit, pairs, limit, note=note, peak_mb=watch.peak_mb()))
    for frontend in frontends.values():
        frontend.close()
    bed.end_all()
