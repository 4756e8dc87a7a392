# A pool only ever holds caves that nobody has used: a claimed cave never comes back.
"""Warm caves: made ahead, so that a claimed one is ready in about a millisecond."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio

from ghost_mcp.errors import CaveGone, CaveNotFound, Conflict, GhostError
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.spec import CaveInfo, CaveSpec, Limits

__all__ = ["Pool"]

# Before each refill, so that the claim and running caves go first; after a failure, so that it is not hammered.
PAUSE_S = 0.02
RETRY_S = 5.0


class Pool:
    """Keeps ``size`` caves of one backend ready, with their links open, for specs of the given limits."""

    def __init__(self, backend: Backend, size: int, limits: Limits, tasks: TaskGroup) -> None:
        self._backend = backend
        self._size = size
        self._limits = limits
        self._tasks = tasks
        self._ready: deque[tuple[str, Link]] = deque()
        self._taken = anyio.Event()
        self.filled = anyio.Event()

    @property
    def ready(self) -> int:
        return len(self._ready)

    def suits(self, spec: CaveSpec) -> bool:
        """Whether a prepared cave can become this one."""
        plain = spec.image is None and spec.workspace is None and not spec.mounts
        return plain and spec.limits == self._limits and spec.limits.disk_bytes is None

    async def run(self) -> None:
        """Refill, one at a time, until cancelled."""
        while True:
            self._taken = anyio.Event()
            if len(self._ready) >= self._size:
                self.filled.set()
                await self._taken.wait()
            await anyio.sleep(PAUSE_S)
            try:
                await self._add()
            except GhostError:
                await anyio.sleep(RETRY_S)

    async def _add(self) -> None:
        prepared = await self._backend.prepare(self._limits)
        stream = await self._backend.connect(prepared)
        self._ready.append((prepared, await Link.open(stream, self._tasks, name=prepared)))

    async def claim(
        self, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> tuple[CaveInfo, Link] | None:
        """A ready cave turned into ``spec``, or None when there is none. Raises Conflict for a taken name."""
        while self._ready:
            prepared, link = self._ready.popleft()
            self._taken.set()
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
        await link.call("configure", self._backend.settings(spec, secrets))
        link.name = info.name
        return info

    async def _discard(self, prepared: str, spec: CaveSpec, link: Link) -> None:
        await link.aclose()
        for cave_id in (prepared, spec.id):
            await self._backend.destroy(cave_id)

    async def aclose(self) -> None:
        while self._ready:
            prepared, link = self._ready.popleft()
            await link.aclose()
            await self._backend.destroy(prepared)
