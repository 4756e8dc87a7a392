"""A program's standard input and output over the WebSocket that a cluster's exec is."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import aiohttp
import anyio
from anyio.abc import ByteStream

__all__ = ["PROTOCOLS", "ExecStream", "Socket", "hang_up"]

# Newest first. Only v5 can close standard input by itself, so nothing here relies on that.
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, STATUS = range(4)
CHUNK = 1 << 18
CLOSE_S, CLOSE_PAUSE_S = 1.0, 0.002


class Socket(aiohttp.ClientWebSocketResponse[Literal[True]]):
    """A WebSocket whose connection can be given up: ``close()`` keeps one that broke without a goodbye."""

    def give_up(self) -> None:
        self._response.close()


class ExecStream(ByteStream):
    """Bytes to the program's standard input, bytes from its standard output. ``closed`` is called at its end."""

    def __init__(self, connection: Socket, closed: Callable[[ExecStream], None]) -> None:
        self._socket = connection
        self._closed = closed
        self._raw = connection.get_extra_info("socket")
        self._rest = memoryview(b"")
        self._said = b""

    @property
    def last_words(self) -> str:
        """The last line of standard error, or why the program ended, for an error message."""
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    async def begin(self) -> None:
        """Wait for the first output. Raises EndOfStream when there is none."""
        self._rest = memoryview(await self._piece())

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if not self._rest:
            self._rest = memoryview(await self._piece())
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return bytes(piece)

    async def _piece(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.PING):
                    continue
                raise anyio.EndOfStream
            data: bytes = message.data
            channel = data[0] if data else STDERR
            if channel == STDOUT and len(data) > 1:
                return data[1:]
            if channel == STDERR:
                self._said = (self._said + data[1:])[-1000:]
            elif channel == STATUS:
                self._said += _reason(data[1:])
                raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        try:
            for at in range(0, len(item), CHUNK):
                await self._socket.send_bytes(b"\0" + item[at : at + CHUNK])
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        """There is no half-close to rely on: the relay ends with the connection."""

    async def aclose(self) -> None:
        try:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await self._socket.close()
        finally:
            self._socket.give_up()
            await hang_up(self._raw)
            self._closed(self)


async def hang_up(raw: socket.socket | None) -> None:
    """End a connection now: TLS would wait for the other side's goodbye, longer than its owner may be there."""
    with suppress(OSError), anyio.move_on_after(CLOSE_S, shield=True):
        if raw is not None:
            raw.shutdown(socket.SHUT_RDWR)
        while raw is not None and raw.fileno() != -1:  # noqa: ASYNC110  (no event tells)
            await anyio.sleep(CLOSE_PAUSE_S)


def _reason(data: bytes) -> bytes:
    """What the status at an exec's end says, when it is not success."""
    try:
        status: Any = json.loads(data)
        message = "" if status.get("status") == "Success" else str(status.get("message", ""))
    except (ValueError, AttributeError):
        message = "the cluster ended the connection"
    return message.encode()[-500:]
