# `ghost demo`: what an agent's client sees, for a person to read.
"""Plays the story of ``story`` through an MCP client that starts ``ghost mcp``, and tells it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import anyio
from mcp import Client, MCPError, StdioServerParameters

from ghost_mcp.cli.clients import CLIENTS, Way, entry, ghost_command
from ghost_mcp.cli.install import snippet
from ghost_mcp.cli.story import Answer, play
from ghost_mcp.errors import BackendUnavailable, GhostError, TimedOut

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli import clients
    from ghost_mcp.cli.output import Output

__all__ = ["run", "server"]

DEMO_S = 180
CALL_S = 60
DOCTOR = "What is missing here? See: ghost doctor"
SHOWN_LINES, SHOWN_CHARS = 8, 110


def run(options: argparse.Namespace, out: Output) -> int:
    """Exit code 0 when every call was answered, not refused."""
    answers: list[Answer] = []
    out.line(
        "An agent's client starts `ghost mcp` and uses its tools; a cave is made by the first call."
    )
    anyio.run(_play, answers, out)
    shot = _save(answers, Path(options.folder))
    if out.json:
        out.document(
            {
                "calls": [_as_dict(answer) for answer in answers],
                "screenshot": shot,
                "clients": [_client_as_dict(one) for one in CLIENTS],
            }
        )
    else:
        out.line(f"\nThe screenshot: {shot}\n")
        _show_clients(out)
    return 0


def server() -> StdioServerParameters:
    """How the client starts this Ghost, with our own settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("GHOST_")}
    return StdioServerParameters(
        command=sys.executable, args=["-m", "ghost_mcp.cli", "mcp"], env=settings
    )


async def _play(answers: list[Answer], out: Output) -> None:
    try:
        with anyio.fail_after(DEMO_S):
            await _converse(answers, out)
    except* TimeoutError as group:
        raise TimedOut(f"the demo did not end within {DEMO_S} s", hint=DOCTOR) from group
    except* MCPError as group:
        raise BackendUnavailable("`ghost mcp` does not answer", hint=DOCTOR) from group


async def _converse(answers: list[Answer], out: Output) -> None:
    async with Client(server(), read_timeout_seconds=CALL_S) as client:
        async for answer in play(client):
            _tell(answer, out)
            answers.append(answer)
            if answer.result.is_error:
                raise GhostError(
                    f"{answer.tool} was refused: {answer.text[:500]}",
                    hint=DOCTOR,
                    code="demo_failed",
                )


def _tell(answer: Answer, out: Output) -> None:
    """A call and its answer in a few lines."""
    given = ", ".join(f"{key}={_short(value)}" for key, value in answer.arguments.items())
    out.line(f"\n# {answer.purpose}\n> {answer.tool}({given})")
    lines = [line for line in answer.text.splitlines() if line.strip()]
    for line in lines[:SHOWN_LINES]:
        out.line("  " + _cut(line))
    if len(lines) > SHOWN_LINES:
        out.line(f"  ... and {len(lines) - SHOWN_LINES} more")
    for picture in answer.pictures:
        out.line(f"  [a picture, {len(picture)} bytes]")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"({len(value)} characters)"


def _cut(line: str) -> str:
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 3] + "..."


def _save(answers: list[Answer], folder: Path) -> str:
    """Keep the screenshot where the person can look at it; its path."""
    picture = next(picture for answer in answers for picture in answer.pictures)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / "screenshot.png"
    path.write_bytes(picture)
    return str(path)


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "purpose": answer.purpose,
        "tool": answer.tool,
        "arguments": answer.arguments,
        "text": answer.text,
        "data": answer.data,
    }


def _way() -> Way:
    return Way(command=(*ghost_command(), "mcp"))


def _client_as_dict(one: clients.Client) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "where": one.where,
        "install": f"ghost install {one.name}",
        "entry": entry(one, _way()),
    }


def _show_clients(out: Output) -> None:
    ghost = shlex.join(ghost_command())
    out.line(f"To give this to your own agent: {ghost} install CLIENT, or paste")
    for one in CLIENTS:
        out.line(f"\n{one.title} ({one.name}): {one.where}\n{indent(snippet(one, _way()), '  ')}")
