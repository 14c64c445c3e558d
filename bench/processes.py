"""CPU time and memory of processes, as /proc has them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def field(pid: int, name: str, file: str = "status") -> int:
    """Bytes of a field that is given in kB."""
    for text in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return int(text.split()[1]) * 1024
    raise AssertionError(f"no {name} of process {pid}")


def resident(pid: int) -> int:
    return field(pid, "VmRSS")


def share(pid: int) -> int:
    """Resident memory in which pages that n processes share count 1/n for each: what a process adds to the machine."""
    return field(pid, "Pss", "smaps_rollup")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def precise_cpu_seconds(pid: int) -> float:
    """To the nanosecond, of threads that are gone too: for processes that do almost nothing."""
    # clock_getcpuclockid(3): the scheduler's clock of a process.
    return time.clock_gettime((~pid << 3) | 2)


@dataclass
class Watch:
    """Some processes, together."""

    pids: tuple[int, ...]

    def reset_peak(self) -> None:
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """Since the last reset; of each by itself, so that the sum is an upper bound."""
        return sum(field(pid, "VmHWM") for pid in self.pids) / 1e6

    def resident_mb(self) -> float:
        return sum(resident(pid) for pid in self.pids) / 1e6

    def cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in self.pids)
