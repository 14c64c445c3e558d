"""The wall clock of one rig's processes: it can be set, while the clocks that nobody can set go on (clock.c)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).parent / "clock.c"

# Where it may be set to, in seconds from the machine's own: further than any limit of a session, which is what must not
# end by it, and by so little that only the order of things can tell.
HOUR, DAY = 3600, 86_400
SETTINGS = (-30 * DAY, -5 * HOUR, -2, 0, 2, 5 * HOUR, 30 * DAY)


def can_be_set() -> bool:
    """Building farside takes a C compiler as well (SQLite), but not where only its tests are run."""
    return shutil.which("cc") is not None


# From a look at the clock to another process's.
SAME_SECONDS = 0.05


class Clock:
    """`ahead`: how many seconds it is from the machine's."""

    def __init__(self, folder: Path):
        library, self._file = folder / "clock.so", folder / "clock"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
        self._file.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self._file)}
        self.ahead = 0
        # How often.
        self.set_back = 0
        self.begin()

    def begin(self) -> None:
        """What it was before this does not matter any more."""
        # Since when, by the machine's clock, it was how much ahead.
        self._settings = [(0.0, self.ahead)]

    @property
    def was_set(self) -> bool:
        return len(self._settings) > 1

    def set(self, ahead: int) -> None:
        # The same file, and in one write: it is mapped.
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("<q", ahead))
        self.set_back += ahead < self.ahead
        self.ahead = ahead
        self._settings.append((time.time(), ahead))

    def now(self) -> float:
        """What it shows."""
        return time.time() + self.ahead

    def moments(self, shown: float) -> list[float]:
        """When, by the machine's clock, it showed this: never, once, or more than once where it was set back."""
        ends = [since for since, _ in self._settings[1:]] + [time.time()]
        return [
            shown - ahead
            for (since, ahead), end in zip(self._settings, ends, strict=True)
            if since - SAME_SECONDS <= shown - ahead <= end + SAME_SECONDS
        ]
