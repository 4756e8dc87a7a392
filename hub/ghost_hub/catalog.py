# Only this file says which tools Ghost offers, in which order, and under which names.
"""The four servers and their sixteen tools, imported when asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from ghost_mcp.tool import Tool, Toolset

__all__ = ["SERVERS", "published", "toolset", "toolsets"]

SERVERS = ("browser", "file", "shell", "markitdown")
# Clients put their own prefix before a name, and allow 64 characters for both.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def toolset(server: str) -> Toolset:
    """One server's tools. Raises InvalidArgument for an unknown server."""
    if server not in SERVERS:
        raise InvalidArgument(
            f"no such server: {server[:64]}", hint=f"There are {', '.join(SERVERS)}."
        )
    found: Toolset = import_module(f"ghost_servers.{server}").TOOLSET
    return found


def toolsets() -> tuple[Toolset, ...]:
    """All four, in the order they are listed."""
    return tuple(toolset(server) for server in SERVERS)


def published(sets: Iterable[Toolset]) -> dict[str, Tool]:
    """Tools by the names a hub gives them: ``file_read``. Raises ValueError for a bad name, or two alike."""
    tools: dict[str, Tool] = {}
    for one in sets:
        for tool in one.tools:
            name = f"{one.name}_{tool.name}"
            if not _NAME.fullmatch(name) or name in tools:
                raise ValueError(f"not a tool's name, or not the only one: {name!r}")
            tools[name] = tool
    return tools
