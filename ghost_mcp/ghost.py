# The front door. Ghost holds links, never a list of caves: the engine is the truth.
"""Ghost: create, find, list and destroy caves on any backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import anyio

from ghost_mcp import secrets as secret_values
from ghost_mcp.backends.registry import default_backend, find_backend
from ghost_mcp.cave import Cave, ExecResult
from ghost_mcp.errors import CaveNotFound, GhostError, InvalidArgument
from ghost_mcp.keep import Keep
from ghost_mcp.languages import Language, program
from ghost_mcp.pool import Pool
from ghost_mcp.spec import CaveInfo, CaveSpec, Limits
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ghost_mcp.backends.base import Backend

__all__ = ["Ghost"]


class Ghost:
    """Creates and finds caves. Use it as ``async with Ghost() as ghost:``; leaving it ends its ephemeral caves.

    ``backend`` is the default for specs that name none: a name, or a backend that is then opened and closed
    here. ``state_dir`` is the local backend's folder.
    With ``pool_size`` so many caves are kept ready, where the backend can. ``keep`` holds what servers share
    between caves; it is closed first, while links and backends still work.
    """

    def __init__(
        self,
        *,
        backend: str | Backend | None = None,
        state_dir: Path | None = None,
        pool_size: int = 0,
    ) -> None:
        self.keep = Keep()
        self._given = None if backend is None or isinstance(backend, str) else backend
        named = backend if isinstance(backend, str) else None
        self.default_backend = self._given.name if self._given else named or default_backend()
        self._state_dir = state_dir
        self._backends: dict[str, Backend] = {}
        self._homes: dict[
            str, str
        ] = {}  # cave id -> backend, so that a call on a cave asks one engine
        self._links: dict[str, Link] = {}
        self._pool_size = pool_size
        self._pools: dict[str, Pool] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        if self._given is None:
            find_backend(self.default_backend)
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.keep.aclose()
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()
            for pool in self._pools.values():
                await pool.aclose()
            for link in list(self._links.values()):
                await link.aclose()
            for backend in self._backends.values():
                await backend.__aexit__(None, None, None)
        # Not told of the block's exception: a task group would wrap it in a group.
        await self._stack.aclose()

    async def backend(self, name: str = "") -> Backend:
        """The backend of that name, opened on first use. Raises InvalidArgument, BackendUnavailable."""
        name = name or self.default_backend
        async with self._locks["backends"]:
            if name not in self._backends:
                self._backends[name] = await self._made(name).__aenter__()
                self._fill(self._backends[name])
            return self._backends[name]

    def _made(self, name: str) -> Backend:
        if self._given is not None and self._given.name == name:
            return self._given
        kind: Any = find_backend(name)
        made: Backend = kind(self._state_dir) if name == "local" else kind()
        return made

    async def create(self, spec: CaveSpec | None = None, **settings: Any) -> Cave:
        """Create a cave from a CaveSpec, or from its fields as keywords. It is ready when this returns.

        Raises Conflict when the name is taken, InvalidArgument, Unsupported, BackendUnavailable.
        """
        if spec is None:
            spec = CaveSpec.from_dict(settings)
        elif settings:
            raise InvalidArgument("give a spec or its fields, not both")
        backend = await self.backend(spec.backend)
        spec = spec.with_(backend=backend.name)
        secrets = secret_values.resolve(spec.secrets)
        pool = self._pools.get(backend.name)
        if pool is not None and pool.suits(spec):
            claimed = await pool.claim(spec, secrets)
            if claimed is not None:
                info, self._links[spec.id] = claimed
                return self._handle(backend, info)
        return self._handle(backend, await backend.create(spec, secrets=secrets))

    def _fill(self, backend: Backend) -> None:
        if self._pool_size and backend.pools and self._tasks is not None:
            pool = self._pools[backend.name] = Pool(backend, self._pool_size, Limits(), self._tasks)
            self._tasks.start_soon(pool.run, name=f"pool of {backend.name}")

    async def warm(self) -> None:
        """Wait until the default backend's pool is full; at once when there is none."""
        backend = await self.backend()
        if backend.name in self._pools:
            await self._pools[backend.name].filled.wait()

    @property
    def pooled(self) -> dict[str, int]:
        """How many caves each backend's pool has ready."""
        return {name: pool.ready for name, pool in self._pools.items()}

    async def get(self, name: str) -> Cave:
        """The cave of that full name or id. Raises CaveNotFound."""
        for backend in await self._candidates(name):
            try:
                return self._handle(backend, await backend.get(name))
            except CaveNotFound as exc:
                missing = exc
        raise missing

    async def list(self) -> list[CaveInfo]:
        """All caves of the default backend and of those opened, oldest first."""
        await self.backend()
        found = [info for backend in list(self._backends.values()) for info in await backend.list()]
        return sorted(found, key=lambda info: info.created_at)

    async def start(self, name: str) -> CaveInfo:
        """Bring a stopped or paused cave back."""
        cave = await self.get(name)
        backend = await self.backend(cave.info.backend)
        return await backend.start(cave.id, secrets=secret_values.resolve(cave.info.spec.secrets))

    async def destroy(self, name: str) -> None:
        """Remove a cave and everything in it. Idempotent."""
        for backend in await self._candidates(name):
            try:
                cave_id = (await backend.get(name)).id
            except CaveNotFound:
                continue
            await self.drop_link(cave_id)
            await backend.destroy(cave_id)
            self._homes.pop(cave_id, None)

    async def execute(
        self,
        cave_id: str,
        code: str,
        language: Language = "python",
        *,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """Run code in a cave with its python3, bash or node."""
        argv = program(code, language)
        cave = await self.get(cave_id)
        return await cave.exec(argv, timeout_s=timeout_s)

    async def link(self, cave_id: str) -> Link:
        """The live link to a cave, opened on first use and again when it broke."""
        link = self._links.get(cave_id)
        if link is not None and link.alive:
            return link
        async with self._locks[cave_id]:
            link = self._links.get(cave_id)
            if link is None or not link.alive:
                self._links[cave_id] = link = await self._connect(cave_id)
            return link

    async def _connect(self, cave_id: str) -> Link:
        if self._tasks is None:
            raise GhostError("Ghost is not open", hint="Use it as: async with Ghost() as ghost:")
        backend = await self.backend(self._homes.get(cave_id, ""))
        stream = await backend.connect(cave_id)
        return await Link.open(stream, self._tasks, name=cave_id)

    async def drop_link(self, cave_id: str) -> None:
        """Close the link to a cave, if there is one."""
        link = self._links.pop(cave_id, None)
        self._locks.pop(cave_id, None)
        if link is not None:
            await link.aclose()

    async def _candidates(self, name: str) -> Sequence[Backend]:
        """Where to look for a cave: its known home, else the default backend, then the others opened."""
        first = await self.backend(self._homes.get(name, ""))
        return [first, *(b for b in self._backends.values() if b is not first)]

    def _handle(self, backend: Backend, info: CaveInfo) -> Cave:
        self._homes[info.id] = backend.name
        return Cave(self, backend, info)
