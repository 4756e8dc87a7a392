# Only this file speaks with a container engine. A cave there is a container, two volumes and what their labels say.
"""Caves in Docker: hardened containers without a network, reached through an exec'd relay.

::

    container  ghost-INSTANCE-NAME    the cave; its main process is the warden
    container  ghost-making-ID        while it is made: a lock, and the way into its volumes; never started
    volumes    ghost-ID-workspace, ghost-ID-home
    volume     ghost-runtime-KEY      the warden's runtime, shared by all caves, mounted read-only at /.ghost

No path is shared with the engine, nothing is published, and the image needs nothing: an empty one will do.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
import docker
import requests
from docker import errors
from docker.types import LogConfig, Mount

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.docker_stream import ExecStream, take_socket
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
from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec, Usage
from ghost_mcp.warden import runtime
from ghost_mcp.warden.link import configure

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import ByteStream

__all__ = ["DockerBackend"]

T = TypeVar("T")

CAVE_UID = 1000
RELAY_UID = 1001  # who may speak with the warden: nobody in the cave is this user
SOCKET = "/run/ghost/warden.sock"
RUN_BYTES = 256 << 20
SHM_BYTES = 256 << 20
STOPPED_CODE = 143  # the warden's, when it was told to end
MAKING_S = 60.0
GONE_S = 30.0
READY_S = 20.0
INSTANCE, ID, NAME, SPEC = "ghost.instance", "ghost.id", "ghost.name", "ghost.spec"
MARKER = ".complete"


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
        self._engine: docker.APIClient | None = None
        self._about: Mapping[str, Any] = {}
        self._runtime_volume = ""
        self._lifelines: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        with map_errors():
            self._engine = await anyio.to_thread.run_sync(_open)
        self._about = await self._ask(lambda engine: engine.info())
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
            if self._engine is not None:
                await anyio.to_thread.run_sync(self._engine.close)

    async def _ask(self, act: Callable[[docker.APIClient], T]) -> T:
        """One conversation with the engine, in a thread; its errors become ours."""
        if self._engine is None:
            raise GhostError("the docker backend is not open", hint="Use it as: async with ...")
        with map_errors():
            return await anyio.to_thread.run_sync(act, self._engine)

    # --- making ----------------------------------------------------------------------------------

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        spec = spec.with_(backend=self.name, image=spec.image or self._image)
        _check(spec)
        image = await self._known_image(spec.image or "")
        await self._fill_runtime(image)
        volumes = {f"/fill/{name}": volume for name, volume in _volumes(spec.id).items()}
        labels = {INSTANCE: self._instance, ID: spec.id}
        async with self._workshop(f"ghost-making-{spec.id}", image, volumes, labels) as workshop:
            there = await self._seen(spec.id)
            if there is None:
                try:
                    container = await self._make(spec, image, workshop)
                    await self._begin(container, spec, secrets or {})
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._remove(spec.id)
                    raise
            elif there[1][NAME] != spec.name:
                raise Conflict(f"the cave id {spec.id} belongs to {there[1][NAME]}")
        return await self.get(spec.id)

    async def _known_image(self, image: str) -> str:
        try:
            found = await self._ask(lambda e: e.inspect_image(image))  # type: ignore[no-untyped-call]
        except CaveNotFound as exc:
            raise InvalidArgument(
                f"the engine has no image {image[:200]}", hint=f"Get it first: docker pull {image}"
            ) from exc
        return str(found["Id"])

    @asynccontextmanager
    async def _workshop(
        self, name: str, image: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> AsyncIterator[str]:
        """A container that is never started: its name is a lock, its mounts are the way into volumes.

        Whoever holds the name for longer than MAKING_S has died.
        """

        def make(engine: docker.APIClient) -> str:
            binds = [f"{volume}:{path}:rw,nocopy" for path, volume in volumes.items()]
            host = engine.create_host_config(binds=binds, network_mode="none")
            made = engine.create_container(
                image, ["none"], name=name, labels=dict(labels), host_config=host
            )
            return str(made["Id"])

        deadline = time.monotonic() + MAKING_S
        while True:
            try:
                workshop = await self._ask(make)
                break
            except Conflict:
                if time.monotonic() > deadline:
                    await self._remove_container(name)
                await anyio.sleep(0.05)
        try:
            yield workshop
        finally:
            with anyio.CancelScope(shield=True):
                await self._remove_container(workshop)

    async def _fill_runtime(self, image: str) -> None:
        """See that the volume with the warden's runtime is there, whole."""
        if self._runtime_volume:
            return
        await anyio.to_thread.run_sync(partial(self._cache.mkdir, parents=True, exist_ok=True))
        folder = await anyio.to_thread.run_sync(runtime.build_runtime, self._cache)
        volume = f"ghost-{folder.name}"
        async with self._workshop(f"{volume}-filling", image, {"/fill/runtime": volume}, {}) as at:
            try:
                await self._ask(lambda engine: engine.get_archive(at, f"/fill/runtime/{MARKER}"))
            except CaveNotFound:
                packed = await anyio.to_thread.run_sync(_pack, folder)
                await self._ask(lambda engine: engine.put_archive(at, "/fill", packed))
        self._runtime_volume = volume

    async def _make(self, spec: CaveSpec, image: str, workshop: str) -> str:
        def make(engine: docker.APIClient) -> str:
            made = engine.create_container(
                image,
                _arguments(spec),
                entrypoint=runtime.argv(),
                name=f"ghost-{self._instance}-{spec.name}",
                labels=self._labels(spec),
                user=f"{CAVE_UID}:{CAVE_UID}",
                hostname="cave",
                working_dir="/",
                stop_signal="SIGTERM",
                environment={
                    "HOME": "/home/cave",
                    "USER": "cave",
                    "LOGNAME": "cave",
                    "TMPDIR": "/tmp",  # noqa: S108  (the cave's)
                    **runtime.environ(),
                },
                stdin_open=spec.ephemeral,  # and closed for good when the one who attached has gone
                host_config=engine.create_host_config(**self._walls(spec)),
            )
            engine.put_archive(workshop, "/fill", _folders())
            return str(made["Id"])

        try:
            return await self._ask(make)
        except Conflict as exc:
            raise Conflict(
                f"a cave named {spec.name} is already there",
                hint=f"Choose another name, or: ghost destroy {spec.name}",
            ) from exc

    def _labels(self, spec: CaveSpec) -> dict[str, str]:
        return {
            INSTANCE: self._instance,
            ID: spec.id,
            NAME: spec.name,
            SPEC: json.dumps(spec.as_dict()),
        }

    def _walls(self, spec: CaveSpec) -> dict[str, Any]:
        """What the container may do and use."""
        limits, volumes = spec.limits, _volumes(spec.id)
        tmpfs = "rw,exec,nosuid,nodev"
        return {
            "binds": [
                f"{self._runtime_volume}:/.ghost:ro,nocopy",
                f"{volumes['workspace']}:/workspace:rw,nocopy",
                f"{volumes['home']}:/home/cave:rw,nocopy",
            ],
            "mounts": [
                Mount(path, source, type="bind", read_only=True)
                for path, source in spec.mounts.items()
            ],
            "tmpfs": {
                "/tmp": f"{tmpfs},size={limits.tmp_bytes},mode=1777",  # noqa: S108  (the cave's)
                "/run/ghost": f"{tmpfs},size={RUN_BYTES},mode=0711,uid={CAVE_UID},gid={CAVE_UID}",
            },
            "shm_size": SHM_BYTES,
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "network_mode": "none",
            "ipc_mode": "private",
            "pids_limit": limits.pids,
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,
            "nano_cpus": None if limits.cpus is None else int(limits.cpus * 1e9),
            "log_config": LogConfig(
                type=LogConfig.types.JSON, config={"max-size": "8m", "max-file": "2"}
            ),
        }

    async def _begin(self, container: str, spec: CaveSpec, secrets: Mapping[str, bytes]) -> None:
        """Start and configure; a cave that does not come up says why."""
        if spec.ephemeral:
            held = {"stdin": 1, "stream": 1}
            self._let_go(spec.id)
            self._lifelines[spec.id] = await self._ask(lambda e: e.attach_socket(container, held))
        await self._ask(lambda engine: engine.start(container))
        try:
            stream = await self._relay(container)
            try:
                await configure(stream, self.settings(spec, secrets))
            finally:
                await stream.aclose()
        except CaveGone as exc:
            log = await self._ask(lambda engine: engine.logs(container, tail=5))
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
        found = await self._ask(lambda engine: engine.containers(all=True, filters=asked))
        return [(one["Id"], one["Labels"]) for one in found]

    async def _seen(self, name: str) -> tuple[str, Mapping[str, str]] | None:
        for container, labels in await self._containers():
            if name in (labels[ID], labels[NAME]):
                return container, labels
        return None

    async def _find(self, name: str) -> tuple[str, CaveInfo]:
        """Container and cave of that name or id. Raises CaveNotFound, with the names there are."""
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
            seen = await self._ask(lambda engine: engine.inspect_container(container))
            state = _state(seen["State"])
            if state is None:
                return None
            spec = CaveSpec.from_dict(json.loads(seen["Config"]["Labels"][SPEC]))
            started = _seconds(seen["State"]["StartedAt"])
            return CaveInfo(
                spec=spec,
                state=state,
                created_at=_seconds(seen["Created"]),
                deadline_at=None if spec.timeout_s is None else started + spec.timeout_s,
                assurance=self._assurance(spec),
            )
        return None

    def _assurance(self, spec: CaveSpec) -> dict[str, Assurance]:
        limits, about = spec.limits, self._about
        seccomp = any("seccomp" in option for option in about.get("SecurityOptions") or ())
        swap = "" if about.get("SwapLimit") else "; swap is not bounded"
        asked = {
            "memory": (limits.memory_bytes, about.get("MemoryLimit"), f"cgroup{swap}"),
            "cpu": (limits.cpus, about.get("CpuCfsQuota"), "cgroup"),
            "pids": (limits.pids, about.get("PidsLimit"), "cgroup"),
        }
        return {
            "isolation": Assurance(
                enforced=True,
                how="own pid, mount, network, ipc and uts namespaces; no capabilities; read-only system",
            ),
            "user": Assurance(
                enforced=False,
                how=f"user {CAVE_UID} of the engine's machine, the same for every cave there",
            ),
            "syscalls": Assurance(
                enforced=seccomp,
                how="the engine's seccomp filter; no new privileges"
                if seccomp
                else "the engine has no seccomp filter",
            ),
            "network": Assurance(enforced=True, how="none: nothing but its own loopback"),
            "tmp": Assurance(enforced=True, how=f"/tmp is a tmpfs of {limits.tmp_bytes} bytes"),
            "disk": Assurance(enforced=False, how="volumes of this engine have no limit of size"),
            "lifetime": Assurance(enforced=True, how="the cave's own PID 1 ends it"),
            **{
                name: Assurance(
                    enforced=limit is not None and bool(can),
                    how="no limit was asked for"
                    if limit is None
                    else how
                    if can
                    else "the engine's kernel cannot",
                )
                for name, (limit, can, how) in asked.items()
            },
        }

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
            await self._ask(lambda engine: engine.unpause(container))
        elif info.state is not State.RUNNING:
            await self._begin(container, info.spec, secrets or {})
        return await self.get(info.id)

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        container, info = await self._find(cave_id)
        after(info.state, Event.PAUSE if pause else Event.STOP, info.name)
        if pause:
            if info.state is not State.PAUSED:
                await self._ask(lambda engine: engine.pause(container))
            return await self.get(info.id)
        if info.state is State.PAUSED:  # the frozen take no signal
            await self._ask(lambda engine: engine.unpause(container))
        await self._ask(lambda engine: engine.stop(container, timeout=5))
        return await self.get(info.id)

    async def destroy(self, cave_id: str) -> None:
        found = await self._seen(cave_id)
        await self._remove(cave_id if found is None else found[1][ID])

    async def _remove(self, cave_id: str) -> None:
        """Remove what carries this id, whoever is removing it too, until nothing does."""
        self._let_go(cave_id)
        asked = {"label": [f"{INSTANCE}={self._instance}", f"{ID}={cave_id}"]}
        with anyio.move_on_after(GONE_S):
            while found := await self._ask(lambda e: e.containers(all=True, filters=asked)):
                for one in found:
                    await self._remove_container(one["Id"])
            for volume in _volumes(cave_id).values():
                await self._remove_volume(volume)
            return
        raise BackendUnavailable(f"cave {cave_id} does not end")

    async def _remove_container(self, container: str) -> None:
        with suppress(CaveNotFound):
            try:
                await self._ask(lambda e: e.remove_container(container, v=True, force=True))
            except Conflict:  # somebody else removes it
                await anyio.sleep(0.05)

    async def _remove_volume(self, volume: str) -> None:
        with suppress(CaveNotFound):
            while True:
                try:
                    await self._ask(lambda engine: engine.remove_volume(volume))
                    return
                except Conflict:  # its container is just going
                    await anyio.sleep(0.05)

    # --- talking ---------------------------------------------------------------------------------

    async def connect(self, cave_id: str) -> ByteStream:
        container, info = await self._find(cave_id)
        if info.state is State.ENDED:
            raise CaveGone(f"cave {info.name} has ended", hint=f"ghost start {info.name}")
        after(info.state, Event.CALL, info.name)
        return await self._relay(container)

    async def _relay(self, container: str) -> ExecStream:
        """A relay in the container, once the warden has answered through it."""
        command = [*runtime.argv(), "--relay", SOCKET]

        def begin(engine: docker.APIClient) -> Any:
            made = engine.exec_create(
                container, command, stdin=True, user=f"{RELAY_UID}:{RELAY_UID}"
            )
            return take_socket(engine.exec_start(made["Id"], socket=True))

        try:
            stream = await ExecStream.over(*await self._ask(begin))
        except (Conflict, CaveNotFound) as exc:
            raise CaveGone("the cave has ended") from exc
        try:
            with anyio.fail_after(READY_S):
                await stream.begin()
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            if isinstance(exc, TimeoutError | anyio.EndOfStream | anyio.BrokenResourceError):
                raise CaveGone(f"no warden answers: {_last_line(stream.said)}") from exc
            raise
        return stream

    async def usage(self, cave_id: str) -> Usage:
        container, info = await self._find(cave_id)
        if info.state not in (State.RUNNING, State.PAUSED):
            return Usage()
        now: Any = await self._ask(lambda e: e.stats(container, stream=False, one_shot=True))
        return Usage(
            memory_bytes=now["memory_stats"].get("usage"),
            memory_peak_bytes=now["memory_stats"].get("max_usage"),
            cpu_s=now["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            pids=now["pids_stats"].get("current"),
        )

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        container, _ = await self._find(cave_id)
        lines = await self._ask(lambda e: e.logs(container, stream=True, follow=follow))
        read = partial(next, lines, b"")
        try:
            while True:
                with map_errors():
                    piece = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
                if not piece:
                    return
                yield piece
        finally:
            lines.close()


def _open() -> docker.APIClient:
    engine = docker.from_env(timeout=60).api
    if not engine.base_url.startswith(("http+docker://localhost", "http://")):
        raise Unsupported(
            "this engine is reached in a way that Ghost cannot carry a cave's link through",
            hint="Give DOCKER_HOST as a unix socket or as plain tcp.",
        )
    there, here = engine.info()["Architecture"], platform.machine()
    if there != here:
        raise Unsupported(f"the engine's machine is {there}, and the runtime made here is {here}")
    return engine


def _check(spec: CaveSpec) -> None:
    if not spec.image:
        raise InvalidArgument(
            "a docker cave needs an image", hint="Name one that the engine has: image=debian:12."
        )
    if spec.network.mode != "none":
        raise Unsupported(f"a docker cave cannot have the network mode {spec.network.mode!r} yet")
    if spec.limits.disk_bytes is not None:
        raise Unsupported("this engine's volumes have no limit of size", hint="Leave disk out.")
    if spec.workspace is not None:
        raise Unsupported(
            "a docker cave has a workspace of its own", hint="Copy the files in, or mount them."
        )
    if both := set(spec.secrets) & set(spec.env):
        raise InvalidArgument(f"{min(both)} is given as a secret and as a plain variable")


def _arguments(spec: CaveSpec) -> list[str]:
    """The warden's: it ends if nobody configures it, or with its lifeline."""
    arguments = ["--listen", SOCKET, "--peer-uid", str(RELAY_UID), "--lonely", f"{READY_S + 10:g}"]
    return [*arguments, "--lifeline-fd", "0"] if spec.ephemeral else arguments


def _volumes(cave_id: str) -> dict[str, str]:
    return {name: f"ghost-{cave_id}-{name}" for name in ("workspace", "home")}


def _state(seen: Mapping[str, Any]) -> State | None:
    """None: not started for the first time yet, or being removed."""
    if seen["Status"] in ("created", "removing"):
        return None
    if seen["Paused"]:
        return State.PAUSED
    if seen["Running"]:
        return State.RUNNING
    return State.STOPPED if seen["ExitCode"] == STOPPED_CODE else State.ENDED


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _folders() -> bytes:
    """An archive of the cave's two folders, empty and its own."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("workspace", "home"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            entry.uid = entry.gid = CAVE_UID
            archive.addfile(entry)
    return packed.getvalue()


def _pack(folder: Path) -> bytes:
    """The runtime as an archive, the marker last."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    loader = folder / "ld.so"
    mode = loader.stat().st_mode
    os.chmod(loader, mode | 0o400)  # closed to readers, in the volume too; this copy is only ours
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, "runtime", filter=lambda entry: plain(entry))
        archive.addfile(plain(tarfile.TarInfo(f"runtime/{MARKER}")))
    return packed.getvalue()


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "the relay said nothing"


@contextmanager
def map_errors() -> Iterator[None]:
    """The engine's errors, and those of the way to it, as ours."""
    try:
        yield
    except errors.ImageNotFound as exc:
        raise InvalidArgument(_said(exc)) from exc
    except errors.NotFound as exc:
        raise CaveNotFound(_said(exc)) from exc
    except errors.APIError as exc:
        if exc.status_code == 409:
            raise Conflict(_said(exc)) from exc
        if exc.status_code == 400:
            raise InvalidArgument(_said(exc)) from exc
        raise BackendUnavailable(f"the container engine failed: {_said(exc)}") from exc
    except (errors.DockerException, requests.RequestException, OSError) as exc:
        raise BackendUnavailable(
            f"the container engine does not answer: {str(exc)[:300]}",
            hint="Is Docker running, may you use it, and is DOCKER_HOST right? See: ghost doctor",
        ) from exc


def _said(exc: errors.APIError) -> str:
    return str(exc.explanation or exc)[:300]
