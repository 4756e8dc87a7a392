"""What carries a link's bytes at the warden's end: a unix socket, or what a relay has handed over through one.

A relay that copied would cost every call two more turns of the kernel. It hands over its own standard input and
output instead, and stays only because an engine ends both when the program that it has started ends.
"""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# No frame begins so.
HANDOVER = b"\xff"
_FD_BYTES = 4
_GIVEN = 2  # standard input and output


def hand_over(sock: _socket.socket) -> None:
    """At the relay's end: what comes from now on goes past this process."""
    fds = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in (0, 1))
    sock.sendmsg([HANDOVER], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])


class Carrier:
    """Reads and writes without waiting: both raise BlockingIOError."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.reads = self.writes = sock.fileno()
        self.send: Callable[[bytes | memoryview], int] = sock.send
        self.receive: Callable[[int], bytes] = self._first

    @property
    def relayed(self) -> bool:
        return self.reads != self.sock.fileno()

    def _first(self, count: int) -> bytes:
        """Whoever hands something over does so first. Empty when it is not what was agreed."""
        room = _socket.CMSG_SPACE(_GIVEN * _FD_BYTES)
        # No program of the cave inherits what comes.
        data, given, *_ = self.sock.recvmsg(count, room, _socket.MSG_CMSG_CLOEXEC)
        self.receive = self.sock.recv
        if not given:
            return data
        fds = [int.from_bytes(fd, sys.byteorder) for _, _, raw in given for fd in _pieces(raw)]
        if data == HANDOVER and len(fds) == _GIVEN:
            self._take(*fds)
            raise BlockingIOError
        for fd in fds:
            os.close(fd)
        return b""

    def _take(self, reads: int, writes: int) -> None:
        for fd in (reads, writes):
            os.set_blocking(fd, False)
        self.reads, self.writes = reads, writes
        self.receive = lambda count: os.read(reads, count)
        self.send = lambda data: os.write(writes, data)

    def close(self) -> None:
        if self.relayed:
            os.close(self.reads)
            os.close(self.writes)
        self.sock.close()


def _pieces(raw: bytes) -> list[bytes]:
    return [raw[at : at + _FD_BYTES] for at in range(0, len(raw), _FD_BYTES)]
