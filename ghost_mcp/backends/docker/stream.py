"""A program's standard input and output over the connection that a container engine's exec has become."""

from __future__ import annotations

import select
import struct

import anyio
from anyio.abc import ByteStream, SocketAttribute

__all__ = ["ExecStream"]

STDOUT = 1
CHUNK = 1 << 18
_HEADER = struct.Struct(">BxxxL")  # kind, three zeros, length


class ExecStream(ByteStream):
    """Bytes to the program's standard input, bytes from its standard output."""

    def __init__(self, raw: ByteStream, buffered: bytes) -> None:
        self._raw = raw
        self._buffer = buffered
        self._kind = STDOUT
        self._left = 0  # of the piece whose header was read
        self._first = b""
        self._said = b""

    @property
    def last_words(self) -> str:
        """The last line of standard error, for an error message."""
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    @property
    def alive(self) -> bool:
        """Whether it has not been closed, nor ended as far as can be told without waiting."""
        fd = self._raw.extra(SocketAttribute.raw_socket).fileno()  # noqa: S610 - no query
        if fd < 0 or not hasattr(select, "poll"):
            return fd >= 0
        poll = select.poll()
        poll.register(fd, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
        return not poll.poll(0)

    @property
    def framed(self) -> bool:
        """Whether the first output can be the beginning of a frame: no frame is so long that its length does not
        begin with a zero, and no text begins with one."""
        return self._first[:1] == b"\0"

    @property
    def opening(self) -> str:
        """The first output, for an error message."""
        return self._first[:300].decode("utf-8", "replace").strip()

    async def begin(self) -> None:
        """Wait for the first output. Raises EndOfStream when there is none."""
        self._first = await self.receive()

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self._first:
            piece, self._first = self._first[:max_bytes], self._first[max_bytes:]
            return piece
        while True:
            while self._left == 0:
                self._kind, self._left = _HEADER.unpack(await self._header())
            if not self._buffer:
                self._buffer = await self._raw.receive(CHUNK)
            count = min(self._left, max_bytes)
            piece, self._buffer = self._buffer[:count], self._buffer[count:]
            self._left -= len(piece)
            if self._kind == STDOUT:
                return piece
            self._said = (self._said + piece)[-1000:]

    async def _header(self) -> bytes:
        while len(self._buffer) < _HEADER.size:
            self._buffer += await self._raw.receive(CHUNK)
        header, self._buffer = self._buffer[: _HEADER.size], self._buffer[_HEADER.size :]
        return header

    async def send(self, item: bytes) -> None:
        await self._raw.send(item)

    async def send_eof(self) -> None:
        await self._raw.send_eof()

    async def aclose(self) -> None:
        await anyio.aclose_forcefully(self._raw)
