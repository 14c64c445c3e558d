"""How cost grows: with the size of messages, with their number, with subscribers, with the journal's length."""

from __future__ import annotations

import statistics
import sys
import time

from bed import BARE_SCRIPTED, FARSIDE_SCRIPTED, Bed, Frontend
from replays import read_link
from rows import number
from starting import first_answer

KERNELS = (BARE_SCRIPTED, FARSIDE_SCRIPTED)
# Of the tables about number: a short line.
LINE_BYTES = 60


def measure(bed: Bed) -> None:
    for table_of in (by_size, by_count, by_subscribers, by_journal):
        title, columns, lines = table_of(bed)
        bed.tables.append((title, columns, lines))
        print(f"  {title}\n{table(columns, lines)}", file=sys.stderr, flush=True)


def table(columns: list[str], lines: list[list[str]]) -> str:
    """As Markdown."""
    rows = [columns, ["---:"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def by_size(bed: Bed) -> tuple[str, list[str], list[list[str]]]:
    lines = []
    for size in (60, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000):
        count = max(3, min(bed.size(200_000), bed.size(400_000_000) // size))
        frontends, watch = connected(bed)

        def run(kernel: str) -> float:
            done = frontends[kernel].execute(f"stream {count} {size}")
            assert done["outputs"] == count, done
            return done["end"] / count

        watch.reset_peak()
        before = watch.cpu()
        pairs = bed.in_turns(3, run, KERNELS)
        cpu = (watch.cpu() - before) / 3 / count
        lines.append([
            f"{size:,}", f"{count:,}", number(pairs.bare * 1e6), number(pairs.farside * 1e6), f"{pairs.ratio:.2f}",
            number(size / pairs.farside / 1e6), number(cpu * 1e6), f"{watch.peak_mb():.0f}",
        ])
        close(bed, frontends)
    columns = ["bytes", "messages", "bare, µs each", "farside, µs each", "ratio", "farside, MB/s", "CPU of launcher and host, µs each", "peak, MB"]
    return "Size of messages", columns, lines


def by_count(bed: Bed) -> tuple[str, list[str], list[list[str]]]:
    lines = []
    for full in (10_000, 100_000, 1_000_000, 5_000_000):
        count = bed.size(full)
        launcher = bed.launch(FARSIDE_SCRIPTED)
        frontend, session = Frontend(bed, launcher), bed.sandbox.session()["id"]
        watch = bed.watch(launcher)
        watch.reset_peak()
        done = frontend.execute(f"stream {count} {LINE_BYTES}")
        assert done["outputs"] == count, done
        peak = watch.peak_mb()
        again = [frontend.execute("%farside attach 1") for _ in range(3)]
        raw = read_link(bed, session, count)
        lines.append([
            f"{count:,}", number(done["end"] / count * 1e6), f"{peak:.0f}",
            *(number(statistics.median(one[when] for one in again) * 1e3) for when in ("first", "end")),
            number(raw["seconds"] / count * 1e6),
        ])
        frontend.close()
        bed.end_all()
    columns = ["messages", "live, µs each", "peak, MB", "first replayed, ms", "whole replay, ms", "raw replay, µs each"]
    return "Number of messages in one execution", columns, lines


def by_subscribers(bed: Bed) -> tuple[str, list[str], list[list[str]]]:
    lines = []
    count = bed.size(200_000)
    for subscribers in (1, 2, 4, 8):
        frontends, watch = connected(bed, subscribers)

        def run(kernel: str) -> float:
            done = frontends[kernel].execute(f"stream {count} {LINE_BYTES}")
            assert done["outputs_of_all"] == count * subscribers, done
            return done["end"] / count

        watch.reset_peak()
        pairs = bed.in_turns(3, run, KERNELS)
        lines.append([
            str(subscribers), number(pairs.bare * 1e6), number(pairs.farside * 1e6), f"{pairs.ratio:.2f}",
            number(pairs.farside / subscribers * 1e6), f"{watch.peak_mb():.0f}",
        ])
        close(bed, frontends)
    columns = ["subscribers", "bare, µs a message", "farside, µs a message", "ratio", "farside, µs for each subscriber", "peak, MB"]
    return f"Subscribers ({count:,} short messages)", columns, lines


def by_journal(bed: Bed) -> tuple[str, list[str], list[list[str]]]:
    """One session that grows. What a person does in it, and what a frontend does that comes back to it."""
    lines = []
    key = str(bed.sandbox.work / "scaling.ipynb")
    launcher = bed.launch(FARSIDE_SCRIPTED, jupyter_session=key)
    frontend, session = Frontend(bed, launcher), bed.sandbox.session()["id"]
    frontend.execute(f"stream 10 {LINE_BYTES}")
    total = 10
    for full in (1_000, 10_000, 100_000, 1_000_000, 5_000_000):
        if (more := bed.size(full) - total) > 0:
            assert frontend.execute(f"stream {more} {LINE_BYTES}")["outputs"] == more
            total += more
        begun = time.perf_counter()
        listed = bed.sandbox.cli("history", session, "--json", check=True)
        listed_s = time.perf_counter() - begun
        assert listed[1].startswith("[")
        passes = [frontend.execute("pass")["end"] for _ in range(bed.rounds(200))]
        old = [frontend.execute("%farside attach 1")["first"] for _ in range(bed.rounds(20))]
        frontend.close()
        back = []
        for _ in range(3):
            launcher.kill()
            bed.sandbox.wait_session(lambda s: not s["attached"], "detached", session)
            seconds, launcher = first_answer(bed, FARSIDE_SCRIPTED, jupyter_session=key)
            back.append(seconds)
        frontend = Frontend(bed, launcher)
        segments = (bed.sandbox.state / session / "journal").glob("journal-*.seg")
        size = sum(segment.stat().st_size for segment in segments)
        lines.append([
            f"{total:,}", f"{size / 1e6:,.0f}", number(statistics.median(passes) * 1e3), number(statistics.median(old) * 1e3),
            number(listed_s * 1e3), number(statistics.median(back) * 1e3),
        ])
    frontend.close()
    bed.sandbox.cli("stop", session, "--now", check=True)
    bed.end_all()
    columns = ["messages in it", "MB", "`pass`, ms", "first output of execution 1, ms", "`farside history`, ms", "reattach, ms"]
    return "Length of the journal", columns, lines


def connected(bed: Bed, subscribers: int = 1):
    launchers = {kernel: bed.launch(kernel) for kernel in KERNELS}
    frontends = {kernel: Frontend(bed, launcher, subscribers) for kernel, launcher in launchers.items()}
    return frontends, bed.watch(launchers[FARSIDE_SCRIPTED])


def close(bed: Bed, frontends: dict[str, Frontend]) -> None:
    for frontend in frontends.values():
        frontend.close()
    bed.end_all()
