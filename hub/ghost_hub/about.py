# What the hub says about itself. Whoever has no token is told that it lives and is ready, and nothing else.
"""``/health``, ``/ready``, ``/version``, ``/metrics``, ``/mcp/tools``, ``/openapi.json``, ``/docs``, ``/llms.txt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ghost_hub import rest
from ghost_hub.catalog import toolsets
from ghost_hub.pages import page
from ghost_hub.principal import NOBODY, principal_of
from ghost_hub.rest.row import answer
from ghost_mcp import __version__
from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from ghost_hub.hub import Hub
    from ghost_hub.principal import Principal

__all__ = ["routes"]

READY_S = 5.0

LLMS = """\
# Ghost

> Ghost gives you computers of your own: caves, isolated from their host, with files, a shell and a browser.

Every request but /health and /ready needs the header `Authorization: Bearer TOKEN`.

- Speak MCP if you can: Streamable HTTP at /mcp, one cave only at /caves/NAME/mcp, SSE at /sse.
- Without MCP: `POST /mcp/execute` with `{"tool": "shell_exec", "arguments": {"command": "ls"}}`; GET /mcp/tools lists \
the tools with their schemas.
- A call that names no cave goes to your default cave, which is made on first use and keeps its files in /workspace. \
The argument `cave`, or the header `Ghost-Cave`, names another of yours.
- Errors are `application/problem+json`: `code` is stable, `hint` says what to do next.
- To show a person what listens on a port of a cave: `POST /v1/caves/NAME/previews` with `{"port": 8000}` answers with a \
link that opens once.
- Large files: `POST /v1/filesystem/upload?path=P` with the file as the body, `GET /v1/filesystem/download?path=P`.

## Tools

"""


def routes(hub: Hub) -> list[BaseRoute]:
    """The routes of this module; each says what scope it needs."""
    document, listing, llms = rest.document(rest.rows(hub)), _listing(), _llms(hub)
    told: list[tuple[str, str, Callable[[], Response]]] = [
        ("/health", "read", lambda: answer({"status": "ok"})),
        ("/version", "read", lambda: answer({"name": "ghost", "version": __version__})),
        ("/metrics", "admin", lambda: _metrics(hub)),
        ("/mcp/tools", "read", lambda: answer(listing)),
        ("/openapi.json", "read", lambda: answer(document)),
        ("/docs", "read", lambda: page("docs.html")),
        ("/llms.txt", "read", lambda: PlainTextResponse(llms)),
        ("/", "read", lambda: page("board.html")),
        ("/terminal/", "read", lambda: page("terminal.html")),
    ]

    async def ready(request: Request) -> Response:
        return await _ready(hub, principal_of(request.scope))

    return [
        Route("/ready", ready, methods=["GET"]),
        *(_route(*one) for one in told),
        Route("/static/{name}", _static, methods=["GET"]),
    ]


def _llms(hub: Hub) -> str:
    """What an agent should know, with a line for each tool."""
    return LLMS + "".join(
        f"- {name}: {tool.title}. {tool.description.splitlines()[0]}\n"
        for name, tool in hub.calls.tools.items()
    )


def _metrics(hub: Hub) -> Response:
    return Response(hub.metrics.text(), media_type=hub.metrics.media_type)


async def _static(request: Request) -> Response:
    principal_of(request.scope).need("read")
    return page(request.path_params["name"])


def _route(path: str, scope: str, tell: Callable[[], Response]) -> Route:
    async def endpoint(request: Request) -> Response:
        principal_of(request.scope).need(scope)
        return tell()

    return Route(path, endpoint, methods=["GET"])


def _listing() -> dict[str, Any]:
    """The sixteen, grouped by server."""
    return {
        "servers": [
            {
                "name": one.name,
                "instructions": one.instructions,
                "tools": [
                    {
                        "name": f"{one.name}_{tool.name}",
                        "title": tool.title,
                        "description": tool.description,
                        "inputSchema": tool.input_schema,
                        "outputSchema": tool.output_schema,
                    }
                    for tool in one.tools
                ],
            }
            for one in toolsets()
        ]
    }


async def _ready(hub: Hub, who: Principal) -> Response:
    """Whether the backend answers and how full the pool is: 503 when a call could not be served."""
    told: dict[str, Any] = {
        "status": "ready",
        "backend": hub.ghost.default_backend,
        "pool": hub.ghost.pooled,
    }
    try:
        with anyio.fail_after(READY_S):
            await hub.ghost.backend()
    except (GhostError, TimeoutError) as exc:
        told |= {"status": "not ready", "reason": str(exc) or "the backend does not answer"}
        return answer(_for(who, told), 503)
    return answer(_for(who, told))


def _for(who: Principal, told: dict[str, Any]) -> dict[str, Any]:
    return {"status": told["status"]} if who is NOBODY else told
