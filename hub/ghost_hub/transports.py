# Only this file puts MCP's HTTP transports together. Who asks was settled by the guard before.
"""MCP over HTTP: Streamable HTTP of both eras, the same for one cave, and SSE for older clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import Route

from ghost_hub.direct import Direct
from ghost_hub.hub import PIN
from ghost_hub.listing import Listing
from ghost_hub.sse import MESSAGES, Sse

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ghost_hub.direct import Serves
    from ghost_hub.settings import HubSettings

__all__ = ["Transports"]

SESSION_IDLE_S = 1800.0


class Transports:
    """The routes of MCP; ``run()`` must be open while they serve."""

    def __init__(self, hub: Serves, settings: HubSettings) -> None:
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
        self._manager = StreamableHTTPSessionManager(
            hub.server,
            json_response=False,  # as one document it would lose progress
            security_settings=security,
            session_idle_timeout=SESSION_IDLE_S,
            max_request_body_size=settings.bounds.body_bytes,
            max_sessions=settings.bounds.sessions,
        )
        self._direct = Direct(self._manager.asgi_app, hub)
        self._sse = Sse(hub.server, settings.bounds.sessions)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._manager.run(), anyio.create_task_group() as tasks:
            tasks.start_soon(self._sse.ping)
            tasks.start_soon(self._direct.attend)
            yield
            tasks.cancel_scope.cancel()

    def routes(self) -> list[BaseRoute]:
        streamable = Listing(self._direct)
        return [
            Route("/mcp", _Endpoint(streamable)),
            Route("/caves/{cave}/mcp", _Endpoint(_pinned(streamable))),
            Route("/sse", _Endpoint(self._sse.listen), methods=["GET"]),
            Route(MESSAGES, _Endpoint(self._sse.take), methods=["POST"]),
        ]


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
