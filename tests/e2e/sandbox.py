"""Everything a test starts lives in a Sandbox: its own folders, environment, loopback address and processes.

A Sandbox never touches the user's own Jupyter, IPython or farside, and can tell at its end that nothing is
left: every process it starts, directly or not, carries a marker in its environment.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from link import Link
from wire import Client

MARKER = "FARSIDE_E2E_SANDBOX"
# Starting an engine takes 1-2 s of CPU; the others on a busy two-core machine take their share.
START_SECONDS = 45.0
EVENT_SECONDS = 20.0
# What a host and its engine may take to end once they were told to.
END_SECONDS = 15.0

FARSIDE = Path(os.environ.get("FARSIDE_BIN", "target/debug/farside")).absolute()

# An engine without Python, as fast as what stands behind it (bench/scripted).
SCRIPTED = Path(os.environ.get("FARSIDE_SCRIPTED", "target/release/examples/scripted")).absolute()
SCRIPTED_ARGV = [str(SCRIPTED), "engine", "{connection_file}"]

# To hold a test against the bare engine: FARSIDE_E2E_KERNEL=python3. What tests farside's own fails then.
KERNEL = os.environ.get("FARSIDE_E2E_KERNEL", "farside-python3")


class Lost(AssertionError):
    """Something that a test waited for did not happen in time."""


def wait_until(
    probe: Callable[[], Any], what: str, seconds: float = EVENT_SECONDS, detail: Callable[[], Any] | None = None
) -> Any:
    """The first true value of `probe`. For states that send no event (files, /proc, `farside ls`)."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            more = f": {detail()}" if detail else ""
            raise Lost(f"waited {seconds:.0f} s for {what}{more}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def parent_pid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int, signum: int = signal.SIGKILL, seconds: float = END_SECONDS) -> None:
    """Sends a signal and waits for the process to end."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signum)
        ready, _, _ = select.select([fd], [], [], seconds)
        if not ready:
            raise Lost(f"process {pid} still there {seconds:.0f} s after signal {signum}")
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def wait_gone(pid: int, seconds: float = END_SECONDS) -> None:
    """Waits for a process, anybody's child, to end."""
    kill(pid, 0, seconds)


def tcp_listeners(pids: set[int]) -> list[str]:
    """The addresses on which any of these processes listens."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}")):
                        inodes.add(found[1])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(fields[1])
    return listening


class Launcher:
    """A kernel process, started from its kernelspec as jupyter_client does it."""

    def __init__(
        self,
        sandbox: Sandbox,
        kernel: str,
        *,
        jupyter_session: str | None = None,
        transport: str = "tcp",
        key: str | None = None,
        server: bool = False,
        own_parent: bool = False,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        connection_file: Path | None = None,
        extra: tuple[str, ...] = (),
    ):
        """`server`: the parent looks like a Jupyter Server, with its jpserver file in the runtime folder.
        `own_parent`: a process of its own between the test and the launcher, which can be killed."""
        self.sandbox, self.kernel = sandbox, kernel
        self.spec = sandbox.kernelspec(kernel)
        if connection_file is None:
            connection_file = sandbox.runtime / f"kernel-{uuid.uuid4()}.json"
            sandbox.write_connection_file(connection_file, transport, key, kernel, jupyter_session)
        self.connection_file = connection_file
        self.connection = json.loads(connection_file.read_text())
        argv = [arg.replace("{connection_file}", str(connection_file)) for arg in self.spec["argv"]]
        argv += extra
        if argv[0] in ("python", "python3"):
            argv[0] = sys.executable
        full_env = {**sandbox.env, **self.spec.get("env", {}), **(env or {})}
        if jupyter_session is not None:
            full_env["JPY_SESSION_NAME"] = jupyter_session
        self.log = sandbox.root / f"launcher-{len(sandbox.launchers)}.log"
        self.parent: subprocess.Popen | None = None
        self.jpserver: Path | None = None
        cwd = cwd or sandbox.work
        with self.log.open("wb") as log:
            if own_parent:
                pid_file = sandbox.root / f"launcher-{len(sandbox.launchers)}.pid"
                marker = ': >"$JUPYTER_RUNTIME_DIR/jpserver-$$.json"; ' if server else ""
                script = f'{marker}JPY_PARENT_PID=$$ setsid "$@" </dev/null & echo $! >"$0.new"; mv "$0.new" "$0"; wait'
                self.parent = subprocess.Popen(
                    ["sh", "-c", script, str(pid_file), *argv],
                    env=full_env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )
                wait_until(pid_file.exists, "the launcher's parent to start it")
                self.pid = int(pid_file.read_text())
                self.process = None
                parent = self.parent.pid
            else:
                parent = os.getpid()
                if server:
                    (sandbox.runtime / f"jpserver-{parent}.json").write_text("{}")
                full_env["JPY_PARENT_PID"] = str(parent)
                self.process = subprocess.Popen(
                    argv, env=full_env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
                self.pid = self.process.pid
        if server:
            self.jpserver = sandbox.runtime / f"jpserver-{parent}.json"
        sandbox.launchers.append(self)

    def client(self, *, busy: bool = False, **kw: Any) -> Client:
        """A frontend, connected and ready: kernel_info answered, iopub subscribed. `busy`: while a cell runs."""
        client = self.connect(**kw)
        client.wait_ready(START_SECONDS, alive=self.running, log=self.log, busy=busy)
        return client

    def connect(self, **kw: Any) -> Client:
        """A frontend that has not said anything yet."""
        client = Client(self.connection, **kw)
        self.sandbox.clients.append(client)
        return client

    def running(self) -> bool:
        if self.process is not None:
            return self.process.poll() is None
        return alive(self.pid)

    def kill(self, signum: int = signal.SIGKILL, seconds: float = END_SECONDS) -> None:
        """Kills the launcher alone and waits for its end."""
        kill(self.pid, signum, seconds)
        if self.process is not None:
            self.process.wait(seconds)

    def kill_parent(self, signum: int = signal.SIGKILL) -> None:
        """As a killed Jupyter Server: its launcher is left to find out by itself."""
        assert self.parent is not None
        kill(self.parent.pid, signum)
        self.parent.wait(END_SECONDS)

    def wait_exit(self, seconds: float = END_SECONDS) -> int | None:
        wait_gone(self.pid, seconds)
        return self.process.wait(seconds) if self.process is not None else None


class Server:
    """A real Jupyter Server (or JupyterLab) on this sandbox's address, with its notebooks in `sandbox.work`."""

    def __init__(self, sandbox: Sandbox, *, lab: bool = False, args: tuple[str, ...] = ()):
        self.sandbox = sandbox
        self.token = uuid.uuid4().hex
        self.log = sandbox.root / f"server-{len(sandbox.servers)}.log"
        app = ["-m", "jupyterlab"] if lab else ["-m", "jupyter_server"]
        off = ["jupyter_lsp", "jupyter_server_terminals", *(() if lab else ("jupyterlab", "notebook_shim"))]
        # A terminal as stdin: without one, the server does not ask back at the first ^C.
        self.terminal, stdin = pty.openpty()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, *app, "--no-browser", "--allow-root",
                    f"--ServerApp.ip={sandbox.address}", f"--ServerApp.port={sandbox.free_port()}",
                    f"--ServerApp.root_dir={sandbox.work}", f"--IdentityProvider.token={self.token}",
                    f"--ServerApp.jpserver_extensions={dict.fromkeys(off, False)}",
                    *args,
                ],
                env=sandbox.env, cwd=sandbox.work, stdin=stdin, stdout=log, stderr=log, start_new_session=True,
            )
        os.close(stdin)
        sandbox.servers.append(self)
        info_file = sandbox.runtime / f"jpserver-{self.process.pid}.json"

        def up() -> bool:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()[-3000:]}"
            return info_file.exists() and self._answers(info_file)

        wait_until(up, "Jupyter Server to answer", START_SECONDS, lambda: self.log.read_text()[-3000:])

    def _answers(self, info_file: Path) -> bool:
        import requests

        try:
            info = json.loads(info_file.read_text())
            self.url = f"http://{self.sandbox.address}:{info['port']}"
            return requests.get(f"{self.url}/api/status?token={self.token}", timeout=5).ok
        except (ValueError, requests.ConnectionError):
            return False

    def api(self, method: str, path: str, body: Any = None, expect: int | None = None) -> Any:
        import requests

        answer = requests.request(
            method, f"{self.url}/api/{path}", json=body,
            headers={"Authorization": f"token {self.token}"}, timeout=START_SECONDS,
        )
        if expect is not None:
            assert answer.status_code == expect, (answer.status_code, answer.text)
        else:
            assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def open_notebook(self, name: str, kernel: str) -> dict:
        """What JupyterLab does when a notebook is opened: POST /api/sessions with its path."""
        path = self.sandbox.work / name
        if not path.exists():
            path.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return self.api(
            "POST", "sessions",
            {"path": name, "name": name, "type": "notebook", "kernel": {"name": kernel}}, expect=201,
        )

    def websocket(self, kernel_id: str) -> WebSocketClient:
        client = WebSocketClient(self, kernel_id)
        self.sandbox.clients.append(client)
        return client

    def channels(self, kernel_id: str, session_id: str, subprotocols: tuple[str, ...] = ()) -> Any:
        """A kernel's websocket, bare."""
        import websocket

        return websocket.create_connection(
            f"ws{self.url[4:]}/api/kernels/{kernel_id}/channels?session_id={session_id}",
            header=[f"Authorization: token {self.token}"], subprotocols=list(subprotocols), timeout=START_SECONDS,
        )

    def stop(self, signum: int, times: int = 1, seconds: float = 30.0) -> None:
        """`times` = 2 with SIGINT: ^C, the server asks back, ^C again."""
        for turn in range(times):
            self.process.send_signal(signum)
            if turn + 1 < times:
                wait_until(lambda: b"(y/[n])?" in self.log.read_bytes(), "the server to ask back")
        self.process.wait(seconds)


class WebSocketClient:
    """A kernel's websocket at a Jupyter Server, as a browser opens it."""

    def __init__(self, server: Server, kernel_id: str):
        self.session_id = uuid.uuid4().hex
        self.messages: list[dict] = []
        self.socket = server.channels(kernel_id, self.session_id)

    def send(self, channel: str, msg_type: str, content: dict, metadata: dict | None = None) -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id, "msg_type": msg_type, "session": self.session_id, "username": "",
            "version": "5.4", "date": "2026-01-01T00:00:00.000Z",
        }
        self.socket.send(json.dumps({
            "channel": channel, "header": header, "parent_header": {}, "metadata": metadata or {},
            "content": content, "buffers": [],
        }))
        return msg_id

    def execute(self, code: str, **metadata: Any) -> str:
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True,
            "stop_on_error": True,
        }
        return self.send("shell", "execute_request", content, metadata)

    def wait_for(self, predicate: Callable[[dict], bool], what: str, seconds: float = EVENT_SECONDS) -> dict:
        """The first message, of those already here or to come, that the predicate accepts."""
        deadline, seen = time.monotonic() + seconds, 0
        while True:
            while seen < len(self.messages):
                if predicate(self.messages[seen]):
                    return self.messages[seen]
                seen += 1
            left = deadline - time.monotonic()
            if left <= 0:
                last = [(m["msg_type"], m["content"]) for m in self.messages[-8:]]
                raise Lost(f"waited {seconds:.0f} s for {what}; last: {last}")
            self.socket.settimeout(left)
            with suppress(TimeoutError, OSError):
                self.messages.append(self._receive())

    def _receive(self) -> dict:
        import websocket

        try:
            data = self.socket.recv()
        except websocket.WebSocketTimeoutException as error:
            raise TimeoutError from error
        if isinstance(data, bytes):  # Binary buffers: an offset table in front (websocket protocol, default form).
            count = int.from_bytes(data[:4], "big")
            offsets = [int.from_bytes(data[4 * i + 4 : 4 * i + 8], "big") for i in range(count)]
            return json.loads(data[offsets[0] : offsets[1] if count > 1 else None])
        return json.loads(data)

    def idle(self, msg_id: str, seconds: float = EVENT_SECONDS) -> None:
        self.wait_for(
            lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle"
            and m["parent_header"].get("msg_id") == msg_id,
            f"idle of {msg_id}", seconds,
        )

    def text(self, msg_id: str, name: str = "stdout") -> str:
        """What the streams of one request say so far."""
        return "".join(
            m["content"]["text"] for m in self.messages
            if m["msg_type"] == "stream" and m["content"]["name"] == name
            and m["parent_header"].get("msg_id") == msg_id
        )

    def close(self) -> None:
        with suppress(Exception):
            self.socket.close()


class Sandbox:
    """Folders, environment, processes. `close` ends all of it and says what should not have been there."""

    def __init__(self) -> None:
        # Directly under /tmp: a unix socket's path has at most 107 bytes, whatever TMPDIR says.
        self.root = Path(tempfile.mkdtemp(prefix="fs", dir="/tmp"))
        self.id = uuid.uuid4().hex
        # An address of its own in 127/8: ports of tests that run at the same time cannot collide.
        raw = uuid.UUID(self.id).bytes
        self.address = f"127.{raw[0] % 250 + 1}.{raw[1]}.{raw[2] % 250 + 2}"
        self.state, self.xdg_runtime, self.config = self.root / "s", self.root / "r", self.root / "c"
        self.home, self.data, self.runtime = self.root / "h", self.root / "d/jupyter", self.root / "j"
        self.work, self.tmp = self.root / "w", self.root / "t"
        for folder in (
            self.state, self.xdg_runtime, self.config, self.home, self.data, self.runtime, self.work, self.tmp,
        ):
            folder.mkdir(mode=0o700, parents=True)
        venv = Path(sys.prefix)
        self.env = {
            "PATH": f"{venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "xterm", "TZ": "UTC", "COLUMNS": "160",
            "TMPDIR": str(self.tmp),
            "XDG_RUNTIME_DIR": str(self.xdg_runtime), "XDG_CONFIG_HOME": str(self.config),
            "XDG_STATE_HOME": str(self.home / "state"), "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_DATA_HOME": str(self.data.parent),
            "FARSIDE_STATE_DIR": str(self.state), "FARSIDE_SYSTEM_CONFIG": str(self.root / "system.toml"),
            "JUPYTER_CONFIG_DIR": str(self.config / "jupyter"), "JUPYTER_DATA_DIR": str(self.data),
            "JUPYTER_RUNTIME_DIR": str(self.runtime), "IPYTHONDIR": self.ipython("i"),
            "JUPYTER_PREFER_ENV_PATH": "0", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1",
            "DENO_DIR": str(self.root / "deno"), "DENO_NO_UPDATE_CHECK": "1",
            MARKER: self.id,
        }
        self.launchers: list[Launcher] = []
        self.servers: list[Server] = []
        self.clients: list[Any] = []
        self.children: list[subprocess.Popen] = []
        self.installed: set[str] = set()
        self.ports: set[int] = set()

    # Kernels.

    def ipython(self, name: str) -> str:
        """An IPython folder. jedi is off: its completions depend on how much time the machine gives it."""
        profile = self.root / name / "profile_default"
        profile.mkdir(parents=True)
        (profile / "ipython_kernel_config.py").write_text("c.IPCompleter.use_jedi = False\n")
        return str(self.root / name)

    def kernelspec(self, name: str) -> dict:
        """The kernel.json of `name`; a `farside-<engine>` is installed by `farside install` when first asked for."""
        engine = name.removeprefix("farside-")
        if engine == "deno" and engine not in self.installed:
            subprocess.run(
                [str(Path(sys.prefix) / "bin/deno"), "jupyter", "--install"], env=self.env, check=True, capture_output=True, timeout=60
            )
            self.installed.add(engine)
        if name != engine and name not in self.installed:
            self.cli("install", "--user", "--engine", engine, check=True)
            self.installed.add(name)
        for base in (self.data, Path(sys.prefix) / "share/jupyter", Path("/usr/local/share/jupyter"), Path("/usr/share/jupyter")):
            path = base / "kernels" / name / "kernel.json"
            if path.exists():
                return json.loads(path.read_text())
        raise AssertionError(f"no kernelspec {name}")

    def add_kernelspec(self, name: str, argv: list[str], **more: Any) -> None:
        """An engine of the test's own."""
        folder = self.data / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": "script", "interrupt_mode": "message", **more}
        (folder / "kernel.json").write_text(json.dumps(spec))

    def free_port(self) -> int:
        """A port of this sandbox's address that nobody has and that was not given out before."""
        while True:
            with socket.socket() as probe:
                probe.bind((self.address, 0))
                port = probe.getsockname()[1]
            if port not in self.ports:
                self.ports.add(port)
                return port

    def write_connection_file(
        self, path: Path, transport: str, key: str | None, kernel: str, jupyter_session: str | None
    ) -> None:
        names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
        if transport == "tcp":
            ports = {name: self.free_port() for name in names}
            ip = self.address
        else:
            ip = str(self.runtime / f"k{len(self.launchers)}")
            ports = {name: number for number, name in enumerate(names, 1)}
        info = {
            **ports, "ip": ip, "key": uuid.uuid4().hex if key is None else key, "transport": transport,
            "signature_scheme": "hmac-sha256", "kernel_name": kernel,
        }
        if jupyter_session is not None:
            info["jupyter_session"] = jupyter_session
        path.write_text(json.dumps(info))
        path.chmod(0o600)

    def launch(self, kernel: str = KERNEL, **kw: Any) -> Launcher:
        return Launcher(self, kernel, **kw)

    def server(self, **kw: Any) -> Server:
        return Server(self, **kw)

    # The command line.

    def cli(
        self, *args: str, stdin: str | None = None, seconds: float = START_SECONDS, check: bool = False,
        env: dict[str, str] | None = None,
    ) -> tuple[int, str, str]:
        done = subprocess.run(
            [str(FARSIDE), *args], env={**self.env, **(env or {})}, cwd=self.work, capture_output=True,
            text=True, timeout=seconds, input=stdin if stdin is not None else "",
        )
        if check:
            assert done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done.returncode, done.stdout, done.stderr

    def spawn_cli(self, *args: str, **kw: Any) -> subprocess.Popen:
        """The command in the background; its output goes to pipes, unless told otherwise."""
        kw = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kw}
        child = subprocess.Popen(
            [str(FARSIDE), *args], env=self.env, cwd=self.work, start_new_session=True, **kw
        )
        self.children.append(child)
        return child

    def connect(self, session: str) -> tuple[subprocess.Popen, Client]:
        """`farside connect`, and a client of it."""
        process = self.spawn_cli("connect", session)
        assert process.stdout is not None
        client = Client(json.loads(Path(process.stdout.readline().strip()).read_text()))
        self.clients.append(client)
        client.wait_ready(40)
        return process, client

    def json(self, *args: str) -> Any:
        return json.loads(self.cli(*args, "--json", check=True)[1])

    def ls(self, *, everything: bool = False) -> list[dict]:
        return self.json("ls", *(["--all"] if everything else []))

    def session(self, session_id: str | None = None) -> dict:
        """The one session there is, or the named one, also when it has ended."""
        found = [s for s in self.ls(everything=session_id is not None) if session_id in (None, s["id"], s["name"])]
        assert len(found) == 1, found
        return found[0]

    def wait_session(self, predicate: Callable[[dict], bool], what: str, session_id: str | None = None, seconds: float = EVENT_SECONDS) -> dict:
        """The first session, alive or ended, of which `predicate` holds."""
        seen: list = []

        def probe() -> dict | None:
            seen[:] = self.ls(everything=True)
            return next((s for s in seen if session_id in (None, s["id"]) and predicate(s)), None)

        return wait_until(probe, what, seconds, lambda: seen)

    def keeper_pid(self, session: dict) -> int:
        """The keeper is the host's parent."""
        return parent_pid(session["host_pid"])

    def link(self, session_id: str) -> Link:
        """A bare client of the session's host."""
        return Link(self.xdg_runtime / "farside" / session_id / "link.sock")

    def kill_all(self) -> None:
        """Everything of this sandbox at once, as by a reboot."""
        # Stopped first: a keeper and its host replace each other as long as one of them is there.
        while victims := self.processes():
            for signum in (signal.SIGSTOP, signal.SIGKILL):
                for pid in victims:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signum)
            time.sleep(0.02)

    def records(self, session_id: str) -> list[dict]:
        """The journal as `farside logs --json` shows it."""
        return [json.loads(line) for line in self.cli("logs", session_id, "--json", check=True)[1].splitlines()]

    def journal_bytes(self) -> int:
        """Of the segments of all sessions."""
        total, paths = 0, list(self.state.glob("*/journal/*.seg"))
        assert paths, "no session has a journal"
        for path in paths:
            # They come and go.
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def executions(self, session_id: str) -> list[dict]:
        return self.json("history", session_id)

    def logs(self) -> str:
        """What the launchers, and the hosts in their state folders, had to say: for a failed test's report."""
        parts = []
        for path in sorted([*self.root.glob("*.log"), *self.state.rglob("*.log"), *self.state.rglob("*.err")]):
            text = path.read_text(errors="replace")
            if text.strip():
                parts.append(f"--- {path.relative_to(self.root)}\n{text[-2500:]}")
        return "\n".join(parts)

    # The end.

    def processes(self) -> dict[int, str]:
        """Every process of this sandbox that lives: its environment carries the marker, or its arguments the root."""
        marker, root = f"{MARKER}={self.id}".encode(), str(self.root).encode()
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with suppress(OSError):
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                if marker in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") or root in command:
                    if alive(int(entry)):
                        found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace").strip()[:160]
        return found

    def close(self) -> list[str]:
        """Ends everything by farside's own means; gives what was still there afterwards, having killed that too."""
        wrong: list[str] = []
        for client in self.clients:
            client.close()
        for server in self.servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
            os.close(server.terminal)
        for launcher in self.launchers:
            if launcher.parent is not None and launcher.parent.poll() is None:
                launcher.kill_parent()
            if launcher.running():
                if launcher.kernel.startswith("farside-"):
                    launcher.kill(signal.SIGTERM)
                else:
                    launcher.kill(signal.SIGKILL)
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        if FARSIDE.exists() and any(self.state.iterdir()):
            try:
                for session in self.ls():
                    code, _, err = self.cli("stop", "--now", session["id"])
                    if code != 0:
                        wrong.append(f"farside stop --now {session['id']}: {code} {err.strip()}")
            except (AssertionError, subprocess.TimeoutExpired, ValueError) as error:
                wrong.append(f"farside ls or stop at the end of the test: {error}")
        with suppress(Lost):
            wait_until(lambda: not self.processes(), "all processes to end", END_SECONDS)
        left = self.processes()
        wrong += [f"process left behind: {pid} {command}" for pid, command in left.items()]
        self.kill_all()
        if not left:
            sockets = [str(p.relative_to(self.root)) for p in self.xdg_runtime.rglob("*") if p.is_socket()]
            wrong += [f"socket left behind: {path}" for path in sockets]
            stray = self.home.glob("state/farside*")
            wrong += [f"file outside of its folder: {path.relative_to(self.root)}" for path in stray]
        shutil.rmtree(self.root, ignore_errors=True)
        return wrong


@contextmanager
def sandboxed() -> Iterator[Sandbox]:
    """For scripts: a sandbox that must be clean at its end."""
    sandbox = Sandbox()
    try:
        yield sandbox
    finally:
        wrong = sandbox.close()
    assert not wrong, wrong
