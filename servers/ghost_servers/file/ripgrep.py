# What a ripgrep in a cave prints is hostile: bounded in time and bytes, each record checked.
"""Searching with the cave's own ripgrep, where it has one."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.outputs import decode

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave, Process

# One record holds a whole line: a longer one is passed over.
MAX_RECORD_BYTES = 4 << 20
MAX_ERROR_BYTES = 4096
STDOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for. Globs are those of .gitignore files; ``context`` counts lines on both sides."""

    pattern: str
    fixed: bool
    ignore_case: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    context: int
    hidden: bool
    gitignore: bool
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of one file: ``column`` counts characters from 1, and is 0 for one that is only context."""

    path: str
    line: int
    column: int
    text: str


def command(query: Query, path: str) -> list[str]:
    """The command line. Nothing of it is read by a shell, and the path cannot be an option."""
    argv = ["rg", "--json", "--no-config", "--no-messages", "--sort=path", "--no-require-git"]
    argv += ["--fixed-strings"] * query.fixed + ["--ignore-case"] * query.ignore_case
    argv += ["--hidden"] * query.hidden + ["--no-ignore"] * (not query.gitignore)
    argv += [f"--context={query.context}"] * bool(query.context)
    for glob in query.include:
        # A type, unlike a glob, does not bring back what .gitignore or a leading dot leaves out.
        argv += (
            [f"--glob={glob}"] if "/" in glob else [f"--type-add=wanted:{glob}", "--type=wanted"]
        )
    argv += [f"--glob=!{glob}" for glob in query.exclude]
    if query.gitignore:
        argv.append("--glob=!.git/")
    return [*argv, f"--regexp={query.pattern}", "--", path]


async def search(cave: Cave, query: Query, path: str) -> AsyncGenerator[Line, None]:
    """The matching lines and their context, in order. ``path`` is absolute.

    Raises NotFound ``program_not_found`` where there is no ripgrep, InvalidArgument for a bad pattern.
    Leaving the iteration ends the search.
    """
    found = False
    async with cave.process(command(query, path), cwd="/") as process:
        await process.send_eof()
        errors = bytearray()
        async with aclosing(_records(process, errors)) as records:
            async for record in records:
                line = _line(record)
                if line is not None:
                    found = True
                    yield line
        if await process.wait() == 2 and not found and errors:
            raise InvalidArgument(
                f"bad pattern: {_reason(bytes(errors))}",
                hint="To find the text as it is, set fixed.",
                code="bad_pattern",
            )


async def _records(process: Process, errors: bytearray) -> AsyncGenerator[bytes, None]:
    """Whole lines of its standard output; ``errors`` takes the beginning of the other."""
    rest = bytearray()
    passing = False  # over a line that is too long
    while (piece := await process.receive()) is not None:
        channel, data = piece
        if channel != STDOUT:
            errors += data[: MAX_ERROR_BYTES - len(errors)]
            continue
        *lines, last = data.split(b"\n")
        for line in lines:
            if not passing:
                yield bytes(rest) + line
            passing = False
            rest.clear()
        if not passing:
            rest += last
        if len(rest) > MAX_RECORD_BYTES:
            passing = True
            rest.clear()


def _line(raw: bytes) -> Line | None:
    """A match or a line of context; None for anything else."""
    try:
        record = json.loads(raw)
        if record["type"] not in ("match", "context"):
            return None
        data = record["data"]
        text = _bytes(data["lines"])
        column = 0
        if record["type"] == "match":
            # An empty match has no place of its own.
            matches = data["submatches"]
            column = len(decode(text[: int(matches[0]["start"])])) + 1 if matches else 1
        return Line(
            path=decode(_bytes(data["path"])),
            line=int(data["line_number"]),
            column=column,
            text=decode(text.rstrip(b"\r\n")),
        )
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return None


def _bytes(told: dict[str, Any]) -> bytes:
    return str(told["text"]).encode() if "text" in told else base64.b64decode(told["bytes"])


def _reason(errors: bytes) -> str:
    lines = [line.strip() for line in decode(errors).splitlines() if line.strip()]
    return (lines[-1] if lines else "ripgrep gave no reason").removeprefix("error: ")[:300]
