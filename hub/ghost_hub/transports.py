# Only this file knows the MCP SDK's HTTP transports. Who asks was settled by the guard before.
"""MCP over HTTP: Streamable HTTP of both eras, the same for one cave, and SSE for older clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import Mount, Route

from ghost_hub.hub import PIN
from ghost_hub.listing import Listing

if TYPE_CHECKING:
    from mcp.server import Server
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ghost_hub.settings import HubSettings

__all__ = ["Transports"]

SESSION_IDLE_S = 1800.0


class Transports:
    """The routes of MCP; ``run()`` must be open while they serve."""

    def __init__(self, server: Server[Any], settings: HubSettings) -> None:
        hosts = settings.hosts
        # The guard has checked both for every route; this is the second line.
        security = TransportSecuritySettings(
            allowed_hosts=[*hosts, *(f"{host}:*" for host in hosts)],
            allowed_origins=[
                *settings.allowed_origins,
                *(
                    f"{kind}://{host}{port}"
                    for kind in ("http", "https")
                    for host in hosts
                    for port in ("", ":*")
                ),
            ],
        )
        self._server = server
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=False,  # as one document it would lose progress
            security_settings=security,
            session_idle_timeout=SESSION_IDLE_S,
            max_request_body_size=settings.bounds.body_bytes,
            max_sessions=settings.bounds.sessions,
        )
        self._sse = SseServerTransport(
            "/messages/",
            security_settings=security,
            max_request_body_size=settings.bounds.body_bytes,
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._manager.run():
            yield

    def routes(self) -> list[BaseRoute]:
        streamable = Listing(self._manager.asgi_app)
        return [
            Route("/mcp", _Endpoint(streamable)),
            Route("/caves/{cave}/mcp", _Endpoint(_pinned(streamable))),
            Route("/sse", _Endpoint(self._serve_sse), methods=["GET"]),
            Mount("/messages", self._sse.handle_post_message),
        ]

    async def _serve_sse(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._sse.connect_sse(scope, receive, send) as (incoming, outgoing):
            options = self._server.create_initialization_options()
            await self._server.run(incoming, outgoing, options)


class _Endpoint:
    """An ASGI application as a route's endpoint: Starlette would take a function for a handler of requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _pinned(app: ASGIApp) -> ASGIApp:
    """The same, with the cave of the address for calls that name none."""

    async def pinned(scope: Scope, receive: Receive, send: Send) -> None:
        scope[PIN] = scope["path_params"]["cave"]
        await app(scope, receive, send)

    return pinned
