# Lends `ghost exec` a plain socket where a backend reaches its caves in another way.
"""Carries bytes between a backend's stream and one end of a socket pair, in a thread with its own event loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from threading import Thread

import anyio
from anyio.abc import ByteStream, UNIXSocketStream

__all__ = ["connected"]

CLOSE_S = 5.0
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


@contextmanager
def connected(far: AbstractAsyncContextManager[ByteStream]) -> Iterator[socket.socket]:
    """A socket that leads to the stream ``far`` opens; both end with the block. Raises what opening raises."""
    ours, theirs = socket.socketpair()
    ready: Future[None] = Future()
    thread = Thread(target=_run, args=(far, theirs, ready), name="bridge", daemon=True)
    thread.start()
    try:
        ready.result()
        yield ours
    finally:
        ours.close()
        if ready.done():
            thread.join(CLOSE_S)


def _run(
    far: AbstractAsyncContextManager[ByteStream], theirs: socket.socket, ready: Future[None]
) -> None:
    try:
        anyio.run(_carry, far, theirs, ready)
    except BaseException as exc:  # noqa: BLE001  (handed to the thread that waits)
        if not ready.done():
            ready.set_exception(exc)
    finally:
        theirs.close()


async def _carry(
    far: AbstractAsyncContextManager[ByteStream], theirs: socket.socket, ready: Future[None]
) -> None:
    async with far as stream, await UNIXSocketStream.from_socket(theirs) as near:
        ready.set_result(None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_copy, stream, near, tasks.cancel_scope)
            tasks.start_soon(_copy, near, stream, tasks.cancel_scope)


async def _copy(source: ByteStream, target: ByteStream, scope: anyio.CancelScope) -> None:
    """Copy until either side ends, which ends the other direction too."""
    try:
        while True:
            await target.send(await source.receive())
    except _BROKEN:
        scope.cancel()
