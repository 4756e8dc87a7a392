"""Ports in the cave: connecting to one of them."""

from __future__ import annotations

import _socket
import errno
import os

from .loop import WRITE
from .peers import WardenError
from .streams import Feeder, Source, ToStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .peers import Stream

CONNECT_S = 10.0
MAX_UNIX_PATH = 107


def dial(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{port, host} | {path}``: a NOTE says it is connected, then DATA flows both ways until both have ended.

    ``host`` is an address or localhost: looking a name up would hold the loop.
    """
    sock, address = _target(head)
    target = head.get("path", head.get("port"))
    sock.setblocking(False)
    try:
        sock.connect(address)
    except OSError as exc:
        if exc.errno == errno.EINPROGRESS:
            _when_connected(stream, sock, target)
            return
        sock.close()  # EAGAIN, too: a unix socket whose queue is full, which never becomes ready
        raise
    join(stream, sock, target)


def _target(head: dict[str, Any]) -> tuple[_socket.socket, Any]:
    path = head.get("path")
    if path is not None:
        try:
            raw = os.fsencode(path)
        except (TypeError, UnicodeEncodeError):
            raw = b""
        if not 0 < len(raw) <= MAX_UNIX_PATH or b"\0" in raw:
            raise WardenError("invalid_path", f"not the path of a socket: {ascii(path)[:200]}")
        return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM), path
    family, address = _address(head)
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return sock, address


def _address(head: dict[str, Any]) -> tuple[int, tuple[str, int]]:
    """The family, and host and port, that a head names. Raises invalid_argument."""
    port, host = head.get("port"), head.get("host") or "localhost"
    if type(port) is not int or not 0 < port < 65536:
        raise WardenError("invalid_argument", f"not a port: {str(port)[:40]}")
    host = "127.0.0.1" if host == "localhost" else str(host)
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    try:
        _socket.inet_pton(family, host)
    except (OSError, ValueError):
        raise WardenError("invalid_argument", f"not an IP address: {ascii(host)[:100]}") from None
    return family, (host, port)


def _when_connected(stream: Stream, sock: _socket.socket, target: Any) -> None:
    warden = stream.peer.warden

    def settle(error: int) -> None:
        timer.cancel()
        warden.unwatch(sock.fileno())
        if error:
            sock.close()
            stream.fail(OSError(error, os.strerror(error)))
        else:
            join(stream, sock, target)

    timer = warden.after(CONNECT_S, lambda: settle(errno.ETIMEDOUT))
    stream.on_reset = lambda: settle(errno.ECONNABORTED)
    warden.watch(
        sock.fileno(),
        WRITE,
        lambda events: settle(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)),
    )


def join(stream: Stream, sock: _socket.socket, target: Any = None) -> None:
    """Carry bytes both ways between a stream and a connected socket, after a NOTE that says so.

    ``target`` is the port or path that was dialled: a service is in use while somebody is connected to it.
    """
    if stream.open:
        services = stream.peer.warden.services
        left = services.used(target) if services is not None else None
        stream.note({"connected": True})
        _Tie(stream, sock, left)
    else:
        sock.close()


class _Tie:
    """A connected socket and a stream: each direction ends by itself, the stream when both have."""

    def __init__(
        self, stream: Stream, sock: _socket.socket, left: Callable[[], None] | None
    ) -> None:
        self.left = left
        warden = stream.peer.warden
        self.stream, self.sock = stream, sock
        self.ways = 2
        # One descriptor a direction: the loop watches each for one thing.
        self.feeder = Feeder(warden, os.dup(sock.fileno()), stream.consumed, self._sent_all)
        self.source = Source(warden, os.dup(sock.fileno()), ToStream(stream, 0), self._received_all)
        stream.on_data, stream.on_credit = self._feed, self.source.resume
        stream.on_eof = lambda channel: self.feeder.end()
        stream.on_reset = self._reset

    def _feed(self, channel: int, data: bytes) -> int:
        self.feeder.put(data)
        return 0

    def _sent_all(self) -> None:
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # the other side closed first
        self._ended()

    def _received_all(self) -> None:
        if self.stream.open:
            self.stream.eof()
        self._ended()

    def _ended(self) -> None:
        self.ways -= 1
        if self.ways == 0:
            self.sock.close()
            if self.left is not None:
                self.left()
            self._finish()

    def _finish(self) -> None:
        stream = self.stream
        if stream.open and stream.id % 2:
            stream.close({})
        elif stream.open:  # a stream this side opened ends by its reset
            stream.peer.send(stream.peer.wire.send_reset(stream.id))
            stream.peer.drop(stream)

    def _reset(self) -> None:
        self.source.close()
        self.feeder.close()
