"""Item 8 of retirement, and its hook: real commands, a real HTTP server on loopback, a real engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sandbox import Sandbox, wait_gone, wait_until


# Long enough to have something run in it first.
ENDS_SOON = ("--idle-timeout-detached", "8s", "--notices", "none")


class Hooks:
    """What a server was posted. `answers`: the status of one request after the other, then 204; None hangs."""

    def __init__(self, answers: list[int | None]):
        self.got: list[dict] = []
        self.posts: list[tuple[str, str | None]] = []
        self.answers = answers
        self.over = threading.Event()


@contextmanager
def http_server(address: str, *answers: int | None) -> Iterator[tuple[str, Hooks]]:
    hooks = Hooks(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            hooks.posts.append((self.path, self.headers["content-type"]))
            status = hooks.answers.pop(0) if hooks.answers else 204
            if status is None:
                hooks.over.wait(60)
                return
            if status < 300:
                hooks.got.append(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}", hooks
    finally:
        hooks.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_url_is_posted_to_and_tried_again(sandbox: Sandbox) -> None:
    with http_server(sandbox.address, 500) as (url, hooks):
        secret = f"{url}/hook?token=hush"
        sandbox.cli("new", "--name", "train", "--notify", secret, *ENDS_SOON, check=True)
        session = sandbox.session()
        sandbox.cli("exec", "train", "--detach", "1/0", check=True)
        # 5 s lie between the first try and the second.
        wait_until(lambda: hooks.got, "the second try", 40)
        assert set(hooks.posts) == {("/hook?token=hush", "application/json")}
        told = hooks.got[0]
        assert (told["event"], told["state"], told["execution"]) == ("execution_failed", "error", 1)
        assert (told["session_id"], told["session_name"], told["code"]) == (session["id"], "train", "1/0")
        wait_until(lambda: hooks.got[-1]["event"] == "ended", "the end to be told", 40)
        assert hooks.got[-1]["reason"].startswith("idle")
        assert len(hooks.posts) == len(hooks.got) + 1
        wait_gone(session["host_pid"])
        log = (sandbox.state / session["id"] / "host.log").read_text()
        assert "the server answered 500" in log and "hush" not in log


def test_a_server_that_hangs_keeps_nobody(sandbox: Sandbox) -> None:
    with http_server(sandbox.address, *[None] * 9) as (url, hooks):
        sandbox.cli("new", "--name", "train", "--notify", url, check=True)
        sandbox.cli("exec", "train", "--detach", "1", check=True)
        wait_until(lambda: hooks.posts, "the first try")
        # The session goes on meanwhile, and its end waits for nobody; its host is gone some seconds later.
        assert sandbox.cli("exec", "train", "print(6 * 7)", check=True)[1] == "42\n"
        session = sandbox.session()
        assert sandbox.cli("stop", "train", seconds=9.0, check=True)
        wait_gone(session["host_pid"], 20)


def test_a_command_is_told_what_happened(sandbox: Sandbox) -> None:
    told = sandbox.work / "told"
    command = 'test "$(cat)" = "$FARSIDE_JSON" && echo "$FARSIDE_JSON" >> told'
    sandbox.cli("new", "--name", "train", "--notify", command, *ENDS_SOON, check=True)
    sandbox.cli("exec", "train", "--detach", "import time; time.sleep(0.1)", check=True)

    def events() -> list[dict]:
        return [json.loads(line) for line in told.read_text().splitlines() if line] if told.exists() else []

    wait_until(lambda: events() and events()[-1]["event"] == "ended", "the end to be told", 40)
    first, last = events()[0], events()[-1]
    assert (first["event"], first["state"]) == ("execution_finished", "ok")
    assert 0.1 <= first["seconds"] < 30
    assert (last["event"], last["execution"]) == ("ended", None)


def test_a_hook_runs_before_the_engine_goes(sandbox: Sandbox) -> None:
    hook = 'pwd; echo "$FARSIDE_SESSION_NAME: $FARSIDE_REASON"; kill -0 "$FARSIDE_ENGINE_PID" && echo engine lives; exit 3'
    sandbox.cli("new", "--name", "train", "--idle-timeout-detached", "1s", "--before-retire", hook, check=True)
    ended = sandbox.wait_session(lambda s: s["state"] in ("ended", "retired"), "its idle end", seconds=40)
    assert ended["end_reason"].startswith("idle")
    journal = json.dumps(sandbox.records(ended["id"]))
    assert "exit code 3, " in journal and f"{sandbox.work}" in journal
    assert "train: idle" in journal and "engine lives" in journal


def test_a_hook_that_takes_too_long_is_stopped(sandbox: Sandbox) -> None:
    hook = "echo begun; sleep 1000"
    args = ("--idle-timeout-detached", "1s", "--before-retire", hook, "--before-retire-timeout", "1s")
    sandbox.cli("new", "--name", "train", *args, check=True)
    ended = sandbox.wait_session(lambda s: s["state"] in ("ended", "retired"), "its idle end", seconds=40)
    assert "stopped after its 1s limit: begun" in json.dumps(sandbox.records(ended["id"]))
