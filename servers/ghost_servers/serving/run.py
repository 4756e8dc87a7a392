# Only this file puts a served process together: Ghost, its caves, a server, standard input and output.
"""Runs an MCP server as the process's one task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp import audit
from ghost_mcp.calls import Calls
from ghost_mcp.errors import GhostError
from ghost_mcp.ghost import Ghost
from ghost_mcp.logs import to_stderr
from ghost_mcp.places import Places, SessionCaves
from ghost_mcp.spec import check_full_name
from ghost_servers.serving.resources import CaveResources
from ghost_servers.serving.server import build
from ghost_servers.serving.stdio import check_streams, serve

if TYPE_CHECKING:
    from mcp.server import Server

    from ghost_mcp.calls import Layer
    from ghost_mcp.places import Caves
    from ghost_mcp.tool import Toolset
    from ghost_servers.serving.server import Context

__all__ = ["alone", "run", "run_alone"]


def run(
    make: Callable[[Callable[[Context], Caves]], Server[Any]],
    *,
    cave: str | None = None,
    backend: str | None = None,
) -> int:
    """Serve over stdio until the client ends it; returns the process's exit code.

    ``make`` builds the server, given what answers with a request's caves. The connection's own cave is
    ephemeral, unless ``cave`` names one that is there. A failure to start is told on standard error.
    """
    to_stderr()
    try:
        check_streams()
        if cave is not None:
            check_full_name(cave)
        return anyio.run(_serve, make, cave, backend)
    except GhostError as error:
        sys.stderr.write(f"ghost: {error.render()}\n")
        return error.exit_code


async def _serve(
    make: Callable[[Callable[[Context], Caves]], Server[Any]],
    cave: str | None,
    backend: str | None,
) -> int:
    async with (
        Ghost(backend=backend) as ghost,
        Places(ghost) as places,
        SessionCaves(places, pinned=cave) as caves,
    ):
        return await serve(make(lambda _: caves))


def alone(
    toolset: Toolset, caves: Callable[[Context], Caves], layers: Sequence[Layer] = ()
) -> Server[Any]:
    """A server of one toolset, under its tools' own names."""
    return build(
        f"ghost-{toolset.name}",
        instructions=toolset.instructions,
        calls=Calls({tool.name: tool for tool in toolset.tools}, layers),
        resources=CaveResources(),
        caves=caves,
    )


def run_alone(toolset: Toolset) -> int:
    """Serve one toolset over stdio; see run()."""
    return run(lambda caves: alone(toolset, caves, audit.layers()))
