"""The command line of the contract, as a person and a script use it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest
from cells import Gated
from sandbox import Sandbox, alive, kill, wait_gone, wait_until

SESSION = {"id", "name", "engine", "state", "attached", "executions", "created", "last_activity", "ends_at", "end_reason", "host_pid", "engine_pid", "key"}  # fmt: skip
EXECUTION = {"msg_id", "n", "cell_id", "code", "state", "started", "ended"}

OK, RAISED, USAGE, NO_SESSION, FAILED = range(5)


def new(sandbox: Sandbox, *args: str) -> str:
    """A session; its id."""
    sandbox.kernelspec("python3")
    code, out, err = sandbox.cli("new", *args)
    assert code == OK, err
    return out.strip()


def test_new_exec_ls_history_logs_stop(sandbox: Sandbox) -> None:
    made = sandbox.json("new", "--engine", "python3", "--name", "train", "--cwd", str(sandbox.home))
    assert set(made) == SESSION
    assert (made["name"], made["engine"], made["attached"]) == ("train", "python3", False)
    assert made["state"] in ("starting", "idle")

    code, out, err = sandbox.cli("exec", "train", "import os; print(os.getcwd()); print('err', file=__import__('sys').stderr)")
    assert (code, out) == (OK, f"{sandbox.home}\n")
    assert "err" in err
    assert sandbox.cli("exec", "train", "-", stdin="x = 6\nprint(x * 7)\n")[:2] == (OK, "42\n")
    assert sandbox.cli("exec", "train", "x * 7")[:2] == (OK, "42\n")
    code, out, err = sandbox.cli("exec", "train", "print('so far'); 1/0")
    assert code == RAISED
    assert out == "so far\n"
    assert "ZeroDivisionError" in err

    # What `ls` shows was true some milliseconds ago.
    sandbox.wait_session(lambda s: (s["state"], s["executions"]) == ("idle", 4), "the session to be idle")
    [listed] = sandbox.ls()
    assert set(listed) == SESSION
    assert listed["id"] == made["id"]
    executions = sandbox.executions("train")
    assert set(executions[0]) >= EXECUTION
    assert [e["state"] for e in executions] == ["ok", "ok", "ok", "error"]
    assert [e["n"] for e in executions] == [1, 2, 3, 4]
    assert executions[1]["code"].strip() == "x = 6\nprint(x * 7)"

    assert sandbox.cli("logs", "train", "2", check=True)[1] == "42\n"
    assert "ZeroDivisionError" in sandbox.cli("logs", "train", check=True)[1]
    assert re.search(r"\d\d:\d\d", sandbox.cli("logs", "train", "1", "-t", check=True)[1])
    table = sandbox.cli("ls", check=True)[1]
    assert "train" in table and "idle" in table and "\x1b[" not in table

    sandbox.cli("stop", "train", check=True)
    wait_gone(listed["engine_pid"])
    assert sandbox.ls() == []
    ended = sandbox.session(made["id"])
    assert ended["state"] == "ended" and ended["end_reason"].startswith("stopped")
    # What it said can still be read, and taken away.
    assert sandbox.cli("logs", "train", "2", check=True)[1] == "42\n"
    sandbox.cli("prune", "--older-than", "0s", check=True)
    assert sandbox.ls(everything=True) == []


def test_a_session_is_named_by_id_prefix_or_name(sandbox: Sandbox) -> None:
    one, two = new(sandbox, "--name", "one"), new(sandbox, "--name", "two")
    shared = next(n for n in range(len(one)) if one[n] != two[n]) + 1
    for name in (one, one[:shared], "one"):
        assert sandbox.cli("exec", name, "print('x')")[:2] == (OK, "x\n")
    if shared > 1:
        code, _, err = sandbox.cli("history", one[: shared - 1])
        assert code in (USAGE, NO_SESSION) and err
    code, _, err = sandbox.cli("new", "--name", "one")
    assert code != OK and "one" in err
    assert len(sandbox.ls()) == 2


@pytest.mark.parametrize("command", [["history"], ["logs"], ["attach"], ["interrupt"], ["restart"], ["stop"], ["extend", "1h"], ["exec", "1"], ["connect"], ["console"]])
def test_no_such_session(sandbox: Sandbox, command: list[str]) -> None:
    code, out, err = sandbox.cli(command[0], "no-such-session", *command[1:])
    assert code == NO_SESSION
    assert out == ""
    assert "no-such-session" in err and "farside ls" in err


@pytest.mark.parametrize("command", [["nope"], ["ls", "--nope"], ["stop"], ["-c", "print('is this an interpreter?')"], ["extend", "x", "soon"], ["prune", "--older-than", "soon"], ["launch"], ["--session"]])
def test_usage_errors_have_no_side_effects(sandbox: Sandbox, command: list[str]) -> None:
    """The Python extension of VS Code may execute argv[0] to ask if it is an interpreter."""
    code, out, err = sandbox.cli(*command)
    assert code == USAGE, (code, out, err)
    assert out == "" and err
    assert not any(sandbox.state.iterdir())


def test_help_is_worth_reading(sandbox: Sandbox) -> None:
    top = sandbox.cli("--help", check=True)[1]
    for command in ("install", "uninstall", "new", "exec", "ls", "history", "logs", "attach", "interrupt", "restart", "stop", "extend", "console", "connect", "prune", "config"):
        assert command in top
        assert len(sandbox.cli(command, "--help", check=True)[1].splitlines()) > 4, command
    assert not any(sandbox.state.iterdir())


def test_install_and_uninstall(sandbox: Sandbox) -> None:
    prefix = sandbox.root / "prefix"
    said = sandbox.json("install", "--prefix", str(prefix), "--engine", "python3", "--display-name", "Mine")
    assert said
    folder = prefix / "share/jupyter/kernels/farside-python3"
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["argv"][0].startswith("/") and spec["argv"][0].endswith("farside")
    assert "{connection_file}" in spec["argv"]
    assert (spec["interrupt_mode"], spec["language"], spec["display_name"]) == ("message", "python", "Mine")
    assert (folder / "logo-64x64.png").exists()
    sandbox.cli("uninstall", "--prefix", str(prefix), check=True)
    assert not folder.exists()
    code, _, err = sandbox.cli("install", "--user", "--engine", "cobol")
    assert code != OK
    assert "cobol" in err and "python3" in err


def test_interrupt_restart_and_states(sandbox: Sandbox) -> None:
    name = new(sandbox)
    cell = Gated(sandbox)
    running = sandbox.spawn_cli("exec", name, cell.code)
    session = sandbox.wait_session(lambda s: s["state"] == "busy", "busy")
    wait_until(lambda: f"line {cell.before - 1}\n" in sandbox.cli("logs", name)[1], "the lines so far")
    sandbox.cli("interrupt", name, check=True)
    out, err = running.communicate(timeout=20)
    assert running.returncode == RAISED
    assert out == cell.first and "KeyboardInterrupt" in err
    sandbox.cli("exec", name, "x = 1", check=True)
    sandbox.cli("restart", name, check=True)
    assert sandbox.cli("exec", name, "print('x' in dir())")[:2] == (OK, "False\n")
    after = sandbox.session()
    assert after["id"] == session["id"] and after["engine_pid"] != session["engine_pid"]
    assert not alive(session["engine_pid"])


def test_exec_detached_then_followed(sandbox: Sandbox) -> None:
    name = new(sandbox)
    cell = Gated(sandbox)
    started = time.monotonic()
    code, _, err = sandbox.cli("exec", name, "--detach", cell.code)
    assert code == OK, err
    assert time.monotonic() - started < 30
    follower = sandbox.spawn_cli("logs", name, "1", "-f")
    assert follower.stdout is not None
    for n in range(cell.before):
        assert follower.stdout.readline() == f"line {n}\n"
    cell.open()
    out, _ = follower.communicate(timeout=30)
    assert (cell.first + out).startswith(cell.text)


def test_exec_leaves_with_ctrl_c_and_the_cell_runs_on(sandbox: Sandbox) -> None:
    name = new(sandbox)
    cell = Gated(sandbox)
    child = sandbox.spawn_cli("exec", name, cell.code)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    sandbox.wait_session(lambda s: s["state"] == "busy", "the session to be seen busy")
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")
    assert sandbox.cli("logs", name, "1", check=True)[1].startswith(cell.text)


def test_logs_as_records(sandbox: Sandbox) -> None:
    name = new(sandbox)
    sandbox.cli("exec", name, "print('x'); 1/0")
    records = sandbox.records(name)
    assert [r["seq"] for r in records] == sorted({r["seq"] for r in records})
    text = json.dumps(records)
    for word in ("session_started", "engine_started", "execute_request", "stream", "ZeroDivisionError"):
        assert word in text, word


def test_output_goes_to_a_closed_pipe_quietly(sandbox: Sandbox) -> None:
    name = new(sandbox)
    sandbox.cli("exec", name, "for i in range(100_000): print(i)", check=True)
    child = sandbox.spawn_cli("logs", name, "1")
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "0\n"
    child.stdout.close()
    child.wait(20)
    assert "panic" not in child.stderr.read()


def test_connect_serves_any_client(sandbox: Sandbox) -> None:
    name = new(sandbox)
    sandbox.cli("exec", name, "x = 'there'", check=True)
    connect, client = sandbox.connect(name)
    assert client.value("x") == "'there'"
    connect.send_signal(signal.SIGINT)
    connect.wait(10)
    assert sandbox.cli("exec", name, "print(x)")[:2] == (OK, "there\n")


def test_config_says_where_each_value_came_from(sandbox: Sandbox) -> None:
    (sandbox.config / "farside").mkdir()
    (sandbox.config / "farside/config.toml").write_text('idle_timeout = "3h"\n')
    out = sandbox.cli("config", check=True)[1]
    assert "config.toml" in next(line for line in out.splitlines() if "idle_timeout" in line)
    out = sandbox.cli("config", env={"FARSIDE_IDLE_TIMEOUT": "4h"}, check=True)[1]
    assert "FARSIDE_IDLE_TIMEOUT" in next(line for line in out.splitlines() if "idle_timeout" in line)


def test_the_state_folder_is_private(sandbox: Sandbox) -> None:
    new(sandbox)
    assert sandbox.state.stat().st_mode & 0o777 == 0o700
    for path in sandbox.xdg_runtime.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_socket_path_that_would_be_too_long_is_no_obstacle(sandbox: Sandbox) -> None:
    """A unix socket's path has at most 107 bytes."""
    deep = sandbox.root / ("d" * 90) / "run"
    deep.mkdir(parents=True, mode=0o700)
    sandbox.env["XDG_RUNTIME_DIR"] = str(deep)
    code, out, err = sandbox.cli("new")
    if code == OK:
        assert sandbox.cli("exec", out.strip(), "print(1)")[:2] == (OK, "1\n")
    else:
        assert code == FAILED and "XDG_RUNTIME_DIR" in err


def test_what_is_run_behind_an_interrupt_runs(sandbox: Sandbox) -> None:
    """ipykernel drops what waits behind code that raises an error, so `farside interrupt` returns behind that."""
    name = sandbox.cli("new", "--name", "train", check=True)[1].strip()
    for _ in range(3):
        sandbox.cli("exec", name, "--detach", "import time\nwhile True: time.sleep(0.1)", check=True)
        sandbox.wait_session(lambda s: s["state"] == "busy", "the loop to run")
        sandbox.cli("interrupt", name, check=True)
        assert sandbox.cli("exec", name, "print('ran')", check=True)[1] == "ran\n"


@pytest.mark.parametrize("text", ["", "no JSON"])
@pytest.mark.parametrize("host", ["dead", "alive"])
def test_a_session_whose_file_is_damaged_can_be_ended(sandbox: Sandbox, text: str, host: str) -> None:
    session = sandbox.session(sandbox.cli("new", "--name", "train", check=True)[1].strip())
    keeper = sandbox.keeper_pid(session)
    (sandbox.state / session["id"] / "session.json").write_text(text)
    if host == "dead":
        kill(session["host_pid"])
    code, _, err = sandbox.cli("exec", session["id"], "1")
    assert code == 4 and f"`farside stop {session['id']}` ends what runs of it" in err
    _, _, err = sandbox.cli("stop", session["id"], check=True)
    assert "its processes were killed" in err
    for pid in (keeper, session["engine_pid"]):
        wait_gone(pid)
    wait_until(lambda: not sandbox.processes(), "all processes to end", detail=sandbox.processes)


def test_the_records_of_a_lost_session_end_with_a_word(sandbox: Sandbox) -> None:
    session = sandbox.session(sandbox.cli("new", "--name", "train", check=True)[1].strip())
    sandbox.cli("exec", "train", "print('kept')", check=True)
    sandbox.kill_all()
    shutil.rmtree(sandbox.xdg_runtime / "farside")
    _, out, err = sandbox.cli("logs", session["id"], check=True)
    assert "kept\n" in out and "here it ends, for the session is lost" in err
