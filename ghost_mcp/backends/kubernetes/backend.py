# No file of Ghost's remembers a cave in a cluster: it is a record, a pod, a claim, and what their labels say.
"""Caves in Kubernetes: restricted pods, reached through an exec'd relay.

::

    ConfigMap ghost-cave-NAME        the cave's full name and spec (OWNER.NAME where it has an owner)
    Pod       ghost-ID-BOOT          what runs of it: the warden is PID 1; from a pool, of the id it waited under
    PersistentVolumeClaim ghost-ID   the files of one that is kept

An ephemeral cave's record belongs to its pod: the cluster's own garbage collector finishes what a killed hub
has begun. No Service, no published port: everything goes over the exec.
"""

from __future__ import annotations

import hashlib
import secrets as random_values
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import anyio

from ghost_mcp.backends.base import Backend, oldest_first
from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.backends.kubernetes.finding import Finder, Found, core
from ghost_mcp.backends.kubernetes.manifests import CAVE, ID
from ghost_mcp.backends.kubernetes.pool import ClusterPool
from ghost_mcp.backends.kubernetes.records import Records
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.backends.kubernetes.spares import Spares
from ghost_mcp.backends.kubernetes.starting import START_S, Starter
from ghost_mcp.backends.kubernetes.sweeping import MAKING_S, leftovers
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    Unsupported,
)
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.spec import CaveInfo, CaveSpec, Usage, is_id
from ghost_mcp.warden.link import configuring

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import ByteStream, TaskGroup

    from ghost_mcp.backends.kubernetes.stream import ExecStream
    from ghost_mcp.pool import Pool, PoolPlan

__all__ = ["KubernetesBackend"]

LONELY_S = 8.0  # an ephemeral cave ends so long after its hub has last said that it holds it
SETTLE_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class _Own:
    """What was made here for one cave: a hint that saves requests, never the truth."""

    space: str
    pod: str
    record: str = ""
    record_uid: str = ""
    ephemeral: bool = False
    pool: str = ""  # of one that was prepared, until it is claimed


class KubernetesBackend(Backend):
    """See :class:`~ghost_mcp.backends.base.Backend`. The truth is what the API server says.

    Backends of different ``config.instance`` do not see each other's caves.
    """

    name = "kubernetes"
    pools = True

    def __init__(self, config: Settings | None = None) -> None:
        self.config = config or Settings.load()
        self.making_s = MAKING_S
        self._maker = random_values.token_hex(8)
        self._open: tuple[Cluster, Finder, Starter] | None = None
        self._own: dict[str, _Own] = {}

    async def __aenter__(self) -> Self:
        cluster = await Cluster.open(self.config)
        starter = Starter(cluster, self.config, self._maker, self._forget)
        self._open = cluster, Finder(cluster, self.config), starter
        try:
            await starter.begin()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the ephemeral caves made here, and what was prepared; the others live on."""
        ephemeral = [cave_id for cave_id, own in self._own.items() if own.ephemeral]
        with anyio.CancelScope(shield=True):
            try:
                async with anyio.create_task_group() as tasks:
                    for cave_id in ephemeral:
                        tasks.start_soon(self.destroy, cave_id)
            finally:
                await self.starter.aclose()
                await self.cluster.aclose()

    @property
    def _parts(self) -> tuple[Cluster, Finder, Starter]:
        if self._open is None:
            raise GhostError("the kubernetes backend is not open", hint="Use it as: async with ...")
        return self._open

    @property
    def cluster(self) -> Cluster:
        return self._parts[0]

    @property
    def _finder(self) -> Finder:
        return self._parts[1]

    @property
    def _records(self) -> Records:
        return Records(self.cluster, self._finder, self.config)

    @property
    def starter(self) -> Starter:
        return self._parts[2]

    @property
    def spares(self) -> Spares:
        return Spares(self.cluster, self._finder, self.config, self._maker)

    # --- making ----------------------------------------------------------------------------------

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self.config.image)
        manifests.check(spec, self.config)
        try:
            return await self._make(spec, secrets or {})
        except _Made:  # by somebody else or before, under the same id
            return await self._settled(spec)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.destroy(spec.id)
            raise

    async def _make(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> CaveInfo:
        """The cave, with no request that asks whether it is there: the first object tells. Raises _Made."""
        space = self.config.namespace_of(spec.owner)
        if not spec.ephemeral:
            claim = manifests.volume(spec, self.config)
            await self._first(f"{core(space)}/persistentvolumeclaims", claim)
        pod = await self._pod(spec, f"ghost-{spec.id}")
        record = await self._records.reserve(spec, pod if spec.ephemeral else None)
        meta = record["metadata"]
        self._own[spec.id] = _Own(
            space, pod["metadata"]["name"], meta["name"], meta["uid"], spec.ephemeral
        )
        return await self._begin(record, spec, pod, secrets)

    async def _pod(self, spec: CaveSpec, name: str) -> dict[str, Any]:
        space = self.config.namespace_of(spec.owner)
        await self.starter.watcher(space)
        body = manifests.pod(spec, self.config, name=name, maker=self._maker)
        return await self._first(f"{core(space)}/pods", body)

    async def _first(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object that is named by the cave's id. Raises _Made when it is there."""
        try:
            return await self.cluster.ask("POST", path, body)
        except Conflict as exc:
            raise _Made from exc

    async def _begin(
        self,
        record: Mapping[str, Any],
        spec: CaveSpec,
        pod: Mapping[str, Any],
        secrets: Mapping[str, bytes],
    ) -> CaveInfo:
        """Wait for the pod and configure its warden; a cave that does not come up says why."""
        space, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        seen = await self.starter.running(space, name)
        try:
            link = await self.starter.link(space, name)
        except CaveGone as exc:
            said = await self.starter.said(space, name)
            raise BackendUnavailable(f"the cave did not start: {said}") from exc
        try:
            await link.call("configure", *configuring(self.settings(spec, secrets)))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await link.aclose()
            raise
        if spec.ephemeral:
            self.starter.hold(spec.id, space, name, link)
        else:
            await link.aclose()
        info = reading.info_of(record, seen, self.config)
        assert info is not None  # noqa: S101  (its pod runs)
        return info

    def settings(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        # An ephemeral cave also ends when nobody holds it.
        lonely = {"lonely_s": LONELY_S, "hold": True} if spec.ephemeral else {}
        return {**super().settings(spec, secrets), **lonely}

    async def _settled(self, spec: CaveSpec) -> CaveInfo:
        """The cave once it runs, whoever makes it. Raises Conflict when the id is another cave's."""
        with anyio.move_on_after(START_S):
            while True:
                record = await self._finder.record(spec.id, spec.owner)
                if record is not None:
                    if record["metadata"]["name"] != manifests.record_name(spec.full_name):
                        raise Conflict(f"the cave id {spec.id} belongs to another cave")
                    pod = await self._finder.pod(record["metadata"]["namespace"], spec.id)
                    info = reading.info_of(record, pod, self.config)
                    if info is not None:
                        return info
                await anyio.sleep(SETTLE_PAUSE_S)
        raise BackendUnavailable(
            f"cave {spec.name} is being made by somebody else, and does not come"
        )

    # --- the pool --------------------------------------------------------------------------------

    def pool(self, plan: PoolPlan, tasks: TaskGroup) -> Pool:
        return ClusterPool(self, plan, tasks)

    def fits(self, template: CaveSpec, spec: CaveSpec) -> bool:
        """Ephemeral ones only: a pod that runs gets no claim."""
        template, spec = (
            one.with_(image=one.image or self.config.image) for one in (template, spec)
        )
        return spec.ephemeral and super().fits(template, spec)

    async def prepare(self, template: CaveSpec) -> str:
        spec, space = self.spares.template(template), self.config.namespace
        await self.starter.watcher(space)
        pod = await self.spares.make(spec)
        meta = pod["metadata"]
        shape = meta["labels"][manifests.POOL]
        self._own[spec.id] = _Own(space, meta["name"], ephemeral=True, pool=shape)
        try:
            await self.starter.running(space, meta["name"])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.destroy(spec.id)
            raise
        return spec.id

    async def claim(self, prepared_id: str, spec: CaveSpec) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self.config.image)
        if not spec.ephemeral:
            raise Unsupported("a cave that is to be kept cannot come from a pool of pods")
        space = self.config.namespace
        await self.starter.watcher(space)
        pod = await self.spares.take(prepared_id, spec)
        try:
            record = await self._records.reserve(spec, pod)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                if isinstance(exc, Conflict):
                    await self.spares.put_back(prepared_id, spec)
                else:
                    await self.spares.remove(pod["metadata"]["name"])
            raise
        self._own.pop(prepared_id, None)
        meta, name = record["metadata"], pod["metadata"]["name"]
        self._own[spec.id] = _Own(space, name, meta["name"], meta["uid"], ephemeral=True)
        self.starter.hold(spec.id, space, name, None)
        info = reading.info_of(record, pod, self.config)
        assert info is not None  # noqa: S101  (its pod runs)
        return info

    def _forget(self, cave_id: str) -> None:
        """It has ended by itself."""
        self._own.pop(cave_id, None)

    def made_here(self, cave_id: str) -> bool:
        """Whether this hub has made or claimed it."""
        return cave_id in self._own

    # --- finding ---------------------------------------------------------------------------------

    async def _find(self, ref: str) -> Found:
        """Raises CaveNotFound, with the names there are."""
        found = await self._finder.find(ref)
        if found is not None:
            return found
        raise CaveNotFound.among(ref, await self._finder.names(10))

    async def get(self, name: str) -> CaveInfo:
        return (await self._find(name)).info

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        found = []
        for info in await self._finder.all(owner):
            if info.state is State.ENDED and info.spec.ephemeral:
                await self.destroy(info.id)
            else:
                found.append(info)
        return oldest_first(found, owner)

    # --- changing --------------------------------------------------------------------------------

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        there = await self._finder.find(cave_id)
        if there is None and (begun := await self._begun(cave_id)) is not None:
            return await self._settled(begun)
        there = there or await self._find(cave_id)
        spec, space = there.info.spec, there.space
        after(there.info.state, Event.START, spec.name)
        if there.info.state is State.RUNNING:
            return there.info
        if spec.ephemeral:
            raise CaveGone(
                f"cave {spec.name} was ephemeral, and has ended", hint="Create it again."
            )
        try:
            pod = await self._pod(spec, f"ghost-{spec.id}-{_next(there)}")
        except _Made:  # another hub starts it
            return await self._settled(spec)
        await self._end(there)
        self._own[spec.id] = _Own(space, pod["metadata"]["name"])
        try:
            record = await self._records.mark(there.record, stopped=False)
            return await self._begin(record, spec, pod, secrets or {})
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._finder.delete(space, "pods", pod["metadata"]["name"])
            raise

    async def _begun(self, ref: str) -> CaveSpec | None:
        """A cave that is not to be found though it has a record: somebody is making or starting it."""
        record = await self._finder.record(ref)
        made = None if record is None else reading.info_of(record, None, self.config)
        return None if made is None else made.spec

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        there = await self._find(cave_id)
        if pause:
            raise Unsupported("a cluster cannot freeze a cave", hint="Stop it: its files are kept.")
        after(there.info.state, Event.STOP, there.info.name)
        if there.info.spec.ephemeral:
            raise Unsupported(
                f"cave {there.info.name} is ephemeral: a cluster keeps nothing of it",
                hint="Destroy it instead.",
            )
        await self._records.mark(there.record, stopped=True)
        await self._end(there)
        return await self.get(there.info.id)

    async def _end(self, there: Found) -> None:
        """End a cave's pod: what runs in it is nobody's to wait for."""
        self._own.pop(there.info.id, None)
        if there.pod is not None:
            meta = there.pod["metadata"]
            await self._finder.delete(there.space, "pods", meta["name"], meta["uid"])

    async def destroy(self, cave_id: str) -> None:
        own = self._own.pop(cave_id, None)
        self.starter.release(cave_id)
        if own is not None and own.pool:
            await self.spares.retire(own.pod, own.pool)
            return
        if own is not None and own.ephemeral:  # nobody else can have given it another pod
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._finder.delete, own.space, "pods", own.pod)
                tasks.start_soon(
                    self._finder.delete, own.space, "configmaps", own.record, own.record_uid
                )
            return
        if not is_id(cave_id):
            record = await self._finder.record(cave_id)
            if record is None:
                return
            cave_id = record["metadata"]["labels"][ID]
        for kind in ("pods", "persistentvolumeclaims", "configmaps"):
            for one in await self._finder.every(kind, id=cave_id):
                await self._finder.delete(
                    one["metadata"]["namespace"], kind, one["metadata"]["name"]
                )

    # --- talking ---------------------------------------------------------------------------------

    async def connect(self, cave_id: str) -> ByteStream:
        if stream := await self._at_once(cave_id):
            return stream
        there = await self._find(cave_id)
        if there.info.state is State.ENDED:
            raise CaveGone(
                f"cave {there.info.name} has ended", hint=f"ghost start {there.info.full_name}"
            )
        after(there.info.state, Event.CALL, there.info.name)
        assert there.pod is not None  # noqa: S101  (it runs)
        return await self.starter.relay(there.space, there.pod["metadata"]["name"])

    async def _at_once(self, cave_id: str) -> ExecStream | None:
        """A connection to a cave that, as far as is known here, runs: without asking for it first."""
        own = self._own.get(cave_id)
        seen = None if own is None else self.starter.seen(own.space, own.pod)
        if own is None or seen is None or not reading.runs(seen):
            return None
        with suppress(CaveGone):
            return await self.starter.relay(own.space, own.pod)
        return None

    async def leftovers(self, *, remove: bool) -> Sequence[str]:
        return await leftovers(
            self.cluster, self._finder, self.config, remove=remove, making_s=self.making_s
        )

    async def usage(self, cave_id: str) -> Usage:
        there = await self._find(cave_id)
        if there.info.state is not State.RUNNING or there.pod is None:
            return Usage()
        name = there.pod["metadata"]["name"]
        path = f"/apis/metrics.k8s.io/v1beta1/namespaces/{there.space}/pods/{name}"
        try:
            seen = await self.cluster.ask("GET", path)
        except (CaveNotFound, BackendUnavailable):  # a cluster need not have metrics
            return Usage()
        for one in seen.get("containers") or ():
            if one.get("name") == CAVE:
                return Usage(memory_bytes=int(manifests.quantity(one["usage"]["memory"])))
        return Usage()

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        there = await self._find(cave_id)
        if there.pod is None:
            return
        path = f"{core(there.space)}/pods/{there.pod['metadata']['name']}/log"
        query = {"container": CAVE, **({"follow": "true"} if follow else {})}
        async with self.cluster.text(path, query) as pieces:
            async for piece in pieces:
                yield piece


def _next(there: Found) -> str:
    """What tells a cave's next pod from those before: the same for all hubs that would start it now."""
    before = "" if there.pod is None else there.pod["metadata"]["uid"]
    seen = f"{there.record['metadata']['resourceVersion']} {before}"
    return hashlib.sha256(seen.encode()).hexdigest()[:8]


class _Made(Exception):
    """There is a cave of the same id, or somebody is making one."""
