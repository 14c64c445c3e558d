"""What there is of a session after its end: its outputs in the next session of the notebook, and a launcher that
sleeps until somebody asks for something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cells import assert_attached
from sandbox import KERNEL, Launcher, Sandbox, alive, wait_gone, wait_until
from wire import Client, Result

IDLE = "idle: nothing was asked of it for 1h"
RICH = (
    "import sys; from IPython.display import *\n"
    "for i in range(300): print(f'\\r{i}%', end='')\n"
    "print(); print('to stderr', file=sys.stderr)\n"
    "h = display(HTML('<b>ü</b>'), display_id='d'); h.update(HTML('<i>new</i>'))\n"
    "{'the': 'result'}"
)


def outputs(result: Result) -> list:
    """All that a cell gets of an execution, byte for byte, but for what must be its own."""
    assert result.reply is not None
    published = [(m.type, m.raw[2], m.raw[3], m.buffers) for m in result.iopub]
    return [*published, (result.reply.type, result.reply.raw[3])]


def retire(sandbox: Sandbox, session: dict, reason: str = IDLE) -> None:
    """Ends a session as it ends by itself."""
    link = sandbox.link(session["id"])
    link.stop(reason)
    assert link.ended() == reason
    for pid in (session["engine_pid"], session["host_pid"]):
        wait_gone(pid)


def told(messages: list) -> list[str]:
    """What was said of an earlier session, each time."""
    return [m.content["text"] for m in messages if m.type == "stream" and "[farside] The " in m.content["text"]]


def test_the_next_session_of_a_notebook_knows_the_last_one(sandbox: Sandbox) -> None:
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    client.run("x = 1")
    msg_id = client.execute(RICH)
    client.result(msg_id)
    before = outputs(client.run("%farside attach 2"))
    old = sandbox.session()
    launcher.kill()
    sandbox.wait_session(lambda s: not s["attached"], "detached")
    retire(sandbox, old)

    client = sandbox.launch(jupyter_session=key).client()
    # What frontends run by themselves tells nobody, and is nothing that a person comes back for.
    assert client.value("'x' in dir()") == "False"
    # Nothing was executed here yet, so the last one is that of the session before.
    assert outputs(client.run("%farside attach")) == before
    assert told(client.messages) == []
    first = client.run("1 + 1")
    assert client.value("1") == "1"
    assert_attached(client.run("%farside attach"), "1 + 1")
    [text] = told(first.iopub)
    assert first.types[0] == "stream" and first.iopub[0].content["name"] == "stderr"
    assert text.startswith(f"[farside] The last session of this notebook ({old['id']}, 2 executions) ended at ")
    assert f"UTC ({IDLE}). Its variables are gone" in text
    assert f"`%farside attach {old['id']}:2`" in text and f"`%farside history {old['id']}`" in text
    assert told(client.run("2").iopub) == [], "it is said once"
    for selector in (f"{old['id']}:2", f"{old['id']}:", f"{old['id'][:6]}:2", msg_id):
        again = client.run(f"%farside attach {selector}")
        assert outputs(again) == before, selector
        assert_attached(again, RICH)
    assert outputs(client.run("#", metadata={"farside": {"attach": msg_id}})) == before
    assert_attached(client.run(f"%farside attach {old['id']}:1"), "x = 1", "")
    listed = client.run(f"%farside history {old['id']}").text
    assert "x = 1" in listed and "import sys" in listed and "1 + 1" not in listed
    # None of it is an execution of this session.
    assert [e["code"] for e in sandbox.executions(sandbox.session()["id"]) if e["code"]] == ["1 + 1", "2"]
    assert client.run("3").reply.content["execution_count"] == 3
    ids = [m.header["msg_id"] for m in client.messages]
    assert len(ids) == len(set(ids))
    for code, expected in (
        (f"%farside attach {old['id']}:9", f"%farside history {old['id']}"),
        (f"%farside attach {old['id']}", f"%farside attach {old['id']}:"),
        ("%farside attach 9", f"%farside attach {old['id']}:9"),
        ("%farside attach nobody99:1", "farside ls --all"),
        ("%farside history nobody99", "farside ls --all"),
        ("%farside attach never-heard-of", f"%farside history {old['id']}"),
    ):
        reply = client.run(code).reply
        assert reply.content["status"] == "error" and expected in reply.content["evalue"], (code, reply.content)


def test_who_ended_a_session_is_not_told_of_it(sandbox: Sandbox) -> None:
    key = str(sandbox.work / "n.ipynb")
    client = sandbox.launch(jupyter_session=key).client()
    client.run("print('kept')")
    old = sandbox.session()
    sandbox.cli("stop", old["id"], check=True)
    client = sandbox.launch(jupyter_session=key).client()
    assert told(client.run("1").iopub) == []
    assert_attached(client.run(f"%farside attach {old['id']}:"), "print('kept')", "kept\n")


def test_a_lost_session_is_told_of_and_its_outputs_are_there(sandbox: Sandbox) -> None:
    """Everything is killed at once, as by a reboot: nobody writes a last word."""
    key = str(sandbox.work / "n.ipynb")
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    client.run("print('done')")
    running = client.execute("print('began', flush=True); import time; time.sleep(1000)")
    client.wait_text(running, "began\n")
    old = sandbox.session()
    sandbox.wait_session(lambda s: s["executions"] == 2, "status.json to follow")
    sandbox.kill_all()
    shutil.rmtree(sandbox.xdg_runtime / "farside")
    client = sandbox.launch(jupyter_session=key).client()
    attached = client.run("%farside attach")
    assert attached.text == "began\n"
    assert attached.reply.content["ename"] == "ExecutionLost"
    [text] = told(client.run("1").iopub)
    assert "was last heard of at" in text and "host_lost" in text and f"`%farside attach {old['id']}:2`" in text


def test_a_session_that_lives_is_not_looked_into(sandbox: Sandbox, client: Client) -> None:
    sandbox.cli("new", "--name", "other", check=True)
    other = sandbox.session("other")
    reply = client.run("%farside attach other:1").reply
    assert reply.content["ename"] == "UnknownExecution"
    assert f"farside attach {other['id']}" in reply.content["evalue"]


@pytest.mark.parametrize("reason", [IDLE, "lifetime: 24h are over", "budget: 1h of CPU time is used"])
def test_a_launcher_whose_session_has_retired_sleeps(sandbox: Sandbox, client: Client, launcher: Launcher, reason: str) -> None:
    client.run(RICH)
    before = outputs(client.run("%farside attach 1"))
    old = sandbox.session()
    listener = launcher.connect()
    listener.wait_for(lambda m: m.type == "iopub_welcome", "the subscription")
    retire(sandbox, old, reason)
    wait_until(lambda: list(sandbox.processes()) == [launcher.pid], "nothing but the launcher", detail=sandbox.processes)
    # It answers an interrupt, and wakes for nothing that is no request.
    assert client.reply(client.send("control", "interrupt_request")).content == {"status": "ok"}
    client.send("shell", "comm_msg", {"comm_id": "x", "data": {}})
    client.send("stdin", "input_reply", {"value": "", "status": "ok"})
    late = launcher.connect()
    late.wait_for(lambda m: m.type == "iopub_welcome", "a subscription while it sleeps")
    assert client.reply(client.send("control", "interrupt_request")).content == {"status": "ok"}
    assert list(sandbox.processes()) == [launcher.pid]

    result = client.run("print('awake')", seconds=45)
    assert result.text == "awake\n"
    new = sandbox.session()
    assert new["id"] != old["id"] and launcher.running()
    [text] = told(result.iopub)
    assert old["id"] in text and reason in text
    assert outputs(client.run(f"%farside attach {old['id']}:1")) == before
    # Every subscriber hears the new session, from its first word on, and takes it for the same kernel.
    for subscriber in (client, listener, late):
        subscriber.wait_for(lambda m: m.type == "stream" and m.content["text"] == "awake\n", "the output")
        heard = [m.state for m in subscriber.messages if m.parent_id == result.msg_id and m.state]
        assert heard == ["busy", "idle"]
        assert len({m.header["session"] for m in subscriber.messages if m.header["username"] != "x"}) == 1
    # And once more.
    retire(sandbox, new, reason)
    [text] = told(client.run("1", seconds=45).iopub)
    assert new["id"] in text
    assert outputs(client.run(f"%farside attach {old['id']}:")) == before
    assert launcher.running()


def test_no_request_is_lost_or_run_twice_at_the_end(sandbox: Sandbox, client: Client, launcher: Launcher) -> None:
    """Requests that fall into the end get an error of the old session or go to the next one."""
    ran = sandbox.work / "ran"
    # Of a turn it may be that none runs.
    ran.touch()
    for turn in range(3):
        client.run("1", seconds=45)
        old = sandbox.session()
        link = sandbox.link(old["id"])
        link.stop(IDLE)
        asked = {}
        while not asked or alive(old["host_pid"]):
            n = f"{turn}.{len(asked)}"
            asked[client.execute(f"open({str(ran)!r}, 'a').write('{n}\\n'); None")] = n
            client.pump(0.005)
        outcome = {n: client.reply(msg_id, 45).content for msg_id, n in asked.items()}
        ok = [n for n, content in outcome.items() if content["status"] == "ok"]
        others = {content.get("ename") for content in outcome.values() if content["status"] != "ok"}
        assert others <= {"SessionEnded", "SessionEnding"}, others
        assert [n for n in ran.read_text().split() if n.startswith(f"{turn}.")] == ok
        for msg_id in asked:
            client.idle(msg_id)
        replies = [m.parent_id for m in client.messages if m.channel == "shell" and m.parent_id in asked]
        assert len(replies) == len(set(replies)) == len(asked)
    assert launcher.running()


@pytest.mark.parametrize("restart", [False, True])
def test_a_sleeping_launcher_is_shut_down(sandbox: Sandbox, client: Client, launcher: Launcher, restart: bool) -> None:
    client.run("1")
    retire(sandbox, sandbox.session())
    reply = client.reply(client.send("control", "shutdown_request", {"restart": restart}))
    assert reply.content == {"status": "ok", "restart": restart}
    assert launcher.wait_exit() == 0
    assert sandbox.ls() == []


@pytest.mark.parametrize("reason", ["stopped: by a test", "shutdown: by a test"])
def test_other_ends_are_the_launchers_end_too(sandbox: Sandbox, client: Client, launcher: Launcher, reason: str) -> None:
    client.run("1")
    retire(sandbox, sandbox.session(), reason)
    assert launcher.wait_exit() == 0


MANAGER = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name=sys.argv[1], startup_timeout=60)

def run(code):
    texts = []
    def output(message):
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])
    reply = client.execute_interactive(code, timeout=60, output_hook=output)
    assert reply["content"]["status"] == "ok", reply
    return "".join(texts)

print(repr(run("import os; x = 1; print(os.getpid())")), flush=True)
sys.stdin.readline()
assert manager.is_alive()
assert client.hb_channel.is_beating()
print(repr(run("print('x' in dir())")), flush=True)
client.wait_for_ready(timeout=60)
assert client.is_alive()
client.stop_channels()
manager.shutdown_kernel()
print(manager.is_alive(), flush=True)
"""


def test_a_kernel_manager_goes_on(sandbox: Sandbox) -> None:
    sandbox.kernelspec(KERNEL)
    manager = subprocess.Popen([sys.executable, "-c", MANAGER, KERNEL], env=sandbox.env, cwd=sandbox.work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sandbox.children.append(manager)
    assert manager.stdin is not None and manager.stdout is not None
    assert manager.stdout.readline().strip()
    old = sandbox.session()
    retire(sandbox, old)
    manager.stdin.write("\n")
    manager.stdin.flush()
    out, err = manager.communicate(timeout=90)
    assert manager.returncode == 0, (out, err)
    first, alive_after = out.splitlines()
    assert "The session before this one" in first and old["id"] in first and first.endswith("False\\n'"), first
    assert alive_after == "False"
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)


def test_a_server_does_not_restart_a_kernel_that_retired(sandbox: Sandbox) -> None:
    sandbox.kernelspec(KERNEL)
    server = sandbox.server()
    kernel_id = server.open_notebook("n.ipynb", KERNEL)["kernel"]["id"]
    page = server.websocket(kernel_id)
    page.idle(page.execute("x = 1; print('kept')"), 45)
    old = sandbox.session()

    def launchers() -> list[int]:
        return [pid for pid, command in sandbox.processes().items() if " launch " in command]

    [launcher] = launchers()
    retire(sandbox, old)
    wait_until(lambda: set(sandbox.processes()) == {launcher, server.process.pid}, "host and engine to be gone", detail=sandbox.processes)
    # The server looks after its kernels every 3 s, and starts those anew whose process is gone.
    restarts = [m for m in page.messages if m["content"].get("execution_state") in ("restarting", "autorestarting", "dead")]
    again = page.execute("print('x' in dir())")
    page.idle(again, 45)
    assert page.text(again) == "False\n"
    assert f"({old['id']}, 1 execution)" in page.text(again, "stderr")
    attached = page.execute(f"%farside attach {old['id']}:1")
    page.idle(attached)
    assert page.text(attached) == "kept\n"
    assert launchers() == [launcher]
    restarts += [m for m in page.messages if m["content"].get("execution_state") in ("restarting", "autorestarting", "dead")]
    assert restarts == []
    assert "restarting kernel" not in server.log.read_text().lower()
    assert len({m["header"]["session"] for m in page.messages}) == 1
    assert sandbox.session()["key"] == old["key"]
    assert json.loads((sandbox.state / sandbox.session()["id"] / "session.json").read_text())["predecessor"] == old["id"]
    # What a person shuts down ends, and stays ended.
    server.api("DELETE", f"kernels/{kernel_id}", expect=204)
    wait_until(lambda: sandbox.ls() == [], "the session to end")
    wait_gone(launcher)


@pytest.mark.parametrize("how", ["command line", "magic"])
def test_a_server_does_not_restart_a_kernel_that_was_stopped(sandbox: Sandbox, how: str) -> None:
    """The server took the launcher's end for a crash, and started a session for nobody."""
    sandbox.kernelspec(KERNEL)
    server = sandbox.server()
    page = server.websocket(server.open_notebook("n.ipynb", KERNEL)["kernel"]["id"])
    page.idle(page.execute("x = 1"), 45)
    old = sandbox.session()
    [launcher] = [pid for pid, command in sandbox.processes().items() if " launch " in command]
    if how == "magic":
        page.execute("%farside retire")
    else:
        sandbox.cli("stop", old["id"], check=True)
    wait_until(lambda: set(sandbox.processes()) == {launcher, server.process.pid}, "host and engine to be gone", detail=sandbox.processes)
    again = page.execute("print('x' in dir())")
    page.idle(again, 45)
    assert page.text(again) == "False\n"
    assert [pid for pid, command in sandbox.processes().items() if " launch " in command] == [launcher]
    assert len(sandbox.ls()) == 1 and sandbox.session()["id"] != old["id"]


def test_a_sleeping_launcher_ends_with_its_server(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(own_parent=True, server=True)
    launcher.client().run("1")
    retire(sandbox, sandbox.session())
    assert launcher.running()
    launcher.kill_parent()
    launcher.wait_exit()
    assert sandbox.ls() == []


def test_an_idle_session_retires_and_its_launcher_wakes(sandbox: Sandbox) -> None:
    """The same without a test's hand in it."""
    launcher = sandbox.launch()
    client = launcher.client()
    client.run("print('first')")
    old = sandbox.session()
    # Not from its start on: a busy machine may take longer than that to get here.
    client.run("%farside set idle_timeout 2s")
    ended = sandbox.wait_session(lambda s: s["id"] == old["id"] and s["state"] in ("ended", "retired"), "the session to retire")
    assert ended["end_reason"].startswith("idle")
    wait_until(lambda: list(sandbox.processes()) == [launcher.pid], "nothing but the launcher", detail=sandbox.processes)
    again = client.run("print('second')", seconds=45)
    assert again.text == "second\n"
    [text] = told(again.iopub)
    assert ended["end_reason"] in text
    assert_attached(client.run(f"%farside attach {old['id']}:1"), "print('first')", "first\n")


def test_old_records_go_by_themselves(sandbox: Sandbox) -> None:
    (sandbox.config / "farside").mkdir(mode=0o700)
    (sandbox.config / "farside/config.toml").write_text("keep_records = '1s'\n")
    made = {}
    for name, flags in (("old", ()), ("kept", ("--keep-records", "none"))):
        sandbox.cli("new", "--name", name, *flags, check=True)
        made[name] = sandbox.session(name)["id"]
        sandbox.cli("stop", name, check=True)
    # A session's end prunes. The records may stay for a second, by a clock of whole ones.
    time.sleep(2.1)
    sandbox.cli("new", "--name", "last", check=True)
    sandbox.cli("stop", "last", check=True)
    wait_until(lambda: made["old"] not in {s["id"] for s in sandbox.ls(everything=True)}, "the old records to go")
    assert not (sandbox.state / made["old"]).exists()
    assert sandbox.cli("logs", made["kept"])[0] == 0


def test_what_ran_in_a_session_whose_folder_is_gone_does_not_run_again_in_the_next_one(sandbox: Sandbox) -> None:
    """Nothing is acknowledged where nothing can be kept, and what is not acknowledged goes to another session."""
    launcher = sandbox.launch()
    client = launcher.client()
    client.run("1")
    session = sandbox.session()
    shutil.rmtree(sandbox.state / session["id"])
    ran = sandbox.work / "ran"
    assert client.run(f"open({str(ran)!r}, 'a').write('x'); print('ran')", seconds=45).text.endswith("ran\n")
    client.run("%farside set idle_timeout 1s")
    wait_until(lambda: list(sandbox.processes()) == [launcher.pid], "nothing but the launcher", seconds=45, detail=sandbox.processes)
    assert client.run("print('next')", seconds=45).text.endswith("next\n")
    assert ran.read_text() == "x"
    assert len(sandbox.ls()) == 1


def test_a_notebook_that_is_opened_while_its_session_is_shut_down_gets_another_one(sandbox: Sandbox) -> None:
    """A busy engine takes seconds to end."""
    client = sandbox.launch(jupyter_session="/n.ipynb").client()
    client.execute("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)")
    old = sandbox.wait_session(lambda s: s["state"] == "busy", "the cell to run")
    client.send("control", "shutdown_request", {"restart": False})
    ending = '"note": "ending"'
    wait_until(lambda: ending in sandbox.cli("logs", old["id"], "--json")[1].replace('":"', '": "'), "the session's end to have begun")
    launcher = sandbox.launch(jupyter_session="/n.ipynb")
    assert launcher.client().run("print('another')", seconds=45).text.endswith("another\n")
    assert len(sandbox.ls()) == 2
    sandbox.wait_session(lambda s: s["id"] == old["id"] and s["state"] == "ended", "the old one to end", seconds=45)
    assert launcher.running()


def test_a_stopped_host_keeps_nobody_else_waiting(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(jupyter_session="/n.ipynb")
    launcher.client().run("1")
    launcher.kill()
    host = sandbox.session()["host_pid"]
    os.kill(host, signal.SIGSTOP)
    try:
        waits = sandbox.launch(jupyter_session="/n.ipynb")
        client = waits.connect()
        time.sleep(1)
        sandbox.cli("new", "--name", "other", seconds=30, check=True)
    finally:
        os.kill(host, signal.SIGCONT)
    assert client.run("print('mine')", seconds=45).text.endswith("mine\n")
    assert len(sandbox.ls()) == 2
