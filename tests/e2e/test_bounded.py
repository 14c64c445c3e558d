"""Covers "bounded": memory through floods, and what 1,000 attachments leave behind. `make bounds` has the full sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))

import bounds


@pytest.mark.timeout(300)
def test_memory_is_bounded_through_a_flood(sandbox: Sandbox) -> None:
    """300 MB of output with a stalled, a slow and a fast reader at once: many times what may be in memory."""
    flood = bounds.flood(sandbox, megabytes=300)
    assert flood.fast == flood.slow == flood.stalled == flood.kept == flood.said, flood
    assert flood.peak_bytes < bounds.MEMORY_BYTES_MAX, flood


@pytest.mark.timeout(300)
def test_attaching_leaves_nothing_behind(sandbox: Sandbox) -> None:
    counts = bounds.attach_and_leave(sandbox, rounds=60)
    assert counts.after == counts.before, counts


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stands_still", [False, True], ids=["to a busy engine", "to a stopped engine"])
def test_a_flood_of_requests_is_bounded(sandbox: Sandbox, stands_still: bool) -> None:
    """What waits for a busy engine waits in the engine, what waits for a stopped one in the frontend, and not here."""
    flooded = bounds.ask_a_busy_engine(sandbox, megabytes=300, stands_still=stands_still)
    assert flooded.peak_bytes < bounds.MEMORY_BYTES_MAX, flooded
    assert flooded.answered == flooded.asked, flooded
