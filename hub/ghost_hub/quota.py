"""Layers around each call over HTTP: what the token allows, and how much one owner may do at once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ghost_hub.owned import Caller
from ghost_mcp.calls import Answer
from ghost_mcp.errors import GhostError, QuotaExceeded

if TYPE_CHECKING:
    from ghost_mcp.calls import Asked, Run

__all__ = ["Concurrency", "allowed"]


async def allowed(run: Run, asked: Asked) -> Answer:
    """Refuse a call that the caller's token does not allow: it may look, or it may act."""
    try:
        if isinstance(asked.caves, Caller):
            asked.caves.principal.need("read" if asked.effect == "read" else "use")
    except GhostError as error:
        return Answer(outcome=error)
    return await run(asked)


class Concurrency:
    """At most so many calls of one owner at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[str] = Counter()

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
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
