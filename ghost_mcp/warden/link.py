# The hub's end of a link. What comes from the warden is hostile: bounded here, interpreted nowhere.
"""One multiplexed connection to a cave's warden: many streams, each with its own flow control."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream

from ghost_mcp import tracing
from ghost_mcp.errors import CaveGone, LimitExceeded, ProtocolFailure, TimedOut, from_wire
from ghost_mcp.warden import wire

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.secrets.border import Border
    from ghost_mcp.secrets.masker import Masker

__all__ = ["Configured", "Link", "LinkStream", "Piped", "configure", "configuring"]

HELLO_S = 20.0
LAST_CALLS = 5
STALL_S = 10.0
MAX_NOTES = 64
MAX_PONGS = 256  # that wait to be sent: a warden that asks so often does not listen
BATCH = 1 << 18  # sent at once of one stream: what others then wait for
SMALL = 2048
MAX_ANSWER = 64 << 20


class LinkStream:
    """The hub's end of one stream.

    ``receive()`` yields ``(channel, data)``; ``notes()`` the warden's notes; ``answer()`` waits for the
    end. Data not received holds the warden back, never the other streams.
    """

    def __init__(self, link: Link, number: int, border: Border | None = None) -> None:
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

    def _deliver(self, frame: wire.Frame) -> None:
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

    def _fail(self, exc: Exception) -> None:
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


class Link:
    """A connection to one warden. Open it with :meth:`open`; it reads in the task group it is given."""

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream = stream
        self.name = name
        self.wire = wire.Connection(hub=True)
        self.hello: dict[str, Any] = {}
        #: The secrets of the cave: what comes over this link is masked.
        self.masker: Masker | None = None
        self.on_accept: Callable[[LinkStream, dict[str, Any]], Awaitable[None] | None] | None = None
        self._streams: dict[int, LinkStream] = {}
        self._outgoing: list[bytes | memoryview] = []
        self._sending = False
        self._pongs = 0
        self._failure: Exception | None = None
        self._told: list[Callable[[], None]] = []
        self._scope = anyio.CancelScope()

    @classmethod
    async def open(cls, stream: ByteStream, tasks: TaskGroup, *, name: str) -> Link:
        """Greet the warden and start reading. Raises CaveGone, ProtocolFailure or TimedOut.

        Over a stream that configure() has returned the greeting has been.
        """
        link = cls(stream, name)
        if isinstance(stream, Configured):
            link.wire, link.hello = stream.wire, stream.hello
        try:
            with anyio.fail_after(HELLO_S):
                if not link.hello:
                    await link.write(link.wire.send_hello({}))
                    with link._minding():
                        await link._greet()
        except TimeoutError:
            await stream.aclose()
            raise TimedOut(f"the warden of cave {name} does not answer") from None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            raise
        tasks.start_soon(link._read, name=f"link of {name}")
        return link

    @property
    def alive(self) -> bool:
        return self._failure is None

    def when_broken(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once when this connection is of no use any more, however it came to that."""
        if self._failure is None:
            self._told.append(tell)
        else:
            tell()

    async def aclose(self) -> None:
        """Close the connection: streams that are open are given up."""
        self._break(CaveGone(f"the link to cave {self.name} was closed"))
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()

    async def call(
        self,
        op: str,
        head: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """One operation with a single answer: ``(head, body)``; cancelling it ends it in the cave."""
        async with self.stream(op, head, body, timeout_s=timeout_s) as stream:
            return await stream.answer()

    async def collect(
        self,
        op: str,
        head: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        limit_bytes: int = MAX_ANSWER,
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """One operation whose answer may also come as DATA: ``(head, all bytes)``. Raises LimitExceeded."""
        async with self.stream(op, head, body, timeout_s=timeout_s) as stream:
            pieces, size = [], 0
            while (piece := await stream.receive()) is not None:
                size += len(piece[1])
                if size > limit_bytes:
                    raise LimitExceeded(
                        f"the answer is larger than {limit_bytes} bytes", code="too_large"
                    )
                pieces.append(piece[1])
            answer, body = await stream.answer()
            return answer, b"".join([*pieces, body])

    @asynccontextmanager
    async def stream(
        self,
        op: str,
        head: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[LinkStream]:
        """Open a stream for one operation; leaving the block gives it up unless it has ended."""
        stream = await self._open({**(head or {}), "op": op}, body)
        span, failure = tracing.begin(op, self.name), None
        try:
            with anyio.CancelScope(
                deadline=math.inf if timeout_s is None else anyio.current_time() + timeout_s
            ) as scope:
                yield stream
            if scope.cancelled_caught:
                raise TimedOut(f"{op} did not finish within {timeout_s:g} s")
        except BaseException as exc:
            failure = exc
            raise
        finally:
            if span is not None:
                tracing.end(span, failure)
            await self.give_up(stream)

    async def _open(self, head: dict[str, Any], body: bytes) -> LinkStream:
        if self._failure is not None:
            raise self._failure
        try:
            number, data = self.wire.open(head, body)
        except wire.LocalProtocolError as exc:
            raise LimitExceeded(f"too much at once for one link: {exc}") from exc
        border = None if self.masker is None else self.masker.border(head["op"], head)
        stream = self._streams[number] = LinkStream(self, number, border)
        await self.write(data)
        return stream

    async def give_up(self, stream: LinkStream) -> None:
        """Forget a stream; tell the warden when it has not ended."""
        self._streams.pop(stream.id, None)
        if self.wire.is_open(stream.id) and self._failure is None:
            data = self.wire.send_reset(stream.id)
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self.write(data)
        stream._fail(CaveGone("the stream was given up"))

    async def write(self, *data: bytes | memoryview) -> None:
        """Queue bytes in the order of the calls, and send what is queued unless another call is sending.

        Encoded frames are never lost to a cancellation: half a conversation would break every other stream.
        A warden that does not take a BATCH within STALL_S fails the whole link, however much is waiting.
        """
        if self._failure is not None:
            raise self._failure
        self._outgoing += filter(None, data)
        if self._sending or not self._outgoing:
            return
        self._sending = True
        try:
            with anyio.CancelScope(shield=True) as scope:
                while self._outgoing and self._failure is None:
                    pieces, self._outgoing, self._pongs = self._outgoing, [], 0
                    whole = b"".join(pieces)
                    for at in range(0, len(whole), BATCH):
                        scope.deadline = anyio.current_time() + STALL_S
                        await self._stream.send(whole[at : at + BATCH])
            if scope.cancelled_caught:
                self._break(CaveGone(f"the warden of cave {self.name} does not read"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
            self._break(
                CaveGone(f"cave {self.name} ended", hint="Start it again, or create another.")
            )
            raise CaveGone(f"cave {self.name} ended") from exc
        finally:
            self._sending = False

    async def _greet(self) -> None:
        while not self.hello:
            for frame in await self._next():
                if frame.kind == wire.HELLO:
                    self.hello = frame.head
                else:
                    self._dispatch(frame)

    async def _next(self) -> list[wire.Frame]:
        try:
            return self.wire.receive(await self._stream.receive(1 << 18))
        except (
            anyio.EndOfStream,
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
            OSError,
        ) as exc:
            raise CaveGone(
                f"cave {self.name} ended", hint="Start it again, or create another."
            ) from exc

    @contextmanager
    def _minding(self) -> Iterator[None]:
        """Raises ProtocolFailure for what the warden may not say."""
        try:
            yield
        except wire.ProtocolError as exc:
            raise ProtocolFailure(
                f"the warden of cave {self.name} broke the protocol: {exc}"
            ) from exc

    async def _read(self) -> None:
        try:
            with self._scope, self._minding():
                await self._take()
        except (CaveGone, ProtocolFailure) as exc:
            self._break(exc)
        except Exception as exc:  # noqa: BLE001 - what nobody foresaw ends this link, and never the hub it is read in
            _tell(self.name, exc)
            self._break(
                ProtocolFailure(f"the warden of cave {self.name} said what nobody can read")
            )
        finally:  # also when the task group it reads in is cancelled
            self._break(CaveGone(f"the link to cave {self.name} was closed"))
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _take(self) -> None:
        while True:
            for frame in await self._next():
                if frame.kind == wire.PING:
                    self._pongs += 1
                    if self._pongs > MAX_PONGS:
                        raise wire.RemoteProtocolError("a flood of pings")
                    await self.write(self.wire.send_pong(frame.body))
                else:
                    self._dispatch(frame)

    def _dispatch(self, frame: wire.Frame) -> None:
        if frame.kind == wire.OPEN:
            self._accepted(frame)
            return
        stream = self._streams.get(frame.stream)
        if stream is not None:
            stream._deliver(frame)

    def _accepted(self, frame: wire.Frame) -> None:
        """A stream the warden opened: a connection that came to a port this hub listens on."""
        stream = LinkStream(self, frame.stream)
        if self.on_accept is None:
            raise wire.RemoteProtocolError("a stream nobody asked for")
        self._streams[frame.stream] = stream
        self.on_accept(stream, frame.head)

    def _break(self, exc: Exception) -> None:
        if self._failure is None:
            self._failure = exc
            told, self._told = self._told, []
            for tell in told:
                tell()
        for stream in list(self._streams.values()):
            stream._fail(exc)
        self._streams.clear()


def _tell(name: str, exc: Exception) -> None:
    """Into the log, and without its text, which the warden may have written."""
    import logging  # hardly ever
    import traceback

    where = "".join(traceback.format_tb(exc.__traceback__, limit=-LAST_CALLS))
    word = type(exc).__name__
    logging.getLogger(__name__).error("cave %s: %s over what it said\n%s", name, word, where)


def configuring(settings: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The head and body of ``configure``: a head is bounded, so that the values of secrets go into the body."""
    values = {name: value.encode("latin-1") for name, value in settings.get("secrets", {}).items()}
    sizes = {name: len(value) for name, value in values.items()}
    return {**settings, "op": "configure", "secrets": sizes}, b"".join(values.values())


class Configured(ByteStream):
    """A stream over which a warden was configured, for whoever connects first: opening another may be dear."""

    def __init__(self, raw: ByteStream, link: Link) -> None:
        self.raw = raw
        self.wire = link.wire
        self.hello = link.hello

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self.raw.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self.raw.send(item)

    async def send_eof(self) -> None:
        await self.raw.send_eof()

    async def aclose(self) -> None:
        await self.raw.aclose()


async def configure(stream: ByteStream, settings: Mapping[str, Any]) -> Configured:
    """Greet a fresh warden and configure it in one round trip; returns the stream, with a Link begun on it.

    Raises CaveGone when the cave ends first, ProtocolFailure, TimedOut; then the stream is still the caller's.
    """
    link = Link(stream, "new")
    try:
        with anyio.fail_after(HELLO_S):
            number, opening = link.wire.open(*configuring(settings))
            answer = link._streams[number] = LinkStream(link, number)
            await stream.send(link.wire.send_hello({}) + opening)
            with link._minding():
                while not answer.closed:
                    for frame in await link._next():
                        if frame.kind == wire.HELLO:
                            link.hello = frame.head
                        else:
                            link._dispatch(frame)
            told, _ = await answer.answer()
        # It greeted before it knew: whoever goes on with this stream is to ask for them.
        link.hello |= {**told, "secrets": len(settings.get("secrets", {}))}
    except TimeoutError:
        raise TimedOut("the warden of a new cave does not answer") from None
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
        raise CaveGone("the cave ended while it was started") from exc
    return Configured(stream, link)
