"""The limits farside has to hold, measured beside the bare engine in one run.

    bench.py [--json FILE] [--only NAME]... [--quick] [--scaling] [--strict]

Each measurement that has something to be compared with is taken in turns, one of the bare engine, one of farside, so
that whatever else the machine does falls on both; medians and the ratio of each pair are what counts. The client is the
same for both, and does as little as it can.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import ceiling
import durability
import floods
import footprint
import latency
import replays
import scaling
import starting
from bed import FARSIDE, SCRIPTED, Bed
from rows import HEADER
from sandbox import FARSIDE as FARSIDE_BINARY

MEASUREMENTS = {
    "start": starting.measure,
    "latency": latency.measure,
    "displays": floods.displays,
    "prints": floods.prints,
    "stdout": floods.stdout,
    "buffers": floods.buffers,
    "cpu": floods.cpu,
    "memory": footprint.memory,
    "ceiling": ceiling.measure,
    "replay": replays.measure,
    "idle": footprint.idle,
    "durability": durability.measure,
}


def where() -> dict:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    told = subprocess.run([str(FARSIDE_BINARY), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"), "farside": told, "commit": commit, "ipykernel": version("ipykernel"),
        "python": platform.python_version(), "linux": platform.release(), "cpus": len(os.sched_getaffinity(0)),
        "cpu": model[0] if model else platform.machine(), "load": os.getloadavg()[0],
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, help="where to write the figures")
    options.add_argument("--only", action="append", choices=MEASUREMENTS, help="this measurement only")
    options.add_argument("--quick", action="store_true", help="a tenth of the rounds and sizes: to see that it works, not how fast")
    options.add_argument("--scaling", action="store_true", help="instead: how cost grows with size, count, subscribers and journal")
    options.add_argument("--strict", action="store_true", help="exit 1 where a limit is not held")
    args = options.parse_args()
    if not SCRIPTED.exists():
        options.error(f"{SCRIPTED} is not there: `make bench` builds it")
    facts = where()
    bed = Bed(args.quick)
    wanted = {"scaling": scaling.measure} if args.scaling else {name: MEASUREMENTS[name] for name in args.only or MEASUREMENTS}
    try:
        for name, measure in wanted.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            measure(bed)
    finally:
        wrong = bed.sandbox.close()
    if bed.rows:
        print(f"\n{HEADER}")
        for row in bed.rows:
            print(row.line())
    for title, columns, lines in bed.tables:
        print(f"\n{title}\n")
        print(scaling.table(columns, lines))
    print(
        f"\n{facts['date']}: {facts['farside']} ({facts['commit']}), ipykernel {facts['ipykernel']} as {FARSIDE.removeprefix('farside-')}, "
        f"Python {facts['python']}, Linux {facts['linux']}, {facts['cpus']} CPUs ({facts['cpu']}), load at the start {facts['load']:.1f}."
        + (" Quick: sizes and rounds are a tenth." if args.quick else "")
    )
    if args.json:
        tables = [{"title": title, "columns": columns, "rows": lines} for title, columns, lines in bed.tables]
        figures = {**facts, "quick": args.quick, "rows": [row.json() for row in bed.rows], "tables": tables}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    for problem in wrong:
        print(f"left behind: {problem}", file=sys.stderr)
    over = any(row.held is False for row in bed.rows)
    return 1 if wrong or (args.strict and over) else 0


if __name__ == "__main__":
    sys.exit(main())
