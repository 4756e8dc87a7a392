"""The cave's way out: a proxy's port on its own loopback. Whoever is attached serves the connections to it.

The port is there for the cave's whole life. What may be reached is decided outside, by who is attached; the
longest attached gets all connections, so that one that comes for a moment takes none along when it goes.
"""

from __future__ import annotations

import _socket

from . import wire
from .loop import READ
from .ports import join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .peers import Stream
    from .program import Warden

BACKLOG = 128
PARTING_S = 2.0
HOSTS = "localhost,127.0.0.1,::1"  # the cave's own loopback needs no proxy
_TEXT = (
    b"No Ghost is attached to this cave's network now. It is served while a hub is connected to the cave, "
    b"during `ghost exec`, or by: ghost egress CAVE --follow\n"
)
_UNSERVED = (
    b"HTTP/1.1 503 No Ghost is attached to this cave's network\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


class Door:
    """The port, and the streams of those who serve it."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self.attached: list[Stream] = []
        sock = self._sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        sock.bind(("127.0.0.1", 0))
        sock.listen(BACKLOG)
        self.port: int = sock.getsockname()[1]
        warden.accept(sock, self._accepted)

    def variables(self, direct: Sequence[str] = ()) -> dict[str, str]:
        """What tells programs of it, and which names need none. curl and apt read the small names, Node asks to
        be told to look."""
        url = f"http://127.0.0.1:{self.port}"
        named = {f"{kind}_proxy": url for kind in ("http", "https", "all")}
        named["no_proxy"] = ",".join([HOSTS, *direct])
        named.update({name.upper(): value for name, value in named.items()})
        return {**named, "NODE_USE_ENV_PROXY": "1"}

    def _accepted(self, client: _socket.socket) -> None:
        client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        for attached in list(self.attached):
            try:
                stream = attached.peer.open({"op": "accepted", "port": self.port})
            except wire.LocalProtocolError:  # as many as one link takes
                break
            if stream.id in attached.peer.streams:
                join(stream, client)
                return
        self._turn_away(client)

    def _turn_away(self, client: _socket.socket) -> None:
        """Say why, and wait a moment for the client to go: closing earlier could lose the answer."""
        fd = client.fileno()

        def end() -> None:
            timer.cancel()
            self._warden.unwatch(fd)
            client.close()

        def ready(events: int) -> None:
            try:
                if client.recv(1 << 16):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            end()

        timer = self._warden.after(PARTING_S, end)
        try:
            client.send(_UNSERVED)
            client.shutdown(_socket.SHUT_WR)
        except OSError:
            end()
            return
        self._warden.watch(fd, READ, ready)


def opened(warden: Warden) -> Door:
    """The cave's door; made when it is first asked for."""
    if warden.door is None:
        warden.door = Door(warden)
    return warden.door


def attach(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{}``: serve the cave's way out from now on, until the stream is reset.

    A NOTE carries the port; each connection opens a stream to the hub with ``{op: "accepted", port}``. Being
    attached does not keep a cave from being idle. Raises unsupported in a cave without a network.
    """
    from .peers import WardenError

    door = stream.peer.warden.door
    if door is None:
        raise WardenError("unsupported", "this cave has no network")
    attached = door.attached
    stream.passive = True
    stream.on_reset = lambda: attached.remove(stream)
    attached.append(stream)
    stream.note({"port": door.port})
