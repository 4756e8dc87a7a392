# The hub adds nothing to a tool but its server's name: it lists, routes a call into a cave, and answers.
"""The MCP server of all sixteen tools. Its children are called directly, without a client hop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ghost_hub.catalog import published, toolsets
from ghost_mcp.calls import Calls
from ghost_servers.serving import CaveResources, build

if TYPE_CHECKING:
    from mcp.server import Server

    from ghost_mcp.calls import Layer
    from ghost_mcp.places import Caves
    from ghost_servers.serving import Context

__all__ = ["hub_calls", "hub_server"]

INSTRUCTIONS = """\
Ghost gives you a computer of your own: a cave, isolated from its host, with files, a shell and a browser.
All tools act in the same cave: what file_write wrote, shell_exec sees, and a server that shell_exec started \
on port 5000 is http://localhost:5000 for browser_navigate. Your files belong in /workspace.
The cave is made by your first call and ends with this connection. With the argument cave you act in another one.
Long output comes shortened, with a link ghost://caves/NAME/outputs/COMMAND/stdout: give it as path to file_read or \
file_search. It is a resource too, as are ghost://caves/NAME/files/PATH and ghost://caves/NAME (state, limits, use)."""


def hub_calls(layers: Sequence[Layer] = ()) -> Calls:
    """All sixteen tools by their published names, and what happens around each call of one."""
    return Calls(published(toolsets()), layers)


def hub_server(calls: Calls, caves: Callable[[Context], Caves]) -> Server[Any]:
    """All tools, as ``browser_navigate`` and so on; ``caves`` answers with the caves of a request's caller."""
    return build(
        "ghost",
        instructions="\n".join(
            [INSTRUCTIONS, *(f"{one.name}: {one.instructions}" for one in toolsets())]
        ),
        calls=calls,
        resources=CaveResources(),
        caves=caves,
    )
