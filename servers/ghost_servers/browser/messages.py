# What a browser sends to its driver passes here first, because any program of the cave may have written it.
"""DevTools messages as the driver can bear them: JSON objects, ended by NUL, bounded.

Sans-IO: bytes in, bytes out. What is no JSON object, or too large, is left out. Only a picture may be larger:
its message is let through in pieces, as long as it keeps to the one form such a message has.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Never

from ghost_mcp.errors import ProtocolFailure

__all__ = ["Messages"]

MAX_MESSAGE = 1 << 20
MAX_PICTURE = 64 << 20
MAX_TAIL = 256
_PICTURE = re.compile(rb'\{"id":\d{1,15},"result":\{"data":"')
_REST = re.compile(rb"[A-Za-z0-9+/]*=*")
_TAIL = re.compile(rb'"\}(?:,"sessionId":"[0-9A-F]{1,64}")?\}')


class _State(Enum):
    SMALL = auto()
    PICTURE = auto()
    TAIL = auto()
    LEFT_OUT = auto()


class Messages:
    """Feed it what arrives; it answers what to pass on."""

    def __init__(self) -> None:
        self._state = _State.SMALL
        self._held = bytearray()
        self._passed = 0

    def feed(self, data: bytes) -> bytes:
        """The part of what has arrived that the driver may see now. Raises ProtocolFailure for half a picture."""
        out = bytearray()
        *ended, rest = data.split(b"\0")
        for piece in ended:
            out += self._take(piece)
            out += self._end()
        out += self._take(rest)
        return bytes(out)

    def _take(self, piece: bytes) -> bytes:
        if self._state is _State.SMALL:
            self._held += piece
            return self._grown() if len(self._held) > MAX_MESSAGE else b""
        if self._state is _State.PICTURE:
            return self._picture(piece)
        if self._state is _State.TAIL:
            self._held += piece
            if len(self._held) > MAX_TAIL:
                _nonsense()
        return b""

    def _grown(self) -> bytes:
        """A message has become too large: it is a picture, or left out."""
        held, self._held = bytes(self._held), bytearray()
        begins = _PICTURE.match(held)
        if begins is None:
            self._state = _State.LEFT_OUT
            return b""
        self._state, self._passed = _State.PICTURE, 0
        return begins[0] + self._picture(held[begins.end() :])

    def _picture(self, piece: bytes) -> bytes:
        data = _REST.match(piece)
        end = data.end() if data is not None else 0
        self._passed += end
        if self._passed > MAX_PICTURE:
            _nonsense()
        if end < len(piece):
            self._state = _State.TAIL
            self._take(piece[end:])
        return piece[:end]

    def _end(self) -> bytes:
        """What is still held of the message that has ended."""
        state, self._state = self._state, _State.SMALL
        held, self._held = bytes(self._held), bytearray()
        if state is _State.SMALL and _is_object(held):
            return held + b"\0"
        if state is _State.TAIL and _TAIL.fullmatch(held):
            return held + b"\0"
        if state in (_State.PICTURE, _State.TAIL):
            _nonsense()
        return b""


def _is_object(message: bytes) -> bool:
    try:
        return isinstance(json.loads(message.decode(), parse_constant=_constant), dict)
    except (ValueError, RecursionError):
        return False


def _constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _nonsense() -> Never:
    raise ProtocolFailure("it sent half a picture")
