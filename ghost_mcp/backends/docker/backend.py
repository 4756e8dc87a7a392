# No file of Ghost's remembers a docker cave: it is a container, its volumes and what the engine shows of them.
"""Caves in Docker: hardened containers without a network, reached through an exec'd relay.

::

    container  ghost-INSTANCE-NAME    the cave (-OWNER.NAME where it has an owner); its main process is the warden
    container  ghost_making_ID        the same before it is ready: its name is a lock on the id
    container  ghost_pool_ID          waits to be claimed; ghost_taken_ID: just being claimed
    volumes    without a name         /workspace and /home/cave; they go with the container
    image      ghost-dressed:IMAGE    the image with a cave's folders and user laid over it: see images.py
    volume     ghost-runtime-KEY      the warden's runtime, shared by all caves, mounted read-only at /.ghost

No path is shared with the engine, nothing is published, and the image needs nothing: an empty one will do.
An ephemeral cave's container is removed by the engine when its warden ends, whoever else is still there.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anyio
from docker.errors import APIError

from ghost_mcp.backends.base import SHAPE, Backend, oldest_first
from ghost_mcp.backends.docker import container as made_of
from ghost_mcp.backends.docker.container import Claim, Seen, cave_name, stage_name
from ghost_mcp.backends.docker.engine import Engine
from ghost_mcp.backends.docker.finding import Finder
from ghost_mcp.backends.docker.images import Images
from ghost_mcp.backends.docker.running import Containers
from ghost_mcp.backends.local.door import state_folder
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
    Unsupported,
)
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.spec import CaveInfo, CaveSpec, Usage
from ghost_mcp.warden.link import Configured, configure

if TYPE_CHECKING:
    from types import TracebackType

    import docker
    from anyio.abc import ByteStream

__all__ = ["DockerBackend", "Made"]

PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Made:
    """A container of ours that runs, and what we hold of it."""

    container: str
    lifeline: ByteStream | None


class DockerBackend(Backend):
    """See :class:`~ghost_mcp.backends.base.Backend`. The truth is the engine's list of containers.

    ``image`` is for specs that name none (else $GHOST_IMAGE). Backends of different ``instance`` (else
    $GHOST_INSTANCE) do not see each other's caves. ``cache`` is a folder for the runtime on its way into the
    engine. ``runtime_image`` (else $GHOST_RUNTIME_IMAGE) brings the warden's runtime, where none can be made for the
    engine: on another system than Linux, or for another machine.
    """

    name = "docker"
    proxied = frozenset({"allow"})  # open is the engine's own network
    pools = True
    _kind: ClassVar[str] = ""  # keeps the caves of a backend that builds on this one apart
    _making_s: ClassVar[float] = 90.0  # who has not finished a cave by then has died

    def __init__(
        self,
        *,
        image: str | None = None,
        instance: str | None = None,
        cache: Path | None = None,
        runtime_image: str | None = None,
    ) -> None:
        self._runtime_image = runtime_image or os.environ.get("GHOST_RUNTIME_IMAGE")
        self._image = image or os.environ.get("GHOST_IMAGE")
        self._instance = (instance or os.environ.get("GHOST_INSTANCE") or "default") + self._kind
        self._cache = cache or Path(state_folder(), "cache", "docker")
        self._finder = Finder(self._instance)
        self._opened: tuple[Engine, Images, Containers] | None = None
        self._lifelines: dict[str, ByteStream | None] = {}  # of the ephemeral caves made here
        self._published: set[str] = set()  # those of them that an engine's list has while they live
        self._prepared: set[str] = set()
        self._begun: dict[str, Configured] = {}  # streams over which caves were configured here

    async def __aenter__(self) -> Self:
        engine = await Engine.open()
        images = Images(engine, self._cache, self._runtime_image)
        self._opened = engine, images, Containers(engine)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the ephemeral caves made here; the others live on."""
        with anyio.CancelScope(shield=True):
            try:
                async with anyio.create_task_group() as tasks:
                    for cave_id in list(self._lifelines):
                        tasks.start_soon(self._leave, cave_id)
            finally:
                for cave_id in {*self._begun, *self._lifelines}:
                    await self._hang_up(cave_id)
                if self._opened is not None:
                    await self._opened[0].aclose()

    async def _leave(self, cave_id: str) -> None:
        with suppress(BackendUnavailable):  # without its lifeline it ends all the same
            await self.destroy(cave_id)

    @property
    def _engine(self) -> Engine:
        return self._open[0]

    @property
    def images(self) -> Images:
        return self._open[1]

    @property
    def _containers(self) -> Containers:
        return self._open[2]

    @property
    def _open(self) -> tuple[Engine, Images, Containers]:
        if self._opened is None:
            raise GhostError("the docker backend is not open", hint="Use it as: async with ...")
        return self._opened

    # --- making ----------------------------------------------------------------------------------

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self._image)
        made_of.check(spec)
        stage = stage_name("making", spec.id)
        deadline = time.monotonic() + self._making_s
        while True:
            try:
                made = await self._make(spec, stage, partial(self._nobody_else, spec))
                break
            except _Another as found:
                return self._same(spec, found.seen)
            except Conflict:  # somebody is making it, or has died over it
                left = await self._engine.ask(lambda e: self._finder.abandoned(e, spec.id))
                await self._containers.remove([stage] if time.monotonic() > deadline else left)
                await anyio.sleep(PAUSE_S)
        try:
            self._lifelines.update({spec.id: made.lifeline} if spec.ephemeral else {})
            self._begun[spec.id] = await self._configure(made.container, spec, secrets or {})
            info = await self._publish(made.container, spec)
            self._published.update([spec.id] if spec.ephemeral else [])
            return info
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await self._drop(spec.id, made.container)
            if isinstance(exc, _Another):
                return self._same(spec, exc.seen)
            raise

    def _same(self, spec: CaveSpec, seen: Seen) -> CaveInfo:
        """The cave that stands where ``spec`` was to be made, if it is the one asked for. Raises Conflict."""
        info = made_of.info_of(seen, self._engine.about)
        if seen.spec.id == spec.id and seen.spec.full_name == spec.full_name and info is not None:
            return info
        if seen.spec.id == spec.id:
            raise Conflict(f"the cave id {spec.id} belongs to another cave")
        raise Conflict(
            f"a cave named {spec.name} is already there",
            hint=f"Choose another name, or: ghost destroy {spec.name}",
        )

    def _nobody_else(self, spec: CaveSpec, engine: docker.APIClient) -> None:
        """Raises _Another when id or name are taken. Whoever holds the stage's name may rely on the id."""
        found = self._finder.look(engine, cave_name(self._instance, spec.full_name))
        found = found or self._finder.with_id(engine, spec.id)
        if found is not None:
            raise _Another(found)

    async def _make(
        self,
        spec: CaveSpec,
        stage: str,
        check: Callable[[docker.APIClient], None] = lambda engine: None,
        *,
        pool: bool = False,
    ) -> Made:
        """Create and start a container under the stage's name. Raises Conflict when that name is taken."""
        try:
            return await self._make_from(spec, stage, check, pool=pool)
        except (InvalidArgument, CaveNotFound):  # what we knew of may have been removed: once more
            self.images.forget()
            return await self._make_from(spec, stage, check, pool=pool)

    async def _make_from(
        self, spec: CaveSpec, stage: str, check: Callable[[docker.APIClient], None], *, pool: bool
    ) -> Made:
        image = await self.images.dressed(spec.image or "")
        runtime = await self.images.runtime(image)
        lifeline = None
        parts = partial(self._parts, spec, runtime, pool=pool)
        try:
            container = await self._containers.make(stage, image, parts, check)
            await self._surround(spec, container)
            if spec.ephemeral:
                lifeline = await self._containers.lifeline(container)
            await self._containers.start(container)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                if lifeline is not None:
                    await anyio.aclose_forcefully(lifeline)
                if not isinstance(exc, Conflict):
                    await self._containers.remove([stage])
            raise
        return Made(container, lifeline)

    def _parts(
        self, spec: CaveSpec, runtime: str, *, pool: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords for the SDK: what a cave's container is, and what it may do."""
        config = made_of.config(spec, self._instance, pool=pool)
        return config, made_of.walls(spec, runtime, self._instance)

    async def _surround(self, spec: CaveSpec, container: str) -> None:
        """Make what has to be there before this container of a cave starts."""

    async def _configure(
        self, container: str, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> Configured:
        """A cave that does not come up says why."""
        try:
            stream = await self._containers.relay(container)
            try:
                return await configure(stream, self.settings(spec, secrets))
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise
        except CaveGone as exc:
            said = "it said nothing"
            with suppress(GhostError):  # an ephemeral one is gone with its log
                said = await self._containers.last_words(container) or said
            raise BackendUnavailable(f"the cave did not start: {said}") from exc

    async def _publish(self, container: str, spec: CaveSpec) -> CaveInfo:
        """Give it its name: from then on it is a cave. Raises _Another when the name is taken."""
        name = cave_name(self._instance, spec.full_name)

        def rename(engine: docker.APIClient) -> Seen | None:
            try:
                engine.rename(container, name)
            except APIError as exc:
                there = self._finder.look(engine, name)
                if exc.status_code == 409 and there is not None:
                    raise _Another(there) from exc
                raise
            return self._finder.look(engine, container)

        return self._told(await self._engine.ask(rename), spec.name)

    def _told(self, seen: Seen | None, name: str) -> CaveInfo:
        info = None if seen is None else made_of.info_of(seen, self._engine.about)
        if info is None:
            raise CaveGone(f"cave {name} has ended")
        return info

    # --- the pool --------------------------------------------------------------------------------

    def fits(self, template: CaveSpec, spec: CaveSpec) -> bool:
        """Ephemeral ones only: what waits in a pool is removed by the engine when it ends."""
        template, spec = (one.with_(image=one.image or self._image) for one in (template, spec))
        return spec.ephemeral and super().fits(template, spec)

    async def prepare(self, template: CaveSpec) -> str:
        shape = {part: getattr(template, part) for part in SHAPE}
        shape["image"] = template.image or self._image
        spec = CaveSpec(**shape, backend=self.name, ephemeral=True)
        made_of.check(spec)
        made = await self._make(spec, stage_name("pool", spec.id), pool=True)
        self._lifelines[spec.id] = made.lifeline
        self._prepared.add(spec.id)
        return spec.id

    async def claim(self, prepared_id: str, spec: CaveSpec) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self._image)
        if not spec.ephemeral:
            raise Unsupported("a cave that is to be kept cannot come from a docker pool")
        waiting, taken = (stage_name(stage, prepared_id) for stage in ("pool", "taken"))
        claim = Claim(spec, self._engine.now())

        def take(engine: docker.APIClient) -> Seen | None:
            try:
                # One claim gets through here: the engine refuses to give a container the name that it has.
                engine.rename(waiting, taken)
                engine.exec_create(taken, made_of.record(claim))
            except APIError as exc:
                raise CaveNotFound(f"the prepared cave {prepared_id} is gone") from exc
            try:
                engine.rename(taken, cave_name(self._instance, spec.full_name))
            except APIError as exc:
                engine.rename(taken, waiting)
                raise Conflict(f"a cave named {spec.name} is already there") from exc
            return self._finder.look(engine, cave_name(self._instance, spec.full_name))

        info = self._told(await self._engine.ask(take), spec.name)
        self._prepared.discard(prepared_id)
        if prepared_id in self._lifelines:
            self._lifelines[spec.id] = self._lifelines.pop(prepared_id)
            self._published.add(spec.id)
        return info

    # --- finding ---------------------------------------------------------------------------------

    async def _find(self, name: str) -> tuple[Seen, CaveInfo]:
        """The cave of that full name or id. Raises CaveNotFound, with the names there are."""
        seen = await self._engine.ask(lambda engine: self._finder.find(engine, name))
        info = None if seen is None else made_of.info_of(seen, self._engine.about)
        if seen is not None and info is not None:
            return seen, info
        there = await self._engine.ask(self._finder.all)
        raise CaveNotFound.among(name, (one.spec.full_name for one in there))

    async def get(self, name: str) -> CaveInfo:
        return (await self._find(name))[1]

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        found, there, before = [], set(), set(self._published)
        for seen in await self._engine.ask(self._finder.all):
            there.add(seen.spec.id)
            info = made_of.info_of(seen, self._engine.about)
            if info is not None and info.state is State.ENDED and info.spec.ephemeral:
                await self.destroy(info.id)
            elif info is not None:
                found.append(info)
        await self._containers.remove(await self._stale())
        # These ended by themselves: what is held of each is a socket or two.
        for cave_id in before - there:
            await self._let_go(cave_id)
        return oldest_first(found, owner)

    async def _stale(self) -> Sequence[str]:
        return await self._engine.ask(lambda e: self._finder.stale(e, self._making_s))

    async def leftovers(self, *, remove: bool) -> Sequence[str]:
        """Unfinished containers, volumes of ours that no container has, and what images.py made and nobody needs."""
        stale = await self._stale()
        if remove:
            await self._containers.remove(stale)
        images, runtimes = await self.images.unused()

        def rest(engine: docker.APIClient) -> Sequence[str]:
            mine = {"label": f"{made_of.INSTANCE}={self._instance}", "dangling": "true"}
            volumes = [one["Name"] for one in engine.volumes(filters=mine)["Volumes"] or ()]
            for volume in [*volumes, *runtimes] if remove else ():
                with suppress(APIError):  # gone, or in use again
                    engine.remove_volume(volume)
            for image in images if remove else ():
                with suppress(APIError):
                    engine.remove_image(image)
            return [*volumes, *runtimes, *images]

        return [*stale, *await self._engine.ask(rest)]

    # --- changing --------------------------------------------------------------------------------

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        seen, info = await self._find(cave_id)
        after(info.state, Event.START, info.name)
        if info.state is State.PAUSED:
            await self._containers.thaw(seen.container)
        elif info.state is not State.RUNNING:
            await self._hang_up(info.id)
            await self._containers.start(seen.container)
            self._begun[info.id] = await self._configure(seen.container, info.spec, secrets or {})
        return await self.get(info.id)

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        seen, info = await self._find(cave_id)
        after(info.state, Event.PAUSE if pause else Event.STOP, info.name)
        if not pause and info.spec.ephemeral:
            raise Unsupported(
                f"cave {info.name} is ephemeral: stopped, its files would be gone too",
                hint="Pause it, or destroy it.",
            )
        if pause and info.state is not State.PAUSED:
            await self._containers.freeze(seen.container)
        if not pause:
            await self._hang_up(info.id)
            await self._containers.stop(seen.container, frozen=info.state is State.PAUSED)
        return await self.get(info.id)

    async def destroy(self, cave_id: str) -> None:
        """Also one that is only just made or waits in a pool, by its id."""
        seen = await self._engine.ask(lambda engine: self._finder.find(engine, cave_id))
        if seen is not None:
            await self._drop(seen.spec.id, seen.container)
        else:
            await self._drop(cave_id)

    async def _drop(self, cave_id: str, *containers: str) -> None:
        """Remove these, and what else carries the id, with all we hold of it."""
        await self._hang_up(cave_id)
        self._prepared.discard(cave_id)
        others = await self._engine.ask(lambda engine: self._finder.of_cave(engine, cave_id))
        await self._containers.remove([*containers, *others])

    # --- talking ---------------------------------------------------------------------------------

    async def connect(self, cave_id: str) -> ByteStream:
        if cave_id in self._prepared:
            return await self._containers.relay(stage_name("pool", cave_id))
        seen, info = await self._find(cave_id)
        if info.state is State.ENDED:
            raise CaveGone(f"cave {info.name} has ended", hint=f"ghost start {info.name}")
        after(info.state, Event.CALL, info.name)
        begun = self._begun.pop(info.id, None)
        if begun is not None and begun.raw.alive:  # type: ignore[attr-defined]
            return begun
        if begun is not None:
            await anyio.aclose_forcefully(begun)
        return await self._containers.relay(seen.container)

    async def _hang_up(self, cave_id: str) -> None:
        self._published.discard(cave_id)
        async with AsyncExitStack() as closing:  # both, also when this is cancelled meanwhile
            for way in (self._begun.pop(cave_id, None), self._lifelines.pop(cave_id, None)):
                if way is not None:
                    closing.push_async_callback(anyio.aclose_forcefully, way)

    async def _let_go(self, cave_id: str) -> None:
        """Hang up on a cave that is certain to have ended: the engine keeps its end of a lifeline open."""
        if await self._engine.ask(lambda engine: self._finder.find(engine, cave_id)) is None:
            await self._hang_up(cave_id)

    async def usage(self, cave_id: str) -> Usage:
        seen, info = await self._find(cave_id)
        if info.state not in (State.RUNNING, State.PAUSED):
            return Usage()
        return await self._containers.usage(seen.container)

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        seen, _ = await self._find(cave_id)
        async with aclosing(self._containers.log(seen.container, follow=follow)) as pieces:
            async for piece in pieces:
                yield piece


class _Another(Exception):
    """Where a cave was to be made, there is one."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.spec.full_name)
        self.seen = seen
