"""Covers items 13 and 14: attach by magic, metadata and command line, and what a prompt does while nobody is there."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from cells import Gated, assert_attached
from sandbox import Launcher, Sandbox, wait_until
from wire import Client


@pytest.mark.parametrize("by", ["magic", "magic with a number", "magic with a msg_id", "metadata"])
def test_attach_to_a_running_execution(sandbox: Sandbox, client: Client, launcher: Launcher, by: str) -> None:
    client.run("'something before'")
    cell = Gated(sandbox)
    original = cell.start(client)
    other = launcher.client(busy=True)
    code = {
        "magic": "%farside attach", "magic with a number": "\n  %farside attach 2 ",
        "magic with a msg_id": f"%farside attach {original}", "metadata": "# whatever",
    }[by]  # fmt: skip
    metadata = {"farside": {"attach": original}} if by == "metadata" else None
    attach = other.execute(code, metadata=metadata)
    other.wait_text(attach, f"line {cell.before - 1}\n")
    cell.open()
    result = other.result(attach)
    assert_attached(result, cell.code, cell.text)
    assert result.iopub[1].content["execution_count"] == 2
    # The requester of the original goes on getting its own, under its own parent.
    mine = client.result(original)
    assert mine.text == cell.text
    assert mine.types[-1] == "idle"
    assert result.reply.content == mine.reply.content
    # No history, no count taken, nothing of it in the engine.
    assert client.run("1").reply.content["execution_count"] == 3
    assert all(e["code"] in ("'something before'", cell.code, "1") for e in sandbox.executions(sandbox.session()["id"]))


def test_attach_to_finished_failed_and_silent_ends(sandbox: Sandbox, client: Client) -> None:
    good = client.run("print('fine'); 6 * 7")
    bad = client.run("print('so far'); raise ValueError('boom')")
    again = client.run("%farside attach 1")
    assert_attached(again, "print('fine'); 6 * 7", "fine\n")
    assert [m.content["data"] for m in again.iopub if m.type == "execute_result"] == [{"text/plain": "42"}]
    assert again.reply.content == good.reply.content
    failed = client.run("%farside attach 2")
    assert_attached(failed, "print('so far'); raise ValueError('boom')", "so far\n", status="error")
    assert failed.reply.content == bad.reply.content
    [error] = [m for m in failed.iopub if m.type == "error"]
    assert error.content == next(m.content for m in bad.iopub if m.type == "error")
    # No argument: the last one that ran, which no `%farside` cell is.
    assert_attached(client.run("%farside attach"), "print('so far'); raise ValueError('boom')", status="error")


def test_every_replayed_message_is_new_to_its_reader(client: Client) -> None:
    """A byte-identical replay raises "Duplicate Signature" in jupyter_client; mixed sessions confuse VS Code."""
    client.run("print('a'); display(1)")
    for _ in range(3):
        client.run("%farside attach 1")
    ids = [m.header["msg_id"] for m in client.messages]
    assert len(ids) == len(set(ids))
    assert len({m.header["session"] for m in client.messages}) == 1


def test_attach_to_a_queued_execution(sandbox: Sandbox, client: Client, launcher: Launcher) -> None:
    cell = Gated(sandbox, before=1, after=0)
    cell.start(client)
    queued = client.execute("print('at last')")
    other = launcher.client(busy=True)
    attach = other.execute(f"%farside attach {queued}")
    other.wait_for(lambda m: m.state == "busy" and m.parent_id == attach, "busy")
    cell.open()
    assert_attached(other.result(attach), "print('at last')", "at last\n")


def test_many_attach_to_one_execution_and_one_leaves(sandbox: Sandbox, client: Client, launcher: Launcher) -> None:
    cell = Gated(sandbox)
    original = cell.start(client)
    others = [launcher.client(busy=True) for _ in range(4)]
    attached = [other.execute("%farside attach") for other in others]
    for other, attach in zip(others, attached, strict=True):
        other.wait_text(attach, f"line {cell.before - 1}\n")
    others[0].close()
    twice = others[1].execute(f"%farside attach {original}")
    others[1].wait_text(twice, f"line {cell.before - 1}\n")
    cell.open()
    for other, attach in list(zip(others, attached, strict=True))[1:]:
        assert_attached(other.result(attach), cell.code, cell.text)
    assert_attached(others[1].result(twice), cell.code, cell.text)
    assert client.result(original).text == cell.text


def test_a_busy_engine_stays_busy_in_the_frontends_eyes(sandbox: Sandbox, client: Client, launcher: Launcher) -> None:
    """An idle for anything farside answers itself would flip JupyterLab to idle in mid-run."""
    cell = Gated(sandbox)
    original = cell.start(client)
    start = len(client.messages)
    other = launcher.client(busy=True)
    assert client.kernel_info("shell").content["status"] == "ok"
    assert client.kernel_info("control").content["status"] == "ok"
    for code in ("%farside status", "%farside history", "%farside help"):
        reply = client.reply(client.execute(code))
        assert reply.content["status"] == "ok", reply
    listing = other.reply(other.send("shell", "farside_list_request"))
    assert listing.content["executions"][0]["state"] == "running"
    attach = other.execute("%farside attach")
    other.wait_text(attach, f"line {cell.before - 1}\n")
    # Each answer's idle is followed at once by the running cell's busy: a frontend keeps one status for the whole
    # kernel. (JupyterLab and its server ignore those of kernel_info.)
    for frontend, first in ((client, start), (other, 0)):
        statuses = [m for m in frontend.messages[first:] if m.state and m.parent["msg_type"] != "kernel_info_request"]
        for n, status in enumerate(statuses):
            if status.state == "idle":
                assert n + 1 < len(statuses), f"left at idle by {status}"
                assert (statuses[n + 1].state, statuses[n + 1].parent_id) == ("busy", original), statuses[n : n + 2]
        assert statuses == [] or statuses[-1].state == "busy"
    cell.open()
    other.result(attach)
    client.result(original)
    # The idle of the answered ones is owed then, at the latest: no frontend waits for ever.
    assert client.run("1").types[-1] == "idle"


def test_attach_to_nothing_says_what_to_do(client: Client) -> None:
    for code, metadata in (("%farside attach no-such-id", None), ("%farside attach 99", None), ("1", {"farside": {"attach": "no-such-id"}})):
        result = client.run(code, metadata=metadata)
        assert result.reply.content["status"] == "error"
        assert result.reply.content["ename"] == "UnknownExecution"
        assert "farside" in result.reply.content["evalue"] or "farside" in "".join(result.reply.content["traceback"])
        assert result.types[-1] == "idle"
    first = client.run("%farside attach")
    assert first.reply.content["status"] == "error"


@pytest.mark.parametrize("code", ["%farside", "%farside nope", "%farside attach 1 2", "%farside extend", "%farside extend soon", "%farside status\nruns = True", "%farside status; runs = True", "%farside attach\n%farside attach"])  # fmt: skip
def test_a_wrong_command_is_an_error_and_nothing_of_it_runs(client: Client, code: str) -> None:
    client.run("'one execution, so that attach would find one'")
    result = client.run(code)
    assert result.reply.content["status"] == ("ok" if code == "%farside" else "error") or code == "%farside"
    if code != "%farside":
        assert "help" in json.dumps(result.reply.content) or "%farside" in json.dumps(result.reply.content)
        assert [m.type for m in result.iopub if m.type == "error"] == ["error"]
    assert client.value("'runs' in dir()") == "False"


def test_the_magics_answer(sandbox: Sandbox, client: Client) -> None:
    client.run("print('hello')")
    session = sandbox.session()
    status = client.run("%farside status")
    assert session["id"] in json.dumps([m.content for m in status.iopub])
    assert status.types[0] == "busy" and status.types[-1] == "idle"
    assert "print('hello')" in json.dumps([m.content for m in client.run("%farside history").iopub])
    assert "attach" in json.dumps([m.content for m in client.run("%farside help").iopub])
    # Takes no count, leaves no history in the engine.
    assert client.run("1").reply.content["execution_count"] == 2
    history = client.reply(client.send("shell", "history_request", {"output": False, "raw": True, "hist_access_type": "tail", "n": 10}))
    assert not [line for *_, line in history.content["history"] if "%farside" in line]


def test_retire_by_magic_ends_the_session(sandbox: Sandbox, client: Client, launcher: Launcher) -> None:
    session = sandbox.session()
    assert client.reply(client.execute("%farside retire")).content["status"] == "ok"
    ended = sandbox.wait_session(lambda s: s["state"] in ("retired", "ended"), "the session to end")
    assert ended["id"] == session["id"]
    assert ended["end_reason"].startswith("stopped")
    launcher.wait_exit()
    wait_until(lambda: not sandbox.processes(), "all its processes to end")


def test_the_list_request(client: Client) -> None:
    client.run("'cell a, first'", metadata={"cellId": "a"})
    client.run("'cell b'", metadata={"cellId": "b"})
    last = client.run("'cell a, second'", metadata={"cellId": "a"})
    reply = client.reply(client.send("shell", "farside_list_request"))
    assert reply.type == "farside_list_reply"
    assert reply.content["status"] == "ok"
    assert reply.content["session"]["id"]
    listed = reply.content["executions"]
    assert set(listed[0]) >= {"msg_id", "n", "cell_id", "code", "state", "started", "ended"}
    newest: dict[str, str] = {}
    for one in listed:
        newest.setdefault(one["cell_id"], one["code"])
    assert newest == {"a": "'cell a, second'", "b": "'cell b'"}
    assert next(e for e in listed if e["cell_id"] == "a")["msg_id"] == last.msg_id


def test_a_prompt_waits_for_the_next_attacher(sandbox: Sandbox) -> None:
    key = str(sandbox.work / "n.ipynb")
    first = sandbox.launch(jupyter_session=key)
    client = first.client()
    code = "name = input('who? '); print(f'hello {name}')"
    original = client.execute(code)
    client.input_request(original)
    first.kill()
    sandbox.wait_session(lambda s: not s["attached"] and s["state"] == "waiting_input", "waiting_input")
    frontend = sandbox.launch(jupyter_session=key).client(busy=True)
    attach = frontend.execute("%farside attach")
    prompt = frontend.input_request(attach)
    assert prompt.content == {"prompt": "who? ", "password": False}
    frontend.send("stdin", "input_reply", {"value": "Ada", "status": "ok"}, parent=prompt.header)
    result = frontend.result(attach)
    assert_attached(result, code, "hello Ada\n")
    assert frontend.value("name") == "'Ada'"


def test_a_prompt_while_nobody_is_there(sandbox: Sandbox) -> None:
    """The gate opens after the frontend has gone: the engine asks into the empty room."""
    key = str(sandbox.work / "n.ipynb")
    first = sandbox.launch(jupyter_session=key)
    client = first.client()
    cell = Gated(sandbox, before=1, after=0, ending="print('got', input('number? '))")
    cell.start(client)
    first.kill()
    sandbox.wait_session(lambda s: not s["attached"], "detached")
    cell.open()
    session = sandbox.wait_session(lambda s: s["state"] == "waiting_input", "waiting_input")
    assert sandbox.executions(session["id"])[-1]["state"] == "waiting_input"
    answered = subprocess.run(
        ["script", "-qec", f"{sandbox_bin()} attach {session['id']}", "/dev/null"], env=sandbox.env, cwd=sandbox.work,
        input="17\n", capture_output=True, text=True, timeout=40,
    )
    assert "number? " in answered.stdout
    assert "got 17" in answered.stdout
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")


def sandbox_bin() -> str:
    from sandbox import FARSIDE

    return str(FARSIDE)


def test_attach_from_the_command_line(sandbox: Sandbox, client: Client) -> None:
    cell = Gated(sandbox)
    original = cell.start(client)
    session = sandbox.session()
    follower = sandbox.spawn_cli("attach", session["id"])
    leaver = sandbox.spawn_cli("attach", session["id"])
    assert leaver.stdout is not None
    for n in range(cell.before):
        assert leaver.stdout.readline() == f"line {n}\n"
    # Ctrl-C leaves, and never interrupts.
    leaver.send_signal(signal.SIGINT)
    leaver.wait(10)
    cell.open()
    out, err = follower.communicate(timeout=30)
    assert out.startswith(cell.text), (out, err)
    assert follower.returncode == 0
    assert client.result(original).reply.content["status"] == "ok"


def test_attach_compacts_progress_bars(sandbox: Sandbox, client: Client) -> None:
    # Fewer than an engine's socket holds: of more it may drop some, where the machine has no time for the host.
    code = "for i in range(800): print(f'\\rstep {i}', end='', flush=True)\nprint('\\nend')"
    client.run(code, seconds=60)
    result = client.run("%farside attach")
    assert_attached(result, code, "step 799\nend\n")
    assert len(result.iopub) < 10


def test_attach_applies_display_updates_and_clear_output(client: Client) -> None:
    code = (
        "from IPython.display import *\n"
        "print('cleared'); clear_output(wait=True)\n"
        "h = display('one', display_id='d')\n"
        "display('between')\n"
        "h.update('two')"
    )
    client.run(code)
    result = client.run("%farside attach")
    shown = [m.content["data"]["text/plain"] for m in result.iopub if m.type == "display_data"]
    assert shown == ["'two'", "'between'"]
    assert "cleared" not in result.text
