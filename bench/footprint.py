"""Memory, during and after much output, and what sessions cost that do nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from bed import FARSIDE, FARSIDE_SCRIPTED, Bed, Fast
from floods import DISPLAYS
from processes import Watch, precise_cpu_seconds, resident, share
from rows import Row, most
from sandbox import wait_until

# A frontend that has subscribed and does not read.
STOPPED = """
import json, sys, time, zmq
c = json.load(open(sys.argv[1]))
s = zmq.Context().socket(zmq.SUB); s.rcvhwm = 10; s.connect(f"tcp://{c['ip']}:{c['iopub_port']}"); s.subscribe(b"")
s.recv_multipart(); print("subscribed", flush=True)
while True: time.sleep(1)
"""


def memory(bed: Bed) -> None:
    launcher = bed.launch(FARSIDE)
    client = launcher.client()
    client.run("1")
    watch = bed.watch(launcher)
    keeper = bed.sandbox.keeper_pid(bed.sandbox.session())
    # Two seconds after their start both let go of what only that needed.
    time.sleep(3)
    wait_until(lambda: settled(watch), "memory to settle")
    note = f"keeper beside them: {resident(keeper) / 1e6:.1f} MB"
    bed.add(Row("memory of launcher and host, idle", "MB", watch.resident_mb(), limit=most(20), note=note))

    count, size = bed.size(10_000), 100_000
    stopped = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(launcher.connection_file)], env=bed.sandbox.env, stdout=subprocess.PIPE
    )
    try:
        assert stopped.stdout is not None and stopped.stdout.readline() == b"subscribed\n"
        os.kill(stopped.pid, signal.SIGSTOP)
        watch.reset_peak()
        code = DISPLAYS.format(count=count, text=f"'x' * {size}")
        seconds, came, _ = Fast(client).execute(code, b'"display_data"')
        assert came == count, f"{came} of {count} arrived"
        peak, after = watch.peak_mb(), watch.resident_mb()
    finally:
        stopped.kill()
        stopped.wait()
        stopped.stdout.close()
    what = f"{count * size / 1e9:.1f} GB in 100 kB messages, one subscriber stopped"
    note = f"{count * size / 1e6 / seconds:.0f} MB/s"
    bed.add(Row(f"memory during {what}", "MB", peak, limit=most(64), note=note))
    bed.add(Row(f"memory after {what}", "MB", after, limit=most(64)))
    bed.end_all()


def settled(watch: Watch) -> bool:
    before = watch.resident_mb()
    time.sleep(0.3)
    return watch.resident_mb() == before


def idle(bed: Bed) -> None:
    """Many sessions, each with its launcher; then the same without. What counts is what they cost the machine: pages
    that they share, the binary's above all, count once."""
    count, seconds = (10, 10) if bed.quick else (100, 60)
    launchers = [bed.launch(FARSIDE_SCRIPTED) for _ in range(count)]
    wait_until(lambda: len(ready(bed)) == count, "all sessions to be idle", 120)
    for launcher in launchers:
        # A frontend has been there, and every session has executed something.
        client = launcher.client()
        client.run("stream 100 60")
        client.close()
    bed.sandbox.clients.clear()
    sessions = ready(bed)
    keepers = [bed.sandbox.keeper_pid(session) for session in sessions]
    hosts = [session["host_pid"] for session in sessions]
    cost(bed, f"{count} idle sessions, attached", [launcher.pid for launcher in launchers] + hosts + keepers, count, seconds)
    for launcher in launchers:
        launcher.kill()
    wait_until(lambda: not any(session["attached"] for session in ready(bed)), "all sessions to be detached", 60)
    cost(bed, f"{count} idle sessions, detached", hosts + keepers, count, seconds)
    for session in sessions:
        bed.sandbox.cli("stop", session["id"], "--now", check=True)
    bed.end_all()


def ready(bed: Bed) -> list[dict]:
    return [session for session in bed.sandbox.ls() if session["state"] == "idle"]


def cost(bed: Bed, what: str, pids: list[int], count: int, seconds: float) -> None:
    # What starting them has left to be done is done by then: each host looks once, ten seconds after its start, for
    # records of any session that are too old, which is a thing of all pairs of sessions (src/host/upkeep.rs).
    time.sleep(15)
    before = sum(map(precise_cpu_seconds, pids))
    time.sleep(seconds)
    percent = (sum(map(precise_cpu_seconds, pids)) - before) / seconds * 100
    each = sum(map(share, pids)) / count / 1e6
    alone = sum(map(resident, pids)) / count / 1e6
    bed.add(Row(f"{what}: CPU, of one core", "%", percent, limit=most(1.0), samples=count, note=f"over {seconds:.0f} s"))
    note = f"resident, with what they share: {alone:.1f} MB"
    bed.add(Row(f"{what}: memory of each", "MB", each, limit=most(8.0), samples=count, note=note))
