"""Covers what the engine's processes use, and its health: shown in status.json, from real processes."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
from sandbox import MARKER, Sandbox, kill, wait_until

# The heartbeat is asked every 5 s, and three times in a row; and a loaded machine.
SILENT_SECONDS = 45.0
# CPU and memory are looked at every 5 s while a cell runs.
LOOK_SECONDS = 30.0

BURN = """
import os, subprocess, sys, time
def burn(seconds):
    while time.process_time() < seconds: pass
"""

# A child that is waited for, one in a session of its own, and an orphan: a second each.
TREE = BURN + """
code = 'import time\\nwhile time.process_time() < 1: pass'
subprocess.run([sys.executable, '-c', code])
other = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)
subprocess.run(['sh', '-c', '"$0" -c "$1" & :', sys.executable, code])
"""


def status(sandbox: Sandbox, session: dict) -> dict[str, Any]:
    [found] = sandbox.state.glob(f"**/{session['id']}/status.json")
    return json.loads(found.read_text())


@pytest.fixture
def session(sandbox: Sandbox) -> dict:
    created = sandbox.json("new", "--engine", "python3")
    return created


def test_cpu_of_all_descendants_counts_and_outlives_the_host(sandbox: Sandbox, session: dict) -> None:
    sandbox.cli("exec", session["id"], "--detach", TREE + "\ninput_ = __import__('threading').Event(); input_.wait()", check=True)
    seen = wait_until(
        lambda: (now := status(sandbox, session))["cpu_seconds"] >= 3 and now,
        "3 s of CPU time of three children",
        LOOK_SECONDS,
        lambda: status(sandbox, session),
    )
    # Three of theirs, and what starting Python took; not what the machine used.
    assert seen["cpu_seconds"] < 30
    assert seen["memory_bytes"] > 10_000_000
    assert seen["memory_peak_bytes"] >= seen["memory_bytes"]
    # A new host goes on from there: two of the three are gone, and nobody could find them in /proc any more.
    kill(seen["host"]["pid"])
    again = wait_until(
        lambda: (now := status(sandbox, session))["host"] != seen["host"] and now["memory_bytes"] and now,
        "a new host that has looked",
        LOOK_SECONDS,
        lambda: status(sandbox, session),
    )
    # Growth below a second is not journalled.
    assert again["cpu_seconds"] >= seen["cpu_seconds"] - 1.0
    sandbox.cli("stop", session["id"], "--now", check=True)


def test_a_session_started_in_a_cell_counts_for_itself(sandbox: Sandbox, session: dict) -> None:
    farside = os.environ.get("FARSIDE_BIN", "target/debug/farside")
    inner = f"""
import subprocess
print(subprocess.run([{os.path.abspath(farside)!r}, 'new', '--engine', 'python3', '--name', 'inner', '--json'], check=True, capture_output=True))
"""
    sandbox.cli("exec", session["id"], inner, check=True)
    other = next(s for s in sandbox.ls() if s["name"] == "inner")
    burn = "import time\nwhile time.process_time() < 6: pass"
    sandbox.cli("exec", other["id"], burn, check=True)
    wait_until(lambda: status(sandbox, other)["cpu_seconds"] >= 5, "the inner one's CPU time", LOOK_SECONDS)
    # The outer one is looked at again while it runs.
    before = status(sandbox, session)["cpu_seconds"]
    sandbox.cli("exec", session["id"], BURN + "\nburn(time.process_time() + 2)", check=True)
    sandbox.cli("stop", "inner", "--now", check=True)
    sandbox.cli("exec", session["id"], "--detach", BURN + "\nburn(time.process_time() + 8)", check=True)
    seen = wait_until(
        lambda: (now := status(sandbox, session)["cpu_seconds"]) >= before + 2 and now, "the outer one's CPU time", LOOK_SECONDS
    )
    assert seen < before + 2 + 9, "the inner one's six seconds and its start are not in it"
    sandbox.cli("stop", session["id"], "--now", check=True)


def test_a_stopped_engine_is_unresponsive_until_it_goes_on(sandbox: Sandbox, session: dict) -> None:
    # It must have answered once, which is within the first seconds.
    sandbox.cli("exec", session["id"], "import time; time.sleep(6)", check=True)
    assert status(sandbox, session)["unresponsive_since"] is None
    engine = status(sandbox, session)["engine"]["pid"]
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: status(sandbox, session)["unresponsive_since"], "unresponsive", SILENT_SECONDS)
    # The next host finds it so, and hears of it when it goes on.
    host = status(sandbox, session)["host"]
    kill(host["pid"])
    wait_until(lambda: status(sandbox, session)["host"] not in (host, None), "a new host", LOOK_SECONDS)
    assert status(sandbox, session)["unresponsive_since"] is not None
    assert status(sandbox, session)["engine"]["pid"] == engine, "it is never killed for that"
    os.kill(engine, signal.SIGCONT)
    wait_until(lambda: status(sandbox, session)["unresponsive_since"] is None, "responsive again", SILENT_SECONDS)
    health = [r["note"]["responsive"] for r in sandbox.records(session["id"]) if r.get("note", {}).get("note") == "health"]
    assert health == [False, True]
    sandbox.cli("stop", session["id"], "--now", check=True)


def test_gpu_memory_is_shown_where_nvidia_smi_tells_of_it(sandbox: Sandbox) -> None:
    # 300 MiB for each process of this sandbox: the engine is one, and what is not the engine's does not count.
    tools = sandbox.root / "tools"
    tools.mkdir()
    fake = tools / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\nfor file in /proc/[0-9]*/environ; do\n"
        f"  tr '\\0' '\\n' <$file 2>/dev/null | grep -q '^{MARKER}={sandbox.id}$' || continue\n"
        "  pid=${file#/proc/}; echo \"${pid%/environ}, 300\"\ndone\n"
    )
    fake.chmod(0o755)
    sandbox.env["PATH"] = f"{tools}:{sandbox.env['PATH']}"
    sandbox.cli("new", "--engine", "python3", "--name", "train", check=True)
    sandbox.cli("exec", "train", "--detach", "import threading; threading.Event().wait()", check=True)
    bytes_used = 300 << 20
    wait_until(
        lambda: sandbox.json("top")[0]["gpu_memory_bytes"] == bytes_used, "GPU memory", LOOK_SECONDS, lambda: sandbox.json("top")
    )
    assert sandbox.json("status", "train")["gpu_memory_bytes"] == bytes_used
    for command in (["ls"], ["top", "--once"]):
        table = sandbox.cli(*command, check=True)[1]
        assert "GPU" in table and "315M" in table, table
    assert f"}} {bytes_used}\n" in sandbox.cli("metrics", check=True)[1]
    assert "314.6 MB of GPU memory" in sandbox.cli("exec", "train", "%farside status", check=True)[1]
    sandbox.cli("stop", "train", "--now", check=True)


def test_no_nvidia_smi_is_no_word_of_it(sandbox: Sandbox, session: dict) -> None:
    sandbox.cli("exec", session["id"], "--detach", BURN + "\nburn(1e9)", check=True)
    wait_until(lambda: status(sandbox, session)["cpu_seconds"] > 3, "two looks", LOOK_SECONDS, lambda: status(sandbox, session))
    assert status(sandbox, session)["gpu_memory_bytes"] is None
    assert "GPU" not in sandbox.cli("ls", check=True)[1]
    assert "GPU" not in sandbox.cli("status", session["id"], check=True)[1]
    sandbox.cli("stop", session["id"], "--now", check=True)
    said = [p.read_text().lower() for p in (sandbox.state / session["id"]).glob("*.log")]
    assert said and not any("nvidia" in text or "gpu" in text for text in said)
