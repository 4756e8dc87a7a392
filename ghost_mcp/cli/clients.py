# What to paste into which client, so that it starts `ghost mcp`.
"""The configuration of MCP clients."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["Client", "clients", "ghost_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client: where its configuration is, what goes there, or the command that does it."""

    name: str
    where: str
    entry: dict[str, Any]
    command: str = ""


def ghost_command() -> list[str]:
    """How another program starts this Ghost: an absolute path, since clients have paths of their own."""
    beside = os.path.join(os.path.dirname(sys.executable), "ghost")
    if os.access(beside, os.X_OK):
        return [beside]
    found = shutil.which("ghost")
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "ghost_mcp.cli"]


def clients() -> tuple[Client, ...]:
    """The clients and their entries, for this Ghost."""
    program, *words = [*ghost_command(), "mcp"]
    server = {"command": program, "args": words}
    entry = {"mcpServers": {"ghost": server}}
    add = shlex.join(["claude", "mcp", "add", "ghost", "--", program, *words])
    return (
        Client(name="Claude Code", where=".mcp.json of a project", entry=entry, command=add),
        Client(
            name="Claude Desktop",
            where="claude_desktop_config.json (Settings, Developer, Edit Config)",
            entry=entry,
        ),
        Client(
            name="Cursor", where="~/.cursor/mcp.json, or .cursor/mcp.json of a project", entry=entry
        ),
        Client(
            name="VS Code",
            where=".vscode/mcp.json of a workspace",
            entry={"servers": {"ghost": {"type": "stdio", **server}}},
        ),
    )
