# Only this file says what `ghost mcp` serves.
"""The hub, or one of its servers alone, over stdio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ghost_hub.catalog import toolset
from ghost_hub.server import hub_calls, hub_server
from ghost_servers.serving import alone
from ghost_servers.serving import run as run_server

if TYPE_CHECKING:
    from mcp.server import Server

    from ghost_mcp.calls import Layer
    from ghost_mcp.places import Caves
    from ghost_servers.serving import Context

__all__ = ["run"]


def run(
    *,
    server: str | None = None,
    cave: str | None = None,
    backend: str | None = None,
    layers: Sequence[Layer] = (),
) -> int:
    """Serve until the client ends it; returns the process's exit code. Nothing but JSON-RPC is on stdout.

    ``server`` is one of the four, alone and under its tools' own names; None is all of them. ``cave`` is an
    existing cave to act in, instead of an ephemeral one of this connection. ``backend`` makes that one.
    ``layers`` go around each call.
    """

    def make(caves: Callable[[Context], Caves]) -> Server[Any]:
        if server is None:
            return hub_server(hub_calls(layers), caves)
        return alone(toolset(server), caves, layers)

    return run_server(make, cave=cave, backend=backend)
