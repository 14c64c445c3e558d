"""A launcher that can have no session says why in its frontend, and has one as soon as that is mended."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from sandbox import KERNEL, Launcher, Sandbox, wait_until
from wire import Client


def bad_settings(sandbox: Sandbox) -> Path:
    sandbox.kernelspec(KERNEL)
    file = sandbox.config / "farside/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('idle_timeout = "8x"\n')
    return file


def told(client: Client) -> str:
    """What a cell shows."""
    result = client.run("print('ran')")
    assert result.types == ["busy", "error", "idle"], result
    [error] = [m.content for m in result.iopub if m.type == "error"]
    assert result.reply.content["status"] == "error"
    assert error["ename"] == result.reply.content["ename"] == "FarsideError"
    assert error["evalue"] == result.reply.content["evalue"]
    assert error["traceback"] == [f"FarsideError: {error['evalue']}"]
    return error["evalue"]


def unable(launcher: Launcher) -> Client:
    """A frontend of a launcher that has no session."""
    client = launcher.connect()
    client.wait_for(lambda m: m.type == "iopub_welcome", "the subscription")
    info = client.kernel_info()
    assert info.content["status"] == "error" and info.content["banner"] == info.content["evalue"]
    assert info.parent_id is not None
    client.idle(info.parent_id)
    assert [m.state for m in client.of(info.parent_id) if m.state] == ["busy", "idle"]
    return client


def test_a_bad_setting_is_told_in_the_cell(sandbox: Sandbox) -> None:
    file = bad_settings(sandbox)
    launcher = sandbox.launch()
    client = unable(launcher)
    late = launcher.connect()
    late.wait_for(lambda m: m.type == "iopub_welcome", "the subscription")
    text = told(client)
    assert str(file) in text and "`8x` is no value for idle_timeout" in text and "Run the cell again" in text
    assert client.reply(client.send("shell", "complete_request", {"code": "im", "cursor_pos": 2})).content["status"] == "error"
    assert client.reply(client.send("control", "interrupt_request")).content == {"status": "ok"}
    assert list(sandbox.processes()) == [launcher.pid] and sandbox.ls() == []

    file.write_text('idle_timeout = "8h"\n')
    # Nothing less than an execution starts an engine.
    assert client.kernel_info().content["status"] == "error"
    result = client.run("print('ran')", seconds=45)
    assert result.text == "ran\n"
    assert late.wait_text(result.msg_id, "ran\n") is None
    assert client.kernel_info().content["status"] == "ok"
    assert len({m.header["session"] for m in client.messages}) == 1
    assert launcher.running()


def test_a_lifetime_past_the_cap_is_told(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(env={"FARSIDE_MAX_LIFETIME": "100h", "FARSIDE_MAX_LIFETIME_CAP": "1h"})
    assert "a max_lifetime of 100h is more than is allowed here" in told(unable(launcher))


def test_one_of_a_kernelspec_is_told_and_its_launcher_ends_as_any(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(env={"FARSIDE_MAX_LIFETIME": "soon"})
    client = unable(launcher)
    assert "FARSIDE_MAX_LIFETIME: `soon` is no value for max_lifetime" in told(client)
    reply = client.reply(client.send("control", "shutdown_request", {"restart": True}))
    assert reply.content == {"status": "ok", "restart": True}
    assert launcher.wait_exit() == 0

    launcher = sandbox.launch(own_parent=True, server=True, env={"FARSIDE_MAX_LIFETIME": "soon"})
    unable(launcher)
    launcher.kill_parent()
    launcher.wait_exit()
    assert sandbox.ls() == []


def test_an_engine_that_is_not_there_is_told(sandbox: Sandbox) -> None:
    argv = sandbox.kernelspec(KERNEL)["argv"]
    at = argv.index("--engine-spec")
    sandbox.add_kernelspec("farside-gone", [arg.replace("python3", "gone") for arg in argv[:at]] + argv[at + 2 :])
    sandbox.installed.add("farside-gone")
    launcher = sandbox.launch("farside-gone")
    assert "no kernelspec named `gone`" in told(unable(launcher))
    launcher.kill()


def test_nobody_is_kept_from_a_session_that_lives(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(jupyter_session="/n.ipynb")
    launcher.client().run("x = 1")
    launcher.kill()
    bad_settings(sandbox)
    client = sandbox.launch(jupyter_session="/n.ipynb").client()
    assert client.value("x") == "1"


@pytest.mark.parametrize("cells", [1, 30])
def test_a_sleeping_launcher_that_cannot_wake_sleeps_on(sandbox: Sandbox, client: Client, launcher: Launcher, cells: int) -> None:
    client.run("1")
    sandbox.link(sandbox.session()["id"]).stop("idle: for 1h")
    wait_until(lambda: list(sandbox.processes()) == [launcher.pid], "nothing but the launcher", detail=sandbox.processes)
    file = bad_settings(sandbox)
    asked = [client.execute(f"print({n})") for n in range(cells)]
    for msg_id in asked:
        assert client.reply(msg_id).content["ename"] == "FarsideError"
        client.idle(msg_id)
    file.unlink()
    result = client.run("print('awake')", seconds=45)
    assert result.text.endswith("awake\n")


def test_a_notebook_that_is_run_fails_with_the_reason(sandbox: Sandbox) -> None:
    """And not because its kernel died."""
    sandbox.kernelspec(KERNEL)
    bad_settings(sandbox)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    book.metadata.kernelspec = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    nbformat.write(book, sandbox.work / "n.ipynb")
    command = [sys.executable, "-m", "jupyter", "execute", "n.ipynb"]
    done = subprocess.run(command, env=sandbox.env, cwd=sandbox.work, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "nbclient.exceptions.CellExecutionError" in done.stderr, done.stderr
    assert re.search(r"^FarsideError: .*`8x` is no value for idle_timeout", done.stderr, re.MULTILINE), done.stderr
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)
