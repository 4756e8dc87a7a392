# Only this file keeps connections to a cave's kernels: one that is kept holds the service, so none is for long.
"""Connections to the service ``kernels``: each carries one question at a time, and is used again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from ghost_mcp.errors import CaveGone

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.cave import Cave

__all__ = ["Lines"]

#: So long is a connection kept for the next question.
KEEP_S = 15.0

Ask = Callable[[bytes, int], Awaitable[bytes]]


class _Line:
    """One connection. A task of the cave's Ghost holds it, whoever asks over it."""

    def __init__(self) -> None:
        self.opened, self.end = anyio.Event(), anyio.Event()
        self.failure: Exception | None = None
        self.used = anyio.current_time()
        self.busy = True
        self._stream: ByteStream | None = None
        self._answers: BufferedByteReceiveStream | None = None

    async def hold(self, cave: Cave) -> None:
        """Keep it open until it is to end, or nobody has used it for KEEP_S. Lets no error out."""
        try:
            async with cave.service("kernels").dial() as stream:
                self._stream, self._answers = stream, BufferedByteReceiveStream(stream)
                self.opened.set()
                await self._idle()
        except Exception as exc:  # noqa: BLE001  (told by who opens it; later, by who asks over it)
            self.failure = exc
        finally:
            self.end.set()
            self.opened.set()

    async def _idle(self) -> None:
        while self.busy or anyio.current_time() - self.used < KEEP_S:
            with anyio.move_on_after(KEEP_S):
                await self.end.wait()
                return

    @property
    def fresh(self) -> bool:
        """Whether it can be asked over once more."""
        return not (self.end.is_set() or getattr(self._stream, "ended", True))

    async def ask(self, line: bytes, most: int) -> bytes:
        """Raises what receiving from a stream does."""
        if self._stream is None or self._answers is None:
            raise CaveGone("this connection is closed")
        await self._stream.send(line)
        return await self._answers.receive_until(b"\n", most)


class Lines:
    """The connections of one cave."""

    def __init__(self, cave: Cave) -> None:
        self._cave = cave
        self._free: list[_Line] = []

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Ask]:
        """A connection for one question. It is closed when the block fails: so the cave learns that it is given up.

        Raises what dialling a service does.
        """
        line = self._kept() or await self._open()
        try:
            yield line.ask
        except BaseException:
            line.end.set()
            raise
        line.used, line.busy = anyio.current_time(), False
        self._free.append(line)

    def _kept(self) -> _Line | None:
        while self._free:
            line = self._free.pop()
            if line.fresh:
                line.busy = True
                return line
            line.end.set()
        return None

    async def _open(self) -> _Line:
        line = _Line()
        self._cave.ghost.spawn(partial(line.hold, self._cave))
        try:
            await line.opened.wait()
        except BaseException:
            line.end.set()
            raise
        if line.failure is not None:
            raise line.failure
        return line

    def close(self) -> None:
        for line in self._free:
            line.end.set()
        self._free.clear()
