# Only this file decides what somebody who may only look hears from a desktop. What it does not know ends the connection.
"""What a desktop says in RFB (RFC 6143), message by message, without what is copied there."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import NamedTuple

from ghost_mcp.errors import PermissionRefused

__all__ = ["ENCODINGS", "PIXEL_FORMAT", "Shown"]

_RAW, _COPY, _TIGHT = 0, 1, 7
_SIZE, _LAST, _CURSOR, _NAME, _SIZES = -223, -224, -239, -307, -308
_FENCE, _CONTINUOUS = -312, -313
#: What a viewer may ask for: all else would be said in a form whose length is not known here.
ENCODINGS = frozenset(
    {_RAW, _COPY, _TIGHT, _SIZE, _LAST, _CURSOR, _NAME, _SIZES, _FENCE, _CONTINUOUS}
    | set(range(-32, -22))  # how good JPEG is
    | set(range(-256, -246))  # how hard is compressed
)
#: The one form of pixels that all lengths here are made for: four bytes, of which tight sends three.
PIXEL_FORMAT = struct.pack(">4B3H3B3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_PIXEL, _TIGHT_PIXEL = 4, 3
_SHORTEST = 12  # bytes that tight compresses


class _Next(NamedTuple):
    """So many bytes come next: whether the viewer hears them, and whether the script is told them."""

    size: int
    passes: bool = True
    told: bool = False


#: It is sent what it asked to be told, and says itself what is heard after all.
_Script = Generator[_Next | bytes, bytes, None]


class Shown:
    """A desktop's side of one connection, from its first byte on. Nothing longer than a head is kept."""

    def __init__(self) -> None:
        self._script = _greeting()
        self._kept, self._heard = bytearray(), bytearray()
        self._next = _Next(0)
        self._advance(b"")

    def feed(self, data: bytes) -> bytes:
        """What of it the viewer hears. Raises PermissionRefused when it cannot be understood."""
        at = 0
        while at < len(data):
            piece = data[at : at + self._next.size]
            at += len(piece)
            self._heard += piece if self._next.passes else b""
            self._kept += piece if self._next.told else b""
            self._next = self._next._replace(size=self._next.size - len(piece))
            if not self._next.size:
                self._advance(bytes(self._kept))
        heard = bytes(self._heard)
        self._heard.clear()
        return heard

    def _advance(self, told: bytes) -> None:
        self._kept.clear()
        step = self._script.send(told) if told else next(self._script)
        while isinstance(step, bytes) or not step.size:
            self._heard += step if isinstance(step, bytes) else b""
            step = next(self._script)
        self._next = step


def _told(size: int) -> _Next:
    return _Next(size, told=True)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _greeting() -> _Script:
    yield _Next(12)  # the version
    ways = _number((yield _told(1)))
    yield _Next(ways)
    if ways == 0 or (yield _told(4)) != bytes(4):
        raise PermissionRefused("the desktop lets nobody in")
    head = yield _told(24)
    yield _Next(_number(head[20:]))  # its name
    while True:
        yield from _message((yield _Next(1, passes=False, told=True)))


def _message(kind: bytes) -> _Script:
    if kind == b"\x03":  # what was copied; less than nothing is the length of the extended kind
        head = yield _Next(7, passes=False, told=True)
        yield _Next(abs(int.from_bytes(head[3:], "big", signed=True)), passes=False)
        return
    yield kind
    if kind == b"\x00":
        count = _number((yield _told(3))[1:])
        for _ in range(count):
            width, height, encoding = struct.unpack(">4x2Hi", (yield _told(12)))
            if encoding == _LAST:
                return
            yield from _rectangle(width, height, encoding)
    elif kind == b"\x01":  # colours of a palette
        yield _Next(6 * _number((yield _told(5))[3:]))
    elif kind == b"\xf8":  # a fence
        yield _Next((yield _told(8))[7])
    elif kind not in (b"\x02", b"\x96"):  # a bell; the end of continuous updates
        raise PermissionRefused(f"a desktop says what is not known here: {kind[0]}")


def _rectangle(width: int, height: int, encoding: int) -> _Script:
    if encoding == _TIGHT:
        yield from _tight(width, height)
    elif encoding == _SIZES:
        yield _Next(16 * (yield _told(4))[0])
    elif encoding == _NAME:
        yield _Next(_number((yield _told(4))))
    elif encoding in (_RAW, _COPY, _SIZE, _CURSOR):
        pixels, mask = width * height * _PIXEL, (width + 7) // 8 * height
        yield _Next({_RAW: pixels, _COPY: 4, _SIZE: 0, _CURSOR: pixels + mask}[encoding])
    else:
        raise PermissionRefused(f"a desktop draws in a way that is not known here: {encoding}")


def _tight(width: int, height: int) -> _Script:
    how = (yield _told(1))[0] >> 4
    if how == 8:  # one colour
        yield _Next(_TIGHT_PIXEL)
        return
    if how > 9:
        raise PermissionRefused(f"a desktop draws in a way that is not known here: tight {how}")
    size = _SHORTEST  # JPEG's is always told
    if how < 8:
        row = width * _TIGHT_PIXEL
        if how & 4 and (yield _told(1)) == b"\x01":  # a palette
            colours = (yield _told(1))[0] + 1
            yield _Next(colours * _TIGHT_PIXEL)
            row = (width + 7) // 8 if colours <= 2 else width
        size = row * height
    if size < _SHORTEST:
        yield _Next(size)
        return
    length = shift = 0
    for last in (0x7F, 0x7F, 0xFF):  # seven bits each, and eight
        byte = (yield _told(1))[0]
        length |= (byte & last) << shift
        shift += 7
        if not byte & 0x80:
            break
    yield _Next(length)
