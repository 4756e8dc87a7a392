# Only this file decides which cave a call goes to.
"""From a call's ``cave`` argument, or none, to a live cave and what the servers keep for it."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

import anyio

from ghost_mcp.errors import CaveGone, CaveNotFound, Conflict, GhostError, Internal
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.spec import CaveInfo, CaveSpec, check_full_name
from ghost_mcp.tool import Keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from ghost_mcp.cave import Cave
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.warden.link import Link

__all__ = ["Caves", "Place", "Places", "SessionCaves"]

_log = logging.getLogger(__name__)

CLOSE_S = 3.0
END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a call happens. ``note`` is for the caller: something about the cave that it cannot know."""

    cave: Cave
    link: Link
    keep: Keep = field(default_factory=Keep)
    note: str = ""


class Caves(Protocol):
    """The caves one caller may use. Whatever is read or called goes through it, tools and resources alike."""

    @property
    def owner(self) -> str:
        """Whose caves they are; empty for the user of this machine."""

    @property
    def may_grant(self) -> bool:
        """Whether the caller may widen a cave's network when a person says so."""

    async def place(self, name: str | None) -> Place:
        """The cave of that name, or the caller's own, which is created on first use.

        Raises CaveNotFound, CaveGone, Conflict when it is stopped, and what creating raises.
        """

    async def find(self, name: str) -> Cave:
        """The cave of that name, whatever its state. Raises CaveNotFound."""

    async def failed(self, place: Place, error: GhostError) -> GhostError:
        """To be called when a call in ``place`` failed; the error to tell, which says when the cave is gone."""

    async def list(self) -> list[CaveInfo]:
        """The caves the caller may name, oldest first."""


class Places:
    """Every live cave that was called in, with its Keep: one for each cave, however many callers it has.

    Use it as an async context manager inside its Ghost's; leaving closes all Keeps.
    """

    def __init__(self, ghost: Ghost) -> None:
        self.ghost = ghost
        self._places: dict[str, Place] = {}
        self._ids: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        async with anyio.create_task_group() as tasks:
            for cave_id in list(self._places):
                tasks.start_soon(self.drop, cave_id)

    async def named(self, name: str) -> Place:
        """The place of a cave by full name or id. Raises CaveNotFound with the way to make it, CaveGone, Conflict."""
        cave_id = self._ids.get(name)
        if cave_id is None or cave_id not in self._places:
            place = await self.of(await self.find(name))
        else:
            place = await self.of(self._places[cave_id].cave)
        self._ids[name] = place.cave.id
        return place

    def known(self, name: str) -> Place | None:
        """The place of that full name when it was called in before; whether its cave still lives is not asked."""
        return self._places.get(self._ids.get(name, ""))

    async def find(self, name: str) -> Cave:
        """The cave of that full name or id, whatever its state. Raises CaveNotFound with the way to make it."""
        try:
            return await self.ghost.get(check_full_name(name))
        except CaveNotFound as exc:
            raise CaveNotFound(
                f"no cave named {name}",
                hint=f"Create it with: ghost create {name} (or leave the cave argument out).",
            ) from exc

    async def of(self, cave: Cave) -> Place:
        """The place of a cave, alive. What was kept is closed when its link is a new one: it hung on the old.

        Raises CaveGone, CaveNotFound, or Conflict when it is stopped.
        """
        place = self._places.get(cave.id)
        try:
            link = await self.ghost.link(cave.id)
        except (CaveGone, CaveNotFound, Conflict):
            await self.drop(cave.id)
            state = (await cave.refresh()).state
            if state in (State.STOPPED, State.PAUSED):
                after(state, Event.CALL, cave.name)
            raise
        if place is not None and place.link is not link:
            await self.drop(cave.id)
            place = None
        if place is None:
            place = self._places.get(cave.id) or self._new(cave, link)
        return place

    def _new(self, cave: Cave, link: Link) -> Place:
        """What hangs on the link goes when it breaks, also when the cave has ended and nobody calls in it again."""
        place = self._places[cave.id] = Place(cave=cave, link=link)

        def forget() -> None:
            if self._places.get(cave.id) is place:
                self.ghost.spawn(partial(self.drop, cave.id))

        link.when_broken(forget)
        return place

    async def failed(
        self, place: Place, error: GhostError, ended: Callable[[Cave, GhostError], CaveGone]
    ) -> GhostError:
        """What a failed call in ``place`` is to be told: whether its cave is gone (``ended`` says how), stopped or
        paused, or the connection only."""
        if not isinstance(error, CaveGone | CaveNotFound | Internal):
            return error
        cave = place.cave
        try:
            now = await self.of(cave)
        except (CaveGone, CaveNotFound) as end:
            return ended(cave, end)
        except GhostError as state:  # stopped, paused: that says more
            return state
        if now.link is place.link:
            return error
        return CaveGone(
            f"the connection to cave {cave.name} broke during the call",
            hint="It is there again: repeat the call if doing it twice does no harm.",
        )

    async def drop(self, cave_id: str) -> None:
        """Close what is kept for a cave, within bounds; its errors are logged, for nobody can act on them."""
        place = self._places.pop(cave_id, None)
        if place is None:
            return
        self._ids = {name: of for name, of in self._ids.items() if of != cave_id}
        with anyio.move_on_after(CLOSE_S, shield=True) as scope:
            try:
                await place.keep.aclose()
            except Exception as exc:  # noqa: BLE001 - the rest is closed all the same
                _log.warning("cave %s: closing a resource failed: %r", place.cave.name, exc)
        if scope.cancelled_caught:
            _log.warning("cave %s: closing its resources took too long", place.cave.name)


class SessionCaves:
    """The caves of one connection: its own, ephemeral, made on first use; or the one it is pinned to.

    Use it as an async context manager; leaving ends its own cave.
    """

    owner = ""
    may_grant = True

    def __init__(self, places: Places, *, pinned: str | None = None) -> None:
        self._places = places
        self._pinned = pinned
        self._own: Cave | None = None
        self._lost = ""
        self._lock = anyio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        cave, self._own = self._own, None
        if cave is None:
            return
        await self._places.drop(cave.id)
        with anyio.move_on_after(END_S, shield=True) as scope:
            try:
                await cave.destroy()
            except GhostError as error:  # it ends by itself with this process
                _log.warning("cave %s could not be destroyed: %s", cave.name, error)
        if scope.cancelled_caught:
            _log.warning("destroying cave %s took too long", cave.name)

    async def place(self, name: str | None) -> Place:
        if name is not None:
            return await self._places.named(name)
        if self._pinned is not None:
            return await self._places.named(self._pinned)
        if self._own is not None:
            with suppress(CaveGone, CaveNotFound):
                return await self._places.of(self._own)
        async with self._lock:
            return await self._own_place()

    async def _own_place(self) -> Place:
        """The own cave, made when there is none, or none that lives."""
        if self._own is not None:
            try:
                return await self._places.of(self._own)
            except (CaveGone, CaveNotFound):
                await self._forget(self._own)
        self._own = await self._places.ghost.create(CaveSpec(ephemeral=True))
        place = await self._places.of(self._own)
        lost, self._lost = self._lost, ""
        if not lost:
            return place
        note = f"Note: your cave {lost} has ended, with all its files."
        return replace(
            place, note=f"{note} This answer is from a new, empty one, {self._own.name}."
        )

    async def _forget(self, cave: Cave) -> None:
        """The own cave is dead: what the engine still has of it goes too."""
        self._own, self._lost = None, cave.name
        with anyio.move_on_after(END_S, shield=True):
            try:
                await cave.destroy()
            except GhostError as error:
                _log.warning("cave %s could not be removed: %s", cave.name, error)

    async def find(self, name: str) -> Cave:
        return await self._places.find(name)

    async def failed(self, place: Place, error: GhostError) -> GhostError:
        return await self._places.failed(place, error, self._ended)

    def _ended(self, cave: Cave, end: GhostError) -> CaveGone:
        again = "create" if isinstance(end, CaveNotFound) else "start"
        hint = f"Use another cave, or bring it back: ghost {again} {cave.name}"
        if self._own is not None and self._own.id == cave.id:
            hint = "Its files are lost. The next call gets a new, empty cave."
        return CaveGone(f"cave {cave.name} ended during the call", hint=hint)

    async def list(self) -> list[CaveInfo]:
        return await self._places.ghost.list()
