"""Carries bytes between standard input and output and the warden's socket: what an engine's exec runs."""

from __future__ import annotations

import _socket
import os
import select
from time import monotonic, sleep

START_S = 10.0


def run(path: str) -> None:
    """Copy both ways until either side ends."""
    sock = _connected(path)
    fd = sock.fileno()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(fd, select.POLLIN)
    while True:
        for source, _ in poll.poll():
            data = os.read(source, 1 << 16)
            if not data:
                return
            target = fd if source == 0 else 1
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]


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
