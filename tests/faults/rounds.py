"""One round: a cell runs, something terrible happens to it, and what is left is judged."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import datetime

from cell import Cell, Sight
from clock import Clock
from faults import FAULTS, Fault, Strike
from judge import Kept, seen_wrongly, unkept
from rig import IDLE_SECONDS, SETTLE_SECONDS, Rig
from sandbox import START_SECONDS, Lost, alive

# How often a second and a third fault come on top of the first.
MORE = (0.35, 0.2)

# A large message takes its time; most rounds have none, and most of those a smaller one than the faults that come in
# the middle of one.
LARGE_SHARE, LARGE_BYTES = 0.05, (20_000_000, 20_000_000, 100_000_000)

# Between the cell's first output and the fault, and between the last repair and the cell's end.
BEFORE_SECONDS, AFTER_SECONDS = (0.0, 0.4), (0.05, 0.3)

# With so much more in the journal its host hears the engine: what a host writes at its start is a fraction of it.
HEARD_BYTES = 20_000

# A loss that is not told of by then never is.
TOLD_SECONDS = 15.0

# Of a round that takes longer it is said what took so long; nothing fails of it, for the machine may be busy.
SLOW_SECONDS = 10.0


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


def plan(rng: random.Random, offers: frozenset[str]) -> list[Fault]:
    """The faults of one round. The same dice give the same faults."""
    fitting = [one for one in FAULTS if one.fits(offers)]
    faults = rng.choices(fitting, [one.weight for one in fitting])
    for share in MORE:
        if rng.random() < share and faults[0].combines:
            more = [one for one in fitting if one.combines and not one.large]
            faults += rng.choices(more, [one.weight for one in more])
    return faults


def play(rig: Rig, number: int, rng: random.Random, faults: list[Fault]) -> Outcome:
    """Plays a round; what went wrong is in the outcome, and nothing is raised but by a broken campaign."""
    outcome = Outcome(number, [one.name for one in faults])
    began = time.monotonic()
    dice = Strike(rng)
    if rig.clock is not None:
        rig.clock.begin()
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
        self.kept = Kept(rig.clock)
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
        large = max(one.large for one in faults)
        large = large or (rng.choice(LARGE_BYTES) if rng.random() < LARGE_SHARE else 0)
        cell = Cell(rig.sandbox.work, f"cell-{self.outcome.number}", rng, large=large)
        msg_id = rig.client.execute(cell.code)
        sight = rig.client.watch(msg_id)
        rig.wait(lambda: cell.count > 0, "the cell to begin")
        rig.pause(rng.uniform(*BEFORE_SECONDS))
        self._phase("start")
        for fault in faults:
            fault.strike(rig, self.dice)
        self._phase("faults")
        # A launcher whose server was killed may not have ended yet.
        frontend_died = not rig.frontend_lives()
        watched = self._go_on(msg_id, sight, cell, before)
        self._judge(msg_id, watched, cell, engine_died=not alive(before["engine"]), frontend_died=frontend_died)
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
        if took > rig.slow_seconds:
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
            least = rig.journal_bytes()

            def is_heard() -> bool:
                nonlocal least
                size = rig.journal_bytes()
                # A new host cuts what was half written, which may be most of a large message.
                least = min(least, size)
                return size > least + HEARD_BYTES or not alive(before["engine"])

            rig.wait(is_heard, "new outputs in the journal")
        self._phase("repair")
        rig.pause(dice.rng.uniform(*AFTER_SECONDS))
        cell.stop()
        for one, attached in watched:
            if attached or len(watched) == 1:
                rig.wait(lambda one=one: one.over, f"reply and idle of the cell (attached: {attached})")
        self._phase("the cell's end")
        return watched

    def _judge(
        self, msg_id: str, watched: list[tuple[Sight, bool]], cell: Cell, *, engine_died: bool, frontend_died: bool
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
        if len(watched) == 1 and not frontend_died:
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
        if silent and engine_died and self.disk is not rig.disk:
            # What the engine drops is told of some seconds later, and of this session nobody was left to do that.
            outcome.remarks.append(f"{sum(map(len, silent))} outputs are missing, and nobody was left to say so")
        elif silent:
            what = [f"{run.start}-{run.stop - 1}" for run in silent[:4]]
            outcome.problems.append(f"outputs {', '.join(what)} of {cell.count} are missing and nothing says so")
        outcome.problems += self.kept.disorder()[:3] + self.kept.never[:3]
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
            rig.end_launcher()
            rig.wait(lambda: not rig.sandbox.processes(), "a session without a folder to end")
        rig.connect()
        assert rig.client is not None
        result = rig.client.run("print('it', 'works')", seconds=START_SECONDS)
        assert result.reply is not None
        if result.reply.content["status"] != "ok" or "it works\n" not in result.text:
            self.outcome.problems.append(f"afterwards: {result.reply.content}, {result.text!r}")
        if flood and not any("launcher" in name or "server" in name for name in self.outcome.faults):
            self._count_answers(flood)
        if rig.clock is not None and (rig.clock.was_set or rig.clock.ahead != 0):
            self._look_at_times(rig.clock)
        expected = set(rig.wait_whole().values())

        def others() -> dict[int, str]:
            return {pid: what for pid, what in rig.sandbox.processes().items() if pid not in expected}

        left = others()
        deadline = time.monotonic() + SETTLE_SECONDS / 4
        while left and time.monotonic() < deadline:
            rig.pause(0.05)
            left = others()
        if left:
            self.outcome.problems.append(f"processes too many: {left}")

    def _look_at_times(self, clock: Clock) -> None:
        """The command line shows the session, by the clock as it is now, with a whole idle time before it."""
        rig = self.rig
        assert rig.root is not None
        shown: dict = {}

        def left() -> float:
            shown.update(rig.sandbox.session(rig.root.name))
            return datetime.fromisoformat(shown["ends_at"]).timestamp() - clock.now()

        try:
            rig.wait(lambda: abs(IDLE_SECONDS - left()) < SETTLE_SECONDS, "the session's end to be where it was", TOLD_SECONDS)
        except Lost as lost:
            self.outcome.problems.append(f"{lost}: it is {clock.now():.0f}, and {shown}")
        for command in (("ls",), ("history", rig.root.name), ("status", rig.root.name)):
            code, out, err = rig.sandbox.cli(*command)
            if code != 0:
                self.outcome.problems.append(f"farside {' '.join(command)}: {code} {err}")

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

