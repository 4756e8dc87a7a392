"""The file server: read, write, list, search and change files in a cave."""

from __future__ import annotations

from ghost_mcp.tool import Toolset
from ghost_servers.file.list import list_
from ghost_servers.file.read import read
from ghost_servers.file.replace import replace
from ghost_servers.file.search import search
from ghost_servers.file.write import write

__all__ = ["TOOLSET"]

TOOLSET = Toolset(
    name="file",
    instructions="Files in a Linux cave. Relative paths stand in /workspace.",
    tools=(read, write, list_, search, replace),
)
