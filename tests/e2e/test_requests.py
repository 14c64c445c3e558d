"""Covers items 6 and 7: interrupt, stdin, heartbeat, restart by jupyter_client, several frontends, answers while busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import zmq
from cells import Gated
from sandbox import Launcher, Sandbox, alive, wait_gone, wait_until
from wire import Client, Msg, endpoint


def test_interrupt_ends_the_running_cell(sandbox: Sandbox, client: Client) -> None:
    cell = Gated(sandbox)
    running = cell.start(client)
    reply = client.reply(client.send("control", "interrupt_request"))
    assert (reply.type, reply.content["status"]) == ("interrupt_reply", "ok")
    ended = client.result(running)
    assert ended.reply.content["ename"] == "KeyboardInterrupt"
    assert client.run("1").reply.content["status"] == "ok"
    [execution, _] = sandbox.executions(sandbox.session()["id"])
    assert execution["state"] in ("interrupted", "error")


def test_kernel_info_is_answered_while_a_cell_holds_the_interpreter(client: Client) -> None:
    """ipykernel answers shell only after the cell, and not even control while C code holds the interpreter's lock."""
    # A pattern that backtracks for a second or more, in C, with the lock held.
    code = "import re; print('in', flush=True); import time; time.sleep(0.3); _ = re.match('(a+)+$', 'a' * 26 + 'b')"
    running = client.execute(code)
    client.wait_text(running, "in\n")
    for _ in range(10):
        for channel in ("shell", "control"):
            asked = client.send(channel, "kernel_info_request")
            # How fast exactly is the benchmark's business.
            assert client.reply(asked, seconds=1.0).content["implementation"] == "ipython"
    assert not any(m.parent_id == running and m.channel == "shell" for m in client.messages), "the cell was over too soon"
    client.result(running, seconds=60)


def test_kernel_info_says_what_the_engine_says(client: Client) -> None:
    for channel in ("shell", "control"):
        content = client.kernel_info(channel).content
        assert (content["implementation"], content["language_info"]["name"]) == ("ipython", "python")
        assert content["farside"]["version"] and content["farside"]["session"]
        assert "farside" in content["banner"].rstrip("\n").split("\n")[-1]
        assert "kernel subshells" in content["supported_features"]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_kernel_info_does_not_wait_for_the_host(sandbox: Sandbox, client: Client) -> None:
    """The launcher knows the answer; statuses come from the host, and no second reply."""
    host = sandbox.session()["host_pid"]

    def answered() -> Msg | None:
        # What was asked before must be acknowledged, or the host answers; that has no sign of its own.
        with stopped(host):
            asked = client.send("shell", "kernel_info_request")
            with suppress(AssertionError):
                client.reply(asked, seconds=1.0)
            early = bool(client.replies(asked))
        reply = client.reply(asked)
        client.idle(asked)
        return reply if early else None

    first = wait_until(answered, "an answer while the host stands still")
    assert (first.content["implementation"], first.header["username"]) == ("ipython", "farside")
    assert first.content["farside"]["session"] == sandbox.session()["id"]
    client.run("pass")
    assert [m.state for m in client.of(first.parent_id)] == ["busy", "idle"]
    assert len(client.replies(first.parent_id)) == 1


def test_kernel_info_behind_a_restart_is_of_the_new_engine(sandbox: Sandbox, client: Client) -> None:
    """Who asks takes the answer for the sign that the engine is there: it must not come from before the restart."""
    session = sandbox.session()
    connect, other = sandbox.connect(session["id"])
    with stopped(session["host_pid"]):
        other.send("control", "shutdown_request", {"restart": True})
        asked = other.send("shell", "kernel_info_request")
        other.pump(0.5)
        assert not other.replies(asked), "an answer of before the restart"
    assert other.reply(asked, seconds=60).content["status"] == "ok"
    assert other.value("__import__('os').getpid()") != str(session["engine_pid"])
    connect.send_signal(signal.SIGINT)
    connect.wait(10)


def test_the_heartbeat_beats_while_the_engine_is_busy(sandbox: Sandbox, launcher: Launcher, client: Client) -> None:
    cell = Gated(sandbox)
    running = cell.start(client)
    with zmq.Context() as context, context.socket(zmq.REQ) as beat:
        beat.linger = 0
        beat.connect(endpoint(launcher.connection, "hb"))
        for payload in (b"ping", b"", b"\x00" * 1000):
            beat.send(payload)
            assert beat.poll(10_000), "no heartbeat"
            assert beat.recv() == payload
    cell.open()
    client.result(running)


def test_several_frontends_see_the_same_and_get_their_own_replies(launcher: Launcher) -> None:
    clients = [launcher.client() for _ in range(4)]
    for client in clients:
        client.messages.clear()
    sent = [client.execute(f"print('from {n}')") for n, client in enumerate(clients)]
    for client, msg_id in zip(clients, sent, strict=True):
        for n, one in enumerate(sent):
            client.idle(one)
            assert [m.content["text"] for m in client.of(one) if m.type == "stream"] == [f"from {n}\n"]
        client.reply(msg_id)
        assert {m.parent_id for m in client.messages if m.channel == "shell"} == {msg_id}


def test_input_goes_to_the_frontend_that_asked(launcher: Launcher) -> None:
    asker, other = launcher.client(), launcher.client()
    running = asker.execute("print(input('a? ') + input('b? '))")
    for value in ("x", "y"):
        prompt = asker.input_request(running)
        asker.messages.remove(prompt)
        asker.send("stdin", "input_reply", {"value": value, "status": "ok"}, parent=prompt.header)
    assert asker.result(running).text == "xy\n"
    other.idle(running)
    assert not [m for m in other.messages if m.channel == "stdin"]


def test_jupyter_client_restarts_and_shuts_down_as_ever(sandbox: Sandbox, monkeypatch) -> None:
    """KernelManager: restart on the same ports with an empty namespace; shutdown leaves nothing."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    sandbox.kernelspec("farside-python3")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(sandbox.runtime))
    specs = KernelSpecManager(kernel_dirs=[str(sandbox.data / "kernels")], ensure_native_kernel=False)
    manager = KernelManager(kernel_name="farside-python3", kernel_spec_manager=specs)
    manager.start_kernel(env=sandbox.env, cwd=str(sandbox.work))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=45)
        client.execute_interactive("gone = 1", timeout=20)
        session = sandbox.session()
        ports = manager.get_connection_info()["shell_port"]
        manager.restart_kernel(env=sandbox.env, cwd=str(sandbox.work))
        client.wait_for_ready(timeout=45)
        assert manager.get_connection_info()["shell_port"] == ports
        reply = client.execute_interactive("gone", timeout=20)
        assert reply["content"]["ename"] == "NameError"
        after = sandbox.session()
        assert after["id"] == session["id"]
        assert not alive(session["engine_pid"])
        # ipykernel aborts what comes right behind an error, but for a request that says not to.
        # And an interrupt between execute_input and the first line of the cell it takes for its own.
        running = client.execute("import time; print('in', flush=True); time.sleep(60)", stop_on_error=False)
        while client.get_iopub_msg(timeout=20)["msg_type"] != "stream":
            pass
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=20)
        while reply["parent_header"]["msg_id"] != running:
            reply = client.get_shell_msg(timeout=20)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert client.execute_interactive("1", timeout=20)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    wait_gone(after["engine_pid"])
    assert sandbox.ls() == []


START_AND_SHUT_DOWN = """
import sys, time
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="farside-python3")
manager.start_kernel()
time.sleep(float(sys.argv[1]))
manager.shutdown_kernel()
"""


@pytest.mark.parametrize("seconds", ["0", "0.05", "0.2", "0.5"])
def test_a_kernel_that_is_shut_down_while_it_starts_leaves_nothing(sandbox: Sandbox, seconds: str) -> None:
    """jupyter_client sends interrupt_request and shutdown_request at once. The interrupt must not reach an engine that
    cannot stand it yet (and be taken for an engine that failed to start), nor the shutdown be lost over it."""
    sandbox.kernelspec("farside-python3")
    subprocess.run([sys.executable, "-c", START_AND_SHUT_DOWN, seconds], env=sandbox.env, cwd=sandbox.work, check=True, timeout=60)
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)
    assert sandbox.ls() == []
    [session] = sandbox.ls(everything=True)
    started = [r for r in sandbox.records(session["id"]) if "engine_started" in str(r)]
    assert len(started) <= 1, "an engine was started again only to be shut down"


def test_a_password_reaches_the_engine_and_no_file(sandbox: Sandbox, client: Client) -> None:
    asked = client.execute("import getpass; print(len(getpass.getpass('secret: ')), len(input('name: ')))")
    client.send("stdin", "input_reply", {"value": "hunter2zz"}, parent=client.input_request(asked).header)
    name = client.wait_for(lambda m: m.type == "input_request" and m.content["prompt"] == "name: ", "the next question")
    client.send("stdin", "input_reply", {"value": "Ada-Byron"}, parent=name.header)
    assert client.result(asked).text == "9 9\n"
    kept = [path.read_bytes() for path in sandbox.state.rglob("*") if path.is_file()]
    assert not [text for text in kept if b"hunter2zz" in text]
    assert [text for text in kept if b"Ada-Byron" in text], "what is no secret is kept"
