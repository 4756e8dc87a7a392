# Only this file says which addresses the hub answers. All of them stand behind the guard.
"""The hub as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Mount

from ghost_hub import about, desktop, opening, preview, rest
from ghost_hub.guard import Guard
from ghost_hub.pages import told
from ghost_hub.preview import PreviewHosts
from ghost_hub.problem import details, problem
from ghost_hub.router import Addresses
from ghost_hub.terminal import Terminals
from ghost_hub.transports import Transports
from ghost_mcp.calls import foreseen
from ghost_mcp.errors import GhostError, NotFound, Unsupported

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from ghost_hub.guard import Verifier
    from ghost_hub.hub import Hub
    from ghost_hub.settings import HubSettings

__all__ = ["build_app"]


def build_app(hub: Hub, settings: HubSettings, verifier: Verifier | None) -> ASGIApp:
    """The application; its lifespan opens the hub and closes it. ``verifier`` None is no authentication."""
    transports = Transports(hub, settings)
    terminals = Terminals(hub)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub, transports.run(), terminals.run():
            yield

    hub.previews = previews = PreviewHosts(hub, settings.preview_domain, verifier)
    previews.doors.update(desktop.doors())
    previews.app = Starlette(
        routes=[Mount("", previews.serve)],
        exception_handlers={GhostError: _refused, Exception: _failed},
    )
    app = Starlette(
        exception_handlers={
            404: _missing,
            405: _wrong_method,
            GhostError: _refused_at_home,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.router = Addresses(
        [
            *transports.routes(),
            *preview.routes(hub),
            *terminals.routes(),
            *opening.routes(hub),
            *about.routes(hub),
            *rest.routes(hub),
        ],
        lifespan=lifespan,
    )
    return Guard(app, settings, verifier, previews)


async def _missing(request: Request, exc: Exception) -> Response:
    error = NotFound(
        f"there is nothing at {request.url.path[:200]}", hint="/openapi.json lists what there is."
    )
    if "text/html" not in request.headers.get("accept", ""):
        return problem(error)
    return told("There is nothing here", [error.message], 404, home=True)


async def _wrong_method(request: Request, exc: Exception) -> Response:
    headers = getattr(exc, "headers", None)
    takes = (headers or {}).get("Allow", "")
    error = Unsupported(
        f"{request.url.path[:200]} does not take {request.method}",
        hint=f"It takes {takes}." if takes else "",
        code="wrong_method",
    )
    return problem(error, status=405, headers=headers)


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, GhostError)  # noqa: S101  (what the tables above say)
    return problem(exc)


async def _refused_at_home(request: Request, exc: Exception) -> Response:
    """Who has gone there with a browser gets a page, from which there is a way on."""
    assert isinstance(exc, GhostError)  # noqa: S101  (what the table above says)
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        status = details(exc)["status"]
        return told("This cannot be shown", [exc.message, exc.hint], status, home=True)
    return problem(exc)


async def _gone(request: Request, exc: Exception) -> Response:
    """The client went in the middle of what it sent: no error of ours, and nobody hears the answer."""
    return Response(status_code=400)


async def _failed(request: Request, exc: Exception) -> Response:
    return problem(foreseen(exc, request.url.path[:200]))
