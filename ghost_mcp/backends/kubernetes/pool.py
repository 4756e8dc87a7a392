# The pool is the cluster's: what waits in it is told by the watch, and any hub claims from it.
"""Caves kept ready as pods, for all hubs of an instance: who holds the pool's Lease refills it."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.backends.kubernetes import manifests, reading, spares
from ghost_mcp.backends.kubernetes.finding import core
from ghost_mcp.backends.kubernetes.lease import Lease
from ghost_mcp.backends.kubernetes.manifests import ID, SPARE_S
from ghost_mcp.backends.kubernetes.starting import check_hope
from ghost_mcp.backends.kubernetes.sweeping import made_s
from ghost_mcp.backends.kubernetes.watcher import Watcher
from ghost_mcp.errors import GhostError, InvalidArgument, Unsupported
from ghost_mcp.pool import RETRY_S, Pool, PoolPlan, Spare

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
    from ghost_mcp.spec import CaveInfo, CaveSpec
    from ghost_mcp.warden.link import Link

__all__ = ["ClusterPool"]

OLD_S = SPARE_S * 0.8  # replaced then, long before its warden ends it
HEIR_S = 1.0
TOLD_S = 30.0  # what was to be removed and is still there by then, was not
TICK_S = 30.0


class ClusterPool(Pool):
    """What one plan asks for, once in the cluster, however many hubs have the same plan.

    No connection is kept to what waits: a pod's own warden ends it when nobody comes for it.
    """

    def __init__(self, backend: KubernetesBackend, plan: PoolPlan, tasks: TaskGroup) -> None:
        super().__init__(backend, plan, tasks)
        self._kubernetes, self._spares = backend, backend.spares
        self._watcher: Watcher | None = None
        self._lease: Lease | None = None
        self._coming: set[str] = set()  # made, and not told of yet
        self._gone: dict[str, float] = {}  # claimed or removed here when, and not told of yet
        self._known: set[str] = set()
        self._since: dict[str, float] = {}
        self._quiet = time.monotonic()
        self._asked = ""
        self._template, self._shape = plan.template, ""
        self._making = anyio.Lock()

    # --- what is there ---------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        return len(self._waiting())

    @property
    def keeps(self) -> bool:
        """Whether it is this hub that refills."""
        return self._lease is not None and self._lease.held

    def _all(self) -> Mapping[str, dict[str, Any]]:
        return {} if self._watcher is None else self._watcher.all

    def _waiting(self) -> list[str]:
        """The pods that can be claimed, the young ones first."""
        found = [
            name
            for name, pod in self._all().items()
            if reading.runs(pod) and name not in self._gone
        ]
        return sorted(found, key=self._is_old)

    def _is_old(self, name: str) -> bool:
        return time.monotonic() - self._since.get(name, time.monotonic()) > OLD_S

    def _note(self) -> None:
        """Take in what the watch has told; a pod that went without our doing was claimed by another hub."""
        there = set(self._all())
        now, clock_s = time.monotonic(), self._kubernetes.cluster.now_s()
        if self._known - there - set(self._gone):
            super()._ask()
            self._quiet = now
        self._gone = {
            name: at for name, at in self._gone.items() if name in there and now - at < TOLD_S
        }
        self._coming -= there
        self._known = there
        self._since = {
            name: self._since.get(name, now - max(0.0, clock_s - made_s(pod)))
            for name, pod in self._all().items()
        }

    # --- keeping it full -------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Ends when the cluster cannot make such caves at all."""
        with suppress(InvalidArgument, Unsupported):
            lease = self._begin()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lease.run)
                await self._tend(lease)
                tasks.cancel_scope.cancel()
        self.filled.set()  # nobody waits for what never comes

    def _begin(self) -> Lease:
        """Watch what waits and who looks after it, for as long as the backend is open. Raises Unsupported."""
        backend, starter = self._kubernetes, self._kubernetes.starter
        self._template = self._spares.template(self.plan.template)
        self._shape = shape = spares.shape(self._template, backend.config)
        query = manifests.selector(backend.config.instance, pool=shape)
        space = backend.config.namespace
        self._watcher = Watcher(backend.cluster, f"{core(space)}/pods", query, self._tell)
        self._lease = Lease(
            backend.cluster, backend.config, f"ghost-pool-{shape}", starter.maker, self._tell
        )
        starter.tasks.start_soon(self._watcher.run, name=f"watch of the pool {shape}")
        self._lease.watch(starter.tasks)
        return self._lease

    def _tell(self) -> None:
        self._claimed.set()

    async def _tend(self, lease: Lease) -> None:
        """Returns when such caves cannot be made at all."""
        while not await self._begun():
            self.filled.set()
        while True:
            self._claimed = anyio.Event()
            self._note()
            if self.ready >= self._wanted:
                self.filled.set()
            pause_s = TICK_S
            try:
                if lease.held:
                    pause_s = await self._look_after(lease)
            except (InvalidArgument, Unsupported):
                with suppress(GhostError):  # what stays of it is swept
                    await self._empty()
                return
            except GhostError:
                pause_s = RETRY_S
            with anyio.move_on_after(pause_s):
                await self._claimed.wait()

    async def _begun(self) -> bool:
        assert self._watcher is not None  # noqa: S101  (run() has made it)
        with suppress(GhostError):
            await self._watcher.started()
            await self._kubernetes.starter.watcher(self._kubernetes.config.namespace)
            return True
        return False

    async def _look_after(self, lease: Lease) -> float:
        """What its holder does; returns the seconds until there is more to do, unless there is news."""
        if lease.asked != self._asked:
            self._asked = lease.asked
            super()._ask()
        for name, pod in list(self._all().items()):
            if name in self._gone:
                pass
            elif reading.runs(pod) is False:
                await self._retire(name)
            else:
                check_hope(pod)
        young = [name for name in self._waiting() if not self._is_old(name)]
        starts = [name for name, pod in self._all().items() if reading.runs(pod) is None]
        for _ in range(self._wanted - len(young) - len(starts) - len(self._coming)):
            await anyio.sleep(self.plan.refill_s)
            await self._add()
        spare = self._waiting()
        for name in reversed(spare[self._wanted :] if len(young) >= self._wanted else ()):
            await self._retire(name)
        return self._shrink()

    def _shrink(self) -> float:
        """Whenever there was no claim for too long, one cave fewer is kept."""
        idle_s = self.plan.idle_s
        if self.ready < self._wanted:  # its rest begins when it is full
            self._quiet = time.monotonic()
        if idle_s is None or not self.ready:
            return TICK_S
        left_s = self._quiet + idle_s - time.monotonic()
        if left_s > 0:
            return left_s
        self._wanted, self._quiet = self.ready - 1, time.monotonic()
        return 0.0

    async def _add(self) -> None:
        """Ask for one more pod; the watch tells when it is there."""
        # To the end: what is made without being known would be nobody's.
        with anyio.CancelScope(shield=True):
            async with self._making:
                spec = self._template.with_(id=secrets.token_hex(8), name="")
                name = (await self._spares.make(spec))["metadata"]["name"]
                if name not in self._all():
                    self._coming.add(name)

    async def _retire(self, name: str) -> None:
        self._gone[name] = time.monotonic()
        await self._spares.retire(name, self._shape)

    async def _empty(self) -> None:
        for name in {*self._all(), *self._coming} - set(self._gone):
            await self._retire(name)

    async def aclose(self) -> None:
        """Leave the pool to another hub that has the same plan; without one nothing of it stays."""
        if self._lease is None or not self._lease.held:
            return
        async with self._making:
            if not await self._lease.hand_over(HEIR_S):
                await self._empty()
                await self._lease.remove()

    # --- claiming --------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._quiet = time.monotonic()
        super()._ask()
        if self._lease is not None and not self._lease.held and not self.ready:
            self._kubernetes.starter.tasks.start_soon(self._ask_holder, self._lease)

    async def _ask_holder(self, lease: Lease) -> None:
        """It cannot see that somebody wanted what was not there."""
        word = f"{self._kubernetes.starter.maker} {time.time():.0f}"
        if word != lease.asked:
            try:
                await lease.ask(word)
            except GhostError:
                return

    def _take(self) -> Spare | None:
        """Any of the young ones: hubs that claim at the same time rarely meet at the same pod."""
        found = self._waiting()
        if not found:
            return None
        young = [name for name in found if not self._is_old(name)]
        name = random.choice(young or found)  # noqa: S311 - no secret
        self._gone[name] = time.monotonic()
        return self._all()[name]["metadata"]["labels"][ID], None

    def _put_back(self, spare: Spare) -> None:
        self._gone.pop(f"ghost-{spare[0]}", None)

    async def _become(
        self, spare: Spare, spec: CaveSpec, values: Mapping[str, bytes]
    ) -> tuple[CaveInfo, Link]:
        info = await self._kubernetes.claim(spare[0], spec)
        space, pod = self._kubernetes.config.namespace, f"ghost-{spare[0]}"
        link = await self._kubernetes.starter.link(space, pod)
        try:
            await self._configure(link, info, spec, values)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await link.aclose()
            raise
        self._kubernetes.starter.hold(spec.id, space, pod, link)
        return info, link

    async def _discard(self, spare: Spare, spec: CaveSpec) -> None:
        """A pod that was not ours after all is another hub's, or removed already."""
        if self._kubernetes.made_here(spec.id):
            await self._kubernetes.destroy(spec.id)
