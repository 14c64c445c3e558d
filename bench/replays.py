"""Coming back: how soon the first output of an execution is there again, and all of it."""

from __future__ import annotations

import json
import statistics
import subprocess

from bed import FARSIDE_SCRIPTED, LONGEST_SECONDS, SCRIPTED, Bed, Frontend
from processes import Watch
from rows import Limit, Row, least, most
from sandbox import Launcher

FIRST_MS = 20.0


def measure(bed: Bed) -> None:
    million, thousands = bed.size(1_000_000), bed.size(10_000)
    cases = (
        (f"{million:,} messages", f"stream {million} 60", None),
        (f"{thousands / 1e4:g} GB", f"display {thousands} 100000", None),
        (f"a progress bar of {million:,} updates", f"progress {million}", most(50.0)),
    )
    for what, code, whole in cases:
        replay(bed, what, code, whole)


def replay(bed: Bed, what: str, code: str, whole: Limit | None) -> None:
    # The second execution of 1 GB is not to make the first one smaller: all of both is read.
    launcher = bed.launch(FARSIDE_SCRIPTED, {"FARSIDE_JOURNAL_BYTES_MAX": "none"})
    count = int(code.split()[1])
    frontend = Frontend(bed, launcher)
    session = bed.sandbox.session()["id"]
    made = frontend.execute(code)
    assert made["outputs"] == count, made
    # At once: what an index or a cache does in its own time is part of what a person waits for.
    attached(bed, frontend, f"{what}, right after its end", 1, whole)
    watch = bed.watch(launcher)
    watch.reset_peak()
    attached(bed, frontend, what, bed.rounds(10), whole, watch)
    raw(bed, what, session, count)
    while_it_runs(bed, launcher, frontend, what, code, session)
    frontend.close()
    bed.end_all()


def attached(
    bed: Bed, frontend: Frontend, what: str, rounds: int, whole: Limit | None, watch: Watch | None = None
) -> None:
    """Compacted, as a cell shows it. Execution 1 is the one."""
    done = [frontend.execute("%farside attach 1") for _ in range(rounds)]
    outputs = {one["outputs"] for one in done}
    assert len(outputs) == 1 and outputs != {0}, outputs
    peak = watch.peak_mb() if watch else None
    first, end = (statistics.median(one[when] for one in done) * 1e3 for when in ("first", "end"))
    bed.add(Row(f"first replayed output of {what}", "ms", first, limit=most(FIRST_MS), samples=rounds, peak_mb=peak))
    note = f"{outputs.pop()} messages"
    bed.add(Row(f"whole replay of {what}", "ms", end, limit=whole, samples=rounds, note=note))


def raw(bed: Bed, what: str, session: str, count: int) -> None:
    """As the journal has it, to a client of the link."""
    done = [read_link(bed, session, count) for _ in range(bed.rounds(3))]
    median = statistics.median(one["seconds"] for one in done)
    megabytes = done[0]["bytes"] / 1e6
    limit = least(200_000) if count >= 100_000 else None
    note = f"{megabytes / median:,.0f} MB/s"
    bed.add(Row(f"raw replay of {what}", "msg/s", count / median, limit=limit, samples=len(done), note=note))


def read_link(bed: Bed, session: str, count: int) -> dict:
    """Reads so many of the session's messages from its first one on; waits for those that are not there yet."""
    socket = bed.sandbox.xdg_runtime / "farside" / session / "link.sock"
    command = [str(SCRIPTED), "raw", str(socket), "0", str(count)]
    done = subprocess.run(command, env=bed.sandbox.env, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=True)
    return json.loads(done.stdout)


def while_it_runs(bed: Bed, launcher: Launcher, frontend: Frontend, what: str, code: str, session: str) -> None:
    """Nothing about its outputs is final yet; they are all there, and the execution waits."""
    frontend.begin(f"{code}; wait")
    # Twice as many as the first one had: all of both.
    read_link(bed, session, 2 * int(code.split()[1]))
    times = []
    for _ in range(bed.rounds(10)):
        # Each time another one: what follows the first output would stand before the next.
        other = Frontend(bed, launcher)
        times.append(other.execute("?%farside attach")["first"])
        other.close()
    name = f"first replayed output of {what}, which still runs"
    bed.add(Row(name, "ms", statistics.median(times) * 1e3, limit=most(FIRST_MS), samples=len(times)))
    bed.sandbox.cli("interrupt", session, check=True)
    frontend.answer()
