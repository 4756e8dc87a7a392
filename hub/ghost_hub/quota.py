"""What a token allows, how much an owner may do at once, and how many requests a token may send."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ghost_hub.owned import Caller
from ghost_mcp.calls import Answer
from ghost_mcp.errors import GhostError, QuotaExceeded

if TYPE_CHECKING:
    from ghost_mcp.calls import Asked, Run

__all__ = ["Concurrency", "Rates", "Tally", "allowed"]

MAX_CALLERS = 10_000


async def allowed(run: Run, asked: Asked) -> Answer:
    """Refuse a call that the caller's token does not allow: it may look, or it may act."""
    try:
        if isinstance(asked.caves, Caller):
            asked.caves.principal.need("read" if asked.effect == "read" else "use")
    except GhostError as error:
        return Answer(outcome=error)
    return await run(asked)


class Tally(Counter[str]):
    """How much each owner has of something. Who has nothing any more is forgotten."""

    def less(self, owner: str, count: int = 1) -> None:
        self[owner] -= count
        if not self[owner]:
            del self[owner]


class Concurrency:
    """At most so many calls of one owner at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = Tally()

    async def __call__(self, run: Run, asked: Asked) -> Answer:
        owner = asked.caves.owner
        if self._running[owner] >= self._most and asked.kind != "ending":
            return Answer(
                outcome=QuotaExceeded(
                    f"{self._most} calls of yours are running, which is the most",
                    hint="Try again when one of them has ended.",
                    data={"limit": self._most},
                )
            )
        self._running[owner] += 1
        try:
            return await run(asked)
        finally:
            self._running.less(owner)


class Rates:
    """A bucket of requests for each token: filled at a steady rate, never above the burst."""

    def __init__(
        self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, token_id: str) -> float:
        """0 when the request may pass, else after how many seconds it may."""
        now = self._clock()
        room, at = self._buckets.get(token_id, (float(self._burst), now))
        room = min(self._burst, room + (now - at) * self._per_s)
        if room < 1:
            self._buckets[token_id] = (room, now)
            return (1 - room) / self._per_s
        if len(self._buckets) >= MAX_CALLERS and token_id not in self._buckets:
            self._buckets.clear()
        self._buckets[token_id] = (room - 1, now)
        return 0.0
