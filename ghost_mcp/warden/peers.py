# Only this file hands what a hub asks for to an operation, and no failure of one gets past it.
"""Link connections at the warden's end, and the streams on them. Operations are imported on first use.

Imported at the warden's start: see program.py for what that means.
"""

from __future__ import annotations

import select

from . import wire
from .carrier import Carrier
from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any, Callable

    from .program import Warden

    Operation = Callable[["Stream", dict[str, Any], bytes], None]

CHUNK = 1 << 16
# Above this much unsent output a connection's sources pause: a flood never delays a small answer for long.
HIGH_WATER = 1 << 18

# operation -> (module, function); a function takes (stream, head, body) and answers through the stream.
OPERATIONS = {
    "configure": ("lifetime", "configure"),
    "secrets": ("lifetime", "secrets"),
    "hold": ("lifetime", "hold"),
    "stats": ("lifetime", "stats"),
    "exec": ("execution", "start"),
    "command": ("execution", "control"),
    "commands": ("execution", "listing"),
    "output": ("execution", "output"),
    "session": ("sessions", "control"),
    "read": ("files", "read"),
    "write": ("files", "write"),
    "stat": ("files", "stat"),
    "mkdir": ("files", "mkdir"),
    "move": ("files", "move"),
    "remove": ("trees", "remove"),
    "list": ("trees", "listing"),
    "search": ("trees", "search"),
    "edit": ("trees", "edit"),
    "snapshot": ("trees", "snapshot"),
    "pack": ("trees", "pack"),
    "unpack": ("trees", "unpack"),
    "watch": ("watch", "watch"),
    "dial": ("ports", "dial"),
    "egress": ("egress", "attach"),
    "service": ("services", "control"),
    "services": ("services", "look"),
}


class WardenError(Exception):
    """A failure to tell the hub: crosses the border as ``{code, message, hint}``."""

    def __init__(
        self, code: str, message: str, hint: str = "", data: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.head: dict[str, Any] = {"code": code, "message": message, "hint": hint}
        if data:
            self.head["data"] = data


class Stream:
    """The warden's end of one stream. A handler sets the ``on_*`` attributes it needs."""

    __slots__ = ("id", "on_credit", "on_data", "on_eof", "on_note", "on_reset", "passive", "peer")

    def __init__(self, peer: Peer, stream: int) -> None:
        self.peer = peer
        self.id = stream
        self.passive = False  # a stream that only waits: the cave is idle all the same
        self.on_data: Callable[[int, bytes], int | None] | None = None
        self.on_eof: Callable[[int], None] | None = None
        self.on_note: Callable[[dict[str, Any], bytes], None] | None = None
        self.on_credit: Callable[[], None] | None = None
        self.on_reset: Callable[[], None] | None = None

    @property
    def room(self) -> int:
        """Bytes of DATA this stream may send now: its credit, or nothing while the connection is congested."""
        return 0 if self.peer.congested else min(self.peer.wire.credit(self.id), CHUNK)

    @property
    def open(self) -> bool:
        return self.peer.wire.is_open(self.id)

    def data(self, data: bytes, channel: int = 0) -> None:
        self.peer.send(self.peer.wire.send_data(self.id, data, channel))

    def eof(self, channel: int = 0) -> None:
        self.peer.send(self.peer.wire.send_eof(self.id, channel))

    def note(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.peer.send(self.peer.wire.send_note(self.id, head, body))

    def consumed(self, count: int) -> None:
        self.peer.send(self.peer.wire.consumed(self.id, count))

    def close(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Answer and end the stream; nothing happens when the hub has given it up already."""
        if self.open:
            try:
                data = self.peer.wire.send_close(self.id, {"ok": True, **head}, body)
            # It may be long: a cave's own names and texts are in it.
            except wire.LocalProtocolError:
                self.fail(WardenError("too_large", "the answer does not fit one message"))
                return
            self.peer.send(data)
            self.peer.drop(self)

    def fail(self, exc: BaseException) -> None:
        if self.open:
            from .failures import error_head  # not loaded until something fails

            self.peer.send(self.peer.wire.send_close(self.id, {"ok": False, **error_head(exc)}))
            self.peer.drop(self)


class Peer:
    """One link connection: what carries it, its wire state and its streams."""

    def __init__(self, warden: Warden, sock: _socket.socket) -> None:
        self.warden = warden
        self.carrier = Carrier(sock)
        self.wire = wire.Connection(hub=False)
        self.streams: dict[int, Stream] = {}
        self.used = False
        self._out = bytearray()
        self._closed = False
        warden.watch(self.carrier.reads, READ, self._ready)
        self.send(self.wire.send_hello(warden.greeting()))

    @property
    def congested(self) -> bool:
        return len(self._out) > HIGH_WATER

    def send(self, data: bytes) -> None:
        if not data or self._closed:
            return
        if not self._out:
            try:
                sent = self.carrier.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._await_room(True)
        self._out += data

    def _await_room(self, wanted: bool) -> None:
        if not self.carrier.relayed:
            self.warden.watch(self.carrier.reads, READ | WRITE if wanted else READ, self._ready)
        elif wanted:
            self.warden.watch(self.carrier.writes, WRITE, lambda events: self._flush())
        else:
            self.warden.unwatch(self.carrier.writes)

    def _handed_over(self) -> None:
        """From now on the relay's own input and output carry the link; its socket only tells that it has ended."""
        self.warden.watch(self.carrier.reads, READ, self._ready)
        self.warden.watch(self.carrier.sock.fileno(), READ, lambda events: self.close())
        if self._out:
            self._await_room(True)

    def drop(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)

    def open(self, head: dict[str, Any]) -> Stream:
        """Open a stream from this side (a connection that came to a listening port)."""
        number, data = self.wire.open(head)
        stream = self.streams[number] = Stream(self, number)
        self.send(data)
        return stream

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            direct = not self.carrier.relayed
            try:
                data = self.carrier.receive(1 << 18)
            except BlockingIOError:
                if direct and self.carrier.relayed:
                    self._handed_over()
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._received(data)

    def _flush(self) -> None:
        was = self.congested
        try:
            sent = self.carrier.send(memoryview(self._out)[: 1 << 18])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if not self._out:
            self._await_room(False)
        if was and not self.congested:
            for stream in list(self.streams.values()):
                if stream.on_credit is not None:
                    stream.on_credit()

    def _received(self, data: bytes) -> None:
        try:
            frames = self.wire.receive(data)
        except wire.ProtocolError:
            self.close()
            return
        for frame in frames:
            try:
                self._handle(frame)
            except wire.ProtocolError:
                self.close()
            if self._closed:
                return

    def _handle(self, frame: wire.Frame) -> None:
        kind = frame.kind
        if kind == wire.OPEN:
            self._open(frame)
        elif kind == wire.PING:
            self.send(self.wire.send_pong(frame.body))
        elif frame.stream:
            stream = self.streams.get(frame.stream)
            if stream is None:
                return
            try:
                self._deliver(stream, frame)
            except wire.ProtocolError:
                raise
            except Exception as exc:  # noqa: BLE001  (one call fails, never the cave)
                self.warden.failed(exc)
                stream.fail(exc)

    def _deliver(self, stream: Stream, frame: wire.Frame) -> None:
        kind = frame.kind
        if kind == wire.DATA:
            # A handler that takes the bytes later answers how many it took now and credits the rest itself.
            taken = (
                stream.on_data(frame.channel, frame.body) if stream.on_data is not None else None
            )
            self.send(self.wire.consumed(stream.id, len(frame.body) if taken is None else taken))
        elif kind == wire.EOF and stream.on_eof is not None:
            stream.on_eof(frame.channel)
        elif kind == wire.NOTE and stream.on_note is not None:
            stream.on_note(frame.head, frame.body)
        elif kind == wire.CREDIT and stream.on_credit is not None:
            stream.on_credit()
        elif kind in (wire.RESET, wire.CLOSE):
            self.drop(stream)
            if stream.on_reset is not None:
                stream.on_reset()

    def _open(self, frame: wire.Frame) -> None:
        stream = self.streams[frame.stream] = Stream(self, frame.stream)
        name = frame.head.get("op")
        if name not in ("hold", "services"):  # to hold a cave, or to look at it, is not to use it
            self.used = True
            self.warden.touch()
        try:
            where = OPERATIONS.get(name) if isinstance(name, str) else None
            if where is None:
                raise WardenError(
                    "unsupported", f"this warden does not know the operation {str(name)[:64]}"
                )
            operation(where)(stream, frame.head, frame.body)
        except wire.ProtocolError:
            raise
        except Exception as exc:  # noqa: BLE001  (one call fails, never the cave)
            self.warden.failed(exc)
            stream.fail(exc)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for fd in {self.carrier.reads, self.carrier.writes, self.carrier.sock.fileno()}:
            self.warden.unwatch(fd)
        self.carrier.close()
        self.warden.left(self)
        for stream in list(self.streams.values()):
            self.drop(stream)
            if stream.on_reset is not None:
                stream.on_reset()


_loaded: dict[tuple[str, str], Operation] = {}


def operation(where: tuple[str, str]) -> Operation:
    """The function of that module; what it needs is loaded when it is first asked for."""
    found = _loaded.get(where)
    if found is None:
        module = __import__(f"{__package__}.{where[0]}", fromlist=[where[1]])
        found = _loaded[where] = getattr(module, where[1])
    return found
