"""Covers items 9 and 10 with a real Jupyter Server, whose REST API and websockets JupyterLab uses."""

from __future__ import annotations

import json
import os
import signal

import pytest
from cells import Gated
from sandbox import KERNEL, Sandbox, alive, tcp_listeners, wait_gone, wait_until


def open_notebook(sandbox: Sandbox, name: str = "n.ipynb", **kw):
    sandbox.kernelspec(KERNEL)
    server = sandbox.server(**kw)
    session = server.open_notebook(name, KERNEL)
    return server, session["kernel"]["id"], session


@pytest.mark.parametrize(("how", "times"), [(signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGINT, 2)], ids=["SIGTERM", "SIGKILL", "^C twice"])
def test_a_cell_survives_its_server(sandbox: Sandbox, how: int, times: int) -> None:
    server, kernel_id, _ = open_notebook(sandbox)
    cell = Gated(sandbox)
    first = server.websocket(kernel_id)
    setup = first.execute("kept = 'in memory'")
    first.idle(setup, 45)
    socket, _ = cell.start_at(server, kernel_id)
    before = sandbox.session()
    assert before["key"].endswith("n.ipynb")
    for one in (first, socket):
        one.close()
    server.stop(how, times)

    sandbox.wait_session(lambda s: not s["attached"], "the session to be detached")
    session = sandbox.session()
    assert (session["state"], session["engine_pid"]) == ("busy", before["engine_pid"])
    # The killed server's launcher finds out by itself, at once.
    wait_until(lambda: not tcp_listeners(set(sandbox.processes()) - {session["engine_pid"]}), "all ports to be closed", 2)

    server, kernel_id, _ = open_notebook(sandbox)
    assert sandbox.session()["id"] == before["id"]
    page = server.websocket(kernel_id)
    attach = page.execute("%farside attach", cellId="cell-2")
    page.wait_for(lambda m: f"line {cell.before - 1}\n" in page.text(attach), "the lines so far", 45)
    assert page.text(attach) == cell.first
    cell.open()
    page.idle(attach)
    assert page.text(attach) == cell.text
    check = page.execute("print(kept, os.getpid())")
    page.idle(check)
    assert page.text(check) == f"in memory {before['engine_pid']}\n"


def test_a_cell_survives_its_launcher_under_a_server_that_lives(sandbox: Sandbox) -> None:
    """The server notices that its kernel is dead, and starts a new one on the same ports. Before that it sends an
    interrupt_request, as jupyter_client does before any restart: it waited in the server's socket for the new
    launcher, which passed it on, and the cell got a KeyboardInterrupt right after it was attached to again."""
    server, kernel_id, _ = open_notebook(sandbox)
    cell = Gated(sandbox)
    socket, _ = cell.start_at(server, kernel_id)
    before = sandbox.session()
    (launcher,) = launchers(sandbox)
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: launchers(sandbox) - {launcher}, "the server to start another launcher", 30)
    again = server.websocket(kernel_id)
    attach = again.execute("%farside attach")
    again.wait_for(lambda m: f"line {cell.before - 1}\n" in again.text(attach), "the lines so far", 45)
    cell.open()
    again.idle(attach)
    assert again.text(attach) == cell.text
    after = sandbox.session()
    assert (after["id"], after["engine_pid"]) == (before["id"], before["engine_pid"])
    assert [e["state"] for e in sandbox.executions(before["id"])] == ["ok"]
    socket.close()
    # Later ones are meant for this one.
    cell = Gated(sandbox)
    socket, msg_id = cell.start_at(server, kernel_id)
    server.api("POST", f"kernels/{kernel_id}/interrupt", expect=204)
    reply = socket.wait_for(lambda m: m["msg_type"] == "execute_reply" and m["parent_header"]["msg_id"] == msg_id, "the cell's end")
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def launchers(sandbox: Sandbox) -> set[int]:
    return {pid for pid, command in sandbox.processes().items() if " launch " in command}


def test_the_server_knows_that_a_detached_cell_is_busy(sandbox: Sandbox) -> None:
    """A reattached kernel that shows idle while its cell runs would be culled, and a person would be misled."""
    server, kernel_id, _ = open_notebook(sandbox)
    cell = Gated(sandbox)
    cell.start_at(server, kernel_id)
    wait_until(lambda: server.api("GET", f"kernels/{kernel_id}")["execution_state"] == "busy", "busy at the server")
    server.stop(signal.SIGTERM)
    server, kernel_id, _ = open_notebook(sandbox)
    page = server.websocket(kernel_id)
    asked = page.send("shell", "kernel_info_request", {})
    page.wait_for(lambda m: m["msg_type"] == "kernel_info_reply" and m["parent_header"]["msg_id"] == asked, "kernel_info")
    page.wait_for(lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "busy" and m["parent_header"].get("msg_type") == "execute_request", "busy, with the running execute_request as parent")
    assert server.api("GET", f"kernels/{kernel_id}")["execution_state"] == "busy"
    cell.open()
    wait_until(lambda: server.api("GET", f"kernels/{kernel_id}")["execution_state"] == "idle", "idle at the server")


def gone(sandbox: Sandbox, session: dict) -> None:
    for pid in (session["engine_pid"], session["host_pid"]):
        wait_gone(pid)
    assert sandbox.ls() == []


def test_shut_down_kernel_ends_the_session(sandbox: Sandbox) -> None:
    server, kernel_id, _ = open_notebook(sandbox)
    cell = Gated(sandbox)
    cell.start_at(server, kernel_id)
    session = sandbox.session()
    server.api("DELETE", f"kernels/{kernel_id}", expect=204)
    gone(sandbox, session)
    assert sandbox.session(session["id"])["end_reason"].startswith("shutdown")
    # The same notebook gets a new session.
    again = server.open_notebook("n.ipynb", KERNEL)
    page = server.websocket(again["kernel"]["id"])
    check = page.execute("print('i' in dir())")
    page.idle(check, 45)
    assert page.text(check) == "False\n"
    assert sandbox.session()["id"] != session["id"]


def test_closing_the_session_at_the_server_ends_it(sandbox: Sandbox) -> None:
    """ "Shut down kernel" of a notebook is DELETE on its session."""
    server, _, at_server = open_notebook(sandbox)
    session = sandbox.wait_session(lambda s: s["state"] == "idle", "the engine to be up")
    server.api("DELETE", f"sessions/{at_server['id']}", expect=204)
    gone(sandbox, session)


CULL = (
    "--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1",
    "--MappingKernelManager.cull_connected=True",
)


@pytest.mark.parametrize("cull_busy", [False, True])
def test_the_culler_passes_a_session_over_that_has_limits_of_its_own(sandbox: Sandbox, cull_busy: bool) -> None:
    args = (*CULL, f"--MappingKernelManager.cull_busy={cull_busy}", "--ServerApp.log_level=DEBUG")
    server, kernel_id, _ = open_notebook(sandbox, args=args)
    page = server.websocket(kernel_id)
    page.idle(page.execute("kept = 1"), 45)
    state = "busy" if cull_busy else "idle"
    if cull_busy:
        # Silent work.
        quiet = page.execute("import threading; threading.Event().wait()")
    session = sandbox.wait_session(lambda s: s["state"] == state, state)
    # Idle from later on than ours, and culled all the same.
    plain = server.open_notebook("plain.ipynb", "python3")["kernel"]["id"]
    other = server.websocket(plain)
    other.idle(other.execute("1"), 45)
    wait_until(lambda: plain not in [k["id"] for k in server.api("GET", "kernels")], "the culler to end a plain kernel", 45)
    # jupyter_server says at each look what it looks at.
    looked_at = f"kernel_id={kernel_id}, kernel_name={KERNEL}, last_activity="
    before = server.log.read_text().count(looked_at)
    assert before > 0
    wait_until(lambda: server.log.read_text().count(looked_at) >= before + 3, "the culler to look three times more", 45)
    at_server = server.api("GET", f"kernels/{kernel_id}")
    assert at_server["execution_state"] == state
    after = sandbox.session()
    assert (after["id"], after["engine_pid"], after["state"]) == (session["id"], session["engine_pid"], state)
    if cull_busy:
        server.api("POST", f"kernels/{kernel_id}/interrupt", expect=204)
        page.idle(quiet)
    check = page.execute("print(kept)")
    page.idle(check)
    assert page.text(check) == "1\n"


def test_a_culler_that_was_asked_for_ends_the_session(sandbox: Sandbox) -> None:
    """Who takes `cull_idle_timeout` out of the kernelspec has the server's culling back."""
    spec = sandbox.kernelspec(KERNEL)
    del spec["metadata"]["cull_idle_timeout"]
    (sandbox.data / "kernels" / KERNEL / "kernel.json").write_text(json.dumps(spec))
    server, kernel_id, _ = open_notebook(sandbox, args=CULL)
    page = server.websocket(kernel_id)
    done = page.execute("1")
    page.idle(done, 45)
    session = sandbox.session()
    sandbox.wait_session(lambda s: s["state"] in ("ended", "retired"), "the culler", session["id"], 30)
    gone(sandbox, session)


def test_restart_kernel_gives_an_empty_namespace_on_the_same_ports(sandbox: Sandbox) -> None:
    server, kernel_id, _ = open_notebook(sandbox)
    page = server.websocket(kernel_id)
    page.idle(page.execute("gone = 1"), 45)
    session = sandbox.session()
    files = list(sandbox.runtime.glob("kernel-*.json"))
    ports = files[0].read_text()
    server.api("POST", f"kernels/{kernel_id}/restart")
    assert files[0].read_text() == ports
    fresh = server.websocket(kernel_id)
    check = fresh.execute("print('gone' in dir())")
    fresh.idle(check, 45)
    assert fresh.text(check) == "False\n"
    after = sandbox.session()
    assert after["id"] == session["id"]
    assert not alive(session["engine_pid"])


def test_interrupt_kernel(sandbox: Sandbox) -> None:
    server, kernel_id, _ = open_notebook(sandbox)
    cell = Gated(sandbox)
    socket, msg_id = cell.start_at(server, kernel_id)
    server.api("POST", f"kernels/{kernel_id}/interrupt", expect=204)
    reply = socket.wait_for(lambda m: m["msg_type"] == "execute_reply" and m["parent_header"]["msg_id"] == msg_id, "the cell's end")
    assert reply["content"]["ename"] == "KeyboardInterrupt"


def test_change_kernel_to_the_same_spec_does_not_steal(sandbox: Sandbox) -> None:
    server, kernel_id, at_server = open_notebook(sandbox)
    page = server.websocket(kernel_id)
    page.idle(page.execute("old = 1"), 45)
    session = sandbox.session()
    changed = server.api("PATCH", f"sessions/{at_server['id']}", {"id": at_server["id"], "kernel": {"name": KERNEL}})
    assert changed["kernel"]["id"] != kernel_id
    fresh = server.websocket(changed["kernel"]["id"])
    check = fresh.execute("print('old' in dir())")
    fresh.idle(check, 45)
    assert fresh.text(check) == "False\n"
    assert {s["id"] for s in sandbox.ls()} != {session["id"]}


def test_a_detached_session_is_stopped_from_the_command_line(sandbox: Sandbox) -> None:
    server, kernel_id, _ = open_notebook(sandbox)
    Gated(sandbox).start_at(server, kernel_id)
    session = sandbox.session()
    server.stop(signal.SIGTERM)
    sandbox.cli("stop", session["id"], "--now", check=True)
    gone(sandbox, session)
    assert sandbox.session(session["id"])["end_reason"].startswith("stopped")
