"""Covers items 15 and 16: the engine dies, the host dies, the keeper dies, both die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cells import Gated, assert_attached
from sandbox import FARSIDE, Launcher, Sandbox, alive, kill, wait_gone, wait_until
from wire import Client

# The keeper has a new host up within a second; on a loaded two-core machine the whole takes a little longer.
ADOPT_SECONDS = 10.0

DEATHS = {
    "os._exit": ("import os; print('before', flush=True); os._exit(3)", ["3"]),
    "exit code 0": ("import os; print('before', flush=True); os._exit(0)", ["0"]),
    "segfault": ("import ctypes; print('before', flush=True); ctypes.string_at(0)", ["11", "SEGV"]),
    "abort": ("import os; print('before', flush=True); os.abort()", ["6", "ABRT"]),
    "kill -9": ("import os; print('before', flush=True); os.kill(os.getpid(), 9)", ["9", "KILL"]),
}


@pytest.mark.parametrize("how", DEATHS)
def test_the_engine_dies_and_says_how(sandbox: Sandbox, client: Client, how: str) -> None:
    code, marks = DEATHS[how]
    client.run("lost = 1")
    session = sandbox.session()
    # ipykernel flushes a stream every 0.2 s: wait until the output is out, then let it die.
    cell = Gated(sandbox, before=1, after=0, ending=code)
    sent = [client.execute(cell.code), client.execute("never = 'runs'"), client.send("shell", "inspect_request", {"code": "zip", "cursor_pos": 3})]
    client.wait_text(sent[0], "line 0\n")
    cell.open()
    for msg_id in sent:
        reply = client.reply(msg_id)
        assert reply.content["status"] in ("error", "aborted"), reply
        client.idle(msg_id)
    died = client.reply(sent[0]).content
    assert died["status"] == "error"
    said = f"{died['ename']} {died['evalue']} {died['traceback']}"
    assert any(mark in said for mark in marks), said
    [error] = [m for m in client.of(sent[0]) if m.type == "error"]
    assert error.content["evalue"] == died["evalue"]
    # Outputs up to then are kept.
    executions = sandbox.executions(session["id"])
    assert [e["state"] for e in executions][:2] == ["ok", "error"]
    assert "line 0" in sandbox.cli("logs", session["id"], "2", check=True)[1]
    [ended] = [r for r in sandbox.records(session["id"]) if "engine_ended" in str(r)]
    assert any(mark in str(ended) for mark in marks), ended

    # The next execute starts a fresh engine, after saying so.
    fresh = client.run("print('fresh')", seconds=45)
    assert fresh.reply.content["status"] == "ok"
    assert "fresh\n" in fresh.text
    told = [m for m in fresh.iopub if m.type == "stream" and m.content["name"] == "stderr"]
    assert told, fresh.iopub
    assert fresh.iopub.index(told[0]) < next(i for i, m in enumerate(fresh.iopub) if "fresh" in str(m.content.get("text", "")))
    assert client.value("'lost' in dir()") == "False"
    after = sandbox.session()
    assert after["id"] == session["id"]
    assert after["engine_pid"] != session["engine_pid"]
    # One session id for all that this frontend got, also across engines.
    assert len({m.header["session"] for m in client.messages}) == 1


def test_the_engine_dies_while_nobody_is_there(sandbox: Sandbox) -> None:
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    cell = Gated(sandbox, before=1, after=0, ending="os._exit(5)")
    cell.start(client)
    session = sandbox.session()
    launcher.kill()
    cell.open()
    wait_until(lambda: sandbox.executions(session["id"])[-1]["state"] == "error", "the execution to be an error")
    again = sandbox.launch(jupyter_session=key).client(busy=True)
    attached = again.run("%farside attach")
    assert attached.text == "line 0\n"
    assert attached.reply.content["status"] == "error"
    assert "5" in attached.reply.content["evalue"]
    assert again.run("1", seconds=45).reply.content["status"] == "ok"


def test_a_killed_idle_engine_is_replaced_at_the_next_execute(sandbox: Sandbox, client: Client) -> None:
    client.run("x = 1")
    session = sandbox.session()
    kill(session["engine_pid"])
    # A request that is sent before farside knows is one of those pending when the engine died.
    sandbox.wait_session(lambda s: s["engine_pid"] != session["engine_pid"], "farside to know")
    result = client.run("print('x' in dir())", seconds=45)
    assert result.text.endswith("False\n")
    assert sandbox.session()["id"] == session["id"]


@pytest.mark.parametrize("attached", [True, False], ids=["with a launcher", "with nobody attached"])
def test_the_host_is_killed_while_a_cell_prints(sandbox: Sandbox, attached: bool) -> None:
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    client.run("kept = 1")
    cell = Gated(sandbox)
    original = cell.start(client)
    session = sandbox.session()
    if not attached:
        launcher.kill()
        sandbox.wait_session(lambda s: not s["attached"], "detached")
    kill(session["host_pid"])
    adopted = sandbox.wait_session(
        lambda s: s["host_pid"] not in (None, session["host_pid"]) and s["state"] == "busy",
        "a new host that has adopted the engine", seconds=ADOPT_SECONDS,
    )
    assert adopted["engine_pid"] == session["engine_pid"]
    assert alive(session["engine_pid"])
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")
    assert [e["state"] for e in sandbox.executions(session["id"])][:2] == ["ok", "ok"]
    # The keeper held the engine's sockets meanwhile: nothing is missing, and nothing came twice.
    records = sandbox.records(session["id"])
    assert not [r for r in records if r["kind"] == "gap" or (r["kind"] == "note" and r["note"]["note"] == "gap")]
    if attached:
        # The attached launcher goes on by itself.
        mine = client.result(original)
        assert mine.reply.content["status"] == "ok"
        assert mine.text == cell.text
        frontend = client
    else:
        frontend = sandbox.launch(jupyter_session=key).client()
    assert frontend.value("kept") == "1"
    assert frontend.run("print('goes on')").text == "goes on\n"
    assert frontend.run("%farside attach 2").text == cell.text


def test_hosts_are_killed_in_a_flood_and_not_a_line_is_lost(sandbox: Sandbox) -> None:
    """Each message of its own: what a dead host had read, and what came until the next one was there, is held.

    With pauses: on a busy machine an engine drops what its own socket's thread does not come to send, whoever reads."""
    wanted = 10_000
    key = str(sandbox.work / "n.ipynb")
    client = sandbox.launch(jupyter_session=key).client()
    client.run("from IPython.display import publish_display_data")
    code = (
        f"import time\nfor i in range({wanted}):\n    publish_display_data({{'text/plain': f'<{{i}}>'}})\n"
        "    if i % 20 == 0: time.sleep(0.01)"
    )
    running = client.execute(code)
    hosts = set()
    for at in (1_000, 3_000, 5_000):
        client.wait_for(lambda m: m.parent_id == running and m.content.get("data", {}).get("text/plain") == f"<{at}>", f"output {at}", 60)
        session = sandbox.wait_session(lambda s: s["host_pid"] not in (None, *hosts), "a host", seconds=ADOPT_SECONDS)
        hosts.add(session["host_pid"])
        kill(session["host_pid"])
    result = client.result(running, seconds=90)
    assert result.reply.content["status"] == "ok"
    shown = [m.content["data"]["text/plain"] for m in result.iopub if m.type == "display_data"]
    assert shown == [f"<{i}>" for i in range(wanted)]
    records = sandbox.records(session["id"])
    kept = [r for r in records if r["kind"] == "iopub" and r["header"]["msg_type"] == "display_data"]
    assert len(kept) == wanted
    notes = [r["note"]["note"] for r in records if r["kind"] == "note"]
    assert notes.count("host_started") == 4
    assert "gap" not in notes and not [r for r in records if r["kind"] == "gap"]
    assert client.value("i") == str(wanted - 1)


def test_another_build_goes_on_with_a_session_and_not_a_line_is_lost(sandbox: Sandbox) -> None:
    """`farside upgrade-host` under a running execution, with a frontend attached."""
    wanted = 10_000
    client = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb")).client()
    client.run("from IPython.display import publish_display_data; import time")
    running = client.execute(
        f"for i in range({wanted}):\n    publish_display_data({{'text/plain': f'<{{i}}>'}})\n    if i % 20 == 0: time.sleep(0.01)"
    )
    session = sandbox.session()
    newer = sandbox.root / "newer-farside"
    shutil.copy(FARSIDE, newer)
    client.wait_for(lambda m: m.parent_id == running and m.content.get("data", {}).get("text/plain") == "<1000>", "output", 60)
    done = subprocess.run([newer, "upgrade-host", session["id"]], env=sandbox.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "goes on with farside" in done.stderr
    after = sandbox.session()
    assert after["engine_pid"] == session["engine_pid"]
    assert os.readlink(f"/proc/{after['host_pid']}/exe") == str(newer)
    result = client.result(running, seconds=90)
    assert result.reply.content["status"] == "ok"
    assert [m.content["data"]["text/plain"] for m in result.iopub if m.type == "display_data"] == [f"<{i}>" for i in range(wanted)]
    notes = [r["note"]["note"] for r in sandbox.records(session["id"]) if r["kind"] == "note"]
    assert "gap" not in notes and notes.count("host_started") == 2
    # Killed, it is the newer one that comes again.
    kill(after["host_pid"])
    again = sandbox.wait_session(lambda s: s["host_pid"] not in (None, after["host_pid"]), "a new host", seconds=ADOPT_SECONDS)
    assert os.readlink(f"/proc/{again['host_pid']}/exe") == str(newer)
    assert client.value("i") == str(wanted - 1)


def test_the_engine_dies_without_a_host_and_its_last_words_are_kept(sandbox: Sandbox, client: Client) -> None:
    # ipykernel hands its last lines over when its own thread comes to it.
    cell = Gated(sandbox, after=5, ending="time.sleep(1); os._exit(7)")
    running = cell.start(client)
    session = sandbox.session()
    os.kill(session["host_pid"], signal.SIGSTOP)
    cell.open()
    wait_until(lambda: not alive(session["engine_pid"]), "the engine to end")
    kill(session["host_pid"])
    reply = client.reply(running)
    assert "7" in reply.content["evalue"]
    client.idle(running)
    text = "".join(m.content["text"] for m in client.of(running) if m.type == "stream" and m.content["name"] == "stdout")
    assert text == cell.text


def test_the_keeper_is_killed_and_nothing_is_felt(sandbox: Sandbox, client: Client) -> None:
    cell = Gated(sandbox)
    original = cell.start(client)
    session = sandbox.session()
    keeper = sandbox.keeper_pid(session)
    assert keeper not in (1, os.getpid())
    kill(keeper)
    assert client.kernel_info().content["status"] == "ok"
    cell.open()
    result = client.result(original)
    assert result.text == cell.text
    after = sandbox.session()
    assert (after["host_pid"], after["engine_pid"]) == (session["host_pid"], session["engine_pid"])
    # It was replaced: the next host's death is as harmless as ever.
    wait_until(lambda: keeper_of(sandbox) not in (None, keeper), "a new keeper", ADOPT_SECONDS)
    kill(session["host_pid"])
    sandbox.wait_session(
        lambda s: s["host_pid"] not in (None, session["host_pid"]) and s["state"] == "idle", "a new host", seconds=ADOPT_SECONDS
    )
    assert client.run("print('goes on')").text == "goes on\n"


def keeper_of(sandbox: Sandbox) -> int | None:
    """A keeper of this sandbox, told by its command line: a replaced one is not the host's parent."""
    found = [pid for pid, command in sandbox.processes().items() if "farside host " in command]
    return found[0] if found else None


@pytest.mark.parametrize("by", ["launcher", "command line"])
def test_keeper_and_host_are_killed_together(sandbox: Sandbox, by: str) -> None:
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    client.run("kept = 1")
    cell = Gated(sandbox)
    cell.start(client)
    session = sandbox.session()
    launcher.kill()
    keeper, host = sandbox.keeper_pid(session), session["host_pid"]
    # Stopped first, so that neither sees the other go.
    os.kill(keeper, signal.SIGSTOP)
    kill(host)
    kill(keeper)
    assert alive(session["engine_pid"])
    if by == "launcher":
        frontend = sandbox.launch(jupyter_session=key).client(busy=True)
    else:
        sandbox.cli("interrupt", session["id"], check=True)
        frontend = None
    adopted = sandbox.wait_session(lambda s: s["host_pid"] not in (None, host) and s["state"] in ("busy", "idle"), "a new pair", seconds=ADOPT_SECONDS)
    assert adopted["engine_pid"] == session["engine_pid"]
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")
    frontend = frontend or sandbox.launch(jupyter_session=key).client()
    assert frontend.value("kept") == "1"
    assert frontend.run("%farside attach 2").text.startswith(cell.first)


def test_what_the_engine_left_behind_goes_with_the_session(sandbox: Sandbox, client: Client) -> None:
    """A child in a session of its own has asked to be left alone; any other one goes."""
    client.run("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    child = int(client.value("p.pid"))
    session = sandbox.session()
    sandbox.cli("stop", session["id"], check=True)
    wait_until(lambda: not alive(child), "the engine's child to be gone")


def test_every_execution_a_frontend_saw_output_of_is_in_the_journal(sandbox: Sandbox) -> None:
    """Append before publish, with the host killed at a moment of nobody's choosing."""
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    running = client.execute("import itertools, time\nfor i in itertools.count():\n    print(i, flush=True); time.sleep(0.0005)")
    client.wait_text(running, "200\n")
    session = sandbox.session()
    kill(session["host_pid"])
    # What had been sent by then is on its way or here.
    while client.pump(0.2):
        if any("5000\n" in m.content.get("text", "") for m in client.of(running)):
            break
    seen = "".join(m.content["text"] for m in client.of(running) if m.type == "stream")
    sandbox.wait_session(lambda s: s["host_pid"] not in (None, session["host_pid"]), "a new host", seconds=ADOPT_SECONDS)
    sandbox.cli("interrupt", session["id"], check=True)
    client.result(running)
    kept = sandbox.cli("logs", session["id"], "1", check=True)[1]
    for line in seen.splitlines():
        assert f"{line}\n" in kept, f"{line!r} was shown and is not in the journal"


@pytest.mark.parametrize("megabytes", [0, 30, 90])
def test_a_large_message_that_the_host_was_killed_over_is_shown_only_if_it_is_kept(sandbox: Sandbox, megabytes: int) -> None:
    """Its way to the frontend begins while it is written; its last byte must not arrive unless it is in the journal."""
    size = 150_000_000
    launcher = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb"))
    client = launcher.client()
    client.run("1")
    session = sandbox.session()
    [journal] = sandbox.state.rglob("journal")

    def written() -> int:
        return sum(file.stat().st_size for file in journal.glob("*.seg"))

    before = written()
    running = client.execute(f"import time\nprint('x' * {size}, flush=True)\nwhile True: time.sleep(0.01)")
    # A finer look than wait_until's: the whole of it takes a fraction of a second.
    deadline = time.monotonic() + 30
    while written() - before <= max(megabytes * 1_000_000, 100_000):
        assert time.monotonic() < deadline, "nothing is written"
    kill(session["host_pid"])
    torn = written() - before < size
    sandbox.wait_session(lambda s: s["host_pid"] not in (None, session["host_pid"]), "a new host", seconds=ADOPT_SECONDS)
    sandbox.cli("interrupt", session["id"], check=True)
    client.result(running)
    shown = max((len(m.content["text"]) for m in client.of(running) if m.type == "stream"), default=0) >= size
    kept = len(sandbox.cli("logs", session["id"], "2", check=True)[1]) >= size
    assert kept or not shown, "it was shown and is not in the journal"
    assert shown or not kept, "it is in the journal and did not arrive"
    assert torn == (not kept)
    # The frontend's socket is in order: nothing half sent stands before what comes now.
    assert client.run("print('after')").text == "after\n"


def test_attach_to_a_lost_session_is_honest(sandbox: Sandbox, launcher: Launcher, client: Client) -> None:
    """All three processes gone at once, as after a power cut: the executions are there, the session is lost."""
    cell = Gated(sandbox)
    cell.start(client)
    session = sandbox.session()
    launcher.kill()
    keeper = sandbox.keeper_pid(session)
    os.kill(keeper, signal.SIGSTOP)
    for pid in (session["host_pid"], session["engine_pid"], keeper):
        kill(pid)
    lost = sandbox.session(session["id"])
    assert lost["state"] == "lost", lost
    assert lost["end_reason"].startswith("host_lost")
    assert [e["state"] for e in sandbox.executions(session["id"])] == ["lost"]
    assert sandbox.cli("logs", session["id"], "1", check=True)[1].startswith(cell.first)
    # Nobody was left to tidy up: prune does, and takes the sockets too.
    sandbox.cli("prune", "--older-than", "0s", check=True)
    assert sandbox.ls(everything=True) == []


def test_an_engine_that_is_starting_goes_on_to_another_host_with_what_waits_for_it(sandbox: Sandbox) -> None:
    """What waits for an engine is in memory only: `farside upgrade-host` lets it out before."""
    slow = ["sh", "-c", 'sleep 5; exec "$0" -m ipykernel_launcher -f "$1"', sys.executable, "{connection_file}"]
    sandbox.add_kernelspec("slow", slow, interrupt_mode="signal")
    launcher = sandbox.launch("farside-slow")
    client = launcher.connect()
    session = sandbox.wait_session(lambda s: s["engine_pid"], "the engine's process")
    asked = client.execute("print('waited')")
    sandbox.wait_session(lambda s: s["executions"] == 1, "the request to be taken")
    sandbox.cli("upgrade-host", session["id"], check=True)
    assert client.reply(asked, 45).content["status"] == "ok"
    assert sandbox.session()["host_pid"] != session["host_pid"]
    session = sandbox.session()
    notes = [r["note"]["note"] for r in sandbox.records(session["id"]) if r["kind"] == "note"]
    assert notes.count("host_started") == 2 and notes.count("engine_started") == 1


def test_an_engine_that_never_binds_has_its_limit_under_the_next_host_too(sandbox: Sandbox) -> None:
    sandbox.add_kernelspec("never", ["sh", "-c", "exec sleep 3000", "{connection_file}"])
    client = sandbox.launch("farside-never", extra=("--engine-start-timeout", "3s")).connect()
    session = sandbox.wait_session(lambda s: s["engine_pid"], "the engine's process")
    asked = client.execute("1")
    sandbox.wait_session(lambda s: s["executions"] == 1, "the request to be taken")
    kill(session["host_pid"])
    content = client.reply(asked, 45).content
    assert content["status"] == "error" and content["ename"] in ("EngineDied", "HostReplaced"), content
    wait_gone(session["engine_pid"])


@pytest.mark.parametrize("engine", ["mirror", "python3"])
def test_a_host_that_died_while_it_sent_is_no_wall_for_the_next_one(sandbox: Sandbox, engine: str) -> None:
    """The mirror's sockets take no second connection of the same name, as a ROUTER without ROUTER_HANDOVER does.
    ipykernel's do, and on stdin it asks whoever has the name that the request on shell had."""
    if engine == "mirror":
        argv = [sys.executable, str(Path(__file__).with_name("mirror_kernel.py")), "{connection_file}"]
        sandbox.add_kernelspec("mirror", argv)
    client = sandbox.launch(f"farside-{engine}").client()
    session = sandbox.session()
    os.kill(session["engine_pid"], signal.SIGSTOP)
    for n in range(20):
        client.send("shell", "complete_request", {"code": "x" * 200_000, "cursor_pos": n})
    time.sleep(1)
    kill(session["host_pid"])
    sandbox.wait_session(lambda s: s["host_pid"] not in (None, session["host_pid"]), "a new host", seconds=ADOPT_SECONDS)
    os.kill(session["engine_pid"], signal.SIGCONT)
    if engine == "mirror":
        # It is found out when it has been silent for some seconds; what it was asked by then is answered for it.
        assert client.reply(client.execute("1"), 30).content["ename"] == "ExecutionLost"
        assert client.reply(client.execute("2"), 30).content["status"] == "ok"
    else:
        asked = client.execute("print(input('who? '))")
        client.send("stdin", "input_reply", {"value": "me"}, parent=client.input_request(asked, 30).header)
        assert client.result(asked, 30).text == "me\n"
    assert sandbox.session()["engine_pid"] == session["engine_pid"]
    # It was so: the host had sent a part of one.
    log = (sandbox.state / session["id"] / "host.log").read_text()
    assert "what was held of the engine is not whole channel=Shell" in log
