"""Looking whether anybody answers at a socket of the cave."""

from __future__ import annotations

import _socket
import errno

from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .loop import Loop

ANSWER_S = 2.0


class Probe:
    """One look: connect, perhaps ask, and compare how the answer begins.

    ``target`` is a port of the cave's loopback or the path of a socket. ``tell`` is called once, within ANSWER_S,
    and never from here: whoever looks has the probe by then, and may close it instead.
    """

    def __init__(
        self,
        loop: Loop,
        target: int | str,
        tell: Callable[[bool], None],
        *,
        ask: bytes = b"",
        expect: bytes = b"",
    ) -> None:
        self._loop, self._tell = loop, tell
        self._ask, self._expect = ask, expect
        self._got = b""
        address: str | tuple[str, int]
        family, address = _socket.AF_UNIX, str(target)
        if isinstance(target, int):
            family, address = _socket.AF_INET, ("127.0.0.1", target)
        self._sock = _socket.socket(family, _socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._timer = loop.after(ANSWER_S, lambda: self._done(False))
        try:
            self._sock.connect(address)
        except OSError as exc:
            if exc.errno != errno.EINPROGRESS:
                self._timer.cancel()
                self._timer = loop.after(0, lambda: self._done(False))
                return
        loop.watch(self._sock.fileno(), WRITE, self._connected)

    def _connected(self, events: int) -> None:
        if self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self._done(False)
            return
        try:
            if self._ask:
                self._sock.send(self._ask)
        except OSError:
            self._done(False)
            return
        if not self._expect:
            self._done(True)
        else:
            self._loop.watch(self._sock.fileno(), READ, self._heard)

    def _heard(self, events: int) -> None:
        try:
            piece = self._sock.recv(256)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._got += piece
        if not piece or len(self._got) >= len(self._expect):
            self._done(self._got.startswith(self._expect))

    def _done(self, answered: bool) -> None:
        self.close()
        self._tell(answered)

    def close(self) -> None:
        self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
