# Only this file decides which caves a caller over HTTP can reach: those of its own owner, and no others.
"""The caves of an owner, and of one request of that owner's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    QuotaExceeded,
)
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import CaveInfo, CaveSpec, check_name, is_id

if TYPE_CHECKING:
    from ghost_hub.principal import Principal
    from ghost_mcp.cave import Cave
    from ghost_mcp.places import Place, Places

__all__ = ["DEFAULT", "Caller", "OwnerCaves"]

#: The name of the cave that calls go to which name none.
DEFAULT = "default"
COMES_S, PAUSE_S = 60.0, 0.2


class OwnerCaves:
    """What an owner has, whoever asks in its name. There is one object for each owner."""

    def __init__(
        self, places: Places, owner: str, *, most: int, idle_timeout_s: float | None
    ) -> None:
        self._places = places
        self._most, self._idle_timeout_s = most, idle_timeout_s
        self._lock = anyio.Lock()
        self._making: set[str] = set()
        self.owner = owner

    async def place(self, name: str) -> Place:
        """Raises CaveNotFound, CaveGone, Conflict when it is stopped."""
        check_name(name)
        if is_id(name):  # which an engine would find whosever it is
            return await self._places.of(await self.find(name))
        try:
            return await self._places.named(self._full(name))
        except CaveNotFound:
            raise self._missing(name) from None

    async def find(self, name: str) -> Cave:
        """By name, or by id: a cave of another owner is not there, and the answer is the same."""
        check_name(name)
        ghost = self._places.ghost
        for ref in (self._full(name), *([name] if is_id(name) else ())):
            try:
                cave = await ghost.get(ref)
            except CaveNotFound:
                continue
            if cave.info.spec.owner == self.owner:
                return cave
        raise self._missing(name)

    @staticmethod
    def _missing(name: str) -> CaveNotFound:
        return CaveNotFound(
            f"no cave named {name}",
            hint="Create it, or leave the cave out to use your default one.",
        )

    def _full(self, name: str) -> str:
        return f"{self.owner}/{name}" if self.owner else name

    async def default(self) -> Place:
        """The default cave, made on first use and brought back when it had ended. It keeps its files."""
        try:
            return await self._places.named(self._full(DEFAULT))
        except (CaveNotFound, CaveGone):
            pass
        async with self._lock:
            try:
                cave = await self._places.ghost.get(self._full(DEFAULT))
                if cave.info.state is State.ENDED:
                    await cave.start()
                return await self._places.of(cave)
            except (CaveNotFound, CaveGone):
                spec = CaveSpec(name=DEFAULT, idle_timeout_s=self._idle_timeout_s)
            try:
                return await self._places.of(await self.create(spec))
            except Conflict:  # another hub on this engine was faster, and may not be done yet
                return await self._of_another_hub()

    async def _of_another_hub(self) -> Place:
        """The default cave that another hub is making, once it is there."""
        with anyio.move_on_after(COMES_S):
            while True:
                with suppress(CaveNotFound):
                    return await self._places.named(self._full(DEFAULT))
                await anyio.sleep(PAUSE_S)
        raise BackendUnavailable(
            "another hub is making your default cave, and it does not come", hint="Try again."
        )

    async def create(self, spec: CaveSpec) -> Cave:
        """Make a cave of this owner's. Raises QuotaExceeded, and what creating raises."""
        # Who asks for many at once has those that are just being made, too: also one that is done during this list.
        making = set(self._making)
        there = len({info.id for info in await self.list()} | making | self._making)
        if there >= self._most:
            raise QuotaExceeded(
                f"there are {there} caves of yours already, and {self._most} is the most",
                hint="Destroy one that you do not need.",
                data={"limit": self._most, "used": there},
            )
        self._making.add(spec.id)
        try:
            return await self._places.ghost.create(spec.with_(owner=self.owner))
        finally:
            self._making.discard(spec.id)

    async def destroy(self, name: str) -> None:
        """Remove a cave. Raises CaveNotFound."""
        cave = await self.find(name)
        await self._places.drop(cave.id)
        await cave.destroy()

    async def list(self) -> list[CaveInfo]:
        return await self._places.ghost.list(self.owner)

    async def failed(self, place: Place, error: GhostError) -> GhostError:
        """See :meth:`ghost_mcp.places.Places.failed`."""
        return await self._places.failed(place, error, _ended)


def _ended(cave: Cave, end: GhostError) -> CaveGone:
    if isinstance(end, CaveNotFound):
        what, hint = "was destroyed", "Create it again."
    else:
        what, hint = "ended", "Its files are kept: start it again."
    return CaveGone(f"cave {cave.name} {what} during the call", hint=hint)


@dataclass(frozen=True, slots=True)
class Caller:
    """See :class:`ghost_mcp.places.Caves`: one request's view of its owner's caves.

    ``pinned`` is the cave that the address or a header names, for calls that name none.
    """

    principal: Principal
    owned: OwnerCaves
    pinned: str | None = None

    @property
    def owner(self) -> str:
        return self.principal.owner

    @property
    def may_grant(self) -> bool:
        return self.principal.may("admin")  # who manages caves over HTTP cannot give them a network

    @property
    def usual(self) -> str:
        """The name of the cave for calls that name none."""
        return self.pinned or DEFAULT

    async def place(self, name: str | None) -> Place:
        name = name or self.pinned
        return await (self.owned.default() if name is None else self.owned.place(name))

    async def find(self, name: str) -> Cave:
        return await self.owned.find(name)

    async def failed(self, place: Place, error: GhostError) -> GhostError:
        return await self.owned.failed(place, error)

    async def list(self) -> list[CaveInfo]:
        return await self.owned.list()
