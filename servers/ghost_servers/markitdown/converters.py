# Documents are hostile. Only this file decides where they are opened: in a converter cave, never in this process.
"""Converter caves: one for each owner of caves, without network, warm, ended by their idleness or with Ghost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.streams.buffered import BufferedByteReceiveStream

from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    GhostError,
    LimitExceeded,
    NotFound,
    ProtocolFailure,
    TimedOut,
    from_wire,
)
from ghost_mcp.spec import MIB, CaveSpec, Limits
from ghost_servers.markitdown.incave import wire
from ghost_servers.markitdown.installed import installed

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.cave import Cave
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.tool import Progress
    from ghost_servers.markitdown.source import Source

__all__ = ["Converter", "converter_for"]

CONCURRENT = 2
QUEUE_S = 120.0
START_S = 60.0
IDLE_S = 300.0
LIMITS = Limits(memory_bytes=1536 * MIB, pids=64, tmp_bytes=16 * MIB)
# Threads of a numerical library would not survive the forks, and none is needed.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
SOCKET = "/tmp/converter.sock"  # noqa: S108  (in the converter cave)


def converter_for(cave: Cave) -> Converter:
    """The converter of a cave's owner."""
    ghost = cave.ghost
    return ghost.keep.get("converters", lambda: Converters(ghost)).of(cave.info.spec.owner)


class Converters:
    """The converters of one Ghost by owner, closed with it."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost
        self._converters: dict[str, Converter] = {}

    def of(self, owner: str) -> Converter:
        if owner not in self._converters:
            self._converters[owner] = Converter(self._ghost, owner)
        return self._converters[owner]

    async def aclose(self) -> None:
        for converter in self._converters.values():
            await converter.aclose()


class Converter:
    """One owner's converter cave, made on first use and again when it has ended."""

    def __init__(self, ghost: Ghost, owner: str) -> None:
        self._ghost = ghost
        self._owner = owner
        self._cave: Cave | None = None
        self._changing = anyio.Lock()
        self._slots = anyio.Semaphore(CONCURRENT)

    async def ask(
        self, source: Source, request: Mapping[str, Any], progress: Progress
    ) -> tuple[dict[str, Any], bytes]:
        """Convert a document; the answer's head and payload, both still as hostile as the document.

        ``request`` is the operation and its arguments. CONCURRENT conversions run at once, others wait.
        Raises what the converter refused with, TimedOut, LimitExceeded, BackendUnavailable.
        """
        head = wire.pack(
            {
                **request,
                "name": source.name[:255],
                "media_type": source.media_type,
                "charset": source.charset,
                "size": source.size_bytes,
            }
        )
        async with self._slot():
            try:
                with anyio.fail_after(wire.MAX_WALL_S + START_S):
                    async with self._connected(progress) as stream:
                        return await _converse(stream, head, source)
            except TimeoutError:
                raise TimedOut("the conversion took too long and was ended") from None

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        with anyio.move_on_after(QUEUE_S) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            raise LimitExceeded(
                "other conversions are still running", hint="Try again when they are done."
            )
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _connected(self, progress: Progress) -> AsyncIterator[ByteStream]:
        """A connection to the warm converter; a cave that has ended meanwhile is replaced once."""
        async with AsyncExitStack() as stack:
            cave = await self._ready(progress)
            try:
                stream = await stack.enter_async_context(cave.dial(path=SOCKET))
            except (CaveGone, NotFound):
                await self._forget(cave)
                cave = await self._ready(progress)
                stream = await stack.enter_async_context(cave.dial(path=SOCKET))
            yield stream

    async def _ready(self, progress: Progress) -> Cave:
        async with self._changing:
            if self._cave is None:
                await progress(0, None, "starting the converter")
                self._cave = await self._start()
            return self._cave

    async def _start(self) -> Cave:
        here = await anyio.to_thread.run_sync(installed)
        cave = await self._ghost.create(
            CaveSpec(
                backend="local",
                owner=self._owner,
                limits=LIMITS,
                ephemeral=True,
                idle_timeout_s=IDLE_S,
                mounts=here.mounts,
                labels={"ghost/role": "converter"},
            )
        )
        try:
            environment = {**ENVIRONMENT, **here.environment}
            done = await cave.exec(here.argv(SOCKET), env=environment, timeout_s=START_S)
            if done.exit_code:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise BackendUnavailable(f"the converter did not start: {last[:300]}")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _end(cave)
            raise
        return cave

    async def _forget(self, cave: Cave) -> None:
        async with self._changing:
            if self._cave is cave:
                self._cave = None
                await _end(cave)

    async def aclose(self) -> None:
        if self._cave is not None:
            await self._forget(self._cave)


async def _end(cave: Cave) -> None:
    with suppress(GhostError):  # it may have ended by itself
        await cave.destroy()


async def _converse(
    stream: ByteStream, head: bytes, source: Source
) -> tuple[dict[str, Any], bytes]:
    try:
        with suppress(anyio.BrokenResourceError):  # it refused before it had everything
            await stream.send(head)
            async for piece in source.pieces():
                await stream.send(piece)
        answers = BufferedByteReceiveStream(stream)
        size = wire.head_size(await answers.receive_exactly(wire.PREFIX))
        answer = wire.unpack(await answers.receive_exactly(size), wire.MAX_ANSWER)
        if answer.get("ok") is not True:
            raise from_wire(answer)
        return answer, await answers.receive_exactly(answer["size"])
    except wire.BadFrame as exc:
        raise ProtocolFailure(f"the converter broke its protocol: {exc}") from exc
    except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as exc:
        raise LimitExceeded(
            "the converter ended while it converted this document",
            hint="It may need too much memory. The next document gets a new converter.",
        ) from exc
