# Only this file runs the hub over HTTP: sockets, signals, the first token.
"""What ``ghost serve`` does."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ghost_hub.app import build_app
from ghost_hub.hub import Hub
from ghost_hub.preview.sockets import MAX_MESSAGE
from ghost_hub.sse import ENDLESS
from ghost_mcp.errors import BackendUnavailable, InvalidArgument

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp
    from websockets.frames import Frame

    from ghost_hub.settings import HubSettings
    from ghost_hub.tokens import Tokens
    from ghost_mcp.calls import Layer

__all__ = ["run"]

GRACE_S = 10
HEAD_S = 10.0
KEEP_ALIVE_S = 30
BACKLOG = 1024
MAX_UNREAD = 1 << 20  # of pongs, by a client that asks for them and does not read


def run(
    settings: HubSettings,
    tokens: Tokens,
    tell: Callable[[str], None],
    layers: Sequence[Layer] = (),
) -> int:
    """Serve until a signal ends it; returns the exit code. Calls under way have GRACE_S to answer.

    ``settings`` are checked; ``tell`` is given what a person should read. Raises InvalidArgument, BackendUnavailable.
    """
    with ExitStack() as doors:
        listeners, address = _doors(settings, tell, doors)
        hub = Hub(
            backend=settings.backend, pool_size=settings.pool, bounds=settings.bounds, layers=layers
        )
        app = build_app(hub, settings, tokens if settings.auth else None)
        _greet(settings, tokens, address, tell)
        server = uvicorn.Server(_config(settings, app))
        with suppress(KeyboardInterrupt):  # told again after the end: a shell sees how it ended
            server.run(sockets=listeners)
    return 0 if server.started else BackendUnavailable.exit_code


def _config(settings: HubSettings, app: ASGIApp) -> uvicorn.Config:
    """How the hub is served. Raises InvalidArgument for a certificate that cannot be used."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws=_Socket,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as exc:
        raise InvalidArgument(f"cannot use the certificate or its key: {exc}") from exc
    return config


def _doors(
    settings: HubSettings, tell: Callable[[str], None], stack: ExitStack
) -> tuple[list[socket.socket], str]:
    """What the hub listens on, closed with ``stack``, and its address for a browser."""
    listeners = [stack.enter_context(_listen(settings, settings.port))]
    scheme = "https" if settings.tls_cert else "http"
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    base = f"{scheme}://{f'[{host}]' if ':' in host else host}"
    if settings.terminal_port is not None:
        listeners.append(stack.enter_context(_listen(settings, settings.terminal_port)))
        there = f"{base.replace('http', 'ws', 1)}:{_port(listeners[-1])}"
        tell(f"A terminal in your default cave: wscat -c {there}")
    if settings.desktop_port is not None:
        listeners.append(stack.enter_context(_listen(settings, settings.desktop_port)))
        tell(f"A cave's desktop: {base}:{_port(listeners[-1])}/vnc.html?cave=NAME")
    return listeners, f"{base}:{_port(listeners[0])}"


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def _listen(settings: HubSettings, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, port), family=family, backlog=BACKLOG, reuse_port=False
        )
        # asyncio sets this only on sockets that name their protocol. Accepted ones inherit it; without it an answer's
        # body waits for the client to acknowledge its head: 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno else str(exc)
        raise BackendUnavailable(
            f"cannot listen on {settings.host} port {port}: {why}",
            hint="Choose another with --port, or end what listens there.",
        ) from exc


def _greet(
    settings: HubSettings, tokens: Tokens, address: str, tell: Callable[[str], None]
) -> None:
    """Say where it is; the first time with a token, which is shown this once."""
    tell(f"Ghost listens on {address}; MCP clients use {address}/mcp")
    if not settings.auth:
        tell("Without tokens: every program of this machine may use it.")
    elif not tokens.given and not tokens.list():
        value, _ = tokens.create(scope="admin", note="made by the first ghost serve")
        tell(f"A token for you, shown this once: {value}")
        tell(f"In a browser: {address}/?token={value}")
        tell("More: ghost token create --owner NAME")
    else:
        tell("It wants a token: ghost token create makes one.")


class _Protocol(H11Protocol):
    """A connection must say what it wants within HEAD_S: one that drips its head holds nothing for longer."""

    _head_timer: asyncio.TimerHandle | None = None
    _upgraded = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self._awaits_head():
            self._arm()
        super().data_received(data)
        if not self._awaits_head():
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Answered before it had said all: it has a while to finish.
        if self.conn.their_state is h11.SEND_BODY:
            self._arm()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._upgraded = True
        self._disarm()
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        super().shutdown()
        if self.cycle is not None and self.cycle.scope.get(ENDLESS):  # nobody waits for its end
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _awaits_head(self) -> bool:
        """Whether no request is under way whose head is whole."""
        return not self._upgraded and (self.cycle is None or self.cycle.response_complete)

    def _arm(self) -> None:
        self._disarm()
        self._head_timer = self.loop.call_later(HEAD_S, self._reap)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _reap(self) -> None:
        self._head_timer = None
        if self._awaits_head():
            self.transport.close()


class _Socket(WebSocketsSansIOProtocol):
    """A client's WebSocket: what it makes the hub hold costs the hub no more than it."""

    _whole: bytearray | None = None  # the pieces of a message that is not

    def handle_ping(self) -> None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.transport.abort()
        else:
            super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        """The pieces of a message are one, as soon as they come: there may be millions, and of no byte."""
        if not self.frames:  # it is past what the application hears
            return
        if not isinstance(self._whole, bytearray):
            self._whole = bytearray(self.frames[0])
        self._whole += event.data
        if event.fin:
            self.frames, self._whole = [bytes(self._whole)], None
            self.send_receive_event_to_app()
