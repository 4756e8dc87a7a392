# Only this file decides what somebody who may only look can say to a desktop. What it does not know ends the connection.
"""What a viewer says in RFB (RFC 6143), message by message, without those that change something."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ghost_hub.desktop.shown import ENCODINGS, PIXEL_FORMAT
from ghost_mcp.errors import PermissionRefused

__all__ = ["ViewOnly"]

#: The one version, and the one way in, that our desktop offers: others would begin with messages of other lengths.
_VERSION, _NO_PASSWORD, _SHARED = b"RFB 003.008\n", b"\x01", b"\x01"
_SET_FORMAT = bytes(4) + PIXEL_FORMAT
_MOST_ENCODINGS = 1024


def _format(head: bytes) -> bytes:
    """Colours may stand in another order, but not in another size."""
    if head[4:6] != PIXEL_FORMAT[:2] or head[7:14] != PIXEL_FORMAT[3:10]:
        raise PermissionRefused("a viewer wants other pixels than true colours in four bytes")
    return head


def _encodings(head: bytes) -> bytes:
    """Those of them whose length is known when the desktop speaks."""
    named = struct.unpack(f">{len(head) // 4 - 1}i", head[4:])
    known = [one for one in named if one in ENCODINGS]
    return b"\x02\0" + struct.pack(f">H{len(known)}i", len(known), *known)


def _encodings_length(head: bytes) -> int:
    count = int.from_bytes(head[2:4], "big")
    if count > _MOST_ENCODINGS:
        raise PermissionRefused("a viewer names too many encodings")
    return 4 + 4 * count


def _cut_text(head: bytes) -> int:
    """Less than nothing is the length of the extended kind."""
    return 8 + abs(int.from_bytes(head[4:8], "big", signed=True))


def _of_qemu(head: bytes) -> int:
    if head[1] != 0:  # sound; only keys have a known length
        raise PermissionRefused("a viewer says what is not known here")
    return 12


#: By type: whether it may pass, so many bytes tell its length, and how.
_MESSAGES: dict[int, tuple[bool, int, Callable[[bytes], int]]] = {
    0: (True, 1, lambda _: 20),  # SetPixelFormat
    2: (True, 4, _encodings_length),
    3: (True, 1, lambda _: 10),  # FramebufferUpdateRequest
    4: (False, 1, lambda _: 8),  # KeyEvent
    5: (False, 1, lambda _: 6),  # PointerEvent
    6: (False, 8, _cut_text),
    150: (True, 1, lambda _: 10),  # EnableContinuousUpdates
    248: (True, 9, lambda head: 9 + head[8]),  # ClientFence
    250: (False, 1, lambda _: 4),  # xvp: shut down, reboot
    251: (False, 8, lambda head: 8 + 16 * head[6]),  # SetDesktopSize
    255: (False, 2, _of_qemu),
}
#: Those that are looked at whole, and what of them passes.
_CHANGED: dict[int, Callable[[bytes], bytes]] = {0: _format, 2: _encodings}


class ViewOnly:
    """A viewer's side of one connection, from its first byte on. Nothing longer than a head is kept."""

    def __init__(self) -> None:
        self._greeting = _VERSION + _NO_PASSWORD
        self._greeted = False
        self._head = bytearray()
        self._left, self._passes = 0, False

    def feed(self, data: bytes) -> bytes:
        """What of it the desktop is told. Raises PermissionRefused when it cannot be understood."""
        said, at = bytearray(), 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                said += piece if self._passes else b""
            elif not self._greeted:
                said += self._greet(data[at : at + 1])
                at += 1
            else:
                self._head += data[at : at + 1]
                at += 1
                said += self._begin()
        return bytes(said)

    def _greet(self, byte: bytes) -> bytes:
        if not self._greeting:  # ClientInit: whoever looks sends nobody away
            self._greeted = True
            return _SHARED + _SET_FORMAT
        if byte != self._greeting[:1]:
            raise PermissionRefused("a viewer wants another protocol than the desktop has")
        self._greeting = self._greeting[1:]
        return byte

    def _begin(self) -> bytes:
        """The head of a message, once its length is known: what of it passes."""
        head = bytes(self._head)
        if head[0] not in _MESSAGES:
            raise PermissionRefused(f"a viewer says what is not known here: {head[0]}")
        self._passes, wanted, length = _MESSAGES[head[0]]
        if len(head) < wanted or (head[0] in _CHANGED and len(head) < length(head)):
            return b""
        self._left = length(head) - len(head)
        self._head.clear()
        if head[0] in _CHANGED:
            return _CHANGED[head[0]](head)
        return head if self._passes else b""
