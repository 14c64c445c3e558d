"""Issue: a session ends on purpose, with notice, and nothing lost. With limits of seconds, on a real ipykernel."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from datetime import UTC, datetime

import pytest
from cells import Gated
from sandbox import Sandbox, alive, kill, wait_gone, wait_until

# What the end itself takes: the engine's orderly shutdown on a busy machine.
END_SECONDS = 20.0


def new(sandbox: Sandbox, *args: str, env: dict[str, str] | None = None) -> dict:
    return sandbox.json("new", "--engine", "python3", "--name", "s", *args)


def ended(sandbox: Sandbox, session: dict, seconds: float = END_SECONDS) -> dict:
    def facts() -> dict | None:
        [one] = [s for s in sandbox.ls(everything=True) if s["id"] == session["id"]]
        return one if one["state"] in ("retired", "ended", "lost") else None

    return wait_until(facts, "the session to end", seconds, lambda: sandbox.ls(everything=True))


def set_for_session(sandbox: Sandbox, key: str, value: str) -> None:
    """A limit of seconds is set when all else is ready: a busy machine may take longer for that."""
    sandbox.cli("exec", "s", f"%farside set {key} {value}", check=True)


def end_in(sandbox: Sandbox, session: dict, seconds: int) -> str:
    """Sets the lifetime so that about so much is left of it; gives the reason with which it will end."""
    lived = datetime.now(UTC) - datetime.fromisoformat(session["created"])
    lifetime = int(lived.total_seconds()) + 1 + seconds
    set_for_session(sandbox, "max_lifetime", f"{lifetime}s")
    return f"lifetime: {lifetime}s are over"


def notes(sandbox: Sandbox, session: dict, kind: str) -> list[dict]:
    records = sandbox.records(session["id"])
    return [r["note"] for r in records if r["kind"] == "note" and r["note"]["note"] == kind]


def test_an_idle_session_retires_and_leaves_everything_readable(sandbox: Sandbox) -> None:
    session = new(sandbox)
    sandbox.cli("exec", "s", "print('kept'); x = 1", check=True)
    before = sandbox.session()
    set_for_session(sandbox, "idle_timeout_detached", "3s")
    assert before["ends_at"] is not None
    facts = ended(sandbox, session)
    assert facts["state"] == "retired"
    assert facts["end_reason"].startswith("idle: nobody was attached, and nothing was run for 3s")
    for process in (before["host_pid"], before["engine_pid"]):
        wait_gone(process)
    assert sandbox.cli("logs", session["id"], "1", check=True)[1] == "kept\n"
    [execution] = sandbox.executions(session["id"])
    assert execution["state"] == "ok"
    assert not sandbox.ls()
    code, _, err = sandbox.cli("exec", session["id"], "1")
    assert code != 0 and "idle" in err and "logs" in err


def test_a_silent_cell_outlives_ten_idle_timeouts(sandbox: Sandbox) -> None:
    session = new(sandbox)
    cell = Gated(sandbox, before=1, after=0, ending="time.sleep(10); print('awake')")
    sandbox.cli("exec", "s", "--detach", cell.code, check=True)
    for key in ("idle_timeout", "idle_timeout_detached"):
        set_for_session(sandbox, key, "1s")
    cell.open()
    assert ended(sandbox, session, 60)["end_reason"] == "idle: nobody was attached, and nothing was run for 1s"
    assert sandbox.cli("logs", session["id"], "1", check=True)[1] == "line 0\nawake\n"
    [execution] = sandbox.executions(session["id"])
    assert execution["state"] == "ok"


def test_what_a_frontend_does_by_itself_keeps_no_session_alive(sandbox: Sandbox) -> None:
    launcher = sandbox.launch(
        jupyter_session=str(sandbox.work / "a.ipynb"), env={"FARSIDE_IDLE_TIMEOUT": "4s"}
    )
    client = launcher.client()
    session = sandbox.session()
    # As a page that is open and does this and that, more often than the limit.
    while not [s for s in sandbox.ls(everything=True) if s["state"] == "retired"]:
        client.kernel_info()
        client.send("shell", client.header("comm_info_request"), {})
        client.send("shell", client.header("execute_request"), {
            "code": "1", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        })
        time.sleep(0.5)
        assert time.time() - os.stat(sandbox.state / session["id"]).st_ctime < 60
    assert ended(sandbox, session)["end_reason"] == "idle: nothing was run for 4s"


def test_a_lifetime_ends_with_notices_and_time_for_finally(sandbox: Sandbox) -> None:
    session = new(sandbox, "--notices", "5s,2s", "--retire-grace", "20s")
    cell = (
        "import time\n"
        "try:\n"
        "    while True: time.sleep(0.1)\n"
        "finally:\n"
        "    print('saving'); time.sleep(1); print('saved')\n"
    )
    watching = sandbox.spawn_cli("exec", "s", cell)
    sandbox.wait_session(lambda s: s["state"] == "busy", "the cell to run")
    reason = end_in(sandbox, session, 8)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert "saving\nsaved\n" in out
    for expected in ("this session ends in 5s", "this session ends in 2s", f"this session ends now ({reason})"):
        assert expected in err, err
    facts = ended(sandbox, session)
    assert (facts["state"], facts["end_reason"]) == ("retired", reason)
    [execution] = sandbox.executions(session["id"])
    assert execution["state"] == "interrupted"
    assert "saving\nsaved\n" in sandbox.cli("logs", session["id"], check=True)[1]
    assert execution["reason"] == f"interrupted at the session's end ({reason})"
    # What is left of it.
    left = sandbox.json("status", session["id"])
    assert (left["state"], left["end_reason"], left["executions"]) == ("retired", reason, 1)
    assert (left["engine_end"], left["engine_pid"]) == ("exited with code 0", None)
    assert left["created"] < left["ended_at"]
    assert left["cpu_seconds"] > 0 and left["memory_peak_bytes"] > 10_000_000 and left["memory_bytes"] == 0
    assert left["outputs"] >= 5, "three lines of farside's, two of its own, and the error"
    text = sandbox.cli("status", session["id"], check=True)[1]
    assert "exited with code 0" in text and reason in text
    steps = [note["step"] for note in notes(sandbox, session, "end_step")]
    assert steps == ["interrupt", "shutdown_request"]
    assert [(n["kind"], n["before"]) for n in notes(sandbox, session, "notice")] == [("lifetime", 5), ("lifetime", 2)]


def test_code_that_ignores_everything_is_killed_in_the_end(sandbox: Sandbox) -> None:
    session = new(sandbox, "--notices", "none", "--retire-grace", "2s")
    cell = (
        "import signal, time, os, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print('begun', flush=True); open('child', 'w').write(str(child.pid))\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    watching = sandbox.spawn_cli("exec", "s", cell)
    sandbox.wait_session(lambda s: s["state"] == "busy", "the cell to run")
    reason = end_in(sandbox, session, 4)
    out, _ = watching.communicate(timeout=90)
    assert watching.returncode == 1
    facts = ended(sandbox, session)
    assert facts["end_reason"] == reason
    wait_gone(int((sandbox.work / "child").read_text()))
    [execution] = sandbox.executions(session["id"])
    assert execution["state"] == "interrupted"
    steps = [note["step"] for note in notes(sandbox, session, "end_step")]
    assert steps == ["interrupt", "interrupt", "shutdown_request", "SIGTERM", "SIGKILL"]


def test_hooks_run_before_the_engine_ends(sandbox: Sandbox) -> None:
    session = new(
        sandbox,
        "--before-retire-code", "open('saved', 'w').write(str(x)); print('code ran')",
        "--before-retire", "echo hook for $FARSIDE_SESSION_NAME: $(cat saved)",
    )
    sandbox.cli("exec", "s", "x = 42", check=True)
    set_for_session(sandbox, "idle_timeout_detached", "1s")
    ended(sandbox, session)
    log = sandbox.cli("logs", session["id"], check=True)[1]
    assert "code ran" in log
    assert "hook for s: 42" in log
    assert [e["code"] for e in sandbox.executions(session["id"])][-1].startswith("open('saved'")


def test_a_killed_host_keeps_the_deadline(sandbox: Sandbox) -> None:
    started = time.monotonic()
    session = new(sandbox, "--max-lifetime", "12s", "--notices", "none", "--retire-grace", "1s")
    host = sandbox.session()["host_pid"]
    kill(host)
    wait_until(lambda: (sandbox.session()["host_pid"] or host) != host, "another host")
    facts = ended(sandbox, session, 40)
    assert facts["end_reason"] == "lifetime: 12s are over"
    assert time.monotonic() - started < 12 + END_SECONDS


def test_a_host_comes_back_whatever_config_toml_says_by_then(sandbox: Sandbox) -> None:
    session = new(sandbox, "--idle-timeout-detached", "50m")
    (sandbox.config / "farside").mkdir(mode=0o700)
    (sandbox.config / "farside/config.toml").write_text("max_lifetime = 'soon'\nretire_grace = '7s'\n")
    host = sandbox.session()["host_pid"]
    kill(host)
    wait_until(lambda: (sandbox.session()["host_pid"] or host) != host, "another host")
    settings = sandbox.cli("exec", "s", "%farside set", check=True)[1]
    for key, value in (("idle_timeout_detached", "50m"), ("max_lifetime", "24h"), ("retire_grace", "7s")):
        assert re.search(rf"^{key} +{value}$", settings, re.MULTILINE), settings
    assert "`soon` is no value for max_lifetime" in (sandbox.state / session["id"] / "host.log").read_text()
    # Who creates a session is told.
    code, _, err = sandbox.cli("new")
    assert code == 2 and "`soon` is no value for max_lifetime" in err


def test_the_end_goes_on_when_its_host_is_killed_in_the_middle(sandbox: Sandbox) -> None:
    session = new(sandbox, "--notices", "none", "--retire-grace", "6s")
    cell = "import time\ntry:\n    time.sleep(100)\nfinally:\n    print('begun', flush=True); time.sleep(3); print('saved')"
    process = sandbox.spawn_cli("exec", "s", cell)
    before = sandbox.wait_session(lambda s: s["state"] == "busy", "the cell to run")
    reason = end_in(sandbox, session, 2)
    wait_until(lambda: notes(sandbox, session, "end_step"), "the end to begin", 40)
    kill(before["host_pid"])
    facts = ended(sandbox, session, 40)
    assert facts["end_reason"] == reason
    wait_gone(before["engine_pid"])
    process.wait(30)
    assert "saved" in sandbox.cli("logs", session["id"], check=True)[1]


def test_extend_and_its_cap(sandbox: Sandbox) -> None:
    (sandbox.root / "system.toml").write_text('max_lifetime_cap = "2h"\n')
    new(sandbox, "--max-lifetime", "1h")
    ends_at = sandbox.session()["ends_at"]
    code, _, err = sandbox.cli("extend", "s", "90m")
    assert code == 4 and "extended by 1h at most" in err and "max_lifetime_cap is 2h" in err
    sandbox.cli("exec", "s", "1", check=True)
    code, _, err = sandbox.cli("extend", "s", "30m")
    assert code == 0 and "lifetime: 1h30m" in err
    # The soonest is now that it is idle, and not the lifetime's.
    wait_until(lambda: sandbox.session()["ends_at"] > ends_at, "status.json to tell of it")
    code, out, _ = sandbox.cli("exec", "s", "%farside extend 30m")
    assert code == 0 and "lifetime: 2h" in out
    code, _, err = sandbox.cli("exec", "s", "%farside extend 1m")
    assert code == 1 and "max_lifetime_cap allows (2h)" in err
    code, _, err = sandbox.cli("exec", "s", "%farside set idle_timeout eventually")
    assert code == 1 and "`eventually` is no value for idle_timeout" in err


def test_a_setting_of_one_session(sandbox: Sandbox) -> None:
    session = new(sandbox)
    assert "idle_timeout" in sandbox.cli("exec", "s", "%farside set", check=True)[1]
    out = sandbox.cli("exec", "s", "%farside set idle_timeout_detached 3s", check=True)[1]
    assert "idle_timeout_detached = 3s" in out
    assert ended(sandbox, session)["end_reason"].endswith("for 3s")


def test_a_budget_of_cpu_time(sandbox: Sandbox) -> None:
    session = new(sandbox, "--cpu-budget", "12s", "--notices", "4s", "--retire-grace", "5s")
    # Most of it in children that end.
    cell = "import subprocess, sys\nwhile True: subprocess.run([sys.executable, '-c', 'for i in range(10**7): pass'])"
    code, _, err = sandbox.cli("exec", "s", cell, seconds=120)
    assert code == 1
    assert "more of CPU time" in err and "budget: 12s of CPU time are used up" in err
    assert ended(sandbox, session)["end_reason"] == "budget: 12s of CPU time are used up"


def test_people_are_told(sandbox: Sandbox) -> None:
    told = sandbox.work / "told"
    session = new(
        sandbox, "--notify", f"echo \"$FARSIDE_EVENT: $FARSIDE_TEXT\" >> {told}", "--notices", "2s",
    )
    sandbox.cli("exec", "--detach", "s", "1/0", check=True)
    wait_until(lambda: told.exists() and told.read_text(), "the error to be told of")
    set_for_session(sandbox, "idle_timeout_detached", "5s")
    ended(sandbox, session)
    wait_until(lambda: told.exists() and "ended: " in told.read_text(), "the last word", 20)
    events = [line.split(":")[0] for line in told.read_text().splitlines()]
    assert events == ["execution_failed", "notice", "ended"]


def test_an_engine_that_does_not_answer_is_left_alone(sandbox: Sandbox) -> None:
    told = sandbox.work / "told"
    new(sandbox, "--notify", f"echo $FARSIDE_EVENT >> {told}")
    sandbox.cli("exec", "s", "x = 5", check=True)
    engine = sandbox.session()["engine_pid"]
    status = next(sandbox.state.glob("*/status.json"))
    # It must have answered once.
    time.sleep(6)
    os.kill(engine, signal.SIGSTOP)
    try:
        wait_until(
            lambda: json.loads(status.read_text())["unresponsive_since"], "the missing heartbeat to be seen", 40
        )
        for command in (["ls"], ["top", "--once"]):
            assert "unresponsive" in sandbox.cli(*command, check=True)[1]
        assert re.search(r"^farside_session_unresponsive\{.*\} 1$", sandbox.cli("metrics", check=True)[1], re.MULTILINE)
        assert "heartbeat has not answered" in sandbox.cli("status", "s", check=True)[1]
        assert "heartbeat does not answer" in sandbox.cli("exec", "s", "%farside status", check=True)[1]
        wait_until(lambda: told.exists() and told.read_text() == "unresponsive\n", "somebody to be told", 20)
    finally:
        os.kill(engine, signal.SIGCONT)
    wait_until(
        lambda: not json.loads(status.read_text())["unresponsive_since"], "the heartbeat to be back", 30
    )
    assert alive(engine)
    assert sandbox.cli("exec", "s", "print(x)", check=True)[1] == "5\n"


@pytest.mark.parametrize("setting", ["idle_timeout=soon", "retire_grace=none", "notices=1m,30m", "cpu_budget=0s"])
def test_bad_values_are_refused_by_name(sandbox: Sandbox, setting: str) -> None:
    key, value = setting.split("=")
    code, _, err = sandbox.cli("new", f"--{key.replace('_', '-')}", value)
    assert code == 2 and key in err.replace("-", "_") and value in err
    assert not sandbox.ls(everything=True)
