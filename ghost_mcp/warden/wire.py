"""The link's wire format, sans-IO: bytes in, frames out. Both ends run this one file.

A frame is a 10-byte header and a payload::

    u32 payload length | u32 stream id | u8 kind | u8 channel | payload

The payload of OPEN, NOTE and CLOSE is ``u32 head length | JSON head | raw body``; of DATA raw bytes; of
CREDIT a u32 count of bytes; of HELLO a JSON head; of EOF, RESET, PING and PONG at most 64 raw bytes.

Flow control: DATA on a stream consumes the sender's credit, counted in payload bytes. Each side starts
with ``WINDOW`` bytes for each stream and gets more by CREDIT, so a flood on one stream fills only its own
window. Streams opened by the hub have odd ids, by the warden even ones.

Whatever the peer sends is hostile: every length is bounded, and a peer that breaks a rule gets
``RemoteProtocolError``, after which the connection takes no more bytes. Standard library only, and no
module that is slow to import: this file is on a cave's start path.
"""

from __future__ import annotations

# The C halves of the json package; json itself imports re, which costs more than a cave's whole start.
import _json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
WINDOW = 1 << 20
MAX_PAYLOAD = 1 << 18
MAX_HEAD = 1 << 16
DEEPEST = 64  # how far the JSON of a head, or of what a client asks, may be nested
MAX_DATA = 1 << 16
MAX_STREAMS = 4096

HELLO, OPEN, DATA, EOF, NOTE, CLOSE, RESET, CREDIT, PING, PONG = range(1, 11)
KIND_NAMES = (
    "",
    "HELLO",
    "OPEN",
    "DATA",
    "EOF",
    "NOTE",
    "CLOSE",
    "RESET",
    "CREDIT",
    "PING",
    "PONG",
)

_HEADER = struct.Struct("!IIBB")
_U32 = struct.Struct("!I")
HEADER_SIZE = _HEADER.size
_MAX_ID = (1 << 32) - 1


class ProtocolError(Exception):
    """A rule of the wire format was broken."""


class LocalProtocolError(ProtocolError):
    """This side asked for something the format does not allow: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the format does not allow: the connection is unusable."""


class Frame:
    """One frame. ``head`` is a dict for HELLO, OPEN, NOTE and CLOSE; ``body`` the raw bytes."""

    __slots__ = ("body", "channel", "head", "kind", "stream")

    def __init__(
        self, kind: int, stream: int, channel: int, head: dict[str, Any], body: bytes
    ) -> None:
        self.kind = kind
        self.stream = stream
        self.channel = channel
        self.head = head
        self.body = body

    def __repr__(self) -> str:
        name = KIND_NAMES[self.kind]
        return f"<{name} stream={self.stream} channel={self.channel} head={self.head!r} +{len(self.body)}>"


class _ScannerContext:
    """What the C scanner asks of a decoder: strict strings, finite numbers, no hooks."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_int = int

    @staticmethod
    def parse_float(text: str) -> float:
        value = float(text)
        if value - value:  # 1e999 reads as infinity, which nothing here expects
            raise ValueError(f"number out of range: {text[:40]}")
        return value

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(name)


_scan = _json.make_scanner(_ScannerContext)  # type: ignore[arg-type]  # typeshed knows one caller


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_encode = _json.make_encoder(
    {}, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False
)


def dumps(head: dict[str, Any]) -> bytes:
    """JSON-encode a head. Raises TypeError or ValueError for what JSON cannot hold (NaN included)."""
    return "".join(_encode(head, 0)).encode("ascii")


def loads(raw: bytes) -> dict[str, Any]:
    """Decode one JSON object. Raises ValueError for anything else, NaN and too deep nesting included."""
    text = raw.decode("utf-8")
    try:
        value, end = _scan(text, 0)
    # SystemError: its own error class lives in json, not imported.
    except (StopIteration, SystemError):
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if end != len(text) or type(value) is not dict:
        raise ValueError("not one JSON object")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and is_deep(value):
        raise ValueError("JSON nested too deep")
    return value


def is_deep(value: Any) -> bool:
    """Whether a JSON value is nested more than DEEPEST times: nobody means that, and much would recurse into it."""
    level = [value]
    for _ in range(DEEPEST):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for one in parts for part in one if isinstance(part, (dict, list, tuple))]
        if not level:
            return False
    return True


def _message(head: dict[str, Any], body: bytes) -> bytes:
    raw = dumps(head)
    if len(raw) > MAX_HEAD or 4 + len(raw) + len(body) > MAX_PAYLOAD:
        raise LocalProtocolError("message too large")
    return _U32.pack(len(raw)) + raw + body


class Connection:
    """One end of a link. ``hub`` says which end: it decides who opens odd streams.

    The caller feeds received bytes to :meth:`receive`, writes what the ``send_*`` methods return, reports
    consumed DATA with :meth:`consumed` and asks :meth:`credit` before it sends DATA.
    """

    def __init__(self, *, hub: bool) -> None:
        self._parity = 1 if hub else 0
        self._next = 1 if hub else 2
        self._buffer = bytearray()  # the start of a frame
        self._wanted = HEADER_SIZE  # how long it must be before it is looked at
        self._credit: dict[int, int] = {}  # open stream -> bytes we may still send
        self._window: dict[int, int] = {}  # open stream -> bytes the peer may still send
        self._owed: dict[int, int] = {}  # open stream -> bytes consumed, not yet given back
        self._highest = 0  # highest stream id the peer has opened
        self._greeted = False
        self._failed = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._credit)

    def is_open(self, stream: int) -> bool:
        return stream in self._credit

    def credit(self, stream: int) -> int:
        """Bytes of DATA that may be sent on ``stream`` now; 0 when it is closed."""
        return self._credit.get(stream, 0)

    # --- sending ---------------------------------------------------------------------------------

    def send_hello(self, head: dict[str, Any]) -> bytes:
        return _frame(HELLO, 0, 0, dumps({"version": VERSION, **head}))

    def open(self, head: dict[str, Any], body: bytes = b"") -> tuple[int, bytes]:
        """Open a stream; returns its id and the bytes to send."""
        if len(self._credit) >= MAX_STREAMS or self._next > _MAX_ID:
            raise LocalProtocolError("too many streams on one link")
        payload = _message(head, body)
        stream = self._next
        self._next += 2
        self._opened(stream)
        return stream, _frame(OPEN, stream, 0, payload)

    def send_data(self, stream: int, data: bytes, channel: int = 0) -> bytes:
        """DATA of at least one byte, at most MAX_DATA, and at most the stream's credit."""
        return self.data_header(stream, len(data), channel) + data

    def data_header(self, stream: int, size: int, channel: int = 0) -> bytes:
        """What goes before so many bytes of DATA, for who sends much and need not copy it once more."""
        left = self._credit.get(stream)
        if left is None or not 0 < size <= min(left, MAX_DATA):
            raise LocalProtocolError(f"no credit for {size} bytes on stream {stream}")
        self._credit[stream] = left - size
        return _HEADER.pack(size, stream, DATA, channel)

    def send_eof(self, stream: int, channel: int = 0) -> bytes:
        return self._on_open(EOF, stream, channel)

    def send_note(self, stream: int, head: dict[str, Any], body: bytes = b"") -> bytes:
        return self._on_open(NOTE, stream, 0, _message(head, body))

    def send_close(self, stream: int, head: dict[str, Any], body: bytes = b"") -> bytes:
        """The answer that ends a stream, sent by the side that did not open it."""
        if stream % 2 == self._parity:
            raise LocalProtocolError("CLOSE from the side that opened the stream")
        data = self._on_open(CLOSE, stream, 0, _message(head, body))
        self._closed(stream)
        return data

    def send_reset(self, stream: int) -> bytes:
        """Give a stream up: the peer stops whatever it does for it."""
        data = self._on_open(RESET, stream, 0)
        self._closed(stream)
        return data

    def send_ping(self, token: bytes = b"") -> bytes:
        return _frame(PING, 0, 0, token[:64])

    def send_pong(self, token: bytes) -> bytes:
        return _frame(PONG, 0, 0, token[:64])

    def consumed(self, stream: int, count: int) -> bytes:
        """Say that ``count`` bytes of DATA were taken; returns CREDIT to send, often nothing."""
        if stream not in self._window or count <= 0:
            return b""
        owed = self._owed.get(stream, 0) + count
        if owed < WINDOW // 4:
            self._owed[stream] = owed
            return b""
        self._owed[stream] = 0
        self._window[stream] += owed
        return _frame(CREDIT, stream, 0, _U32.pack(owed))

    # --- receiving -------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Frame]:
        """Take bytes from the peer; returns the frames they complete.

        Raises RemoteProtocolError at the first rule broken; the connection is then closed for good.
        """
        if self._failed:
            raise RemoteProtocolError("connection already failed")
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []  # looked at only when it completes something: a peer may send byte by byte
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[Frame] = []
        self._failed = True  # until all of it is found good
        try:
            self._buffer += self._parse(data, frames)
            self._failed = False
        except (ValueError, struct.error) as exc:
            raise RemoteProtocolError(f"malformed frame: {exc}") from None
        return frames

    def _parse(self, data: bytes, frames: list[Frame]) -> memoryview:
        """Take the frames that are whole; returns what is left. Each payload is copied once: it may be much."""
        view, at, end = memoryview(data), 0, len(data)
        self._wanted = HEADER_SIZE
        while end - at >= HEADER_SIZE:
            size, stream, kind, channel = _HEADER.unpack_from(data, at)
            if size > MAX_PAYLOAD or not HELLO <= kind <= PONG:
                raise RemoteProtocolError(f"bad frame header: kind {kind}, {size} bytes")
            if end - at - HEADER_SIZE < size:
                self._wanted += size
                break
            start = at + HEADER_SIZE
            at = start + size
            frame = self._accept(kind, stream, channel, data[start:at])
            if frame is not None:
                frames.append(frame)
        return view[at:]

    def _accept(self, kind: int, stream: int, channel: int, payload: bytes) -> Frame | None:
        if kind == HELLO:
            return self._hello(stream, payload)
        if not self._greeted:
            raise RemoteProtocolError(f"{KIND_NAMES[kind]} before HELLO")
        if kind in (PING, PONG):
            if stream or len(payload) > 64:
                raise RemoteProtocolError("bad ping")
            return Frame(kind, 0, 0, {}, payload)
        if kind == OPEN:
            return self._open(stream, payload)
        if stream not in self._credit:
            if not self._was_open(stream):
                raise RemoteProtocolError(
                    f"{KIND_NAMES[kind]} on a stream that never was: {stream}"
                )
            return None  # crossed with our own close or reset
        return self._on_stream(kind, stream, channel, payload)

    def _on_stream(self, kind: int, stream: int, channel: int, payload: bytes) -> Frame | None:
        if kind == DATA:
            left = self._window[stream] - len(payload)
            # None may be empty: it would cost no credit, and so nothing would bound their number.
            if left < 0 or not 0 < len(payload) <= MAX_DATA:
                raise RemoteProtocolError(f"DATA beyond the window of stream {stream}")
            self._window[stream] = left
            return Frame(DATA, stream, channel, {}, payload)
        if kind == CREDIT:
            (count,) = _U32.unpack(payload)
            if not 0 < count <= WINDOW or self._credit[stream] + count > WINDOW:
                raise RemoteProtocolError("bad credit")
            self._credit[stream] += count
            return Frame(CREDIT, stream, 0, {}, b"")
        if kind in (NOTE, CLOSE):
            head, body = self._split(payload)
            if kind == CLOSE:
                if stream % 2 != self._parity:
                    raise RemoteProtocolError("CLOSE from the side that opened the stream")
                self._closed(stream)
            return Frame(kind, stream, channel, head, body)
        if payload:
            raise RemoteProtocolError(f"{KIND_NAMES[kind]} with a payload")
        if kind == RESET:
            self._closed(stream)
        return Frame(kind, stream, channel, {}, b"")

    def _hello(self, stream: int, payload: bytes) -> Frame:
        if self._greeted or stream or len(payload) > MAX_HEAD:
            raise RemoteProtocolError("unexpected HELLO")
        head = loads(payload)
        if head.get("version") != VERSION:
            raise RemoteProtocolError(
                f"peer speaks version {head.get('version')!r}, this side {VERSION}"
            )
        self._greeted = True
        return Frame(HELLO, 0, 0, head, b"")

    def _open(self, stream: int, payload: bytes) -> Frame:
        if stream % 2 == self._parity or stream <= self._highest:
            raise RemoteProtocolError(f"bad id for a new stream: {stream}")
        if len(self._credit) >= 2 * MAX_STREAMS:
            raise RemoteProtocolError("too many open streams")
        head, body = self._split(payload)
        self._highest = stream
        self._opened(stream)
        return Frame(OPEN, stream, 0, head, body)

    @staticmethod
    def _split(payload: bytes) -> tuple[dict[str, Any], bytes]:
        (size,) = _U32.unpack_from(payload)
        if size > MAX_HEAD or 4 + size > len(payload):
            raise RemoteProtocolError("bad head length")
        return loads(payload[4 : 4 + size]), payload[4 + size :]

    # --- streams ---------------------------------------------------------------------------------

    def _opened(self, stream: int) -> None:
        self._credit[stream] = WINDOW
        self._window[stream] = WINDOW

    def _closed(self, stream: int) -> None:
        del self._credit[stream]
        del self._window[stream]
        self._owed.pop(stream, None)

    def _was_open(self, stream: int) -> bool:
        return (
            0 < stream < self._next if stream % 2 == self._parity else 0 < stream <= self._highest
        )

    def _on_open(self, kind: int, stream: int, channel: int, payload: bytes = b"") -> bytes:
        if stream not in self._credit:
            raise LocalProtocolError(f"{KIND_NAMES[kind]} on closed stream {stream}")
        return _frame(kind, stream, channel, payload)


def payload_size(header: bytes) -> int:
    """How many bytes follow a frame's first HEADER_SIZE ones."""
    return int(_HEADER.unpack(header)[0])


def _frame(kind: int, stream: int, channel: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), stream, kind, channel) + payload
