# An app in a cave is shown on an origin of its own: under a path of the hub's it would have to do without storage.
"""``/vnc/``, ``/code-server/``, ``/jupyter/``: start a service of a cave, and send the browser to where it is shown."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ghost_hub.desktop import VIEW
from ghost_hub.pages import told
from ghost_hub.principal import principal_of
from ghost_hub.problem import details
from ghost_mcp.errors import GhostError, NotFound

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from ghost_hub.hub import Hub

__all__ = ["routes"]

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def routes(hub: Hub) -> list[BaseRoute]:
    """Each takes ``?cave=NAME``, your default one when left out. They need the scope ``use``."""
    found: list[BaseRoute] = [
        Route(f"/{name}/", partial(_open, hub, name)) for name in ("vnc", "code-server", "jupyter")
    ]
    # Where noVNC's own server has its page.
    found.append(Route("/vnc.html", partial(_open, hub, "vnc")))
    found.append(Route("/services/{service}/", partial(_open, hub, "")))
    return found


async def _open(hub: Hub, name: str, request: Request) -> Response:
    principal_of(request.scope).need("use")
    name = name or request.path_params["service"]
    if request.method == "HEAD":  # a page asks whether there is such an address: nothing is started
        return Response(headers=_HEADERS)
    asked = request.query_params
    try:
        place = await hub.of_scope(request.scope).place(asked.get("cave") or None)
        service = place.cave.service(name)
        if service.declared.page is None:
            raise NotFound(f"service {name} has no page", hint="It is for programs.")
        await service.start()
        looks = name == "vnc" and asked.get("view_only", "") in ("true", "1")
        path = f"/{service.declared.page}"
        link = hub.previews.link(request.scope, place, VIEW if looks else name, path)
    except GhostError as error:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        cave = asked.get("cave", "")
        again = f"Then open this address again: `/{quote(name)}/{f'?cave={quote(cave)}' if cave else ''}`"
        return told(
            "This cannot be shown",
            [error.message, error.hint, again],
            details(error)["status"],
            home=True,
        )
    return RedirectResponse(link.url, 303, _HEADERS)
