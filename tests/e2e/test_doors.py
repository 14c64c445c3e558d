"""Covers "nobody gets in": a second user of the machine tries each door. Needs root, to become that user."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import Sandbox, wait_until

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to try the doors")


def by_nobody(attempt: Callable[[], Any]) -> Any:
    """What the attempt gives, or the name of the error it ends with, in a process of the user `nobody`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                answer = attempt()
            except OSError as error:
                answer = type(error).__name__
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


@pytest.fixture
def open_sandbox(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Every folder above farside's own can be entered by all: what keeps others out must be farside's."""
    for folder in (sandbox.root, sandbox.state, sandbox.xdg_runtime, sandbox.home, sandbox.tmp):
        folder.chmod(0o755)
    sandbox.env["FARSIDE_STATE_DIR"] = str(sandbox.state / "state")
    yield sandbox


def doors(sandbox: Sandbox) -> list[Path]:
    found = [sandbox.state / "state", sandbox.xdg_runtime / "farside"]
    for folder in tuple(found):
        found += sorted(folder.rglob("*"))
    return found


@as_root
@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["umask 000", "umask 077"])
def test_another_user_opens_no_door(open_sandbox: Sandbox, umask: int) -> None:
    sandbox = open_sandbox
    before = os.umask(umask)
    try:
        client = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb")).client()
    finally:
        os.umask(before)
    client.run("secret = 'in the journal'")
    session = sandbox.session()
    paths = doors(sandbox)
    names = {path.name for path in paths}
    expected = {"session.json", "status.json", "journal-00000001.seg", "index.sqlite", "connection.json", "link.sock"}
    assert expected <= names, names

    def listed(path: Path) -> list[str]:
        return os.listdir(path)

    def read(path: Path) -> str:
        return path.read_bytes().hex()

    def connected(path: Path) -> str:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
        return "connected"

    for path in paths:
        if path.is_dir():
            assert by_nobody(lambda path=path: listed(path)) == "PermissionError", path
            assert by_nobody(lambda path=path: (path / "planted").mkdir()) == "PermissionError", path
        elif path.is_socket():
            assert by_nobody(lambda path=path: connected(path)) == "PermissionError", path
        else:
            assert by_nobody(lambda path=path: read(path)) == "PermissionError", path
    # Neither by the processes that have them open.
    for pid in (session["host_pid"], sandbox.keeper_pid(session), session["engine_pid"]):
        assert by_nobody(lambda pid=pid: listed(Path(f"/proc/{pid}/fd"))) == "PermissionError"
        assert by_nobody(lambda pid=pid: read(Path(f"/proc/{pid}/environ"))) == "PermissionError"
        assert by_nobody(lambda pid=pid: os.kill(pid, signal.SIGTERM)) == "PermissionError"


@as_root
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_another_user_is_not_heard_at_the_ports(sandbox: Sandbox, address: str) -> None:
    """What a kernel publishes needs no key."""
    launcher = sandbox.launch()
    launcher.client()
    # The sandbox has an address of its own; every one of 127.0.0.0/8 is this machine.
    address = address.replace("127.0.0.1", launcher.connection["ip"])

    def greeted(name: str) -> str:
        with socket.create_connection((address, launcher.connection[f"{name}_port"]), timeout=10) as one:
            one.sendall(b"\xff" + bytes(8) + b"\x7f" + bytes([3, 0]) + b"NULL".ljust(52, b"\0"))
            return "greeted" if one.recv(1) else "closed"

    def attempt(name: str) -> str:
        try:
            return greeted(name)
        except ConnectionResetError:
            return "closed"

    for name in ("shell", "iopub", "stdin", "control", "hb"):
        assert attempt(name) == "greeted", name
        assert by_nobody(lambda name=name: attempt(name)) == "closed", name


@as_root
def test_every_file_is_the_users_alone_from_its_first_moment(open_sandbox: Sandbox) -> None:
    """A process that does nothing but look finds no file of farside's that others could open, whatever the umask."""
    sandbox = open_sandbox
    roots = [str(sandbox.state / "state"), str(sandbox.xdg_runtime / "farside")]
    done = sandbox.root / "done"
    watcher = subprocess.Popen(
        [sys.executable, "-c", LOOK, str(done), *roots], stdout=subprocess.PIPE, text=True, env=sandbox.env
    )
    sandbox.children.append(watcher)
    before = os.umask(0)
    try:
        for name in ("one", "two"):
            sandbox.cli("new", "--name", name, check=True)
            sandbox.cli("exec", name, "print(1)", check=True)
        sandbox.cli("history", "one", check=True)
        sandbox.cli("stop", "two", check=True)
    finally:
        os.umask(before)
        done.touch()
    looks, found = json.loads(watcher.communicate(timeout=30)[0])
    assert looks > 100, "it has not looked often enough to have seen anything"
    # A socket's own mode keeps nobody out of it: that is what its folder is for.
    assert found == {}


LOOK = """
import json, os, stat, sys
done, roots = sys.argv[1], sys.argv[2:]
looks, found = 0, {}
def look(path):
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    kind = 'folder' if stat.S_ISDIR(mode) else 'file'
    if mode & 0o077 and not stat.S_ISSOCK(mode):
        found[path] = f'{kind} {stat.S_IMODE(mode):o}'
    if stat.S_ISDIR(mode):
        try:
            names = os.listdir(path)
        except OSError:
            return
        for name in names:
            look(os.path.join(path, name))
while not os.path.exists(done):
    for root in roots:
        look(root)
    looks += 1
    if found:
        open(done + '.seen', 'w').close()
print(json.dumps([looks, found]))
"""


@as_root
def test_the_link_refuses_another_user_also_where_the_folders_are_open(open_sandbox: Sandbox) -> None:
    """Peer credentials: what if somebody has opened the folders by hand?"""
    sandbox = open_sandbox
    session = sandbox.cli("new", check=True)[1].strip()
    link = sandbox.xdg_runtime / "farside" / session / "link.sock"
    for path in (link.parent.parent, link.parent, link):
        path.chmod(0o777)
    hello = json.dumps({
        "version": 1, "client": str(uuid.uuid4()), "kind": "test", "pid": 1, "parent_pid": None, "claim": False,
        "connection_file": None, "replies": True, "iopub": True, "resume": None,
    }).encode()  # fmt: skip
    frame = struct.pack("<QBI", len(hello) + 5, 1, 0) + hello

    def speak() -> int:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(20)
            one.connect(str(link))
            try:
                one.sendall(frame)
                return len(one.recv(4096))
            except (BrokenPipeError, ConnectionResetError):
                return 0

    assert speak() > 0, "its own user is welcome"
    assert by_nobody(speak) == 0


def plant_folder(path: Path) -> None:
    path.mkdir()


def plant_link(path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path.symlink_to(elsewhere)


def plant_file(path: Path) -> None:
    path.write_text("")


PLANTS = {"a folder": plant_folder, "a symlink": plant_link, "a file": plant_file}


@as_root
@pytest.mark.parametrize("what", PLANTS)
def test_a_folder_for_sockets_that_another_user_has_planted_is_not_used(open_sandbox: Sandbox, what: str) -> None:
    """As in a shared temporary folder: who is first makes `farside`, and waits for us to put our sockets there."""
    sandbox = open_sandbox
    planted = sandbox.xdg_runtime / "farside"
    sandbox.xdg_runtime.chmod(0o1777)
    by_nobody(lambda: PLANTS[what](planted))
    assert planted.lstat().st_uid == NOBODY
    session = sandbox.cli("new", check=True)[1].strip()
    sandbox.cli("exec", session, "print(1)", check=True)
    # The next choice: a folder of one's own under the temporary one.
    own = sandbox.tmp / f"farside-{os.geteuid()}"
    assert (own / session / "link.sock").is_socket()
    assert (stat.S_IMODE(own.lstat().st_mode), own.lstat().st_uid) == (0o700, os.geteuid())
    assert planted.lstat().st_uid == NOBODY
    if planted.is_dir():
        assert list(planted.iterdir()) == []
    sandbox.cli("stop", session, check=True)


@as_root
@pytest.mark.parametrize("what", [*PLANTS, "a folder of ours that others can write to"])
def test_a_state_folder_that_another_user_can_write_to_is_refused(open_sandbox: Sandbox, what: str) -> None:
    sandbox = open_sandbox
    state = sandbox.state / "state"
    if what in PLANTS:
        sandbox.state.chmod(0o1777)
        by_nobody(lambda: PLANTS[what](state))
        assert state.lstat().st_uid == NOBODY
    else:
        state.mkdir()
        state.chmod(0o770)
    for command in (("new",), ("ls",)):
        code, out, err = sandbox.cli(*command)
        assert (code, out) == (4, ""), (command, code, out, err)
        assert str(state) in err and "FARSIDE_STATE_DIR" in err or "chmod 700" in err, err
    assert not state.is_dir() or list(state.iterdir()) == []
    # For the sandbox's own look at what is left.
    sandbox.env["FARSIDE_STATE_DIR"] = str(sandbox.root / "none")


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_the_keys_are_in_no_argument_no_log_and_no_listing(sandbox: Sandbox, transport: str) -> None:
    """The frontend's key, and the engine's where it has one (over tcp)."""
    sandbox.env["FARSIDE_ENGINE_TRANSPORT"] = transport
    sandbox.env["FARSIDE_LOG"] = "debug"
    launcher = sandbox.launch(jupyter_session=str(sandbox.work / "n.ipynb"))
    client = launcher.client()
    client.run("print('hello')")
    session = sandbox.session()["id"]
    [engine_file] = sandbox.state.rglob("connection.json")
    engine_key = json.loads(engine_file.read_text())["key"]
    assert bool(engine_key) == (transport == "tcp")
    secrets = {key for key in (launcher.connection["key"], engine_key) if key}
    told = {
        "arguments": "\n".join(
            Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") for pid in sandbox.processes()
        ),
        "logs": "\n".join(
            path.read_text(errors="replace") for path in [*sandbox.root.glob("*.log"), *sandbox.state.rglob("*.log")]
        ),
    }
    commands = [
        ("ls", "--all", "--json"), ("ls",), ("history", session, "--json"), ("logs", session, "--json"), ("config",),
        ("top", "--once"), ("metrics",),
    ]  # fmt: skip
    for command in commands:
        told[" ".join(command)] = "".join(sandbox.cli(*command)[1:])
    told["status.json"] = (sandbox.state / session / "status.json").read_text()
    told["session.json"] = (sandbox.state / session / "session.json").read_text()
    assert "host-worker" in told["arguments"]
    for where, text in told.items():
        for secret in secrets:
            assert secret not in text, where


def test_the_watcher_of_first_moments_sees_what_it_should(sandbox: Sandbox) -> None:
    """The test above cannot fail where its watcher sees nothing."""
    folder, done = sandbox.work / "folder", sandbox.root / "done"
    folder.mkdir(mode=0o700)
    watcher = subprocess.Popen([sys.executable, "-c", LOOK, str(done), str(folder)], stdout=subprocess.PIPE, text=True)
    sandbox.children.append(watcher)
    file = folder / "open"
    file.touch(mode=0o644)
    wait_until(Path(f"{done}.seen").exists, "the watcher's first look")
    file.chmod(0o600)
    done.touch()
    looks, found = json.loads(watcher.communicate(timeout=30)[0])
    assert looks > 0
    assert found == {str(file): "file 644"}

