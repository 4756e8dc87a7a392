# What happens in an owner's caves, told as it happens. A reader that is slow misses some, and is told so.
"""``/v1/events``: calls as they begin and end, and caves as they change, by server-sent events."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
from sse_starlette.sse import EventSourceResponse

from ghost_hub.rest.row import Ask, Row
from ghost_mcp.errors import GhostError, QuotaExceeded

if TYPE_CHECKING:
    from starlette.responses import Response

    from ghost_mcp.calls import Answer, Asked, Run

__all__ = ["Events", "rows"]

KEPT = 256
LOOK_S = 2.0
READERS = 64  # of one owner


class _Reader:
    def __init__(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.missed = 0
        self.arrived = anyio.Event()

    def tell(self, event: dict[str, Any]) -> None:
        if len(self.events) == KEPT:
            self.missed += 1
        self.events.append(event)
        self.arrived.set()

    async def next(self, patience_s: float) -> list[dict[str, Any]]:
        """What came since; empty after ``patience_s``."""
        with anyio.move_on_after(patience_s):
            await self.arrived.wait()
        self.arrived = anyio.Event()
        found, missed = list(self.events), self.missed
        self.events.clear()
        self.missed = 0
        return ([{"type": "missed", "count": missed}] if missed else []) + found


class Events:
    """A layer around calls, and the readers it tells of them. Readers see their own owner's events only."""

    def __init__(self) -> None:
        self._readers: defaultdict[str, set[_Reader]] = defaultdict(set)

    async def __call__(self, run: Run, asked: Asked) -> Answer:
        readers = self._readers.get(asked.caves.owner)
        if not readers:
            return await run(asked)
        began = time.time()
        event = {"type": "call", "id": asked.id, "tool": asked.name, "cave": asked.cave}
        self._tell(asked.caves.owner, {**event, "state": "began", "at": began})
        outcome = "cancelled"
        try:
            done = await run(asked)
            outcome = done.outcome.code if isinstance(done.outcome, GhostError) else "ok"
            return done
        finally:
            if asked.place is not None:
                event["cave"] = asked.place.cave.name
            now = time.time()
            ended = {"state": "ended", "outcome": outcome, "at": now, "duration_s": now - began}
            self._tell(asked.caves.owner, {**event, **ended})

    def _tell(self, owner: str, event: dict[str, Any]) -> None:
        for reader in self._readers.get(owner, ()):
            reader.tell(event)

    async def stream(self, ask: Ask, cave: str | None) -> AsyncIterator[dict[str, str]]:
        """Server-sent events; with ``cave`` those of that cave only."""
        owner, reader = ask.caves.owner, _Reader()
        if len(self._readers[owner]) >= READERS:
            raise QuotaExceeded(f"{READERS} readers of yours listen already, which is the most")
        self._readers[owner].add(reader)
        states: dict[str, str] = {}
        try:
            while True:
                for event in [*await _changes(ask, states), *await reader.next(LOOK_S)]:
                    if cave is None or event.get("cave") in (cave, None):
                        yield {"event": event["type"], "data": json.dumps(event)}
        finally:
            self._readers[owner].discard(reader)
            if not self._readers[owner]:
                del self._readers[owner]


async def _changes(ask: Ask, states: dict[str, str]) -> list[dict[str, Any]]:
    """What the engine says now that it did not say before."""
    now = {info.name: info.state.value for info in await ask.caves.list()}
    found = [
        {"type": "cave", "cave": name, "state": now.get(name, "gone"), "at": time.time()}
        for name in sorted({*states, *now})
        if states.get(name) != now.get(name)
    ]
    states.clear()
    states.update(now)
    return found


def rows(events: Events) -> list[Row]:
    async def everything(ask: Ask) -> Response:
        return EventSourceResponse(events.stream(ask, None), ping=15)

    async def of_one(ask: Ask) -> Response:
        cave = await ask.caves.find(ask.request.path_params["id"])
        return EventSourceResponse(events.stream(ask, cave.name), ping=15)

    media = "text/event-stream"
    return [
        Row(method="GET", path="/v1/events", summary="Calls and caves, as they change.", tag="caves", scope="read", handler=everything, media=media),
        Row(method="GET", path="/v1/caves/{id}/events", summary="The same of one cave.", tag="caves", scope="read", handler=of_one, media=media),
    ]  # fmt: skip
