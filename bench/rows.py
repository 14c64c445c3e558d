"""What was measured: one line of the table each, with the limit it is held to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """`ratio`: of farside's value to the bare engine's, at most; `most`, `least`: of farside's own."""

    kind: str
    value: float

    def text(self, unit: str) -> str:
        if self.kind == "ratio":
            return f"≤{self.value:.2f}x"
        return f"{'≤' if self.kind == 'most' else '≥'}{number(self.value)} {unit}"


def ratio(value: float) -> Limit:
    return Limit("ratio", value)


def most(value: float) -> Limit:
    return Limit("most", value)


def least(value: float) -> Limit:
    return Limit("least", value)


@dataclass
class Row:
    """One line. `bare` is missing where there is nothing to compare with, `limit` where none was set."""

    name: str
    unit: str
    farside: float
    bare: float | None = None
    # The median of the pairs' ratios, where both were measured in turns: drifts of the machine fall on both of a pair.
    paired: float | None = None
    limit: Limit | None = None
    samples: int = 1
    note: str = ""
    # The most that launcher and host had in memory meanwhile, together.
    peak_mb: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, pairs: Pairs, limit: Limit | None = None, scale: float = 1.0, **more) -> Row:
        return cls(
            name, unit, pairs.farside * scale, pairs.bare * scale, pairs.ratio, limit, len(pairs.of_farside), **more
        )

    @property
    def ratio(self) -> float | None:
        if self.paired is not None:
            return self.paired
        return self.farside / self.bare if self.bare else None

    @property
    def held(self) -> bool | None:
        match self.limit:
            case None:
                return None
            case Limit("ratio", value):
                return self.ratio is not None and self.ratio <= value
            case Limit("most", value):
                return self.farside <= value
            case Limit("least", value):
                return self.farside >= value
        raise AssertionError(self.limit)

    def json(self) -> dict:
        limit = {self.limit.kind: self.limit.value} if self.limit else None
        return {
            "name": self.name, "unit": self.unit, "bare": self.bare, "farside": self.farside, "ratio": self.ratio,
            "limit": limit, "held": self.held, "samples": self.samples, "peak_mb": self.peak_mb, "note": self.note,
        }

    def line(self) -> str:
        bare = "-" if self.bare is None else f"{number(self.bare)} {self.unit}"
        times = "-" if self.ratio is None else f"{self.ratio:.2f}"
        limit = self.limit.text(self.unit) if self.limit else "-"
        verdict = {None: "", True: "held", False: "OVER"}[self.held]
        peak = f"peak {self.peak_mb:.0f} MB" if self.peak_mb is not None else ""
        notes = "; ".join(text for text in (peak, self.note) if text)
        farside = f"{number(self.farside)} {self.unit}"
        return f"{self.name:<68}{bare:>14}{farside:>14}{times:>7}{limit:>12}  {verdict:<6}{notes}".rstrip()


HEADER = f"{'':<68}{'bare':>14}{'farside':>14}{'ratio':>7}{'limit':>12}"


@dataclass
class Pairs:
    """Measurements of both, taken in turns."""

    of_bare: Sequence[float]
    of_farside: Sequence[float]

    @property
    def bare(self) -> float:
        return statistics.median(self.of_bare)

    @property
    def farside(self) -> float:
        return statistics.median(self.of_farside)

    @property
    def ratio(self) -> float:
        return statistics.median(f / b for b, f in zip(self.of_bare, self.of_farside, strict=True))


def number(value: float) -> str:
    """Three digits that count; thousands grouped."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
