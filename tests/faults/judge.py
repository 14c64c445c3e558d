"""What a round must have left: nothing that was shown is missing in the journal, and what is missing there is said."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from cell import Sight, tokens
from clock import Clock
from disk import IOPUB, NOTE, REQUEST, Missing, Record

# A copy that an attachment got of a record: `<request>_<seq>_<part>`.
COPY = re.compile(r"^[0-9a-f]{32}_(\d+)_\d+$")


@dataclass
class Kept:
    """What the journal has of one execution."""

    # The wall clock that its times are told in, where that can be set. Here all are the machine's.
    clock: Clock | None = None
    n: int = 0
    # Numbers of outputs with their times, and `None` where a reader sees that something is missing, in order.
    order: list[tuple[int, float] | None] = field(default_factory=list)
    # Times that gap notes speak of.
    gaps: list[tuple[float, float]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    seqs: set[int] = field(default_factory=set)
    states: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    # Times that the clock never showed.
    never: list[str] = field(default_factory=list)
    _newest: float = 0.0

    def take(self, entry: Record | Missing, msg_id: str) -> None:
        if isinstance(entry, Missing):
            self.marks.append(entry.why)
            self.order.append(None)
            return
        self.seqs.add(entry.seq)
        moment = self._moment(entry)
        if entry.kind == NOTE:
            note = entry.note
            if note.get("note") == "gap":
                self.marks.append(note["why"])
                self.gaps.append((min(self._moments(note["from"])), max(self._moments(note["until"]))))
            if note.get("note") == "execution" and note["msg_id"] == msg_id:
                self.states.append(note["state"])
            return
        header = entry.header
        self.ids.add(header["msg_id"])
        if entry.kind == REQUEST and header["msg_id"] == msg_id:
            self.n = entry.execution
        if entry.kind == IOPUB and entry.execution == self.n != 0 and header["msg_type"] in ("stream", "display_data"):
            self.order += [(one, moment) for one in tokens(entry.content)]

    def _moments(self, shown: int) -> list[float]:
        """When it can have been this time. One that never was says nothing of any other."""
        if self.clock is None:
            return [shown / 1e6]
        return self.clock.moments(shown / 1e6) or [math.nan]

    def _moment(self, record: Record) -> float:
        """When it was made: the first moment of its time behind the record before it."""
        moments = self._moments(record.time)
        if math.isnan(moments[0]):
            self.never.append(f"record {record.seq} has the time {record.time / 1e6:.3f}, which no clock has shown")
            return self._newest
        self._newest = next((one for one in moments if one >= self._newest), moments[-1])
        return self._newest

    @property
    def last(self) -> int:
        """The last output that is there."""
        return next((one[0] for one in reversed(self.order) if one), -1)

    @property
    def end(self) -> str | None:
        final = [s for s in self.states if s not in ("queued", "running", "waiting_input")]
        return final[-1] if final else None

    def missing(self, printed: int | None) -> tuple[list[range], list[range]]:
        """Outputs that are not there: those beside a mark, and those of which nothing is said. `printed`: how many
        there were, where that is known; else those up to the last one count."""
        said: list[range] = []
        silent: list[range] = []
        last, since, marked = -1, 0.0, False

        def look(until: int, until_time: float) -> None:
            if until > last + 1:
                is_said = marked or any(a <= until_time and b >= since for a, b in self.gaps)
                (said if is_said else silent).append(range(last + 1, until))

        for one in self.order:
            if one is None:
                marked = True
                continue
            number, time = one
            look(number, time)
            if number > last:
                last, since, marked = number, time, False
        if printed is not None:
            look(printed, math.inf)
        return said, silent

    def disorder(self) -> list[str]:
        """Outputs that are there twice, or before an earlier one."""
        numbers = [one[0] for one in self.order if one]
        return [f"{b} after {a}" for a, b in zip(numbers, numbers[1:], strict=False) if b <= a]


def unkept(sight: Sight, kept: Kept) -> list[str]:
    """Ids of messages that a frontend saw and the journal does not have."""
    found = []
    for msg_id in sight.ids:
        copy = COPY.match(msg_id)
        if msg_id not in kept.ids and not (copy and int(copy[1]) in kept.seqs):
            found.append(msg_id)
    return found


def seen_wrongly(sight: Sight, attached: bool) -> list[str]:
    """What no frontend should see, whatever happens: an output twice, or out of order."""
    wrong = [f"message {msg_id} came {count} times" for msg_id, count in sight.ids.items() if count > 1]
    if not attached:
        pairs = zip(sight.tokens, sight.tokens[1:], strict=False)
        wrong += [f"output {b} was shown after {a}" for a, b in pairs if b <= a]
    return wrong[:3]


