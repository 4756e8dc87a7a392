# Only this file touches the process's own standard input and output. Nothing but JSON-RPC passes there.
"""MCP over stdio, without threads: one JSON message a line, ended by the client or by a signal."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from mcp.shared.message import SessionMessage
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic_core import PydanticSerializationError

from ghost_mcp.errors import BackendUnavailable

if TYPE_CHECKING:
    from mcp.server import Server

__all__ = ["GRACE_S", "check_streams", "serve"]

_log = logging.getLogger(__name__)

# Calls that are under way when the connection ends have this long to answer; then they are cancelled.
# Clients kill a server two seconds after they have asked it to end.
GRACE_S = 1.0
MAX_LINE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 16


def check_streams() -> None:
    """To be called before an event loop takes the free descriptors. Raises BackendUnavailable."""
    try:
        for number in (0, 1):
            os.fstat(number)
    except OSError as exc:
        raise BackendUnavailable(
            "standard input or output is closed",
            hint="An MCP client starts this program, with a pipe for each.",
        ) from exc


async def serve(server: Server[Any], *, grace_s: float = GRACE_S) -> int:
    """Serve one connection on the process's standard input and output until it ends.

    It ends with its input, or with SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once.
    Returns 0, or 128 + N for signal N.
    """
    with _standard_streams() as (source, sink):
        connection = _Connection(_Pipe(source), _Pipe(sink), grace_s)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.read)
            tasks.start_soon(connection.watch_signals)
            async with anyio.create_task_group() as writing:
                writing.start_soon(connection.write)
                options = server.create_initialization_options()
                await server.run(connection.incoming, connection.outgoing, options)
                # All is said; a client that does not read it has this long.
                writing.cancel_scope.deadline = anyio.current_time() + grace_s
            tasks.cancel_scope.cancel()
        return 128 + connection.signal if connection.signal else 0


@contextmanager
def _standard_streams() -> Iterator[tuple[int, int]]:
    """Descriptors of our own for the protocol. Meanwhile 0 reads nothing and 1 is standard error.

    So what a library prints, or a program it starts, cannot break the wire.
    """
    ours = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (0, 1)]
    try:
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        yield ours[0], ours[1]
    finally:
        for number, fd in enumerate(ours):
            os.dup2(fd, number)
            os.close(fd)


class _Pipe:
    """One descriptor that is waited for by the event loop. Files, which are always ready, work too."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        mode = os.fstat(fd).st_mode
        piped = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._waits = piped or os.isatty(fd)
        if piped:  # a terminal's flags are shared with the shell
            os.set_blocking(fd, False)

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        while True:
            await self._ready(anyio.wait_readable)
            with suppress(BlockingIOError, InterruptedError):
                return os.read(self._fd, CHUNK_BYTES)

    async def write(self, data: bytes) -> None:
        """All of it. Raises OSError when nobody reads any more."""
        view = memoryview(data)
        while view:
            with suppress(BlockingIOError, InterruptedError):
                view = view[os.write(self._fd, view) :]
                continue
            await self._ready(anyio.wait_writable)

    async def _ready(self, wait: Callable[[int], Any]) -> None:
        if self._waits:
            await wait(self._fd)
        else:
            await anyio.lowlevel.checkpoint()


class _Connection:
    """The client's messages in, the server's out, and which requests have no answer yet."""

    def __init__(self, source: _Pipe, sink: _Pipe, grace_s: float) -> None:
        self._source, self._sink, self._grace_s = source, sink, grace_s
        self._arrived, self.incoming = anyio.create_memory_object_stream[
            SessionMessage | Exception
        ]()
        self.outgoing, self._leaving = anyio.create_memory_object_stream[SessionMessage]()
        self._refusals = self.outgoing.clone()  # one writer for all, so that no line is torn
        self._unanswered: set[str] = set()
        self._answered = anyio.Event()
        self._reading = anyio.CancelScope()
        self._broken = False
        self.signal = 0

    async def read(self) -> None:
        """Hand over the messages until the input ends; then let the calls under way answer."""
        with self._arrived, self._refusals:
            with self._reading:
                async for line in self._lines():
                    await self._take(line)
            with anyio.move_on_after(self._grace_s):
                while self._unanswered and not self._broken:
                    self._answered = anyio.Event()
                    await self._answered.wait()

    async def write(self) -> None:
        with self._leaving:
            async for item in self._leaving:
                await self._put(item.message)

    async def watch_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if self.signal:
                    os._exit(128 + number)  # the lifeline ends our caves
                self.signal = int(number)
                self._reading.cancel()

    # --- in --------------------------------------------------------------------------------------

    async def _lines(self) -> AsyncIterator[bytes]:
        """Lines without their end. One beyond the bound is answered with an error, and skipped."""
        rest = bytearray()
        skipping = False
        while data := await self._source.read():
            *lines, tail = data.split(b"\n")
            for piece in lines:
                rest += piece
                if not skipping and rest.strip():
                    yield bytes(rest)
                rest.clear()
                skipping = False
            rest += tail
            if len(rest) > MAX_LINE_BYTES:
                rest.clear()
                if not skipping:
                    await self._refuse(INVALID_REQUEST, "the message is too long")
                skipping = True
        if rest.strip() and not skipping:
            yield bytes(rest)

    async def _take(self, line: bytes) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            await self._refuse(PARSE_ERROR, "not a JSON-RPC message")
            return
        if isinstance(message, JSONRPCRequest):
            self._unanswered.add(str(message.id))
        elif isinstance(message, JSONRPCNotification) and message.method.endswith("/cancelled"):
            self._settle((message.params or {}).get("requestId"))
        await self._arrived.send(SessionMessage(message))

    async def _refuse(self, code: int, reason: str) -> None:
        error = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=reason))
        await self._refusals.send(SessionMessage(error))

    # --- out -------------------------------------------------------------------------------------

    async def _put(self, message: JSONRPCMessage) -> None:
        try:
            if not self._broken:
                await self._sink.write(_encode(message))
        except OSError:  # nobody reads any more: that ends the connection too
            self._broken = True
            self._reading.cancel()
            self._answered.set()
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            self._settle(message.id)

    def _settle(self, request_id: object) -> None:
        self._unanswered.discard(str(request_id))
        if not self._unanswered:
            self._answered.set()


def _encode(message: JSONRPCMessage) -> bytes:
    """One line. An answer that is not JSON is a bug, and costs this answer, not the connection."""
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
    except PydanticSerializationError as exc:
        _log.error("a message could not be encoded: %s", exc)
        error = ErrorData(code=INTERNAL_ERROR, message="the answer could not be encoded")
        request_id = message.id if isinstance(message, JSONRPCResponse) else None
        return _encode(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))
