"""Covers item 3 of "nothing lost": the short fault campaign. The long one is `make faults`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))

from campaign import Campaign

# Fixed, so that it is the same campaign for everybody; `make faults` throws other dice each time.
SEED = int(os.environ.get("FARSIDE_SEED", "4"))
FAULTS = 25


@pytest.mark.timeout(600)
def test_nothing_is_lost_in_a_short_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    campaign = Campaign(SEED, FAULTS)
    good = campaign.run()
    said = capsys.readouterr().out
    assert good, f"{said}\n{campaign.table()}\nkept: {campaign.kept}"
