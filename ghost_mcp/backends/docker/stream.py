"""A program's standard input and output over the connection that a container engine's exec has become."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketStream, UNIXSocketStream

__all__ = ["ExecStream", "take_socket"]

STDOUT = 1
CHUNK = 1 << 18
_HEADER = struct.Struct(">BxxxL")  # kind, three zeros, length


def take_socket(attached: Any) -> tuple[socket.socket, bytes]:
    """The socket under an SDK's attached stream, now ours, and what the SDK had read of it already.

    The SDK reads the answer's head through a buffer. What came right behind the head is in there.
    """
    response = attached._response
    with closing(response):
        sock = socket.socket(fileno=os.dup(attached.fileno()))
        sock.setblocking(False)
        return sock, bytes(response.raw._fp.fp.peek())


class ExecStream(ByteStream):
    """Bytes to the program's standard input, bytes from its standard output."""

    def __init__(self, raw: SocketStream | UNIXSocketStream, buffered: bytes) -> None:
        self._raw = raw
        self._buffer = buffered
        self._kind = STDOUT
        self._left = 0  # of the piece whose header was read
        self._first = b""
        self._said = b""

    @classmethod
    async def over(cls, sock: socket.socket, buffered: bytes) -> ExecStream:
        kind = UNIXSocketStream if sock.family is socket.AF_UNIX else SocketStream
        try:
            return cls(await kind.from_socket(sock), buffered)
        except BaseException:
            sock.close()
            raise

    @property
    def last_words(self) -> str:
        """The last line of standard error, for an error message."""
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

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
