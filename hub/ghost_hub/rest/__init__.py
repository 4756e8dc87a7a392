"""The hub by REST: rows that become routes and a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_hub.rest import caves, events, previews, services, tools, transfer
from ghost_hub.rest.events import Events
from ghost_hub.rest.openapi import document
from ghost_hub.rest.row import Row, route

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ghost_hub.hub import Hub

__all__ = ["Events", "document", "routes", "rows"]


def rows(hub: Hub) -> list[Row]:
    """All of them, in the order they are matched and documented."""
    return [
        *tools.rows(hub.calls),
        *transfer.rows(),
        *events.rows(hub.events),
        *caves.rows(),
        *services.rows(),
        *previews.rows(),
    ]


def routes(hub: Hub) -> list[BaseRoute]:
    """One route for each row."""
    return [route(hub, row) for row in rows(hub)]
