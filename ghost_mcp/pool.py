# A pool only ever holds caves that nobody has used: a claimed cave never comes back.
"""Warm caves: made ahead, so that a claimed one is ready in about a millisecond."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from ghost_mcp.errors import (
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
    Unsupported,
)
from ghost_mcp.secrets.masker import Masker
from ghost_mcp.spec import CaveSpec
from ghost_mcp.warden.link import Link, configuring

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.spec import CaveInfo

__all__ = ["Pool", "PoolPlan", "Spare"]

#: A prepared cave's id and its link, where that is open already.
Spare = tuple[str, Link | None]

RETRY_S = 5.0  # after a failure, so that the engine is not hammered


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Keep ``size`` caves ready whose backend, image, limits and network are those of ``template``.

    ``refill_s`` passes before each one that is made, so that claims and running caves go first. For each
    ``idle_s`` without a claim one is given up; the next claim has the pool filled again. None: all stay.
    """

    template: CaveSpec = field(default_factory=lambda: CaveSpec(ephemeral=True))
    size: int = 1
    refill_s: float = 0.02
    idle_s: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.refill_s < 0 or (self.idle_s is not None and self.idle_s <= 0):
            raise InvalidArgument("a pool has a size of at least 1, and no negative times")


class Pool:
    """What one plan asks for, on one open backend, with the links open.

    A backend that shares its prepared caves with other processes has a kind of its own: see ``Backend.pool``.
    """

    def __init__(self, backend: Backend, plan: PoolPlan, tasks: TaskGroup) -> None:
        self.plan = plan
        self._backend = backend
        self._tasks = tasks
        self._ready: deque[Spare] = deque()
        self._wanted = plan.size
        self._claimed = anyio.Event()
        self.filled = anyio.Event()

    @property
    def ready(self) -> int:
        return len(self._ready)

    def suits(self, spec: CaveSpec) -> bool:
        """Whether a prepared cave can become this one."""
        return self._backend.fits(self.plan.template, spec)

    async def run(self) -> None:
        """Refill, one at a time, until cancelled. Ends when the engine cannot make such caves at all."""
        while True:
            self._claimed = anyio.Event()
            try:
                if len(self._ready) >= self._wanted:
                    self.filled.set()
                    await self._rest()
                    continue
                await anyio.sleep(self.plan.refill_s)
                await self._add()
            except (InvalidArgument, Unsupported):
                self.filled.set()  # nobody waits for what never comes
                return
            except GhostError:
                await anyio.sleep(RETRY_S)

    async def _rest(self) -> None:
        """Until there is a claim; whenever that takes too long, one cave fewer is kept."""
        with anyio.move_on_after(self.plan.idle_s if self._ready else None) as scope:
            await self._claimed.wait()
        if scope.cancelled_caught and self._ready:
            self._wanted = len(self._ready) - 1
            await self._give_up(self._ready.pop())

    async def _add(self) -> None:
        prepared = await self._backend.prepare(self.plan.template)
        try:
            stream = await self._backend.connect(prepared)
            self._ready.append((prepared, await Link.open(stream, self._tasks, name=prepared)))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._backend.destroy(prepared)
            raise

    async def claim(
        self, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> tuple[CaveInfo, Link] | None:
        """A ready cave turned into ``spec``, or None when there is none. Raises Conflict for a taken name."""
        self._ask()
        while (prepared := self._take()) is not None:
            if self.filled.is_set():  # nobody waits for it: full means full now
                self.filled = anyio.Event()
            try:
                return await self._become(prepared, spec, secrets)
            except Conflict:  # the name is taken: the cave is as it was
                self._put_back(prepared)
                raise
            except (CaveNotFound, CaveGone):
                pass  # it ended meanwhile, or another process has it: the next one, then
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._discard(prepared, spec)
                raise
            await self._discard(prepared, spec)
        return None

    def _ask(self) -> None:
        """Somebody wants a cave: from now on the pool is to be full again."""
        self._wanted = self.plan.size
        self._claimed.set()

    def _take(self) -> Spare | None:
        return self._ready.popleft() if self._ready else None

    def _put_back(self, spare: Spare) -> None:
        self._ready.appendleft(spare)

    async def _become(
        self, spare: Spare, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> tuple[CaveInfo, Link]:
        """Raises Conflict, CaveNotFound, CaveGone."""
        prepared, link = spare
        if link is None or not link.alive:
            raise CaveGone("the prepared cave has ended")
        info = await self._backend.claim(prepared, spec)
        await self._configure(link, info, spec, secrets)
        return info, link

    async def _configure(
        self, link: Link, info: CaveInfo, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> None:
        await link.call("configure", *configuring(self._backend.settings(spec, secrets)))
        link.name = info.name
        link.masker = Masker(secrets) if secrets else None

    async def _discard(self, spare: Spare, spec: CaveSpec) -> None:
        """What a claim that failed leaves: nothing of either cave."""
        await self._give_up(spare)
        await self._backend.destroy(spec.id)

    async def _give_up(self, spare: Spare) -> None:
        prepared, link = spare
        if link is not None:
            await link.aclose()
        await self._backend.destroy(prepared)

    async def aclose(self) -> None:
        while (spare := self._take()) is not None:
            await self._give_up(spare)
