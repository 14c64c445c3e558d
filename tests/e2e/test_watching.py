"""`farside top` on a terminal, `farside metrics` on sockets."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from cells import Gated
from prometheus_client.parser import text_string_to_metric_families
from sandbox import END_SECONDS, EVENT_SECONDS, FARSIDE, START_SECONDS, Sandbox, wait_until

OK, _, USAGE, _, FAILED = range(5)
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Screen:
    """`farside top` on a pseudo-terminal of this size."""

    def __init__(self, sandbox: Sandbox, columns: int = 160, lines: int = 24):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.text = ""
        self.process = subprocess.Popen(
            [str(FARSIDE), "top"], env={**sandbox.env, "TERM": "xterm"}, cwd=sandbox.work,
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
        )
        sandbox.children.append(self.process)

    def read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0, seconds))
        if ready:
            self.text += os.read(self.master, 65536).decode(errors="replace")
        return bool(ready)

    def expect(self, *words: str) -> None:
        """Waits until all the words have been drawn, since the last call."""
        deadline = time.monotonic() + EVENT_SECONDS
        while not all(word in self.text for word in words):
            left = deadline - time.monotonic()
            assert self.process.poll() is None and left > 0, self.text
            self.read(min(left, 0.2))

    def end(self) -> None:
        """Waits for its end: with 0, and a terminal as it was before."""
        wait_until(lambda: self.read(0) or self.process.poll() is not None, "top to end", END_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.05)
        while self.read(0):
            pass
        assert self.process.returncode == OK, self.text
        assert termios.tcgetattr(self.slave) == self.before
        assert self.text.count(ENTER_SCREEN) == 1
        assert LEAVE_SCREEN in self.text[self.text.index(ENTER_SCREEN) :]
        assert self.text.rindex(SHOW_CURSOR) > self.text.rindex(HIDE_CURSOR)
        os.close(self.slave)
        os.close(self.master)


def test_top_shows_a_session_as_it_goes(sandbox: Sandbox) -> None:
    sandbox.kernelspec("python3")
    session_id = sandbox.cli("new", "--name", "train", check=True)[1].strip()
    screen = Screen(sandbox)
    screen.expect(session_id, "train", "python3", "idle", "quit")
    assert termios.tcgetattr(screen.slave) != screen.before, "raw mode: keys need no return key"
    screen.text = screen.text[screen.text.index(ENTER_SCREEN) :]
    cell = Gated(sandbox)
    sandbox.cli("exec", "train", "--detach", cell.code, check=True)
    screen.expect("busy")
    # Sorting is drawn at once, and a key that means nothing does nothing.
    os.write(screen.master, b"xmt")
    screen.expect("\x1b[7m")
    cell.open()
    sandbox.wait_session(lambda s: s["state"] == "idle", "the cell to end")
    os.write(screen.master, b"q")
    screen.end()
    [sample] = sandbox.json("top")
    assert (sample["id"], sample["name"], sample["state"], sample["execution"]) == (session_id, "train", "idle", None)
    assert "train" in sandbox.cli("top", "--once", check=True)[1]


@pytest.mark.parametrize(
    "way", [b"q", b"\x1b", b"\x03", signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["q", "escape", "ctrl-c", "term", "int", "hup"]
)
def test_top_leaves_the_terminal_as_it_was(sandbox: Sandbox, way: bytes | signal.Signals) -> None:
    screen = Screen(sandbox, columns=80)
    screen.expect("session", "running.", "quit")
    if isinstance(way, bytes):
        os.write(screen.master, way)
    else:
        screen.process.send_signal(way)
    screen.end()


def test_top_ends_with_its_terminal(sandbox: Sandbox) -> None:
    """A closed window: reads and writes fail from now on, those of error messages too."""
    screen = Screen(sandbox)
    screen.expect("quit")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.process.wait(END_SECONDS) in (OK, FAILED), "no panic, and no loop"


def test_top_without_a_terminal(sandbox: Sandbox) -> None:
    code, out, err = sandbox.cli("top")
    assert (code, out) == (USAGE, "") and "--once" in err and "farside ls" in err
    assert sandbox.cli("top", "--once", check=True)[1] == ""
    assert sandbox.json("top") == []


def parsed(text: str) -> dict[tuple, float]:
    """Prometheus' own parser: (name, labels) to value."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


@contextmanager
def served(sandbox: Sandbox, address: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`farside metrics --listen`, and where it says that it is; ended with SIGTERM."""
    child = sandbox.spawn_cli("metrics", "--listen", address)
    assert child.stderr is not None
    said = child.stderr.readline()
    assert "Ctrl-C" in said, said + child.stderr.read()
    yield child, said
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        assert child.wait(END_SECONDS) == OK


def test_metrics_are_what_prometheus_reads(sandbox: Sandbox) -> None:
    sandbox.kernelspec("python3")
    for name in ("train", "other"):
        sandbox.cli("new", "--name", name, check=True)
    sandbox.cli("exec", "train", "print('x')", check=True)
    sandbox.cli("stop", "--now", "other", check=True)
    sandbox.wait_session(lambda s: (s["name"], s["state"], s["executions"]) == ("train", "idle", 1), "idle")
    [session] = sandbox.ls()
    me = ("id", session["id"])

    with served(sandbox, f"{sandbox.address}:0") as (child, said):
        url = re.search(r"http://\S+/metrics", said)[0]  # type: ignore[index]
        answer = requests.get(url, timeout=EVENT_SECONDS)
        assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for text in (answer.text, sandbox.cli("metrics", check=True)[1]):
            samples = parsed(text)
            assert samples["farside_session_info", ("engine", "python3"), me, ("name", "train")] == 1
            assert samples["farside_session_state", me, ("state", "idle")] == 1
            assert samples["farside_session_state", me, ("state", "busy")] == 0
            assert samples["farside_session_executions_total", me] == 1
            assert samples["farside_session_unresponsive", me] == 0
            assert samples["farside_sessions", ("state", "idle")] == 1
            assert samples["farside_sessions_ended", ("reason", "stopped")] == 1
        assert requests.get(url[: -len("metrics")], timeout=EVENT_SECONDS).status_code == 404
        assert requests.post(url, timeout=EVENT_SECONDS).status_code == 404
        assert requests.get(url, timeout=EVENT_SECONDS, headers={"Host": "evil.example"}).status_code == 403
        assert requests.get(url, timeout=EVENT_SECONDS, headers={"X": "x" * 20_000}).status_code == 431
        # Who says nothing is sent away, and keeps nobody waiting.
        host, port = url.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), EVENT_SECONDS) as silent:
            assert requests.get(url, timeout=EVENT_SECONDS).status_code == 200
            assert silent.recv(1) == b""
        child.send_signal(signal.SIGINT)
        assert child.wait(END_SECONDS) == OK


def scrape(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(EVENT_SECONDS)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    return body


def test_metrics_on_a_unix_socket(sandbox: Sandbox) -> None:
    path = sandbox.work / "m.sock"
    # A folder that everybody can enter, and the most open umask: the file is still for its owner only.
    sandbox.work.chmod(0o755)
    before = os.umask(0)
    try:
        with served(sandbox, f"unix:{path}") as (child, said):
            assert str(path) in said
            mode = path.lstat().st_mode
            assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
            assert parsed(scrape(path))["farside_sessions", ("state", "busy")] == 0
            code, out, err = sandbox.cli("metrics", "--listen", f"unix:{path}")
            assert (code, out) == (FAILED, "") and "listens" in err
            child.kill()
            child.wait(END_SECONDS)
    finally:
        os.umask(before)
    assert path.is_socket(), "killed: nobody could remove it"
    with served(sandbox, f"unix:{path}"):
        parsed(scrape(path))
    assert not path.exists()

    path.write_text("mine")
    code, _, err = sandbox.cli("metrics", "--listen", f"unix:{path}")
    assert code == FAILED and "no socket" in err
    assert path.read_text() == "mine"
    code, _, err = sandbox.cli("metrics", "--listen", f"unix:{sandbox.work / ('long' * 30)}")
    assert code == FAILED and "cannot listen" in err


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.1.2.3:9464", "example.org:9464", "9464", "unix:"])
def test_metrics_are_for_this_machine_only(sandbox: Sandbox, address: str) -> None:
    code, out, err = sandbox.cli("metrics", "--listen", address, seconds=START_SECONDS)
    assert (code, out) == (USAGE, "")
    assert "127.0.0.1:" in err or "unix:/path" in err
