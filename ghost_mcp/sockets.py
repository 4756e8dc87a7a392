# Bytes pass here between a cave, the hub and the world: each loop cycle that is spared is felt in all of them.
"""A connected socket as an anyio byte stream, without a transport's buffers and callbacks in between.

``anyio``'s own waits a cycle of the loop before each send, and may complain aloud when it is cancelled at the moment
that bytes come.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute

__all__ = ["Wired"]


class Wired(ByteStream):
    """Takes a connected stream socket over, of any family. One receives and one sends at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._sock}

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                data = self._sock.recv(max_bytes)
                break
            except BlockingIOError:
                waited = True
                await anyio.wait_readable(self._sock)
            except OSError as exc:
                raise self._failure() from exc
        if not waited:
            # What always has something must not keep others waiting; and what was taken is not lost when cancelled.
            await anyio.lowlevel.cancel_shielded_checkpoint()
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(item)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sock)
            except OSError as exc:
                raise self._failure() from exc

    async def send_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._failure() from exc

    async def aclose(self) -> None:
        if self._sock.fileno() >= 0:
            anyio.notify_closing(self._sock)
            self._sock.close()
        await anyio.lowlevel.checkpoint()

    def _failure(self) -> Exception:
        closed = self._sock.fileno() < 0
        return anyio.ClosedResourceError() if closed else anyio.BrokenResourceError()
