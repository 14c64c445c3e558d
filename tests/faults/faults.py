"""What is done to a session. A fault does its harm, and whatever can be mended (room on the disk, a stopped process)
is mended by the time its function returns; what it killed stays dead.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import clock
from bounds import resident_bytes
from cell import Watcher
from rig import ROLES, Rig
from sandbox import kill
from served import ServedRig

# From the death of a process to that of the next one that comes in its place.
TWICE_SECONDS = (0.0, 0.02, 0.1, 0.4)

# One message, and how much of it somebody must have for it to be under way. It takes some seconds in all.
LARGE_BYTES, UNDER_WAY_BYTES, UNDER_WAY_SECONDS = 200_000_000, 20_000_000, 15.0

# Between two settings of the clock.
SET_SECONDS = (0.05, 0.5)

# Longer than a launcher that lost its link may stay away, half the time.
STOP_SECONDS = (0.2, 3.0)

ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
ZMTP_SUB = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"


class Fault(NamedTuple):
    """One kind of harm."""

    name: str
    weight: float
    strike: Callable[[Rig, Strike], None]
    # Of what a rig offers (`Rig.offers`).
    needs: str = ""
    # Where a second fault may come on top.
    combines: bool = True
    # The cell prints a message of so many bytes, in the middle of which it strikes.
    large: int = 0

    def fits(self, offers: frozenset[str]) -> bool:
        return not self.needs or self.needs in offers


@dataclass
class Strike:
    """One round's dice, and what its judge must know."""

    rng: random.Random
    # Outputs may be shown that are not kept: the journal could not be written. It must say so.
    unwritable: bool = False
    # Bytes on the disk were changed: what a reader says of them is all that can be asked.
    damaged: bool = False
    # The session's records are gone, and so is the session once nobody is attached.
    deleted: bool = False
    # The engine could not send for so long that it may have dropped outputs itself.
    stopped_host: float = 0.0
    flood: dict[str, int] = field(default_factory=dict)
    undo: list[Callable[[], None]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


# Deaths.


def _kill(rig: Rig, roles: tuple[str, ...]) -> None:
    """All at once: stopped first, so that none sees another one go."""
    pids = [pid for role, pid in rig.pids().items() if role in roles]
    if len(pids) > 1:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        kill(pid)


def kills(roles: tuple[str, ...]) -> Callable[[Rig, Strike], None]:
    def strike(rig: Rig, dice: Strike) -> None:
        order = list(roles)
        dice.rng.shuffle(order)
        if len(order) == 1 or dice.rng.random() < 0.6:
            _kill(rig, tuple(order))
            return
        for role in order:
            _kill(rig, (role,))
            rig.pause(dice.rng.uniform(0, 0.03))

    return strike


def kills_twice(roles: tuple[str, ...]) -> Callable[[Rig, Strike], None]:
    """And what came in its place as well."""

    def strike(rig: Rig, dice: Strike) -> None:
        before = rig.pids()
        _kill(rig, roles)
        again = dice.rng.choice(TWICE_SECONDS)
        until = time.monotonic() + 1.5
        # At once when it is there, or some time after that.
        while time.monotonic() < until:
            now = rig.pids()
            if any(role in now and now[role] != before.get(role) for role in roles):
                break
            rig.pause(0.001)
        rig.pause(again)
        _kill(rig, roles)

    return strike


def stops(role: str) -> Callable[[Rig, Strike], None]:
    def strike(rig: Rig, dice: Strike) -> None:
        pid = rig.pids().get(role)
        if pid is None:
            return
        seconds = dice.rng.uniform(*STOP_SECONDS)
        os.kill(pid, signal.SIGSTOP)
        try:
            rig.pause(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if role == "host":
            dice.stopped_host += seconds

    return strike


def server_killed_as_it_starts(rig: Rig, dice: Strike) -> None:
    """A server, and the one that comes in its place, at any moment of its first launcher's start."""
    assert isinstance(rig, ServedRig)
    _kill(rig, ("server",))
    rig.start_server()
    rig.open_notebook()
    rig.pause(dice.rng.choice(TWICE_SECONDS))
    _kill(rig, ("server",))


# A large message.


def in_large_message(strike: Callable[[Rig, Strike], None]) -> Callable[[Rig, Strike], None]:
    """The same when the engine makes the message, the host has part of it, the journal, or the launcher."""

    def struck(rig: Rig, dice: Strike) -> None:
        pids, written = rig.pids(), rig.journal_bytes()
        held = {role: resident_bytes(pid) for role, pid in pids.items()}
        moment = dice.rng.choice(("made", "read", "written", "handed on"))
        until = time.monotonic() + (dice.rng.uniform(0, 1) if moment == "made" else UNDER_WAY_SECONDS)

        def is_under_way() -> bool:
            if moment == "written":
                return rig.journal_bytes() > written + UNDER_WAY_BYTES
            role = {"read": "host", "handed on": "launcher"}.get(moment)
            return role in pids and resident_bytes(pids[role]) > held[role] + UNDER_WAY_BYTES

        # Its frontend reads on in a thread of libzmq's: nothing else delays the look.
        while not is_under_way() and time.monotonic() < until:
            time.sleep(0.001)
        if moment != "made" and not is_under_way():
            dice.said.append(f"the large message was never seen to be {moment}")
        strike(rig, dice)

    return struck


# Time.


def clock_set(rig: Rig, dice: Strike) -> None:
    """Forward and back, by seconds and by weeks. No end comes by it, and none is moved."""
    assert rig.clock is not None
    for _ in range(dice.rng.choice((1, 1, 2, 3))):
        rig.clock.set(dice.rng.choice([one for one in clock.SETTINGS if one != rig.clock.ahead]))
        rig.pause(dice.rng.uniform(*SET_SECONDS))


# Files.


def link_removed(rig: Rig, dice: Strike) -> None:
    with suppress(FileNotFoundError):
        (rig.sockets / "link.sock").unlink()


def sockets_removed(rig: Rig, dice: Strike) -> None:
    shutil.rmtree(rig.sockets, ignore_errors=True)


def disk_full(rig: Rig, dice: Strike) -> None:
    dice.unwritable = True
    ballast = rig.sandbox.state / "ballast"
    # The journal may have filled it already.
    with suppress(OSError), ballast.open("wb") as file:
        usage = os.statvfs(rig.sandbox.state)
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, usage.f_bavail * usage.f_frsize)
        # The last pages as well.
        with suppress(OSError):
            while True:
                file.write(bytes(4096))
                file.flush()
    rig.pause(dice.rng.uniform(0.1, 0.8))
    ballast.unlink(missing_ok=True)


def disk_read_only(rig: Rig, dice: Strike) -> None:
    """Immutable files fail every write, also through descriptors that are open, as on a file system that the kernel
    has made read-only after an error."""
    dice.unwritable = True
    assert rig.root is not None
    journal = rig.root / "journal"
    immutable = [str(rig.root), str(journal), *map(str, journal.glob("*.seg"))]
    if subprocess.run(["chattr", "+i", *immutable], capture_output=True).returncode != 0:
        dice.said.append("chattr +i is not possible here")
        return
    rig.pause(dice.rng.uniform(0.1, 0.8))
    subprocess.run(["chattr", "-i", *immutable], check=False, capture_output=True)


def state_deleted(rig: Rig, dice: Strike) -> None:
    dice.unwritable = dice.deleted = True
    assert rig.root is not None
    shutil.rmtree(rig.root, ignore_errors=True)
    # status.json and the like may come in between.
    shutil.rmtree(rig.root, ignore_errors=True)
    rig.pause(dice.rng.uniform(0.1, 0.5))


def journal_damaged(rig: Rig, dice: Strike) -> None:
    dice.damaged = True
    assert rig.root is not None and rig.disk is not None
    segments = sorted((rig.root / "journal").glob("*.seg"))
    if not segments:
        return
    path = segments[-1]
    first = rig.disk.offset if path.name == f"journal-{rig.disk.segment:08}.seg" else 32
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(dice.rng.randrange(1, 6)):
            if size - first < 1000:
                return
            at = dice.rng.randrange(first, size - 100)
            file.seek(at)
            file.write(dice.rng.randbytes(dice.rng.choice((1, 1, 8, 100))))


def index_damaged(rig: Rig, dice: Strike) -> None:
    assert rig.root is not None
    for path in (rig.root / "journal").glob("index.sqlite*"):
        what = dice.rng.randrange(4)
        with suppress(OSError):
            if what == 0:
                path.unlink()
            elif what == 1 and not path.name.endswith("-shm"):
                # SQLite has -shm in its memory: a shorter file is the death (SIGBUS) of whoever looks there. That is a
                # killed host, and is tried as such.
                path.write_bytes(b"")
            else:
                with path.open("r+b") as file:
                    size = path.stat().st_size
                    for _ in range(dice.rng.randrange(1, 20)):
                        file.seek(dice.rng.randrange(max(1, size)))
                        file.write(dice.rng.randbytes(64))


def status_damaged(rig: Rig, dice: Strike) -> None:
    assert rig.root is not None
    (rig.root / "status.json").write_bytes(dice.rng.choice((b"", b"{", dice.rng.randbytes(300))))


# Resources.


def descriptors_exhausted(role: str) -> Callable[[Rig, Strike], None]:
    def strike(rig: Rig, dice: Strike) -> None:
        pid = rig.pids().get(role)
        if pid is None or rig.launcher is None:
            return
        old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + dice.rng.randrange(3), old[1]))
        knocking: list[socket.socket] = []
        try:
            for _ in range(30):
                if role == "host":
                    one = socket.socket(socket.AF_UNIX)
                    address: object = str(rig.sockets / "link.sock")
                else:
                    one = socket.socket()
                    connection = rig.launcher.connection
                    address = (connection["ip"], connection[f"{dice.rng.choice(('shell', 'iopub'))}_port"])
                one.setblocking(False)
                with suppress(OSError):
                    one.connect(address)
                knocking.append(one)
            rig.pause(dice.rng.uniform(0.1, 0.6))
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, old)
            for one in knocking:
                one.close()

    return strike


def subscriber_that_never_reads(rig: Rig, dice: Strike) -> None:
    if not rig.frontend_lives():
        return
    connection = rig.launcher.connection
    silent = socket.create_connection((connection["ip"], connection["iopub_port"]), timeout=10)
    with suppress(OSError):
        silent.sendall(ZMTP_GREETING + ZMTP_SUB + b"\x00\x01\x01")
    rig.pause(dice.rng.uniform(0.1, 0.6))
    dice.undo.append(silent.close)


def requests_flood(rig: Rig, dice: Strike) -> None:
    """As many questions as a frontend can send at once: answered by farside, by the engine, and by nobody."""
    if not rig.frontend_lives():
        return
    for _ in range(1500):
        dice.flood[rig.client.send("shell", "kernel_info_request")] = 1
    for _ in range(400):
        dice.flood[rig.client.send("shell", "is_complete_request", {"code": "x" * dice.rng.choice((10, 10_000))})] = 1
    for _ in range(100):
        dice.flood[rig.client.send("control", "kernel_info_request")] = 1
        rig.client.send("shell", "comm_msg", {"comm_id": "no such", "data": "x" * 1000})


def frontends_come_and_go(rig: Rig, dice: Strike) -> None:
    if not rig.frontend_lives():
        return
    for _ in range(dice.rng.randrange(3, 12)):
        passing = Watcher(rig.launcher.connection)
        passing.send("shell", "kernel_info_request")
        passing.pump(dice.rng.uniform(0, 0.05))
        passing.close()


def _combinations() -> list[Fault]:
    found = []
    for size in range(len(ROLES) + 1):
        for roles in itertools.combinations(ROLES, size):
            # The host's death is what a gap comes of, so it is looked at most.
            weight = 3.0 if roles == ("host",) else 1.0
            if roles:
                found.append(Fault("kill -9 " + " + ".join(roles), weight, kills(roles)))
            roles = ("server", *roles)
            found.append(Fault("kill -9 " + " + ".join(roles), weight, kills(roles), needs="server"))
    for roles in (("host",), ("keeper",), ("host", "keeper"), ("engine",)):
        found.append(Fault("kill -9 " + " + ".join(roles) + ", twice", 1.0, kills_twice(roles)))
    found.append(Fault("kill -9 server, twice", 3.0, server_killed_as_it_starts, needs="server"))
    return found


def _in_large_messages() -> list[Fault]:
    """Each process alone, and those that only together lose what one of them has."""
    found = []
    for roles in (*((role,) for role in ROLES), ("host", "keeper"), ("server",), ("server", "host")):
        name = "kill -9 " + " + ".join(roles) + " in a message of 200 MB"
        needs = "server" if "server" in roles else ""
        found.append(Fault(name, 0.5, in_large_message(kills(roles)), needs=needs, large=LARGE_BYTES))
    full = in_large_message(disk_full)
    found.append(Fault("disk full in a message of 200 MB", 0.5, full, needs="tmpfs", large=LARGE_BYTES))
    return found


FAULTS = [
    *_combinations(),
    *_in_large_messages(),
    *(Fault(f"SIGSTOP {role}, then SIGCONT", 1.0, stops(role)) for role in ROLES),
    Fault("SIGSTOP server, then SIGCONT", 2.0, stops("server"), needs="server"),
    Fault("clock set", 3.0, clock_set, needs="clock"),
    Fault("link's socket removed", 1.0, link_removed),
    Fault("folder of the sockets removed", 0.7, sockets_removed, combines=False),
    Fault("disk full (ENOSPC), and back", 3.0, disk_full, needs="tmpfs"),
    Fault("disk read-only, and back", 2.0, disk_read_only, needs="disk"),
    Fault("session's folder deleted", 0.7, state_deleted, combines=False),
    Fault("bytes of the journal damaged", 1.5, journal_damaged),
    Fault("index damaged or deleted", 1.0, index_damaged),
    Fault("status.json damaged", 0.7, status_damaged),
    Fault("host out of descriptors", 1.0, descriptors_exhausted("host")),
    Fault("launcher out of descriptors", 1.0, descriptors_exhausted("launcher")),
    Fault("a subscriber that never reads", 1.0, subscriber_that_never_reads),
    Fault("a frontend floods requests", 1.0, requests_flood),
    Fault("frontends come and go", 1.0, frontends_come_and_go),
]
