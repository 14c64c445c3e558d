"""A state folder without room: what is shown of its sessions is what is so, and that nothing is kept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import Sandbox, wait_until

BYTES = 8_000_000


@pytest.fixture
def small(sandbox: Sandbox) -> Iterator[Sandbox]:
    """A sandbox whose state folder is a small file system of its own."""
    options = f"size={BYTES},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "farside-small", str(sandbox.state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here (not root?)")
    try:
        yield sandbox
    finally:
        # Its sessions end with their folder.
        sandbox.close()
        subprocess.run(["umount", "-l", str(sandbox.state)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "fill"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return path


def test_what_is_shown_is_so_also_on_a_full_disk(small: Sandbox) -> None:
    session = small.cli("new", "--name", "full", check=True)[1].strip()
    small.cli("exec", "full", "1", check=True)
    filled = fill(small.state)
    assert small.cli("exec", "full", "print('x' * 100_000)", check=True)[1] == "x" * 100_000 + "\n"
    wait_until(lambda: "idle, not kept" in small.cli("ls")[1], "the session to be shown as idle, and not kept")
    assert "has not been kept for" in small.cli("status", "full", check=True)[1]

    code, _, said = small.cli("new", "--name", "more")
    assert (code, said.count("No space left on device")) == (4, 1), said
    assert [path.name for path in small.state.iterdir() if path.name.startswith(".")] == []

    filled.unlink()
    assert small.cli("exec", "full", "print(2)", check=True)[1] == "2\n"
    wait_until(lambda: "not kept" not in small.cli("ls")[1], "what is printed to be kept again")

    fill(small.state)
    small.cli("stop", "full", check=True)
    [ended] = [line for line in small.cli("ls", "--all")[1].splitlines() if session in line]
    assert "stopped: by `farside stop`" in ended
