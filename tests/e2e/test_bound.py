"""`journal_bytes_max`: a session's journal is bounded, and what stays is right whoever dies meanwhile."""

from __future__ import annotations

import os
import random
import re
import signal

import pytest
from sandbox import Launcher, Sandbox, wait_until
from wire import Client, stream_text

# Half of it is where compaction begins: three runs or so.
BOUND = 4_000_000
# Lines of 100 bytes, twenty to a message: a few hundred messages, fewer than an engine's socket holds for a slow reader.
LINES = 6_000
PRINTS = "for i in range({lines}): print('{name}', i, '.' * 80, flush=i % 20 == 19)"


@pytest.fixture
def bounded(sandbox: Sandbox) -> Launcher:
    sandbox.env["FARSIDE_JOURNAL_BYTES_MAX"] = str(BOUND)
    return sandbox.launch()


def run(client: Client, name: str, lines: int = LINES) -> None:
    code = PRINTS.format(name=name, lines=lines)
    result = client.run(code, seconds=120)
    assert result.reply.content["status"] == "ok"
    assert f"{name} {lines - 1} ." in result.text, "what comes live is not touched"


def compactions(sandbox: Sandbox, session: str) -> list[dict]:
    return [r for r in sandbox.records(session) if r["kind"] == "note" and r["note"]["note"] == "compacted"]


def test_the_journal_stays_below_its_bound(sandbox: Sandbox, bounded: Launcher) -> None:
    client = bounded.client()
    for n in range(1, 9):
        run(client, f"run{n}")
    session = sandbox.session()["id"]
    wait_until(lambda: sandbox.journal_bytes() <= BOUND, "the journal to be below its bound", seconds=60)
    assert compactions(sandbox, session)
    # Nothing of it looks like a loss, and the history is what it was.
    assert not [r for r in sandbox.records(session) if r["kind"] == "gap"]
    executions = [e for e in sandbox.executions(session) if "run" in e["code"]]
    assert [e["state"] for e in executions] == ["ok"] * 8
    # The last one is whole; the first one shows head, tail, and a line where it does not show all.
    first, last = (sandbox.cli("logs", session, str(e["n"]), check=True)[1] for e in (executions[0], executions[-1]))
    assert last == "".join(f"run8 {i} {'.' * 80}\n" for i in range(LINES))
    assert first.startswith("run1 0 .") and f"run1 {LINES - 1} ." in first
    kept = re.findall(r"^run1 (\d+) ", first, re.M)
    assert len(kept) == LINES or "journal_bytes_max" in first
    # An attached cell shows the same.
    attached = client.run(f"%farside attach {executions[0]['n']}", seconds=60)
    assert stream_text(attached.iopub) == re.sub(r"\n\[farside: .*journal_bytes_max\)\]\n", "", first)


def test_a_host_may_die_while_it_compacts(sandbox: Sandbox, bounded: Launcher) -> None:
    client = bounded.client()
    rng = random.Random(7)
    for n in range(1, 4):
        run(client, f"run{n}")
        host = sandbox.session()["host_pid"]
        # At some moment of what the last segments brought on.
        wait_until(lambda: rng.random() < 0.2, "some moment", seconds=10)
        os.kill(host, signal.SIGKILL)
        sandbox.wait_session(lambda s: s["host_pid"] not in (None, host), "a new host")
    session = sandbox.session()["id"]
    run(client, "end")
    wait_until(lambda: sandbox.journal_bytes() <= BOUND, "the journal to be below its bound", seconds=60)
    executions = [e for e in sandbox.executions(session) if "run" in e["code"] or "end" in e["code"]]
    for e, name in zip(executions, [*(f"run{n}" for n in range(1, 4)), "end"], strict=True):
        text = sandbox.cli("logs", session, str(e["n"]), check=True)[1]
        assert text.startswith(f"{name} 0 .") and f"{name} {LINES - 1} ." in text, text[:200]
        assert e["state"] == "ok"


def test_of_a_running_cell_the_end_stays(sandbox: Sandbox, bounded: Launcher) -> None:
    client = bounded.client()
    gate = sandbox.work / "gate"
    # Text that is more than a replay shows, so that head and tail are what is left of it.
    code = (
        "import os, sys, time\n"
        "for i in range(120_000): print('row', i, '.' * 80)\n"
        "print('the end', flush=True)\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    )
    msg_id = client.execute(code)
    client.wait_text(msg_id, "the end\n", seconds=120)
    session = sandbox.session()["id"]
    wait_until(lambda: sandbox.journal_bytes() <= BOUND, "the journal to be below its bound", seconds=60)
    text = sandbox.cli("logs", session, check=True)[1]
    assert "row 0 ." in text and "journal_bytes_max" in text and text.rstrip().endswith("the end")
    kept = [int(i) for i in re.findall(r"^row (\d+) ", text, re.M)]
    assert kept == sorted(set(kept)), "nothing twice, nothing out of order"
    assert kept[-1] == 119_999
    missing = max(set(range(120_000)) - set(kept))
    assert set(range(missing + 1, 120_000)) <= set(kept)
    # What the frontend saw was all of it.
    seen = [int(i) for i in re.findall(r"^row (\d+) ", stream_text(client.of(msg_id)), re.M)]
    assert seen == list(range(120_000))
    gate.touch()
    client.idle(msg_id)
    assert sandbox.executions(session)[-1]["state"] == "ok"
