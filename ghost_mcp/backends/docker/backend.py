# No file of Ghost's remembers a docker cave: it is a container, two volumes and what their labels say.
"""Caves in Docker: hardened containers without a network, reached through an exec'd relay.

::

    container  ghost-INSTANCE-NAME    the cave (-OWNER.NAME where it has an owner); its main process is the warden
    container  ghost-making-ID        while it is made: a lock, and the way into its volumes; never started
    volumes    ghost-ID-workspace, ghost-ID-home
    volume     ghost-runtime-KEY      the warden's runtime, shared by all caves, mounted read-only at /.ghost

No path is shared with the engine, nothing is published, and the image needs nothing: an empty one will do.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.docker import container as made_of
from ghost_mcp.backends.docker.container import ID, INSTANCE, NAME, SPEC
from ghost_mcp.backends.docker.engine import Engine, map_errors
from ghost_mcp.backends.docker.stream import ExecStream, take_socket
from ghost_mcp.backends.local.door import state_folder
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
)
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.spec import CaveInfo, CaveSpec, Usage
from ghost_mcp.warden import runtime
from ghost_mcp.warden.link import configure

if TYPE_CHECKING:
    from types import TracebackType

    import docker
    from anyio.abc import ByteStream

__all__ = ["DockerBackend"]

MAKING_S = 60.0
GONE_S = 30.0
READY_S = 20.0
STOP_S = 5
PAUSE_S = 0.05


class DockerBackend(Backend):
    """See :class:`~ghost_mcp.backends.base.Backend`. The truth is the engine's list of containers.

    ``image`` is for specs that name none. Backends of different ``instance`` do not see each other's caves.
    ``cache`` is a folder for the runtime on its way into the engine.
    """

    name = "docker"

    def __init__(
        self,
        *,
        image: str | None = None,
        instance: str = "default",
        cache: Path | None = None,
    ) -> None:
        self._image = image
        self._instance = instance
        self._cache = cache or Path(state_folder(), "cache", "docker")
        self._opened: Engine | None = None
        self._runtime = ""  # the volume's name, once it is known to be whole
        self._lifelines: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        self._opened = await Engine.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the ephemeral caves made here; the others live on."""
        with anyio.CancelScope(shield=True):
            for cave_id in list(self._lifelines):
                await self.destroy(cave_id)
            if self._opened is not None:
                await self._opened.aclose()

    @property
    def _engine(self) -> Engine:
        if self._opened is None:
            raise GhostError("the docker backend is not open", hint="Use it as: async with ...")
        return self._opened

    # --- making ----------------------------------------------------------------------------------

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self._image)
        made_of.check(spec)
        image = await self._known(spec.image or "")
        await self._fill_runtime(image)
        places = {f"/fill/{name}": volume for name, volume in made_of.volumes(spec.id).items()}
        labels = {INSTANCE: self._instance, ID: spec.id}
        async with self._workshop(f"ghost-making-{spec.id}", image, places, labels) as workshop:
            there = await self._seen(spec.id)
            if there is None:
                try:
                    container = await self._make(spec, image, workshop)
                    await self._begin(container, spec, secrets or {})
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._remove(spec.id)
                    raise
            elif there[1][NAME] != spec.full_name:
                raise Conflict(f"the cave id {spec.id} belongs to another cave")
        return await self.get(spec.id)

    async def _known(self, image: str) -> str:
        """The image's id. Raises InvalidArgument for one that the engine does not have: none is fetched here."""
        try:
            found = await self._engine.ask(lambda e: e.inspect_image(image))  # type: ignore[no-untyped-call]
        except (CaveNotFound, InvalidArgument) as exc:
            raise InvalidArgument(
                f"the engine has no image {image[:200]}", hint=f"Get it first: docker pull {image}"
            ) from exc
        return str(found["Id"])

    @asynccontextmanager
    async def _workshop(
        self, name: str, image: str, places: Mapping[str, str], labels: Mapping[str, str]
    ) -> AsyncIterator[str]:
        """A container that is never started: its name is a lock, its mounts are the way into volumes.

        Whoever holds the name for longer than MAKING_S has died.
        """

        def make(engine: docker.APIClient) -> str:
            binds = [f"{volume}:{path}:rw,nocopy" for path, volume in places.items()]
            host = engine.create_host_config(binds=binds, network_mode="none")
            made = engine.create_container(
                image, ["none"], name=name, labels=dict(labels), host_config=host
            )
            return str(made["Id"])

        deadline = time.monotonic() + MAKING_S
        while True:
            try:
                workshop = await self._engine.ask(make)
                break
            except Conflict:
                if time.monotonic() > deadline:
                    await self._remove_container(name)
                await anyio.sleep(PAUSE_S)
        try:
            yield workshop
        finally:
            with anyio.CancelScope(shield=True):
                await self._remove_container(workshop)

    async def _fill_runtime(self, image: str) -> None:
        """See that the volume with the warden's runtime is there, whole."""
        if self._runtime:
            return
        await anyio.to_thread.run_sync(partial(self._cache.mkdir, parents=True, exist_ok=True))
        folder = await anyio.to_thread.run_sync(runtime.build_runtime, self._cache)
        volume, place = f"ghost-{folder.name}", "/fill/runtime"
        async with self._workshop(f"{volume}-filling", image, {place: volume}, {}) as workshop:
            try:
                marker = f"{place}/{made_of.MARKER}"
                await self._engine.ask(lambda engine: engine.get_archive(workshop, marker))
            except CaveNotFound:
                packed = await anyio.to_thread.run_sync(made_of.pack_runtime, folder)
                await self._engine.ask(lambda e: e.put_archive(workshop, "/fill", packed))
        self._runtime = volume

    async def _make(self, spec: CaveSpec, image: str, workshop: str) -> str:
        def make(engine: docker.APIClient) -> str:
            host = engine.create_host_config(**made_of.walls(spec, self._runtime))
            config = made_of.config(spec, self._instance)
            made = engine.create_container(image, host_config=host, **config)
            engine.put_archive(workshop, "/fill", made_of.pack_folders())
            return str(made["Id"])

        try:
            return await self._engine.ask(make)
        except Conflict as exc:
            raise Conflict(
                f"a cave named {spec.name} is already there",
                hint=f"Choose another name, or: ghost destroy {spec.name}",
            ) from exc

    async def _begin(self, container: str, spec: CaveSpec, secrets: Mapping[str, bytes]) -> None:
        """Start and configure; a cave that does not come up says why."""
        if spec.ephemeral:
            held = {"stdin": 1, "stream": 1}
            self._let_go(spec.id)
            self._lifelines[spec.id] = await self._engine.ask(
                lambda engine: engine.attach_socket(container, held)
            )
        await self._engine.ask(lambda engine: engine.start(container))
        try:
            stream = await self._relay(container)
            try:
                await configure(stream, self.settings(spec, secrets))
            finally:
                await stream.aclose()
        except CaveGone as exc:
            log = await self._engine.ask(lambda engine: engine.logs(container, tail=5))
            said = log.decode("utf-8", "replace").strip()[-400:] or "it said nothing"
            raise BackendUnavailable(f"the cave did not start: {said}") from exc

    def _let_go(self, cave_id: str) -> None:
        held = self._lifelines.pop(cave_id, None)
        if held is not None:
            held._response.close()

    # --- finding ---------------------------------------------------------------------------------

    async def _containers(self) -> list[tuple[str, Mapping[str, str]]]:
        """Id and labels of each container that is a cave of this instance, or being made into one."""
        asked = {"label": [f"{INSTANCE}={self._instance}", SPEC]}
        found = await self._engine.ask(lambda engine: engine.containers(all=True, filters=asked))
        return [(one["Id"], one["Labels"]) for one in found]

    async def _seen(self, name: str) -> tuple[str, Mapping[str, str]] | None:
        for container, labels in await self._containers():
            if name in (labels[ID], labels[NAME]):
                return container, labels
        return None

    async def _find(self, name: str) -> tuple[str, CaveInfo]:
        """Container and cave of that full name or id. Raises CaveNotFound, with the names there are."""
        found = await self._seen(name)
        info = None if found is None else await self._info(found[0])
        if found is not None and info is not None:
            return found[0], info
        known = ", ".join(sorted(labels[NAME] for _, labels in await self._containers())[:10])
        raise CaveNotFound(
            f"no such cave: {name[:64]}",
            hint=f"Caves here: {known}." if known else "There are none: ghost create NAME",
        )

    async def _info(self, container: str) -> CaveInfo | None:
        """The cave, or None for a container that is not one yet, or no more."""
        with suppress(CaveNotFound):
            seen = await self._engine.ask(lambda engine: engine.inspect_container(container))
            return made_of.info_of(seen, self._engine.about)
        return None

    async def get(self, name: str) -> CaveInfo:
        return (await self._find(name))[1]

    async def list(self) -> list[CaveInfo]:
        found = []
        for container, labels in await self._containers():
            info = await self._info(container)
            if info is not None and info.state is State.ENDED and info.spec.ephemeral:
                await self.destroy(labels[ID])
            elif info is not None:
                found.append(info)
        return sorted(found, key=lambda info: info.created_at)

    # --- changing --------------------------------------------------------------------------------

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        container, info = await self._find(cave_id)
        after(info.state, Event.START, info.name)
        if info.state is State.PAUSED:
            await self._engine.ask(lambda engine: engine.unpause(container))
        elif info.state is not State.RUNNING:
            await self._fill_runtime(await self._known(info.spec.image or ""))
            await self._begin(container, info.spec, secrets or {})
        return await self.get(info.id)

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        container, info = await self._find(cave_id)
        after(info.state, Event.PAUSE if pause else Event.STOP, info.name)
        if pause and info.state is not State.PAUSED:
            await self._engine.ask(lambda engine: engine.pause(container))
        if not pause:
            if info.state is State.PAUSED:  # the frozen take no signal
                await self._engine.ask(lambda engine: engine.unpause(container))
            await self._engine.ask(lambda engine: engine.stop(container, timeout=STOP_S))
        return await self.get(info.id)

    async def destroy(self, cave_id: str) -> None:
        found = await self._seen(cave_id)
        await self._remove(cave_id if found is None else found[1][ID])

    async def _remove(self, cave_id: str) -> None:
        """Remove what carries this id, whoever is removing it too, until nothing does."""
        self._let_go(cave_id)
        asked = {"label": [f"{INSTANCE}={self._instance}", f"{ID}={cave_id}"]}
        with anyio.move_on_after(GONE_S):
            while found := await self._engine.ask(lambda e: e.containers(all=True, filters=asked)):
                for one in found:
                    await self._remove_container(one["Id"])
            for volume in made_of.volumes(cave_id).values():
                await self._remove_volume(volume)
            return
        raise BackendUnavailable(f"cave {cave_id} does not end")

    async def _remove_container(self, container: str) -> None:
        with suppress(CaveNotFound):
            try:
                await self._engine.ask(lambda e: e.remove_container(container, v=True, force=True))
            except Conflict:  # somebody else removes it
                await anyio.sleep(PAUSE_S)

    async def _remove_volume(self, volume: str) -> None:
        with suppress(CaveNotFound):
            while True:
                try:
                    await self._engine.ask(lambda engine: engine.remove_volume(volume))
                    return
                except Conflict:  # its container is just going
                    await anyio.sleep(PAUSE_S)

    # --- talking ---------------------------------------------------------------------------------

    async def connect(self, cave_id: str) -> ByteStream:
        container, info = await self._find(cave_id)
        if info.state is State.ENDED:
            raise CaveGone(f"cave {info.name} has ended", hint=f"ghost start {info.name}")
        after(info.state, Event.CALL, info.name)
        return await self._relay(container)

    async def _relay(self, container: str) -> ExecStream:
        """A relay in the container, once the warden has answered through it."""
        command, user = made_of.RELAY

        def begin(engine: docker.APIClient) -> Any:
            made = engine.exec_create(container, command, stdin=True, user=user)
            return take_socket(engine.exec_start(made["Id"], socket=True))

        try:
            stream = await ExecStream.over(*await self._engine.ask(begin))
        except (Conflict, CaveNotFound) as exc:
            raise CaveGone("the cave has ended") from exc
        try:
            with anyio.fail_after(READY_S):
                await stream.begin()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            if isinstance(exc, TimeoutError | anyio.EndOfStream | anyio.BrokenResourceError):
                raise CaveGone(f"no warden answers: {stream.last_words}") from exc
            raise
        return stream

    async def usage(self, cave_id: str) -> Usage:
        container, info = await self._find(cave_id)
        if info.state not in (State.RUNNING, State.PAUSED):
            return Usage()
        now: Any = await self._engine.ask(
            lambda engine: engine.stats(container, stream=False, one_shot=True)
        )
        return Usage(
            memory_bytes=now["memory_stats"].get("usage"),
            memory_peak_bytes=now["memory_stats"].get("max_usage"),
            cpu_s=now["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            pids=now["pids_stats"].get("current"),
        )

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        container, _ = await self._find(cave_id)
        pieces = await self._engine.ask(lambda e: e.logs(container, stream=True, follow=follow))
        try:
            while True:
                with map_errors():
                    piece = await anyio.to_thread.run_sync(
                        next, pieces, b"", abandon_on_cancel=True
                    )
                if not piece:
                    return
                yield piece
        finally:
            pieces.close()
