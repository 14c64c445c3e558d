"""`make faults`: real processes are killed, stopped and starved at random moments, and nothing may be lost.

    FAULTS=500 FARSIDE_SEED=17 make faults        that many faults, with these dice
    FAULTS_ARGS="--only 'disk full'" make faults  one kind
    FAULTS_ARGS="--tiny 10000000" make faults     so many tiny messages instead, and one killed host

Each round's dice are the seed and its number: `--from N` begins with round N. What a failed round left is kept.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "e2e")]

import clock
import rounds
from faults import FAULTS, Fault
from rig import Rig, can_mount
from rounds import Outcome
from sandbox import Sandbox
from served import ServedRig
from tiny import tiny

# A rig is renewed after so many rounds: its journal fills its file system, and ending it whole is a test too.
ROUNDS_A_RIG = 20

# Rigs whose frontend is a page at a Jupyter Server. Their rounds take some seconds longer.
SERVED_SHARE = 0.3

# Folders of failed rounds that are kept.
KEPT_MAX = 8


class Campaign:
    def __init__(self, seed: int, count: int, only: str | None = None, start: int = 0, quiet: bool = False):
        self.seed, self.count, self.only, self.start, self.quiet = seed, count, only, start, quiet
        self.mounts, self.clocks = can_mount(), clock.can_be_set()
        self.outcomes: list[Outcome] = []
        self.kept: list[str] = []
        self.rig: Rig | None = None

    def run(self) -> bool:
        """Whether nothing was lost and nothing went wrong."""
        if not self.mounts:
            self.say("no tmpfs can be mounted here (not root?): the disk is never full in this campaign")
        if not self.clocks:
            self.say("there is no cc here: no clock is set in this campaign")
        number, struck = self.start, 0
        try:
            while struck < self.count:
                outcome = self._round(number)
                self.outcomes.append(outcome)
                number, struck = number + 1, struck + len(outcome.faults)
                self._tell(outcome)
        except KeyboardInterrupt:
            self.say("interrupted: what was played counts")
        finally:
            last = Outcome(number, ["(end of the session)"])
            self._renew(last)
            if last.problems:
                self._tell(last)
        return not any(outcome.problems for outcome in self.outcomes)

    def _round(self, number: int) -> Outcome:
        rng = random.Random(f"{self.seed}/{number}")
        offers = self._offers(number)
        faults = self._plan(rng, offers)
        if self.rig is None:
            self.rig = (ServedRig if "server" in offers else Rig)(offers)
        outcome = rounds.play(self.rig, number, rng, faults)
        worn = self.rig.is_full() or (number + 1) % ROUNDS_A_RIG == 0
        if outcome.problems or worn or not faults[0].combines:
            self._renew(outcome)
        return outcome

    def _offers(self, number: int) -> frozenset[str]:
        """What the rig of this round can do."""
        dice = random.Random(f"{self.seed}/rig/{number // ROUNDS_A_RIG}")
        tmpfs, served = dice.random() < 0.5, dice.random() < SERVED_SHARE
        if self.only is not None:
            needed = [{one.needs for one in FAULTS if part in one.name} for part in self.only.split("+")]
            served = {"server"} in needed
            tmpfs = {"tmpfs"} in needed or (tmpfs and {"disk"} not in needed)
        return frozenset(
            ["tmpfs" if tmpfs and self.mounts else "disk"] + ["server"] * served + ["clock"] * self.clocks
        )

    def _plan(self, rng: random.Random, offers: frozenset[str]) -> list[Fault]:
        if self.only is None:
            return rounds.plan(rng, offers)
        # `a+b`: one of each, together.
        return [
            rng.choice([one for one in FAULTS if part in one.name and one.fits(offers)])
            for part in self.only.split("+")
        ]

    def _renew(self, outcome: Outcome) -> None:
        """Ends the rig's session as a person would; what is left then is a problem of the last round."""
        if self.rig is None:
            return
        rig, self.rig = self.rig, None
        began = time.monotonic()
        try:
            self._close(rig, outcome)
        finally:
            outcome.remarks.append(f"{time.monotonic() - began:.1f} s for the session's end")

    def _close(self, rig: Rig, outcome: Outcome) -> None:
        if outcome.problems and len(self.kept) < KEPT_MAX:
            self.kept.append(f"round {outcome.number}: {rig.sandbox.root}")
            outcome.remarks.append(rig.sandbox.logs()[-1500:])
            rig.close(keep=True)
            return
        wrong = rig.close()
        outcome.problems += [f"at the session's end: {one}" for one in wrong]
        if wrong and outcome not in self.outcomes:
            self.outcomes.append(outcome)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def _tell(self, outcome: Outcome) -> None:
        if self.quiet and not outcome.problems:
            return
        what = f"{outcome.number:4}  {outcome.seconds:5.1f} s  {outcome.printed:6} printed  {outcome.end or '-':6}"
        losses = f"  missing, said: {outcome.said}" if outcome.said else ""
        self.say(f"{what}  {' | '.join(outcome.faults)}{losses}")
        for problem in outcome.problems:
            self.say(f"        WRONG: {problem}")
        for remark in outcome.remarks:
            self.say("        " + remark.replace("\n", "\n        "))

    # The table.

    def table(self) -> str:
        rows: dict[str, list[Outcome]] = collections.defaultdict(list)
        for outcome in self.outcomes:
            for name in outcome.faults:
                rows[name].append(outcome)
        lines = [
            "| fault | times | shown, not kept | missing, nothing says so | missing, said | shown, not kept, said | failed |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in [one.name for one in FAULTS if one.name in rows]:
            lines.append(_row(name, len(rows[name]), rows[name]))
        total = sum(len(outcome.faults) for outcome in self.outcomes)
        lines.append(_row(f"all, in {len(self.outcomes)} rounds", total, self.outcomes))
        return "\n".join(lines)

    def gap(self) -> str:
        """What the death of a host costs, where nothing else happened."""
        alone = [one for one in self.outcomes if one.faults == ["kill -9 host"] and not one.problems]
        if not alone:
            return ""
        lost = sorted(one.said for one in alone)
        return (
            f"Outputs lost to the gap of one killed host, at full speed ({len(alone)} times): "
            f"median {lost[len(lost) // 2]}, most {lost[-1]}, none in {lost.count(0)}"
        )


def _row(name: str, times: int, outcomes: list[Outcome]) -> str:
    sums = [sum(getattr(one, what) for one in outcomes) for what in ("unkept", "silent", "said", "unkept_said")]
    failed = sum(bool(one.problems) for one in outcomes)
    return f"| {name} | {times} | {' | '.join(map(str, sums))} | {failed} |"


def play_tiny(messages: int, cell: int | None, seed: int) -> int:
    sandbox = Sandbox()
    try:
        done = tiny(sandbox, messages, random.Random(seed), cell)
    finally:
        wrong = sandbox.close()
    print(done, *(f"WRONG: {one}" for one in [*done.problems, *wrong]), sep="\n")
    return 1 if done.problems or wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=int(os.environ.get("FAULTS", "500")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FARSIDE_SEED", "0")) or time.time_ns() % 1_000_000)
    parser.add_argument("--only", help="faults whose name has this in it, alone")
    parser.add_argument("--from", dest="start", type=int, default=0, help="number of the first round")
    parser.add_argument("--tiny", type=int, help="no campaign, but so many tiny messages (tiny.py)")
    parser.add_argument("--cell", type=int, help="of `--tiny`: how many of them a cell prints")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tiny:
        return play_tiny(args.tiny, args.cell, args.seed)
    campaign = Campaign(args.seed, args.faults, args.only, args.start)
    campaign.say(f"seed {args.seed}: FARSIDE_SEED={args.seed} plays these rounds again")
    began = time.monotonic()
    good = campaign.run()
    minutes = (time.monotonic() - began) / 60
    campaign.say(f"\n{campaign.table()}\n\n{campaign.gap()}\n{minutes:.1f} minutes, seed {args.seed}")
    for folder in campaign.kept:
        campaign.say(f"kept: {folder}")
    if args.json:
        args.json.write_text(json.dumps([vars(one) for one in campaign.outcomes], indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
