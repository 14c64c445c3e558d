"""Covers `durability`: what is on the disk when the power is cut.

The state folder is a file system of its own, in a file. A copy of that file has what the operating system had given to
the disk up to then, and nothing that was in its memory only: a power cut. The copy is put in the folder's place.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import Sandbox
from wire import stream_text

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))

from disk import IOPUB, Disk, Missing, Record

IMAGE_BYTES = 64 << 20

CELL = """
for n in range(1, 1_000_000):
    print(n, flush=True)
"""


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


class Disks:
    """A sandbox's state folder on a disk whose power can be cut."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox, self.image = sandbox, sandbox.root / "disk"
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        self.usable = (
            os.geteuid() == 0
            and run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image))
            and self.plug_in()
        )

    def plug_in(self) -> bool:
        state = str(self.sandbox.state)
        return run("mount", "-o", "loop", str(self.image), state) and run("chmod", "0700", state)

    def cut(self) -> bool:
        """All processes are gone, and so is what was not on the disk; then the power is back."""
        cut = self.image.with_name("cut")
        shutil.copyfile(self.image, cut)
        self.sandbox.kill_all()
        run("umount", "-l", str(self.sandbox.state))
        # In memory, as /run is.
        shutil.rmtree(self.sandbox.xdg_runtime / "farside")
        cut.replace(self.image)
        return self.plug_in()


@pytest.fixture
def disks() -> Iterator[Disks]:
    sandbox = Sandbox()
    disks = Disks(sandbox)
    try:
        if not disks.usable:
            pytest.skip("no file system can be made in a file here (not root, or no loop devices)")
        yield disks
    finally:
        wrong = sandbox.close()
        run("umount", "-l", str(sandbox.state))
        shutil.rmtree(sandbox.root, ignore_errors=True)
    assert not wrong, "\n".join(wrong)


def see_and_cut(disks: Disks, at_least: int) -> tuple[str, list[Record | Missing]]:
    """What a frontend has seen of the cell when the power is cut, and what the journal has then."""
    sandbox = disks.sandbox
    client = sandbox.launch().client()
    host = sandbox.session()["host_pid"]
    running = client.execute(CELL)
    client.wait_text(running, f"\n{at_least}\n", seconds=60)
    # What it has sent is seen. It alone writes to this disk.
    os.kill(host, signal.SIGSTOP)
    while client.pump(0.3):
        pass
    seen = stream_text(client.of(running))
    assert disks.cut(), "the file system of the copy is sound"
    return seen, [entry for folder in sandbox.state.glob("*/journal") for entry in Disk(folder).look()]


def text_of(entries: list[Record | Missing]) -> str:
    outputs = (e for e in entries if isinstance(e, Record) and e.kind == IOPUB and e.header["msg_type"] == "stream")
    contents = (json.loads(output.content) for output in outputs)
    return "".join(content["text"] for content in contents if content["name"] == "stdout")


@pytest.mark.timeout(180)
def test_with_power_all_that_was_seen_outlives_a_power_cut(disks: Disks) -> None:
    sandbox = disks.sandbox
    sandbox.env["FARSIDE_DURABILITY"] = "power"
    seen, entries = see_and_cut(disks, at_least=2000)
    missing = [entry for entry in entries if isinstance(entry, Missing)]
    assert not missing
    kept = text_of(entries)
    assert kept.startswith(seen), f"{len(seen)} characters were seen, {len(kept)} are kept"
    # And a person who comes back is shown them, with word of what became of the cell.
    session = sandbox.ls(everything=True)[0]["id"]
    code, shown, said = sandbox.cli("attach", session)
    assert shown.startswith(seen), shown[-300:]
    assert (code, "lost" in said) == (1, True), (code, said)


@pytest.mark.timeout(180)
def test_without_it_the_last_moments_are_lost(disks: Disks) -> None:
    """Else the test above sees nothing. What is there is read without error all the same."""
    seen, entries = see_and_cut(disks, at_least=2000)
    assert not text_of(entries).startswith(seen)
