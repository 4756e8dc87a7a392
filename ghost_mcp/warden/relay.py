"""Makes standard input and output one end of a link with the warden: what an engine's exec runs."""

from __future__ import annotations

import _socket
import os
from time import monotonic, sleep

from . import wire
from .carrier import hand_over

START_S = 10.0


def run(path: str) -> None:
    """Pass the warden's greeting on and the rest to the warden; stay until it closes the link."""
    sock = _connected(path)
    size = wire.payload_size(head := _exactly(sock, wire.HEADER_SIZE))
    view = memoryview(head + _exactly(sock, size))
    while view:
        view = view[os.write(1, view) :]
    hand_over(sock)
    for fd in (0, 1):  # the link ends with the warden's
        os.close(fd)
    sock.recv(1)


def _exactly(sock: _socket.socket, count: int) -> bytes:
    """So many bytes, or an end without a word when the warden has ended."""
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise SystemExit(1)
        data += piece
    return data


def _connected(path: str) -> _socket.socket:
    """The warden's socket; a warden that has just been started gets the time to open it."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    deadline = monotonic() + START_S
    while True:
        try:
            sock.connect(path)
            return sock
        except OSError:
            if monotonic() > deadline:
                raise
            sleep(0.005)
