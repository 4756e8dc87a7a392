# What a ripgrep in a cave prints is hostile: bounded in time and bytes, each record checked.
"""Searching with the cave's own ripgrep, where it has one."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import InvalidArgument, LimitExceeded
from ghost_mcp.outputs import decode

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.process import Process

PROGRAM = "rg"
# One record holds a whole line and all matches in it: a longer one is passed over.
MAX_RECORD_BYTES = 4 << 20
MAX_BYTES = 64 << 20
MAX_ERROR_BYTES = 4096
STDOUT = 1
FAILED = 2


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


def means_the_same(query: Query) -> bool:
    """Whether ripgrep would look into the files that the warden's own search does.

    A glob with a slash has to be ripgrep's ``--glob``, which brings back what .gitignore leaves out.
    """
    return not any("/" in glob for glob in query.include)


def command(query: Query, name: str) -> list[str]:
    """The command line. Nothing of it is read by a shell, and the name cannot be an option."""
    argv = [PROGRAM, "--json", "--no-config", "--no-messages", "--sort=path", "--no-require-git"]
    argv += ["--fixed-strings"] * query.fixed + ["--ignore-case"] * query.ignore_case
    argv += ["--hidden"] if query.hidden else ["--glob=!.*"]
    argv += ["--glob=!.git/"] if query.gitignore else ["--no-ignore"]
    argv += [f"--context={query.context}"] * bool(query.context)
    for glob in query.include:
        argv += [f"--type-add=wanted:{glob}", "--type=wanted"]
    argv += [f"--glob=!{glob}" for glob in query.exclude]
    return [*argv, f"--regexp={query.pattern}", "--", f"./{name}"]


async def search(cave: Cave, query: Query, folder: str, name: str) -> AsyncGenerator[Line, None]:
    """The matching lines of ``name`` in a folder (empty: of the folder), with their context, in order.

    Paths are relative to the folder. Raises NotFound ``program_not_found`` where there is no ripgrep,
    InvalidArgument for a bad pattern, LimitExceeded when it prints too much. Leaving the iteration ends it.
    """
    found = False
    async with cave.process(command(query, name), cwd=folder) as process:
        await process.send_eof()
        errors = bytearray()
        async with aclosing(_records(process, errors)) as records:
            async for record in records:
                line = _line(record)
                if line is not None:
                    found = True
                    yield line
        if await process.wait() == FAILED and not found and errors:
            raise InvalidArgument(
                f"bad pattern: {_reason(bytes(errors))}",
                hint="To find the text as it is, set fixed.",
                code="bad_pattern",
            )


async def _records(process: Process, errors: bytearray) -> AsyncGenerator[bytes, None]:
    """Whole lines of its standard output; ``errors`` takes the beginning of the other."""
    rest = bytearray()
    passing = False  # over a line that is too long
    left = MAX_BYTES
    while (piece := await process.receive()) is not None:
        channel, data = piece
        left -= len(data)
        if left < 0:
            raise LimitExceeded("very long lines with very many matches")
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
            path=decode(_bytes(data["path"])).removeprefix("./"),
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
