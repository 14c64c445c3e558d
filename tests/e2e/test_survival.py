"""Covers items 6, 8, 9, 11, 12: the session goes on when its frontend goes, and ends when a person ends it."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import time
from pathlib import Path

import pytest
from cells import Gated, assert_attached
from sandbox import Launcher, Sandbox, alive, tcp_listeners, wait_gone, wait_until
from wire import Client

# Jupyter Server sends SIGTERM 2.5 s after a shutdown_request; the contract leaves half a second.
EXIT_SECONDS = 2.0


def notebook(sandbox: Sandbox, name: str = "a.ipynb") -> str:
    return str(sandbox.work / name)


def leave(launcher: Launcher, how: str) -> None:
    if how == "parent killed":
        launcher.kill_parent()
        launcher.wait_exit()
    else:
        launcher.kill(getattr(signal, how))


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP", "parent killed"])
def test_everything_is_there_after_the_launcher_went(sandbox: Sandbox, how: str) -> None:
    key = notebook(sandbox)
    launcher = sandbox.launch(jupyter_session=key, own_parent=how == "parent killed", server=how == "parent killed")
    client = launcher.client()
    client.run("kept = 'in memory'")
    cell = Gated(sandbox)
    original = cell.start(client)
    before = sandbox.session()
    assert (before["state"], before["attached"], before["key"]) == ("busy", True, key)
    leave(launcher, how)

    detached = sandbox.wait_session(lambda s: not s["attached"], "the session to be detached")
    assert (detached["id"], detached["state"], detached["engine_pid"]) == (before["id"], "busy", before["engine_pid"])

    again = sandbox.launch(jupyter_session=key)
    frontend = again.client(busy=True)
    assert sandbox.session()["id"] == before["id"]
    attach = frontend.execute("%farside attach")
    frontend.wait_text(attach, f"line {cell.before - 1}\n")
    # Live from here.
    cell.open()
    result = frontend.result(attach)
    assert_attached(result, cell.code, cell.text)
    assert [m.content["data"]["text/plain"] for m in result.iopub if m.type == "execute_result"] == ["'done'"]
    assert frontend.value("kept") == "'in memory'"
    assert sandbox.session()["engine_pid"] == before["engine_pid"]
    [execution] = [e for e in sandbox.executions(before["id"]) if e["msg_id"] == original]
    assert (execution["state"], execution["n"]) == ("ok", 2)


def test_a_launcher_ends_whose_frontend_ended_while_it_looked_for_a_session(sandbox: Sandbox) -> None:
    with (sandbox.state / "create.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        launcher = sandbox.launch(own_parent=True, server=True)
        wait_until(lambda: tcp_listeners({launcher.pid}), "the launcher to bind its sockets")
        launcher.kill_parent()
        assert launcher.running(), "it waits for the lock"
    launcher.wait_exit()
    sandbox.wait_session(lambda s: not s["attached"], "the session to be detached")


def test_no_port_is_open_while_nobody_is_attached(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(jupyter_session=notebook(sandbox))
    launcher.client().run("1")
    session = sandbox.session()
    host, keeper, engine = session["host_pid"], sandbox.keeper_pid(session), session["engine_pid"]
    assert tcp_listeners({launcher.pid}), "the launcher serves tcp"
    assert tcp_listeners({host, keeper}) == []
    launcher.kill()
    sandbox.wait_session(lambda s: not s["attached"], "the session to be detached")
    others = set(sandbox.processes()) - {engine}
    assert {host, keeper} <= others
    assert tcp_listeners(others) == []
    # ipykernel binds one port of its own, on loopback, for output of its child processes; the five of Jupyter are ipc.
    assert len(tcp_listeners({engine})) <= 1


def ends(sandbox: Sandbox, launcher: Launcher, session: dict, reason: str) -> None:
    launcher.wait_exit()
    for pid in (session["engine_pid"], session["host_pid"]):
        wait_gone(pid)
    assert sandbox.ls() == []
    ended = sandbox.session(session["id"])
    assert ended["state"] in ("ended", "retired")
    assert ended["end_reason"].startswith(reason), ended


def shutdown(client: Client, restart: bool = False) -> float:
    """Asks for it on control; gives the time until the launcher is free to go."""
    client.send("control", "interrupt_request")
    asked = client.send("control", "shutdown_request", {"restart": restart})
    reply = client.reply(asked)
    assert reply.type == "shutdown_reply"
    assert reply.content["restart"] is restart
    assert reply.content["status"] == "ok"
    return time.monotonic()


@pytest.mark.parametrize("server", [True, False], ids=["by a Jupyter Server", "by a console"])
def test_a_person_shuts_the_kernel_down(sandbox: Sandbox, server: bool) -> None:
    launcher = sandbox.launch(jupyter_session=notebook(sandbox), server=server)
    client = launcher.client()
    Gated(sandbox).start(client)
    session = sandbox.session()
    answered = shutdown(client)
    launcher.wait_exit()
    assert time.monotonic() - answered < EXIT_SECONDS
    ends(sandbox, launcher, session, "shutdown")


@pytest.mark.parametrize("how", ["interrupt and shutdown", "shutdown only", "parent gone"])
def test_a_leaving_server_detaches_and_interrupts_nothing(sandbox: Sandbox, how: str) -> None:
    launcher = sandbox.launch(jupyter_session=notebook(sandbox), server=True, own_parent=how == "parent gone")
    client = launcher.client()
    cell = Gated(sandbox)
    cell.start(client)
    session = sandbox.session()
    if how == "parent gone":
        launcher.kill_parent()
    else:
        assert launcher.jpserver is not None
        launcher.jpserver.unlink()
        if how == "interrupt and shutdown":
            client.send("control", "interrupt_request")
        asked = client.send("control", "shutdown_request", {"restart": False})
        assert client.reply(asked).content["status"] == "ok"
        answered = time.monotonic()
        launcher.wait_exit()
        assert time.monotonic() - answered < EXIT_SECONDS
    launcher.wait_exit()
    sandbox.wait_session(lambda s: not s["attached"] and s["state"] == "busy", "the session to be detached and busy")
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")
    [execution] = sandbox.executions(session["id"])
    assert execution["state"] == "ok"
    assert alive(session["engine_pid"])


def test_restart_from_the_wire_gives_a_new_engine_in_the_same_session(sandbox: Sandbox) -> None:
    """As jupyter_client restarts: shutdown_request{restart}, the process ends, the next one has the same file."""
    launcher = sandbox.launch(jupyter_session=notebook(sandbox), server=True)
    client = launcher.client()
    client.run("gone = 1")
    session = sandbox.session()
    shutdown(client, restart=True)
    launcher.wait_exit()
    again = sandbox.launch(jupyter_session=notebook(sandbox), server=True, connection_file=launcher.connection_file)
    frontend = again.client()
    assert frontend.value("'gone' in dir()") == "False"
    assert not alive(session["engine_pid"])
    after = sandbox.wait_session(lambda s: s["engine_pid"] not in (None, session["engine_pid"]), "the new engine")
    assert after["id"] == session["id"]
    assert [e["code"] for e in sandbox.executions(session["id"])][0] == "gone = 1"
    # What ran before the restart can still be attached to.
    attached = frontend.run("%farside attach 1")
    assert_attached(attached, "gone = 1", "")


def test_a_live_session_is_not_stolen(sandbox: Sandbox) -> None:
    """"Change kernel" to the same spec starts the new process before the old one is told to stop."""
    key = notebook(sandbox)
    first = sandbox.launch(jupyter_session=key, server=True)
    client = first.client()
    client.run("mine = 1")
    session = sandbox.session()
    second = sandbox.launch(jupyter_session=key, server=True).client()
    assert second.value("'mine' in dir()") == "False"
    assert client.value("mine") == "1"
    assert len(sandbox.ls()) == 2
    assert alive(session["engine_pid"])


def test_two_launchers_that_race_get_one_session_each(sandbox: Sandbox) -> None:
    """One host and one owner for the key, and the other a session of its own; never two launchers on one."""
    key = notebook(sandbox)
    first = sandbox.launch(jupyter_session=key)
    first.client().run("x = 1")
    session = sandbox.session()
    for _ in range(3):
        first.kill()
        racers = [sandbox.launch(jupyter_session=key) for _ in range(2)]
        clients = [racer.client() for racer in racers]
        owned = [client.value("'x' in dir()") for client in clients]
        assert sorted(owned) == ["False", "True"]
        assert len(sandbox.ls()) == 2
        winner, loser = (racers if owned[0] == "True" else racers[::-1])
        # The loser's goes as a kernel that a console owned.
        other = clients[racers.index(loser)]
        shutdown(other)
        loser.wait_exit()
        sandbox.wait_session(lambda s: s["id"] != session["id"] and s["state"] == "ended", "the loser's session to end")
        assert sandbox.session()["id"] == session["id"]
        first = winner


def test_two_launchers_that_race_for_a_new_key_start_one_engine_each(sandbox: Sandbox) -> None:
    key = notebook(sandbox)
    clients = [racer.client() for racer in [sandbox.launch(jupyter_session=key) for _ in range(2)]]
    pids = {client.value("__import__('os').getpid()") for client in clients}
    sessions = sandbox.ls()
    assert len(pids) == len(sessions) == 2
    assert {str(s["engine_pid"]) for s in sessions} == pids


def test_the_key_may_come_from_the_environment_or_the_command_line(sandbox: Sandbox) -> None:
    by_env = sandbox.launch(jupyter_session="other.ipynb", env={"FARSIDE_SESSION": "named"})
    by_env.client().run("who = 'env'")
    by_env.kill()
    assert sandbox.launch(extra=("--session", "named")).client().value("who") == "'env'"


def test_a_relative_key_counts_with_its_folder(sandbox: Sandbox) -> None:
    folders = [sandbox.work / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        launcher = sandbox.launch(jupyter_session="nb.ipynb", cwd=folder)
        launcher.client().run(f"where = {folder.name!r}")
        launcher.kill()
    for folder in folders:
        client = sandbox.launch(jupyter_session="nb.ipynb", cwd=folder).client()
        assert client.value("where") == f"'{folder.name}'"
    assert len(sandbox.ls()) == 2


def test_the_engine_gets_the_frontends_environment_and_folder_but_not_its_parent(sandbox: Sandbox) -> None:
    """ipykernel ends itself when the process of its JPY_PARENT_PID goes away."""
    folder = sandbox.work / "sub"
    folder.mkdir()
    client = sandbox.launch(jupyter_session="nb.ipynb", cwd=folder, env={"SAID_BY_THE_USER": "yes"}).client()
    assert client.value("__import__('os').getcwd()") == repr(str(folder))
    assert client.value("__import__('os').environ['SAID_BY_THE_USER']") == "'yes'"
    left = client.value("[n for n in __import__('os').environ if n.startswith('JPY_')]")
    assert left == "[]"
    assert client.value("__import__('os').getsid(0) != __import__('os').getppid()") in ("True", "False")
    engine = sandbox.session()["engine_pid"]
    stdio = [Path(f"/proc/{engine}/fd/{n}").readlink() for n in (0, 1, 2)]
    assert str(stdio[0]) == "/dev/null"
    assert not any(str(sandbox.root / "launcher") in str(one) for one in stdio), stdio


def test_run_all_goes_on_without_the_frontend(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(jupyter_session=notebook(sandbox))
    client = launcher.client()
    cell = Gated(sandbox, before=1, after=0)
    sent = [client.execute(cell.code)]
    sent += [client.execute(f"print('cell {n}'); order = globals().get('order', []) + [{n}]") for n in range(1, 50)]
    client.wait_text(sent[0], "line 0\n")
    session = sandbox.session()
    queued = [e["state"] for e in sandbox.executions(session["id"])]
    assert queued == ["running"] + ["queued"] * 49
    launcher.kill()
    sandbox.wait_session(lambda s: not s["attached"], "the session to be detached")
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "all cells to have run")
    executions = sandbox.executions(session["id"])
    assert [(e["msg_id"], e["state"], e["n"]) for e in executions] == [(m, "ok", n) for n, m in enumerate(sent, 1)]
    again = sandbox.launch(jupyter_session=notebook(sandbox)).client()
    assert again.value("str(order)") == repr(str(list(range(1, 50))))
    for n in (1, 25, 49):
        assert again.run(f"%farside attach {n + 1}").text == f"cell {n}\n"


def test_an_error_aborts_the_rest_as_ipykernel_does_it(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(jupyter_session=notebook(sandbox))
    client = launcher.client()
    cell = Gated(sandbox, before=1, after=0, ending="1/0")
    sent = [client.execute(cell.code), *(client.execute(f"ran = {n}") for n in range(20))]
    client.wait_text(sent[0], "line 0\n")
    session = sandbox.session()
    launcher.kill()
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the queue to be empty")
    assert [e["state"] for e in sandbox.executions(session["id"])] == ["error"] + ["aborted"] * 20
    again = sandbox.launch(jupyter_session=notebook(sandbox)).client()
    assert again.value("'ran' in dir()") == "False"


def test_a_name_that_ended_starts_anew(sandbox: Sandbox) -> None:
    key = notebook(sandbox)
    launcher = sandbox.launch(jupyter_session=key)
    client = launcher.client()
    client.run("x = 1")
    first = sandbox.session()
    shutdown(client)
    launcher.wait_exit()
    ends(sandbox, launcher, first, "shutdown")
    again = sandbox.launch(jupyter_session=key).client()
    assert again.value("'x' in dir()") == "False"
    assert sandbox.session()["id"] != first["id"]


def test_a_shutdown_while_the_engine_starts_ends_the_session(sandbox: Sandbox) -> None:
    """jupyter_client shuts down with a shutdown_request, SIGTERM after 2.5 s and SIGKILL after 5 s: where the engine
    is slow to start, the signals come first, and would be a detach if the request had been forgotten."""
    folder = sandbox.data / "kernels/slow"
    folder.mkdir(parents=True)
    slow = 'while [ ! -e "$1" ]; do sleep 0.05; done; exec "$2" -m ipykernel_launcher -f "$3"'
    gate = sandbox.work / "gate"
    argv = ["sh", "-c", slow, "sh", str(gate), sys.executable, "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Slow", "language": "python"}))
    launcher = sandbox.launch("farside-slow")
    client = launcher.connect(iopub=False)
    client.send("control", "interrupt_request")
    client.send("control", "shutdown_request", {"restart": False})
    session = sandbox.wait_session(lambda s: s["attached"] or s["state"] == "ended", "the session")
    launcher.wait_exit(seconds=5)
    gate.touch()
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)
    assert sandbox.session(session["id"])["end_reason"].startswith("shutdown")
