# The front door. Ghost holds links, never a list of caves: the engine is the truth.
"""Ghost: create, find, list and destroy caves on any backend."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

from ghost_mcp.backends.local.door import state_folder
from ghost_mcp.backends.registry import default_backend, find_backend
from ghost_mcp.cave import Cave
from ghost_mcp.errors import CaveNotFound, GhostError, InvalidArgument, Unsupported
from ghost_mcp.keep import Keep
from ghost_mcp.languages import Language, program
from ghost_mcp.pool import Pool, PoolPlan
from ghost_mcp.secrets.masker import Masker, values_of
from ghost_mcp.secrets.source import StoredSecrets, check_values
from ghost_mcp.spec import CaveInfo, CaveSpec, Given
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.process import ExecResult
    from ghost_mcp.secrets import SecretSource

__all__ = ["Ghost"]

SECRETS_S = 20.0
HOMES = 10_000  # of caves that were seen: of others the engines are asked


class Ghost:
    """Creates and finds caves. Use it as ``async with Ghost() as ghost:``; leaving it ends its ephemeral caves.

    ``backend`` is the default for specs that name none: a name, or a backend that is then opened and closed
    here. ``state_dir`` is the local backend's folder, and has the secret store. ``secrets`` is where the values
    of ``CaveSpec.secrets`` come from: by default that store, and this process's environment for caves without
    an owner.
    ``pools`` says which caves are kept ready, once their backend is opened, where it can; ``pool_size`` is for
    so many that are as the default backend makes them. ``keep`` holds what servers share between caves; it is
    closed first, while links and backends still work.
    """

    def __init__(
        self,
        *,
        backend: str | Backend | None = None,
        state_dir: Path | None = None,
        pool_size: int = 0,
        pools: Sequence[PoolPlan] = (),
        secrets: SecretSource | None = None,
    ) -> None:
        self.keep = Keep()
        self._given = None if backend is None or isinstance(backend, str) else backend
        named = backend if isinstance(backend, str) else None
        self.default_backend = self._given.name if self._given else named or default_backend()
        self._state_dir = state_dir
        self._secrets = secrets or StoredSecrets(
            state_dir or Path(state_folder()), environment=True
        )
        # cave id -> values that came with its spec: a later start() here needs them again
        self._own_secrets: dict[str, Mapping[str, bytes]] = {}
        self._backends: dict[str, Backend] = {}
        # cave id -> backend, so that a call on a cave asks one engine; the one that was seen last comes last
        self._homes: dict[str, str] = {}
        self._links: dict[str, Link] = {}
        self._plans = [*pools, *([PoolPlan(size=pool_size)] if pool_size else [])]
        self._pools: dict[str, list[Pool]] = defaultdict(list)
        self._locks: dict[str, anyio.Lock] = {}  # those that somebody holds
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
        # Not told of the block's exception: a task group would wrap it in a group.
        async with AsyncExitStack() as closing:  # each of these, also when one before it fails
            closing.push_async_callback(self._close_backends)
            closing.push_async_callback(self._stack.aclose)  # what still makes a cave ends before
            if self._tasks is not None:
                closing.callback(self._tasks.cancel_scope.cancel)
            with anyio.CancelScope(shield=True):
                await self.keep.aclose()

    async def _close_backends(self) -> None:
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as closing:
                for backend in self._backends.values():
                    closing.push_async_exit(backend)
                for link in self._links.values():
                    closing.push_async_callback(link.aclose)
                for pool in (pool for pools in self._pools.values() for pool in pools):
                    closing.push_async_callback(pool.aclose)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work``, which lets no error out, beside the caller; it is cancelled when this Ghost closes."""
        self._check_open().start_soon(work)

    def _check_open(self) -> TaskGroup:
        if self._tasks is None:
            raise GhostError("Ghost is not open", hint="Use it as: async with Ghost() as ghost:")
        return self._tasks

    async def backend(self, name: str = "") -> Backend:
        """The backend of that name, opened on first use. Raises InvalidArgument, BackendUnavailable."""
        name = name or self.default_backend
        if name in self._backends:
            return self._backends[name]
        self._check_open()
        async with self._alone("backends"):
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
        elif not isinstance(spec, CaveSpec):
            raise InvalidArgument(
                f"not a CaveSpec: {spec!r:.60}", hint="Give its fields by name: create(name='dev')"
            )
        if spec.network.allow:
            from ghost_mcp.egress.policy import read_rules  # most caves have no network

            read_rules(spec.network.allow)
        backend = await self.backend(spec.backend)
        spec = spec.with_(backend=backend.name)
        if spec.project is not None and not backend.projects:
            raise Unsupported(
                f"a {backend.name} cave has no side services", hint="Use the backend compose."
            )
        secrets, given = await self._resolve(spec, spec.given), spec.given
        if given:
            spec = spec.with_(given=Given())
        info = await self._claimed(backend, spec, secrets)
        if info is None:
            info = await backend.create(spec, secrets=secrets)
        if given:
            self._own_secrets[spec.id] = given
        return self._handle(backend, info)

    async def _claimed(
        self, backend: Backend, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> CaveInfo | None:
        """The cave from one of the backend's pools; None when none has one that suits."""
        for pool in self._pools[backend.name]:
            claimed = await pool.claim(spec, secrets) if pool.suits(spec) else None
            if claimed is not None:
                info, link = claimed
                self._keep_link(spec.id, link)
                try:
                    await self._serve_network(backend, info, link)
                except BaseException:  # nobody would know of it
                    with anyio.CancelScope(shield=True):
                        await self._destroy(backend, spec.id)
                    raise
                return info
        return None

    def _fill(self, backend: Backend) -> None:
        if not backend.pools:
            return
        tasks = self._check_open()
        for plan in self._plans:
            if (plan.template.backend or self.default_backend) == backend.name:
                pool = backend.pool(plan, tasks)
                self._pools[backend.name].append(pool)
                tasks.start_soon(pool.run, name=f"pool of {backend.name}")

    async def warm(self) -> None:
        """Wait until the default backend's pools are full; at once when there are none."""
        backend = await self.backend()
        for pool in self._pools[backend.name]:
            await pool.filled.wait()

    @property
    def pooled(self) -> dict[str, int]:
        """How many caves each backend's pools have ready."""
        return {name: sum(p.ready for p in pools) for name, pools in self._pools.items() if pools}

    async def get(self, name: str) -> Cave:
        """The cave of that full name or id. Raises CaveNotFound."""
        for backend in await self._candidates(name):
            try:
                return self._handle(backend, await backend.get(name))
            except CaveNotFound as exc:
                missing = exc
        raise missing

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        """All caves, or one owner's, of the default backend and of those opened, oldest first."""
        await self.backend()
        backends = list(self._backends.values())
        found = [info for backend in backends for info in await backend.list(owner)]
        return sorted(found, key=lambda info: info.created_at)

    async def start(self, name: str) -> CaveInfo:
        """Bring a stopped or paused cave back."""
        cave = await self.get(name)
        backend = await self.backend(cave.info.backend)
        given = self._own_secrets.get(cave.id, {})
        return await backend.start(cave.id, secrets=await self._resolve(cave.info.spec, given))

    async def _resolve(self, spec: CaveSpec, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """The values of a cave's secrets. Raises InvalidArgument, LimitExceeded."""
        others = [name for name in spec.secrets if name not in given]
        values = {**await self._secrets.resolve(spec.owner, others), **given}
        check_values(values)
        return values

    async def destroy(self, name: str) -> None:
        """Remove a cave and everything in it. Idempotent."""
        home = self._homes.get(name)
        if home is not None:  # an id that was seen here: no other engine need be asked for it
            await self._destroy(await self.backend(home), name)
            return
        for backend in await self._candidates(name):
            with suppress(CaveNotFound):
                await self._destroy(backend, (await backend.get(name)).id)

    async def _destroy(self, backend: Backend, cave_id: str) -> None:
        await self.drop_link(cave_id)
        await backend.destroy(cave_id)
        shutil.rmtree(backend.ledger(cave_id), ignore_errors=True)
        self._homes.pop(cave_id, None)
        self._own_secrets.pop(cave_id, None)

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
        async with self._alone(cave_id):
            link = self._links.get(cave_id)
            if link is None or not link.alive:
                link = await self._connect(cave_id)
                self._keep_link(cave_id, link)
            return link

    def _keep_link(self, cave_id: str, link: Link) -> None:
        """For as long as it is of use: most caves end by themselves, and nobody asks for them again."""

        def forget() -> None:
            if self._links.get(cave_id) is link:
                del self._links[cave_id]

        self._links[cave_id] = link
        link.when_broken(forget)

    @asynccontextmanager
    async def _alone(self, what: str) -> AsyncIterator[None]:
        """One at a time does something to ``what``, a cave by its id or the backends."""
        lock = self._locks.setdefault(what, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(what) is lock:
                del self._locks[what]

    async def _connect(self, cave_id: str) -> Link:
        tasks = self._check_open()
        home = self._homes.get(cave_id) or (await self.get(cave_id)).info.backend
        backend = await self.backend(home)
        stream = await backend.connect(cave_id)
        link = await Link.open(stream, tasks, name=cave_id)
        try:
            if link.hello.get("secrets"):
                link.masker = Masker(values_of(*await link.call("secrets", timeout_s=SECRETS_S)))
            # The warden's word only saves asking: the policy is the backend's.
            if "egress" in link.hello:
                await self._serve_network(backend, await backend.get(cave_id), link)
        except BaseException:
            await link.aclose()
            raise
        return link

    async def masker(self, info: CaveInfo) -> Masker | None:
        """What masks the secrets of a cave; None when it has none.

        Its warden knows them best. Of a cave that is not running, those are masked that can be resolved here.
        """
        if not info.spec.secrets:
            return None
        with suppress(GhostError):
            if (masker := (await self.link(info.id)).masker) is not None:
                return masker
        values = dict(self._own_secrets.get(info.id, {}))
        for name in info.spec.secrets:
            with suppress(GhostError):
                values.update(await self._secrets.resolve(info.spec.owner, [name]))
        return Masker(values)

    async def _serve_network(self, backend: Backend, info: CaveInfo, link: Link) -> None:
        """Be the cave's way out while the link lives, if its policy gives it one."""
        if info.spec.network.mode in backend.proxied and self._tasks is not None:
            from ghost_mcp.egress.ledger import Ledger
            from ghost_mcp.egress.service import attach  # most caves have no network

            await attach(link, info, Ledger(backend.ledger(info.id)), self._tasks)

    async def drop_link(self, cave_id: str) -> None:
        """Close the link to a cave, if there is one."""
        link = self._links.pop(cave_id, None)
        if link is not None:
            await link.aclose()

    async def _candidates(self, name: str) -> Sequence[Backend]:
        """Where to look for a cave: its known home, else the default backend, then the others opened."""
        first = await self.backend(self._homes.get(name, ""))
        return [first, *(b for b in self._backends.values() if b is not first)]

    def _handle(self, backend: Backend, info: CaveInfo) -> Cave:
        self._homes.pop(info.id, None)
        self._homes[info.id] = backend.name
        if len(self._homes) > HOMES:
            del self._homes[next(iter(self._homes))]
        return Cave(self, backend, info)
