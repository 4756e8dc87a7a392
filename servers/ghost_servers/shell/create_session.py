"""create_session: a shell that keeps its state from call to call."""

from __future__ import annotations

from typing_extensions import TypedDict

from ghost_mcp.outputs import clean
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.shell.commands import ask
from ghost_servers.shell.exec import check_env


class SessionResult(TypedDict, total=False):
    session: str
    cwd: str


@tool(title="Open a shell session", effect="write", result=SessionResult)
async def create_session(
    call: Call,
    *,
    name: str | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
) -> Reply:
    """Open a shell for exec that keeps its directory, variables, functions and jobs from call to call."""
    check_env(env or {})
    head = {"action": "create", "name": name, "cwd": cwd, "env": env}
    answer, _ = await ask(call.cave, "session", head)
    data = {"session": clean(answer.get("name"), 64), "cwd": clean(answer.get("cwd"))}
    return Reply(text=f"session {data['session']} in {data['cwd']}", data=data)
