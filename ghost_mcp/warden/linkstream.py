# What comes from the warden is hostile: bounded here, interpreted nowhere, and masked before anybody has it.
"""The hub's end of one stream of a link."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import ByteStream

from ghost_mcp.errors import CaveGone, ProtocolFailure, from_wire
from ghost_mcp.warden import wire

if TYPE_CHECKING:
    from ghost_mcp.secrets.border import Border
    from ghost_mcp.warden.wire import Connection

__all__ = ["LinkStream", "Piped"]

MAX_NOTES = 64
BATCH = 1 << 18  # sent at once of one stream: what others then wait for
SMALL = 2048


class _Way(Protocol):
    """What a stream needs of the link that it is on."""

    wire: Connection

    async def write(self, *data: bytes | memoryview) -> None: ...

    async def give_up(self, stream: LinkStream) -> None: ...


class LinkStream:
    """The hub's end of one stream.

    ``receive()`` yields ``(channel, data)``; ``notes()`` the warden's notes; ``answer()`` waits for the
    end. Data not received holds the warden back, never the other streams.
    """

    def __init__(self, link: _Way, number: int, border: Border | None = None) -> None:
        self._link = link
        self._border = border
        self.id = number
        self._data: deque[tuple[int, bytes | bytearray]] = deque()
        self._growing: dict[int, bytearray] = {}  # channel -> its newest piece, while it is small
        self._ended: set[int] = set()
        self._notes: deque[tuple[dict[str, Any], bytes]] = deque()
        self._answer: tuple[dict[str, Any], bytes] | None = None
        self._failure: Exception | None = None
        self._changed = anyio.Event()

    @property
    def closed(self) -> bool:
        return self._answer is not None or self._failure is not None

    async def receive(self) -> tuple[int, bytes] | None:
        """The next piece of output, or None when the stream has ended. Raises what ended it badly."""
        while True:
            while not self._data:
                if (rest := self._rest()) is not None:
                    return rest
                if self._failure is not None:
                    raise self._failure
                if self._answer is not None:
                    return None
                await self._change()
            channel, piece = self._data.popleft()
            if self._growing.get(channel) is piece:
                del self._growing[channel]
            data = bytes(piece)
            await self._link.write(self._link.wire.consumed(self.id, len(data)))
            if self._border is not None:
                data = self._border.data(channel, data)
            if data:
                return channel, data

    def _rest(self) -> tuple[int, bytes] | None:
        """What masking held back, once nothing can follow it."""
        if self._border is None or not (self.closed or self._ended):
            return None
        return self._border.rest(None if self.closed else self._ended)

    def ended(self, channel: int = 0) -> bool:
        """Whether the warden has closed that channel and everything of it was received."""
        return (
            channel in self._ended
            and not any(c == channel for c, _ in self._data)
            and not (self._border is not None and self._border.holding(channel))
        )

    async def receive_or_eof(self, channel: int = 0) -> bytes:
        """The next piece of one channel; empty at its end."""
        while True:
            if self.ended(channel):
                return b""
            if self._data or self.closed or channel in self._ended:
                piece = await self.receive()
                if piece is None:
                    return b""
                if piece[0] == channel:
                    return piece[1]
                continue
            await self._change()

    async def note(self) -> tuple[dict[str, Any], bytes]:
        """The next note. Raises what ended the stream when there will be none."""
        while not self._notes:
            if self._failure is not None:
                raise self._failure
            if self._answer is not None:
                self._raise_bad_answer()
                raise ProtocolFailure("the warden ended a stream without the note it owed")
            await self._change()
        return self._notes.popleft()

    async def answer(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the end; ``(head, body)``. Raises the GhostError the warden answered with."""
        while self._answer is None:
            if self._failure is not None:
                raise self._failure
            await self._change()
        self._raise_bad_answer()
        return self._answer

    def _raise_bad_answer(self) -> None:
        if self._answer is not None and self._answer[0].get("ok") is not True:
            raise from_wire(self._answer[0])

    async def send(self, data: bytes, channel: int = 0) -> None:
        """Send input, waiting for credit as needed. Raises CaveGone when the stream has ended."""
        view = memoryview(bytes(data))
        while view:
            room = min(self._link.wire.credit(self.id), BATCH, len(view))
            if room == 0:
                if self.closed:
                    raise self._failure or CaveGone("the other end of the stream has closed")
                await self._change()
                continue
            await self._link.write(*self._framed(view[:room], channel))
            view = view[room:]

    def _framed(self, data: memoryview, channel: int) -> Iterator[bytes | memoryview]:
        for at in range(0, len(data), wire.MAX_DATA):
            piece = data[at : at + wire.MAX_DATA]
            yield self._link.wire.data_header(self.id, len(piece), channel)
            yield piece

    async def send_eof(self, channel: int = 0) -> None:
        if self._link.wire.is_open(self.id):
            await self._link.write(self._link.wire.send_eof(self.id, channel))

    async def send_note(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        if self._link.wire.is_open(self.id):
            await self._link.write(self._link.wire.send_note(self.id, dict(head), body))

    async def reset(self) -> None:
        """Give the stream up; the warden ends what it did for it."""
        await self._link.give_up(self)

    async def _change(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def deliver(self, frame: wire.Frame) -> None:
        """What has come for it. Raises RemoteProtocolError for more than is kept of what nobody takes."""
        if frame.kind == wire.DATA:
            self._take(frame.channel, frame.body)
        elif frame.kind == wire.EOF:
            self._ended.add(frame.channel)
        elif frame.kind == wire.NOTE:
            if len(self._notes) >= MAX_NOTES:
                raise wire.RemoteProtocolError("a flood of notes")
            self._notes.append(self._masked(frame))
        elif frame.kind == wire.CLOSE:
            self._answer = self._masked(frame)
        elif frame.kind == wire.RESET:
            self._failure = CaveGone("the warden gave the stream up")
        self._wake()

    def _masked(self, frame: wire.Frame) -> tuple[dict[str, Any], bytes]:
        if self._border is None:
            return frame.head, frame.body
        return self._border.answer(frame.head, frame.body)

    def _take(self, channel: int, body: bytes) -> None:
        """Queue a piece. Small ones grow together: a million of one byte must not cost a million objects."""
        growing = self._growing.get(channel)
        if len(body) >= SMALL:
            self._growing.pop(channel, None)
            self._data.append((channel, body))
        elif growing is not None and len(growing) < wire.MAX_DATA:
            growing += body
        else:
            piece = self._growing[channel] = bytearray(body)
            self._data.append((channel, piece))

    def fail(self, exc: Exception) -> None:
        """It ends with this, for whoever waits for it now or later, unless it has ended."""
        if not self.closed:
            self._failure = exc
            self._wake()


class Piped(ByteStream):
    """A stream's only channel as an anyio byte stream: a connection to or from a port in the cave."""

    def __init__(self, stream: LinkStream) -> None:
        self._stream = stream
        self._rest = b""

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: what could be read has been, and the other side has closed."""
        return not self._rest and (self._stream.closed or self._stream.ended())

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if not self._rest:
            try:
                self._rest = await self._stream.receive_or_eof()
            except CaveGone as exc:
                raise anyio.BrokenResourceError from exc
            if not self._rest:
                raise anyio.EndOfStream
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return piece

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send(item)
        except CaveGone as exc:
            raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except CaveGone as exc:
            raise anyio.BrokenResourceError from exc

    async def aclose(self) -> None:
        await self._stream.reset()
