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

__all__ = ["Pool", "PoolPlan"]

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
    """What one plan asks for, on one open backend, with the links open."""

    def __init__(self, backend: Backend, plan: PoolPlan, tasks: TaskGroup) -> None:
        self.plan = plan
        self._backend = backend
        self._tasks = tasks
        self._ready: deque[tuple[str, Link]] = deque()
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
            if len(self._ready) >= self._wanted:
                self.filled.set()
                await self._rest()
                continue
            await anyio.sleep(self.plan.refill_s)
            try:
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
            await self._give_up(*self._ready.pop())

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
        self._wanted = self.plan.size
        self._claimed.set()
        while self._ready:
            prepared, link = self._ready.popleft()
            if self.filled.is_set():  # nobody waits for it: full means full now
                self.filled = anyio.Event()
            try:
                if link.alive:
                    return await self._become(prepared, link, spec, secrets), link
            except Conflict:  # the name is taken: the cave is as it was
                self._ready.appendleft((prepared, link))
                raise
            except (CaveNotFound, CaveGone):
                pass  # it ended meanwhile, or another process has it: the next one, then
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._discard(prepared, spec, link)
                raise
            await self._discard(prepared, spec, link)
        return None

    async def _become(
        self, prepared: str, link: Link, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> CaveInfo:
        info = await self._backend.claim(prepared, spec)
        await link.call("configure", *configuring(self._backend.settings(spec, secrets)))
        link.name = info.name
        link.masker = Masker(secrets) if secrets else None
        return info

    async def _discard(self, prepared: str, spec: CaveSpec, link: Link) -> None:
        await self._give_up(prepared, link)
        await self._backend.destroy(spec.id)

    async def _give_up(self, prepared: str, link: Link) -> None:
        await link.aclose()
        await self._backend.destroy(prepared)

    async def aclose(self) -> None:
        while self._ready:
            await self._give_up(*self._ready.popleft())
