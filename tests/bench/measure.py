# Only this file says how a number comes about: in turns with its floor, so that other load meets both alike.
"""Samples, rows, and the loop that takes them."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Row", "Samples", "Side", "taken", "turns"]

Side = Callable[[], Awaitable[float]]
Statistic = Literal["p50", "p95"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured values, in the unit of their row."""

    values: tuple[float, ...]

    def _at(self, share: float) -> float:
        """Nearest rank: a value that was measured, never one between two."""
        ranked = sorted(self.values)
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    @property
    def p50(self) -> float:
        return self._at(0.5)

    @property
    def p95(self) -> float:
        return self._at(0.95)

    @property
    def least(self) -> float:
        return min(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. A goal is a ratio to the floor, a value in ``unit``, or both; none: for comparison."""

    what: str
    unit: str
    samples: Samples
    floor: Samples | None = None
    floor_what: str = ""
    statistic: Statistic = "p50"
    goal_ratio: float | None = None
    goal_value: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def value(self) -> float:
        found: float = getattr(self.samples, self.statistic)
        return found

    @property
    def floor_value(self) -> float | None:
        return None if self.floor is None else float(getattr(self.floor, self.statistic))

    @property
    def ratio(self) -> float | None:
        return None if not self.floor_value else self.value / self.floor_value

    @property
    def best_ratio(self) -> float | None:
        """Least to least: what remains of the ratio when other load is looked away."""
        return None if self.floor is None else self.samples.least / self.floor.least

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        verdicts = []
        if self.goal_ratio is not None:
            verdicts.append(self.ratio is not None and self.ratio <= self.goal_ratio)
        if self.goal_value is not None:
            verdicts.append(self.value <= self.goal_value)
        return all(verdicts) if verdicts else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "what": self.what,
            "unit": self.unit,
            "runs": len(self.samples.values),
            **_told("", self.samples),
            **(_told("floor_", self.floor) if self.floor is not None else {}),
            "floor": self.floor_what,
            "statistic": self.statistic,
            "ratio": self.ratio,
            "best_ratio": self.best_ratio,
            "goal_ratio": self.goal_ratio,
            "goal_value": self.goal_value,
            "met": self.met,
            "notes": list(self.notes),
        }


def _told(prefix: str, samples: Samples) -> dict[str, float]:
    return {f"{prefix}{name}": getattr(samples, name) for name in ("p50", "p95", "least")}


async def taken(act: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds that ``act`` takes."""
    started = time.perf_counter()
    await act()
    return (time.perf_counter() - started) * 1e3


async def turns(rounds: int, *sides: Side, block: int = 1) -> list[Samples]:
    """Let each side measure itself ``rounds`` times ``block``, in turns: A B, B A, A B ...

    What follows a side in the kernel (namespaces that are taken down, say) so meets each side alike. One
    unmeasured turn goes before. ``block`` is for what takes microseconds: a turn then is so many in a row.
    """
    found: list[list[float]] = [[] for _ in sides]
    for side in sides:
        await side()
    order = list(zip(sides, found, strict=True))
    for _ in range(rounds):
        for side, values in order:
            for _ in range(block):
                values.append(await side())
        order.reverse()
    return [Samples(tuple(values)) for values in found]
