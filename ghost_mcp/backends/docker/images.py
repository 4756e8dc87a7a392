# Only this file brings something into an engine that stays there: images, and the warden's runtime.
"""What caves are made from: an image of the engine with a cave's folders and user laid over it, and the runtime."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from docker.errors import ImageNotFound, NotFound

from ghost_mcp.backends.docker import container as made_of
from ghost_mcp.backends.docker.engine import require_same_machine
from ghost_mcp.backends.docker.makers import MAKER, died, this_process
from ghost_mcp.errors import CaveNotFound, Conflict, InvalidArgument, map_os_errors
from ghost_mcp.warden import runtime

if TYPE_CHECKING:
    from pathlib import Path

    import docker

    from ghost_mcp.backends.docker.engine import Engine

__all__ = ["DRESSED", "Images"]

DRESSED = "ghost.dressed"  # a dressed image's label: the id of the image below
REPOSITORY = "ghost-dressed"
FORMAT = "3"  # of what is laid over
RUNTIME = "ghost-runtime-"
# A volume beside the runtime's says that this is whole: to look into a volume takes a container.
WHOLE = "ghost-whole-"
SINCE = "ghost.since"  # its label: which volume of that name it speaks of
MAKING_S = 60.0
PAUSE_S = 0.05
ACCOUNT_BYTES = 256 << 10


class Images:
    """The images and the runtime of one engine. What was found once is not asked for again."""

    def __init__(self, engine: Engine, cache: Path, runtime_image: str | None = None) -> None:
        self._engine = engine
        self._runtime_image = runtime_image
        self._cache = cache
        self._runtime = ""  # the volume's name, once it is known to be whole
        self._doubted = False  # whether the engine's word for it is to be trusted
        self._dressed: dict[str, str] = {}
        self._lock = anyio.Lock()  # one of us asks, and makes what is not there

    async def known(self, image: str) -> str:
        """The image's id. Raises InvalidArgument for one that the engine does not have."""
        if {".", ".."} & set(image.split("/")):  # an address of the engine's that is no image's
            raise InvalidArgument(f"not an image reference: {image[:200]}")
        try:
            found = await self._engine.ask(lambda e: e.inspect_image(image))  # type: ignore[no-untyped-call]
        except (CaveNotFound, InvalidArgument) as exc:
            raise InvalidArgument(
                f"the engine has no image {image[:200]}",
                hint=f"Get it first: ghost image pull {image[:200]}",
            ) from exc
        return str(found["Id"])

    def forget(self) -> None:
        """Look again, and closely: somebody has removed what was found."""
        self._runtime, self._doubted = "", True
        self._dressed.clear()

    async def dressed(self, image: str) -> str:
        """The id of the image with a cave's folders and user laid over it; made once for each image."""
        plain = await self.known(image)
        async with self._lock:
            if plain not in self._dressed:
                found = await self._find_dressed(plain) or await self._dress(plain)
                self._dressed[plain] = found
            return self._dressed[plain]

    async def _find_dressed(self, plain: str) -> str | None:
        with suppress(CaveNotFound, InvalidArgument):
            found = await self._engine.ask(lambda e: e.inspect_image(_tagged(plain)))  # type: ignore[no-untyped-call]
            if found["Config"]["Labels"].get(DRESSED) == plain:
                return str(found["Id"])
        return None

    async def _dress(self, plain: str) -> str:
        lock = f"ghost_dressing_{plain.removeprefix('sha256:')[:32]}"
        async with self._workshop(lock, plain, {}, {DRESSED: plain}) as workshop:
            there = await self._find_dressed(plain)  # somebody may have been faster
            if there is not None:
                return there

            def dress(engine: docker.APIClient) -> str:
                accounts = {
                    name: _small_file(engine, workshop, f"/etc/{name}")
                    for name in ("passwd", "group")
                }
                engine.put_archive(workshop, "/", made_of.dressing(accounts))
                repository, tag = _tagged(plain).split(":")
                return str(engine.commit(workshop, repository, tag)["Id"])

            return await self._engine.ask(dress)

    @asynccontextmanager
    async def _workshop(
        self, name: str, image: str, places: Mapping[str, str], labels: Mapping[str, str]
    ) -> AsyncIterator[str]:
        """A container that is never started: its name is a lock, its mounts are the way into volumes.

        Whoever holds the name for longer than MAKING_S has died, if this cannot be told at once.
        """

        def make(engine: docker.APIClient) -> str:
            binds = [f"{volume}:{path}:rw,nocopy" for path, volume in places.items()]
            host = engine.create_host_config(binds=binds, network_mode="none")
            made = engine.create_container(
                image, ["none"], name=name, labels={**labels, MAKER: maker}, host_config=host
            )
            return str(made["Id"])

        maker, deadline = this_process(), time.monotonic() + MAKING_S
        while True:
            try:
                workshop = await self._engine.ask(make)
                break
            except Conflict:
                abandoned = await self._engine.ask(partial(_abandoned, name))
                if abandoned or time.monotonic() > deadline:
                    await self._remove(abandoned or name)
                await anyio.sleep(PAUSE_S)
        try:
            yield workshop
        finally:
            with anyio.CancelScope(shield=True):
                await self._remove(workshop)

    async def _remove(self, container: str) -> None:
        with suppress(CaveNotFound, Conflict):
            await self._engine.ask(lambda e: e.remove_container(container, v=True, force=True))

    async def runtime(self, image: str) -> str:
        """The name of the volume with the warden's runtime, whole. ``image`` is any that the engine has."""
        async with self._lock:
            if not self._runtime:
                self._runtime = await self._find_runtime(image)
            return self._runtime

    async def _find_runtime(self, image: str) -> str:
        if self._runtime_image is None:
            require_same_machine(self._engine.about)
            folder = await anyio.to_thread.run_sync(_built, self._cache)
            volume = f"ghost-{folder.name}"
            pack = partial(anyio.to_thread.run_sync, made_of.pack_runtime, folder)
        else:
            image = self._runtime_image
            volume = f"{RUNTIME}{(await self.known(image)).removeprefix('sha256:')[:16]}"
            pack = partial(self._engine.ask, partial(_brought, image=image))
        if self._doubted or not await self._engine.ask(partial(_said_whole, volume)):
            await self._fill(volume, image, pack)
        return volume

    async def _fill(self, volume: str, image: str, pack: Callable[[], Awaitable[bytes]]) -> None:
        place = "/fill/runtime"
        async with self._workshop(f"{volume}-filling", image, {place: volume}, {}) as workshop:
            try:
                marker = f"{place}/{made_of.MARKER}"
                await self._engine.ask(lambda engine: engine.get_archive(workshop, marker))
            except CaveNotFound:
                packed = await pack()
                await self._engine.ask(lambda e: e.put_archive(workshop, "/fill", packed))
            await self._engine.ask(partial(_say_whole, volume))
        self._doubted = False

    async def unused(self) -> tuple[list[str], list[str]]:
        """Dressed images whose image has lost its name, and runtimes of other versions that no cave has."""

        def look(engine: docker.APIClient) -> tuple[list[str], list[str]]:
            used = {one["ImageID"] for one in engine.containers(all=True)}
            images = []
            for one in engine.images(filters={"label": DRESSED}):
                try:
                    plain = engine.inspect_image(one["Labels"][DRESSED])  # type: ignore[no-untyped-call]
                except ImageNotFound:
                    plain = {}
                named = plain.get("RepoTags") or plain.get("RepoDigests")
                if not named and one["Id"] not in used:
                    images.append(one["Id"])
            idle = {"name": RUNTIME, "dangling": "true"}
            volumes = [one["Name"] for one in engine.volumes(filters=idle)["Volumes"] or ()]
            volumes = [one for one in volumes if one != self._runtime]
            for one in engine.volumes(filters={"name": WHOLE})["Volumes"] or ():
                of = one["Name"].replace(WHOLE, RUNTIME)
                if of in volumes or not _said_whole(of, engine):
                    volumes.append(one["Name"])
            return images, volumes

        return await self._engine.ask(look)


def _built(cache: Path) -> Path:
    with map_os_errors("the cave's runtime cannot be made"):
        cache.mkdir(parents=True, exist_ok=True)
        return runtime.build_runtime(cache)


def _abandoned(name: str, engine: docker.APIClient) -> str:
    """The container of that name, if it is certain that its maker has died; else nothing."""
    with suppress(NotFound):
        seen = engine.inspect_container(name)
        if died((seen["Config"]["Labels"] or {}).get(MAKER, "")):
            return str(seen["Id"])
    return ""


def _said_whole(volume: str, engine: docker.APIClient) -> bool:
    """Whether it stands beside the volume that it was filled."""
    with suppress(NotFound):
        said = engine.inspect_volume(volume.replace(RUNTIME, WHOLE))["Labels"] or {}
        return bool(said.get(SINCE) == engine.inspect_volume(volume)["CreatedAt"])
    return False


def _say_whole(volume: str, engine: docker.APIClient) -> None:
    beside = volume.replace(RUNTIME, WHOLE)
    with suppress(NotFound):
        engine.remove_volume(beside)
    engine.create_volume(beside, labels={SINCE: engine.inspect_volume(volume)["CreatedAt"]})


def _brought(engine: docker.APIClient, image: str) -> bytes:
    """The runtime that an image holds, as an archive for a volume."""
    made = engine.create_container(image, ["none"])
    try:
        return made_of.repack_runtime(b"".join(engine.get_archive(made, "/.ghost")[0]))
    finally:
        engine.remove_container(made)


def _tagged(plain: str) -> str:
    return f"{REPOSITORY}:{plain.removeprefix('sha256:')[:32]}-{FORMAT}"


def _small_file(engine: docker.APIClient, container: str, path: str) -> bytes:
    """A file of a container that was not started; empty where there is none of a bearable size."""
    try:
        pieces, about = engine.get_archive(container, path)
    except NotFound:
        return b""
    if about["size"] > ACCOUNT_BYTES:
        return b""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        entry = archive.next()
        file = archive.extractfile(entry) if entry is not None and entry.isfile() else None
        return b"" if file is None else file.read(ACCOUNT_BYTES)
