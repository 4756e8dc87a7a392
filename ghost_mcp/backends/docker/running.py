# Which cave a container is, and what is held of it, is not known here: only how an engine is asked to act on it.
"""The containers of caves, by id or name: made, started, frozen, removed, spoken to, listened to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from docker.errors import APIError, NotFound

from ghost_mcp.backends.docker.container import RELAY
from ghost_mcp.backends.docker.engine import map_errors
from ghost_mcp.backends.docker.stream import ExecStream
from ghost_mcp.backends.relays import begun
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    GhostError,
    Unsupported,
)
from ghost_mcp.spec import Usage

if TYPE_CHECKING:
    import docker
    from anyio.abc import ByteStream

    from ghost_mcp.backends.docker.engine import Engine

__all__ = ["Containers"]

GONE_S = 30.0
STOP_S = 5
FREEZES = 3
NOT_STARTED = (126, 127)  # the engine's, of a program that it could not start
FOLLOWERS = 64  # logs followed at once: each takes a thread


class Containers:
    """Those of one engine. All methods raise as Engine.ask() does, besides what they say themselves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._followers = anyio.CapacityLimiter(FOLLOWERS)

    async def make(
        self,
        name: str,
        image: str,
        parts: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
        check: Callable[[docker.APIClient], None],
    ) -> str:
        """Create one and call ``check``, in one conversation; returns its id.

        ``parts`` answers with the SDK's keywords for the container and for its walls. Raises Conflict when the name
        is taken, Unsupported for walls that this engine does not have.
        """

        def create(engine: docker.APIClient) -> str:
            config, walls = parts()
            host = engine.create_host_config(**walls)
            made = engine.create_container(image, host_config=host, name=name, **config)
            check(engine)
            return str(made["Id"])

        with _told_apart():
            return await self._engine.ask(create)

    async def start(self, container: str) -> None:
        """Raises Unsupported for what this engine turns out not to have."""
        with _told_apart():
            await self._engine.ask(lambda engine: engine.start(container))

    async def freeze(self, container: str) -> None:
        """On a crowded machine the kernel may take longer over it than the engine waits."""

        def pause(engine: docker.APIClient) -> None:
            for left in reversed(range(FREEZES)):
                try:
                    engine.pause(container)
                    return
                except APIError as exc:
                    if not left or "freeze" not in str(exc.explanation):
                        raise

        await self._engine.ask(pause)

    async def thaw(self, container: str) -> None:
        await self._engine.ask(lambda engine: engine.unpause(container))

    async def stop(self, container: str, *, frozen: bool) -> None:
        """End its programs within STOP_S, or by force."""

        def stop(engine: docker.APIClient) -> None:
            if frozen:  # the frozen take no signal
                engine.unpause(container)
            engine.stop(container, timeout=STOP_S)

        await self._engine.ask(stop)

    async def remove(self, containers: Sequence[str]) -> None:
        """Remove them, with their volumes, whoever is removing them too."""

        def remove(container: str, engine: docker.APIClient) -> bool:
            try:
                engine.remove_container(container, v=True, force=True)
            except NotFound:
                return True
            except APIError as exc:
                if exc.status_code != 409:
                    raise
            return False

        with anyio.move_on_after(GONE_S):
            for container in dict.fromkeys(containers):
                while not await self._engine.ask(partial(remove, container)):
                    await anyio.lowlevel.checkpoint()
            return
        raise BackendUnavailable("a container does not end", hint=f"docker rm -f {containers[0]}")

    async def lifeline(self, container: str) -> ByteStream:
        """The way to its standard input. When it closes, however it does, the engine closes that input."""
        path = f"/containers/{container}/attach?stdin=1&stream=1"
        return (await self._engine.upgrade(path)).stream

    async def relay(self, container: str) -> ExecStream:
        """A way to its warden, once that has answered. Raises CaveGone, BackendUnavailable."""
        command, user = RELAY
        try:
            made = await self._engine.ask(
                lambda engine: engine.exec_create(container, command, stdin=True, user=user)
            )
            opened = await self._engine.upgrade(
                f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False}
            )
        except (Conflict, CaveNotFound) as exc:
            raise CaveGone("the cave has ended") from exc
        stream = ExecStream(opened.stream, opened.buffered)
        async with begun(stream):
            if not stream.framed:
                await self._check_ran(container, made["Id"], stream.opening)
        return stream

    async def _check_ran(self, container: str, relay: str, said: str) -> None:
        """Raise if the relay was never started: then what came is the engine's own word, written where its output
        would be. What a program of the cave wrote there is left to who reads frames."""

        def look(engine: docker.APIClient) -> tuple[bool, bool]:
            try:
                seen = engine.exec_inspect(relay)
                # One that answers at once may have no number yet; one that did not start has the code for that.
                ran = seen["Running"] or seen["Pid"] or seen["ExitCode"] not in NOT_STARTED
                return bool(ran), bool(engine.inspect_container(container)["State"]["Running"])
            except NotFound:
                return False, False

        ran, lives = await self._engine.ask(look)
        if not ran and lives:
            raise BackendUnavailable(f"the engine starts nothing in the cave: {said}")
        if not ran:
            raise CaveGone(f"the cave has ended: {said}")

    async def last_words(self, container: str) -> str:
        """The end of its log, for an error message; empty when it said nothing."""
        log = await self._engine.ask(lambda engine: engine.logs(container, tail=5))
        return log.decode("utf-8", "replace").strip()[-400:]

    async def usage(self, container: str) -> Usage:
        """Of one that runs or is frozen."""
        now: Any = await self._engine.ask(
            lambda engine: engine.stats(container, stream=False, one_shot=True)
        )
        return Usage(
            memory_bytes=now["memory_stats"].get("usage"),
            memory_peak_bytes=now["memory_stats"].get("max_usage"),
            cpu_s=now["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            pids=now["pids_stats"].get("current"),
        )

    async def log(self, container: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Its log from the beginning, in pieces; with ``follow`` until it ends."""
        pieces = await self._engine.ask(lambda e: e.logs(container, stream=True, follow=follow))
        try:
            while True:
                with map_errors():
                    piece = await anyio.to_thread.run_sync(
                        next, pieces, b"", abandon_on_cancel=True, limiter=self._followers
                    )
                if not piece:
                    return
                yield piece
        finally:
            pieces.close()


@contextmanager
def _told_apart() -> Iterator[None]:
    """What an engine cannot enforce or has not got is no fault of the one who asked, nor one that passes."""
    try:
        yield
    except GhostError as exc:
        for sign, (lacks, hint) in _LACKS.items():
            if sign in exc.message:
                raise Unsupported(f"{lacks} ({exc.message[:200]})", hint=hint) from exc
        raise


_LACKS = {
    "no quota support": (
        "this engine's volumes have no limit of size",
        "Leave disk out, or put the engine's data on a file system with project quotas.",
    ),
    "could not select device driver": (
        "this engine has no GPUs for containers",
        "Leave gpus out, or install the NVIDIA Container Toolkit on the engine's machine.",
    ),
}
