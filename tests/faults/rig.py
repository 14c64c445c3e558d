"""A warm session that is hit again and again: its frontend, its processes, its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cell import SOURCE, Watcher
from clock import Clock
from disk import Disk
from sandbox import END_SECONDS, START_SECONDS, Launcher, Lost, Sandbox, alive, wait_gone

if TYPE_CHECKING:
    from served import ServedLauncher

# The state folder of a rig that can be filled up. A rig that has used up half of it is renewed.
TMPFS_BYTES = 700 << 20

# What may take a while: a new host, a new engine, a long queue. Other things run on the machine as well.
SETTLE_SECONDS = 60.0

# After this a session of a rig would end, and none ever does.
IDLE_SECONDS = 4 * 3600

ROLES = ("launcher", "host", "keeper", "engine")


def can_mount() -> bool:
    """Whether a small file system for the state folder can be had: root, and not in a container without it."""
    if os.geteuid() != 0:
        return False
    sandbox = Sandbox()
    try:
        return _mount(sandbox.state) and subprocess.run(["umount", str(sandbox.state)]).returncode == 0
    finally:
        sandbox.close()


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=0700", "farside-faults", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


class Rig:
    """One frontend, and the session of its notebook. `offers`: what faults may need of it. `tmpfs`: its state folder is
    a file system of its own; else `disk`. `clock`: its processes' wall clock can be set. `server`: see `ServedRig`."""

    # The processes of its session.
    roles = ROLES

    # A launcher that takes longer to be ready is remarked upon, as a slow round is.
    slow_seconds = 6.0

    def __init__(self, offers: frozenset[str]):
        self.offers = offers
        self.sandbox = Sandbox()
        self.sandbox.env["FARSIDE_LOG"] = os.environ.get("FARSIDE_LOG", "info")
        self.sandbox.env["FARSIDE_IDLE_TIMEOUT"] = f"{IDLE_SECONDS}s"
        # A clock that is set forward makes old records of those that are to be judged.
        self.sandbox.env["FARSIDE_KEEP_RECORDS"] = "none"
        self.clock: Clock | None = None
        if "clock" in offers:
            self.clock = Clock(self.sandbox.root)
            self.sandbox.env |= self.clock.env
        self.tmpfs = "tmpfs" in offers
        if self.tmpfs and not _mount(self.sandbox.state):
            raise RuntimeError("no tmpfs can be mounted")
        self.key = str(self.sandbox.work / "n.ipynb")
        self.launcher: Launcher | ServedLauncher | None = None
        self.client: Watcher | None = None
        self.root: Path | None = None
        self.disk: Disk | None = None
        self.rounds = 0
        self.prepared_for: int | None = None

    # What there is.

    def newest_session(self) -> Path:
        """Its folder. Files have their times from the machine's clock, which is not the session's."""
        return max(self.sandbox.state.glob("*/session.json"), key=lambda path: path.stat().st_mtime_ns).parent

    def status(self) -> dict:
        """As `farside ls` would read it; empty where it cannot be read at the moment."""
        assert self.root is not None
        with suppress(OSError, ValueError):
            return json.loads((self.root / "status.json").read_text())
        return {}

    def pids(self) -> dict[str, int]:
        """The session's processes that live."""
        found: dict[str, int] = {}
        for pid, words in self.commands():
            role = {"host": "keeper", "host-worker": "host"}.get(words[1] if len(words) > 1 else "")
            if role and str(self.root) in words:
                found[role] = pid
        if self.launcher is not None and self.launcher.running():
            found["launcher"] = self.launcher.pid
        engine = (self.status().get("engine") or {}).get("pid")
        if engine and alive(engine):
            found["engine"] = engine
        return found

    @staticmethod
    def commands() -> Iterator[tuple[int, list[str]]]:
        """All processes that live, with their arguments."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
                    if alive(int(entry)):
                        yield int(entry), words

    def journal_bytes(self) -> int:
        assert self.root is not None
        return sum(path.stat().st_size for path in (self.root / "journal").glob("*.seg"))

    def is_full(self) -> bool:
        """Whether it has written so much that the next rounds may not have room."""
        return self.root is not None and self.root.exists() and self.journal_bytes() > TMPFS_BYTES // 2

    @property
    def sockets(self) -> Path:
        assert self.root is not None
        return self.sandbox.xdg_runtime / "farside" / self.root.name

    # Waiting, with the frontend's eyes open.

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.client is not None:
                self.client.pump(min(left, 0.05))
            else:
                time.sleep(min(left, 0.05))

    def wait(self, probe: Callable[[], Any], what: str, seconds: float = SETTLE_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := probe()):
            if time.monotonic() > deadline:
                raise Lost(f"waited {seconds:.0f} s for {what}")
            self.pause(0.02)
        return value

    # The frontend.

    def forget_launcher(self) -> None:
        if self.client is not None:
            self.client.close()
            self.sandbox.clients.remove(self.client)
        self.client = self.launcher = None

    def frontend_lives(self) -> bool:
        return self.client is not None and not self.client.gone and self.launcher is not None and self.launcher.running()

    def connect(self) -> bool:
        """A launcher and a frontend that is ready; whether they are new ones."""
        new = not self.frontend_lives()
        if new:
            self.forget_launcher()
            self.launcher = self.launch()
        if self.client is None:
            self.client = self.open_client()
            self.sandbox.clients.append(self.client)
            self.client.wait_ready(START_SECONDS, alive=self.launcher.running, log=self.launcher.log, busy=True)
        if new:
            self._find_session()
        return new

    def launch(self) -> Launcher | ServedLauncher:
        return self.sandbox.launch(jupyter_session=self.key)

    def open_client(self) -> Watcher:
        assert self.launcher is not None
        return Watcher(self.launcher.connection)

    def end_launcher(self) -> None:
        """The frontend goes, and nobody is attached any more."""
        assert self.launcher is not None
        with suppress(ProcessLookupError):
            os.kill(self.launcher.pid, signal.SIGKILL)
        wait_gone(self.launcher.pid, END_SECONDS)

    def _find_session(self) -> None:
        root = self.newest_session()
        if root != self.root:
            self.root, self.disk, self.prepared_for = root, Disk(root / "journal"), None

    def prepare(self) -> dict[str, int]:
        """All processes are there, and the engine knows the cell."""
        self.connect()
        assert self.client is not None
        self.client.messages.clear()
        engine = self.pids().get("engine")
        if engine is None or engine != self.prepared_for:
            reply = self.client.run(SOURCE, seconds=START_SECONDS).reply
            assert reply is not None and reply.content["status"] == "ok", reply
        pids = self.wait_whole()
        self.prepared_for = pids["engine"]
        return pids

    def wait_whole(self) -> dict[str, int]:
        """Waits for all of its processes to be there."""
        return self.wait(lambda: (found := self.pids()) and len(found) == len(self.roles) and found, "all processes")

    # The end.

    def close(self, keep: bool = False) -> list[str]:
        """What was not as it should be at the end. `keep`: the folder stays, for a look at it."""
        if keep:
            self.forget_launcher()
            self.sandbox.kill_all()
            if self.tmpfs:
                # To be looked at, it must outlive the mount.
                kept = self.sandbox.root / "kept-state"
                with suppress(OSError):
                    subprocess.run(["cp", "-a", str(self.sandbox.state), str(kept)], check=False)
                self._unmount()
            return []
        # Where all of a session's processes were killed, nobody is left to take its sockets away but this.
        self.sandbox.cli("prune", "--older-than", "0s")
        wrong = self.sandbox.close()
        if self.tmpfs:
            # The mount point itself was in the way.
            self._unmount()
            shutil.rmtree(self.sandbox.root, ignore_errors=True)
        return wrong

    def _unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.sandbox.state)], capture_output=True, check=False)

