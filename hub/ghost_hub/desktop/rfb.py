# Only this file decides what somebody who may only look can say to a desktop. What it does not know ends the connection.
"""What a viewer says in RFB (RFC 6143), message by message, without those that change something."""

from __future__ import annotations

from collections.abc import Callable

from ghost_mcp.errors import PermissionRefused

__all__ = ["ViewOnly"]

#: The one version, and the one way in, that our desktop offers: others would begin with messages of other lengths.
_VERSION, _NO_PASSWORD, _SHARED = b"RFB 003.008\n", b"\x01", b"\x01"
_MOST_ENCODINGS = 1024


def _encodings(head: bytes) -> int:
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
    2: (True, 4, _encodings),
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
            return _SHARED
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
        if len(head) < wanted:
            return b""
        self._left = length(head) - len(head)
        self._head.clear()
        return head if self._passes else b""
