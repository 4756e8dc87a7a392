"""The shell server: run programs in a cave, in fresh processes or in sessions."""

from __future__ import annotations

from ghost_mcp.tool import Toolset
from ghost_servers.shell.create_session import create_session
from ghost_servers.shell.exec import exec_
from ghost_servers.shell.kill import kill

__all__ = ["TOOLSET"]

TOOLSET = Toolset(
    name="shell",
    instructions="Runs commands in a Linux cave. Files belong in /workspace.",
    tools=(exec_, create_session, kill),
)
