"""One round: a cell runs, something terrible happens to it, and what is left is judged."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from cell import Cell, Sight
from faults import FAULTS, Fault, Strike
from judge import Kept, seen_wrongly, unkept
from rig import ROLES, SETTLE_SECONDS, Rig
from sandbox import START_SECONDS, alive

# How often a second and a third fault come on top of the first.
MORE = (0.35, 0.2)

# One message of 200 MB takes its time; most rounds have none, and most of those a smaller one.
LARGE_SHARE, LARGE_BYTES = 0.05, (20_000_000, 20_000_000, 100_000_000)

# Between the cell's first output and the fault, and between the last repair and the cell's end.
BEFORE_SECONDS, AFTER_SECONDS = (0.0, 0.4), (0.05, 0.3)

# With so much more in the journal its host hears the engine: what a host writes at its start is a fraction of it.
HEARD_BYTES = 20_000

# A loss that is not told of by then never is.
TOLD_SECONDS = 15.0

# A launcher that takes longer to be ready is remarked upon; nothing fails of it, for the machine may be busy.
SLOW_SECONDS = 6.0


@dataclass
class Outcome:
    """What came of a round."""

    number: int
    faults: list[str]
    seconds: float = 0.0
    printed: int = 0
    seen: int = 0
    # Messages that a frontend saw and the journal has not, and outputs that the journal has not.
    unkept: int = 0
    unkept_said: int = 0
    silent: int = 0
    said: int = 0
    end: str | None = None
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def plan(rng: random.Random, tmpfs: bool) -> list[Fault]:
    """The faults of one round. The same dice give the same faults."""
    fitting = [one for one in FAULTS if one.needs in ("", "tmpfs" if tmpfs else "disk")]
    faults = rng.choices(fitting, [one.weight for one in fitting])
    for share in MORE:
        if rng.random() < share and faults[0].combines:
            more = [one for one in fitting if one.combines]
            faults += rng.choices(more, [one.weight for one in more])
    return faults


def play(rig: Rig, number: int, rng: random.Random, faults: list[Fault]) -> Outcome:
    """Plays a round; what went wrong is in the outcome, and nothing is raised but by a broken campaign."""
    outcome = Outcome(number, [one.name for one in faults])
    began = time.monotonic()
    dice = Strike(rng)
    played = _Round(rig, outcome, dice)
    try:
        played.play(faults)
    except AssertionError as error:
        outcome.problems.append(f"{type(error).__name__}: {str(error)[:1500]}")
    finally:
        for undo in dice.undo:
            undo()
    outcome.remarks += dice.said
    outcome.seconds = time.monotonic() - began
    if outcome.seconds > SLOW_SECONDS:
        outcome.remarks.append(" ".join(f"{what}: {seconds:.1f} s" for what, seconds in played.phases.items()))
    rig.rounds += 1
    return outcome


class _Round:
    def __init__(self, rig: Rig, outcome: Outcome, dice: Strike):
        self.rig, self.outcome, self.dice = rig, outcome, dice
        self.kept = Kept()
        # How long each part of the round took.
        self.phases: dict[str, float] = {}
        self._since = time.monotonic()

    def _phase(self, what: str) -> None:
        now = time.monotonic()
        self.phases[what], self._since = now - self._since, now

    def play(self, faults: list[Fault]) -> None:
        rig, rng = self.rig, self.dice.rng
        before = rig.prepare()
        assert rig.client is not None and rig.disk is not None
        # The next launcher may get another session: what is judged is this one.
        self.disk = rig.disk
        for _ in self.disk.look():
            pass
        large = rng.choice(LARGE_BYTES) if rng.random() < LARGE_SHARE else 0
        cell = Cell(rig.sandbox.work, f"cell-{self.outcome.number}", rng, large=large)
        msg_id = rig.client.execute(cell.code)
        sight = rig.client.watch(msg_id)
        rig.wait(lambda: cell.count > 0, "the cell to begin")
        rig.pause(rng.uniform(*BEFORE_SECONDS))
        self._phase("start")
        for fault in faults:
            fault.strike(rig, self.dice)
        self._phase("faults")
        launcher_died = not alive(before["launcher"])
        watched = self._go_on(msg_id, sight, cell, before)
        self._judge(msg_id, watched, cell, engine_died=not alive(before["engine"]), launcher_died=launcher_died)
        self._phase("judging")
        self._afterwards()
        self._phase("afterwards")

    def _go_on(self, msg_id: str, sight: Sight, cell: Cell, before: dict[str, int]) -> list[tuple[Sight, bool]]:
        """To the end of the cell. Gives what frontends saw of it, and whether by attaching."""
        rig, dice = self.rig, self.dice
        watched = [(sight, False)]
        session = rig.root
        connecting = time.monotonic()
        is_new = rig.connect()
        took = time.monotonic() - connecting
        if took > SLOW_SECONDS:
            self.outcome.remarks.append(f"the next launcher was ready after {took:.1f} s")
            self.outcome.remarks.append(rig.sandbox.logs()[-3000:])
        if is_new:
            # Its frontend went with it.
            if rig.root != session:
                cell.stop()
                return watched
            assert rig.client is not None
            attach = rig.client.execute(f"%farside attach {msg_id}")
            watched.append((rig.client.watch(attach), True))
        if alive(before["engine"]) and not dice.deleted:
            # And somebody hears it: what it says between two hosts is another matter, and has been tried by now.
            size = rig.journal_bytes()
            rig.wait(
                lambda: rig.journal_bytes() > size + HEARD_BYTES or not alive(before["engine"]),
                "new outputs in the journal",
            )
        self._phase("repair")
        rig.pause(dice.rng.uniform(*AFTER_SECONDS))
        cell.stop()
        for one, attached in watched:
            if attached or len(watched) == 1:
                rig.wait(lambda one=one: one.over, f"reply and idle of the cell (attached: {attached})")
        self._phase("the cell's end")
        return watched

    def _judge(
        self, msg_id: str, watched: list[tuple[Sight, bool]], cell: Cell, *, engine_died: bool, launcher_died: bool
    ) -> None:
        rig, dice, outcome = self.rig, self.dice, self.outcome
        if not dice.deleted:
            is_over = self.disk is not rig.disk
            seconds = 0.5 if dice.damaged or is_over else 10.0
            deadline = time.monotonic() + seconds
            # After a failure the journal's next record may take a second: only then it is known that some are missing.
            while (
                self._read(msg_id) >= -1
                and (self.kept.end is None or (dice.unwritable and not self.kept.marks and time.monotonic() < deadline - 6))
                and time.monotonic() < deadline
            ):
                rig.pause(0.05)
        outcome.printed, outcome.end = cell.count, self.kept.end
        outcome.seen = sum(len(sight.ids) for sight, _ in watched)
        for sight, attached in watched:
            outcome.problems += seen_wrongly(sight, attached)
        if len(watched) == 1 and not launcher_died:
            self._judge_reply(watched[0][0], engine_died)
        if dice.deleted:
            return
        lost = [one for sight, _ in watched for one in unkept(sight, self.kept)]
        if dice.unwritable or dice.damaged:
            outcome.unkept_said += len(lost)
            if lost and not self.kept.marks:
                outcome.problems.append(f"{len(lost)} messages that were shown are not kept, and no gap is")
        elif lost:
            outcome.unkept += len(lost)
            outcome.problems.append(f"{len(lost)} messages were shown and are not in the journal: {lost[:3]}")
        printed = None if engine_died else cell.count
        # Losses that go on are told of together, every ten seconds.
        deadline = time.monotonic() + TOLD_SECONDS
        while self.kept.missing(printed)[1] and time.monotonic() < deadline:
            rig.pause(0.1)
            self._read(msg_id)
        said, silent = self.kept.missing(printed)
        outcome.said += sum(map(len, said))
        outcome.silent += sum(map(len, silent))
        if silent:
            what = [f"{run.start}-{run.stop - 1}" for run in silent[:4]]
            outcome.problems.append(f"outputs {', '.join(what)} of {cell.count} are missing and nothing says so")
        outcome.problems += self.kept.disorder()[:3]
        expected = ("error", "lost") if engine_died else ("ok",)
        if outcome.end not in expected and not dice.damaged:
            # Of a session whose processes are all dead nobody is left to write the end; `farside ls` says `lost`.
            if not (engine_died and outcome.end is None and self.disk is not rig.disk):
                outcome.problems.append(f"the execution's end is {outcome.end}, expected: {expected}")

    def _judge_reply(self, sight: Sight, engine_died: bool) -> None:
        statuses = [reply.get("status") for reply in sight.replies]
        expected = ["error"] if engine_died else ["ok"]
        if statuses != expected and not self.dice.damaged:
            self.outcome.problems.append(f"its frontend got the replies {sight.replies}, expected: {expected}")

    def _read(self, msg_id: str) -> int:
        """Takes in what the journal has got; gives the last output that is in it."""
        for entry in self.disk.look():
            self.kept.take(entry, msg_id)
        return self.kept.last

    def _afterwards(self) -> None:
        """The next launcher works, all questions are answered, and there is no process too many."""
        rig, flood = self.rig, self.dice.flood
        if self.dice.deleted and rig.launcher is not None:
            # Nobody could find this session any more: with its last frontend it ends.
            rig.launcher.kill()
            rig.wait(lambda: not rig.sandbox.processes(), "a session without a folder to end")
        rig.connect()
        assert rig.client is not None
        result = rig.client.run("print('it', 'works')", seconds=START_SECONDS)
        assert result.reply is not None
        if result.reply.content["status"] != "ok" or "it works\n" not in result.text:
            self.outcome.problems.append(f"afterwards: {result.reply.content}, {result.text!r}")
        if flood and not any("launcher" in name for name in self.outcome.faults):
            self._count_answers(flood)
        pids = rig.wait(lambda: (found := rig.pids()) and len(found) == len(ROLES) and found, "all four processes")
        expected = set(pids.values())

        def others() -> dict[int, str]:
            return {pid: what for pid, what in rig.sandbox.processes().items() if pid not in expected}

        left = others()
        deadline = time.monotonic() + SETTLE_SECONDS / 4
        while left and time.monotonic() < deadline:
            rig.pause(0.05)
            left = others()
        if left:
            self.outcome.problems.append(f"processes too many: {left}")

    def _count_answers(self, flood: dict[str, int]) -> None:
        client = self.rig.client
        assert client is not None

        def answered() -> int:
            return len({m.parent_id for m in client.messages if m.channel in ("shell", "control")} & flood.keys())

        deadline = time.monotonic() + SETTLE_SECONDS
        while answered() < len(flood) and time.monotonic() < deadline:
            client.pump(0.1)
        if answered() < len(flood):
            self.outcome.problems.append(f"{len(flood) - answered()} of {len(flood)} requests were not answered")

