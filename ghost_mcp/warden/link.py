# The hub's end of a link. What comes from the warden is hostile: bounded here, interpreted nowhere.
"""One multiplexed connection to a cave's warden: many streams, each with its own flow control."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream

from ghost_mcp import tracing
from ghost_mcp.errors import CaveGone, LimitExceeded, ProtocolFailure, TimedOut
from ghost_mcp.warden import wire
from ghost_mcp.warden.linkstream import BATCH, LinkStream

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.secrets.masker import Masker

__all__ = ["Configured", "Link", "configure", "configuring"]

HELLO_S = 20.0
LAST_CALLS = 5
STALL_S = 10.0
MAX_PONGS = 256  # that wait to be sent: a warden that asks so often does not listen
MAX_ANSWER = 64 << 20


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
            tasks.start_soon(link._read, name=f"link of {name}")  # not when its Ghost has closed
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            if isinstance(exc, TimeoutError):
                raise TimedOut(f"the warden of cave {name} does not answer") from None
            raise
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
        stream.fail(CaveGone("the stream was given up"))  # first: telling the warden may fail
        if self.wire.is_open(stream.id) and self._failure is None:
            data = self.wire.send_reset(stream.id)
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self.write(data)

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
        except BaseException:  # a task's own cancel() passes shields: this may be half a frame
            self._break(CaveGone(f"the link to cave {self.name} broke off"))
            raise
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
            stream.deliver(frame)

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
        self._scope.cancel()  # who reads closes the stream
        for stream in list(self._streams.values()):
            stream.fail(exc)
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
