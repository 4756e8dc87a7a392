# What happens in an owner's caves, told as it happens. A reader that is slow misses some, and is told so.
"""``/v1/events``: calls as they begin and end, and caves as they change, by server-sent events."""

from __future__ import annotations

import json
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from ghost_hub.feed import Feed, shown_arguments, shown_outcome
from ghost_hub.owned import Caller
from ghost_hub.rest.row import Ask, Row, answer
from ghost_mcp.errors import NotFound, QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.calls import Answer, Asked, Run
    from ghost_mcp.places import Place, Places

__all__ = ["Events", "rows"]

KEPT = 256
LOOK_S = 2.0
READERS = 64  # of one owner
OWNERS = 64  # whose last calls are kept; beyond, the one that was quiet for longest is forgotten


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


class _Look:
    """What an owner's caves were at the last look; it is looked again from ``until`` on."""

    def __init__(self) -> None:
        self.looking = anyio.Lock()
        self.states: dict[str, str] = {}
        self.until = 0.0


class Events:
    """A layer around calls, what is kept of the last ones, and the readers. An owner sees its own only."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._readers: defaultdict[str, set[_Reader]] = defaultdict(set)
        self._feeds: OrderedDict[str, Feed] = OrderedDict()
        self._looks: dict[str, _Look] = {}

    async def __call__(self, run: Run, asked: Asked) -> Answer:
        # What an agent does is shown, not what its user does to look at it.
        if asked.kind != "tool":
            return await run(asked)
        owner, feed = asked.caves.owner, self._feed(asked.caves.owner)
        began = time.time()
        event = {"type": "call", "id": asked.id, "tool": asked.name, "cave": asked.cave}
        # What is to be masked is known once the cave is: of a cave's very first call the arguments come at its end.
        if (place := self._known(asked)) is not None:
            event |= _of_place(place, asked)
        self._tell(owner, feed, {**event, "state": "began", "at": began})
        done: Answer | None = None
        try:
            done = await run(asked)
            return done
        finally:
            if asked.place is not place and asked.place is not None:
                event |= _of_place(asked.place, asked)
            outcome = None if done is None else done.outcome
            now = time.time()
            ended = {"state": "ended", "at": now, "began_at": began, "duration_s": now - began}
            pictures = feed.keep(asked.id, outcome)
            self._tell(
                owner, feed, {**event, **ended, **shown_outcome(outcome), "pictures": pictures}
            )

    def _feed(self, owner: str) -> Feed:
        found = self._feeds.get(owner)
        if found is None:
            found = self._feeds[owner] = Feed()
        self._feeds.move_to_end(owner)
        while len(self._feeds) > OWNERS:
            self._feeds.popitem(last=False)
        return found

    def _known(self, asked: Asked) -> Place | None:
        """The cave of a call, when it has been called in before."""
        if not isinstance(asked.caves, Caller):
            return None
        name, owner = asked.cave or asked.caves.usual, asked.caves.owner
        return self._places.known(f"{owner}/{name}" if owner else name)

    def calls(self, owner: str) -> list[dict[str, Any]]:
        """The last calls, oldest first."""
        feed = self._feeds.get(owner)
        return [] if feed is None else list(feed.calls.values())

    def picture(self, owner: str, call_id: str, number: int) -> Response:
        """A picture of a call. Raises NotFound."""
        feed = self._feeds.get(owner)
        found = None if feed is None else feed.picture(call_id, number)
        if found is None:
            raise NotFound("that picture is not kept any more")
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
        headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        return Response(found.data, media_type=found.mime_type, headers=headers)

    def _tell(self, owner: str, feed: Feed, event: dict[str, Any]) -> None:
        feed.put(event)
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
                now = await self._look(ask)
                for event in [*_changes(states, now), *await reader.next(LOOK_S)]:
                    if cave is None or event.get("cave") in (cave, None):
                        yield {"event": event["type"], "data": json.dumps(event)}
        finally:
            self._readers[owner].discard(reader)
            if not self._readers[owner]:
                del self._readers[owner]
                self._looks.pop(owner, None)

    async def _look(self, ask: Ask) -> dict[str, str]:
        """The states of an owner's caves, LOOK_S old at most: its readers share one look, however often they are told
        something meanwhile."""
        owner = ask.caves.owner
        look = self._looks.setdefault(owner, _Look())
        async with look.looking:
            if time.monotonic() >= look.until:
                look.states = {info.name: info.state.value for info in await ask.caves.list()}
                look.until = time.monotonic() + LOOK_S
        return look.states


def _of_place(place: Place, asked: Asked) -> dict[str, Any]:
    return {
        "cave": place.cave.name,
        "arguments": shown_arguments(asked.arguments, place.link.masker),
    }


def _changes(states: dict[str, str], now: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the engine says now that it did not say before; ``states`` is what it has said."""
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

    async def calls(ask: Ask) -> Response:
        cave = ask.request.query_params.get("cave")
        found = events.calls(ask.caves.owner)
        return answer({"calls": [c for c in found if cave is None or c["cave"] == cave]})

    async def picture(ask: Ask) -> Response:
        call_id, number = (ask.request.path_params[key] for key in ("call", "number"))
        if not number.isascii() or not number.isdecimal() or len(number) > 3:
            raise NotFound("no such picture")
        return events.picture(ask.caves.owner, call_id, int(number))

    media = "text/event-stream"
    many = {
        "type": "object",
        "properties": {"calls": {"type": "array", "items": {"type": "object"}}},
    }
    cave = {"cave": {"type": "string", "description": "Of this cave only."}}
    return [
        Row(method="GET", path="/v1/events", summary="Calls and caves, as they change.", tag="caves", scope="read", handler=everything, media=media),
        Row(method="GET", path="/v1/caves/{id}/events", summary="The same of one cave.", tag="caves", scope="read", handler=of_one, media=media),
        Row(method="GET", path="/v1/calls", summary="The last calls: what was asked, and what came of it.", tag="caves", scope="read", handler=calls, result=many, query=cave),
        Row(method="GET", path="/v1/calls/{call}/pictures/{number}", summary="A picture that a call has answered with.", tag="caves", scope="read", handler=picture, media="image/*"),
    ]  # fmt: skip
