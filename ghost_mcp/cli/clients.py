# The one list of MCP clients: where each keeps its servers, in which form, and what Ghost's entry looks like there.
"""The configuration of MCP clients, as data.

Sources: the clients' own references: code.claude.com/docs/en/mcp, modelcontextprotocol.io/docs/develop/connect-local-servers,
cursor.com/docs/mcp, code.visualstudio.com/docs/agents/reference/mcp-configuration, developers.openai.com/codex/mcp.
"""

from __future__ import annotations

import ntpath
import os
import posixpath
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ghost_mcp.errors import InvalidArgument, Unsupported

__all__ = [
    "CLIENTS",
    "NAME",
    "OWN_KEYS",
    "TOKEN_VARIABLE",
    "Client",
    "Machine",
    "Way",
    "client",
    "entry",
    "ghost_command",
]

NAME = "ghost"
TOKEN_VARIABLE = "GHOST_TOKEN"  # noqa: S105 - the name of a variable
#: What Ghost writes into its entry, for one way or the other. What a person adds beside it is the person's.
OWN_KEYS = (
    *("type", "command", "args", "url", "headers"),
    *("http_headers", "bearer_token_env_var", "env_http_headers"),
)
Scope = Literal["user", "project"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides where a client's files are: the system, the person's folders, the project."""

    system: str
    home: str
    project: str
    variables: Mapping[str, str]

    @classmethod
    def here(cls) -> Machine:
        return cls(
            system=sys.platform,
            home=os.path.expanduser("~"),
            project=os.getcwd(),
            variables=os.environ,
        )

    def join(self, *parts: str) -> str:
        return ntpath.join(*parts) if self.system == "win32" else posixpath.join(*parts)

    def applications(self) -> str:
        """The folder where desktop programs keep their settings (Electron's ``appData``)."""
        if self.system == "win32":
            roaming = self.variables.get("APPDATA")
            return roaming or self.join(self.home, "AppData", "Roaming")
        if self.system == "darwin":
            return self.join(self.home, "Library", "Application Support")
        return self.variables.get("XDG_CONFIG_HOME") or self.join(self.home, ".config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client. ``files`` says where its file is, for each scope it has; ``table`` is where servers stand in it.

    ``syntax``: ``json`` is read strictly, ``jsonc`` may have comments. ``variable`` is how the client writes
    the value of an environment variable; ``takes_url`` whether its file may name a server by URL.
    """

    name: str
    title: str
    files: Mapping[Scope, Callable[[Machine], str]]
    where: str
    table: str = "mcpServers"
    syntax: Literal["json", "jsonc", "toml"] = "json"
    typed: bool = False
    variable: str = ""
    takes_url: bool = True

    def path(self, scope: Scope, machine: Machine) -> str:
        """Where the client keeps its servers. Raises Unsupported for a scope that it has not."""
        if scope not in self.files:
            raise Unsupported(
                f"{self.title} has no file of a {scope}",
                hint=f"It has: --scope {', '.join(self.files)}",
            )
        return self.files[scope](machine)


def _claude_code(machine: Machine) -> str:
    return machine.join(machine.variables.get("CLAUDE_CONFIG_DIR") or machine.home, ".claude.json")


def _codex(machine: Machine) -> str:
    folder = machine.variables.get("CODEX_HOME") or machine.join(machine.home, ".codex")
    return machine.join(folder, "config.toml")


CLIENTS = (
    Client(
        name="claude-code",
        title="Claude Code",
        files={"user": _claude_code, "project": lambda m: m.join(m.project, ".mcp.json")},
        where="~/.claude.json, or .mcp.json of a project",
        typed=True,
        variable="${%s}",
    ),
    Client(
        name="claude-desktop",
        title="Claude Desktop",
        files={
            "user": lambda m: m.join(m.applications(), "Claude", "claude_desktop_config.json"),
        },
        where="claude_desktop_config.json (Settings, Developer, Edit Config)",
        takes_url=False,
    ),
    Client(
        name="cursor",
        title="Cursor",
        files={
            "user": lambda m: m.join(m.home, ".cursor", "mcp.json"),
            "project": lambda m: m.join(m.project, ".cursor", "mcp.json"),
        },
        where="~/.cursor/mcp.json, or .cursor/mcp.json of a project",
        syntax="jsonc",
        variable="${env:%s}",
    ),
    Client(
        name="vscode",
        title="VS Code",
        files={
            "user": lambda m: m.join(m.applications(), "Code", "User", "mcp.json"),
            "project": lambda m: m.join(m.project, ".vscode", "mcp.json"),
        },
        where="mcp.json of the user profile, or .vscode/mcp.json of a workspace",
        table="servers",
        syntax="jsonc",
        typed=True,
        variable="${env:%s}",
    ),
    Client(
        name="codex",
        title="Codex",
        files={"user": _codex, "project": lambda m: m.join(m.project, ".codex", "config.toml")},
        where="~/.codex/config.toml, or .codex/config.toml of a trusted project",
        table="mcp_servers",
        syntax="toml",
    ),
)


def client(name: str) -> Client:
    """The client of that name. Raises InvalidArgument."""
    for one in CLIENTS:
        if one.name == name:
            return one
    raise InvalidArgument(
        f"unknown client: {name[:64]}", hint=f"Clients: {', '.join(one.name for one in CLIENTS)}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a client reaches Ghost: it starts ``command``, or it uses ``url``.

    A URL's token is held by the file itself, or (``token_variable``) by a variable the client reads.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    token: str = ""
    token_variable: str = ""


def ghost_command() -> list[str]:
    """How another program starts this Ghost: an absolute path, since clients have paths of their own."""
    beside = os.path.join(os.path.dirname(sys.executable), "ghost")
    if os.access(beside, os.X_OK):
        return [beside]
    found = shutil.which("ghost")
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "ghost_mcp.cli"]


def entry(one: Client, way: Way) -> dict[str, Any]:
    """What stands under Ghost's name in a client's file. Raises Unsupported for a URL where there is none."""
    if not way.url:
        program, *words = way.command
        kind = {"type": "stdio"} if one.typed else {}
        return {**kind, "command": program, "args": words}
    if not one.takes_url:
        raise Unsupported(
            f"the file of {one.title} names only programs to start",
            hint=f"Leave out --http, or add {way.url} in its own settings (Connectors).",
        )
    if one.syntax == "toml":
        return {"url": way.url, **_codex_token(way)}
    value = way.token or (one.variable % way.token_variable if way.token_variable else "")
    headers = {"headers": {"Authorization": f"Bearer {value}"}} if value else {}
    return {**({"type": "http"} if one.typed else {}), "url": way.url, **headers}


def _codex_token(way: Way) -> dict[str, Any]:
    if way.token:
        return {"http_headers": {"Authorization": f"Bearer {way.token}"}}
    return {"bearer_token_env_var": way.token_variable} if way.token_variable else {}
