"""What stands between a client and a tool: the serving layer in memory, a server's start, a call over stdio."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mcp import Client
from mcp.server import MCPServer
from typing_extensions import TypedDict

from ghost_hub.catalog import published
from ghost_mcp import Cave, Ghost
from ghost_mcp.calls import Calls
from ghost_mcp.places import Places, SessionCaves
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, Toolset, tool
from ghost_servers.serving import CaveResources, build
from tests.bench import stdio
from tests.bench.measure import Row, Side, taken, turns
from tests.bench.place import FILESYSTEM, NODE, Place, program

__all__ = ["client", "no_op", "ready", "stdio_read"]

ERAS = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}
TEXT = "a line about as long as in code\n" * 128  # 4 KB
PLAIN = """
from mcp.server import MCPServer
server = MCPServer("plain")
@server.tool()
async def echo(text: str) -> str:
    return text
server.run("stdio")
"""


class Echoed(TypedDict):
    result: str


@tool(title="Echo", effect="read", result=Echoed)
async def echo(call: Call, *, text: str) -> Reply:
    """Say it again."""
    return Reply(text=text, data={"result": text})


NO_OP = Toolset(name="test", instructions="", tools=(echo,))


@asynccontextmanager
async def client(
    ghost: Ghost, toolset: Toolset, *, mode: str = "legacy", cave: Cave | None = None
) -> AsyncIterator[Client]:
    """A client in memory of a server of these tools, served as the hub serves them, acting in ``cave``."""
    pinned = cave.name if cave is not None else None
    async with Places(ghost) as places, SessionCaves(places, pinned=pinned) as caves:
        server = build(
            "bench",
            instructions="",
            calls=Calls(published([toolset])),
            resources=CaveResources(),
            caves=lambda _: caves,
        )
        async with Client(server, mode=mode) as connection:
            yield connection


async def no_op(place: Place) -> list[Row]:
    """A tool that does nothing, in memory, in both eras of the protocol."""
    plain = MCPServer("plain")

    @plain.tool(name="echo")
    async def plain_echo(text: str) -> str:
        """Say it again."""
        return text

    rows = []
    async with place.ghost() as ghost:
        for era, mode in ERAS.items():
            async with (
                client(ghost, NO_OP, mode=mode) as ours,
                Client(plain, mode=mode) as theirs,
            ):
                samples, floor = await turns(
                    place.rounds(60),
                    _calling(ours, "test_echo"),
                    _calling(theirs, "echo"),
                    block=20,
                )
            rows.append(
                Row(
                    what=f"no-op tool in memory, {era}",
                    unit="ms",
                    samples=samples,
                    floor=floor,
                    floor_what="plain MCPServer",
                    goal_ratio=1.15,
                )
            )
    return rows


def _calling(connection: Client, name: str) -> Side:
    async def act() -> None:
        done = await connection.call_tool(name, {"text": "x"})
        assert not done.is_error, done

    return lambda: taken(act)


async def ready(place: Place) -> list[Row]:
    """From the start of a server's process to its answer to tools/list."""
    ghost = program("ghost")
    served = {
        "hub": [ghost, "mcp"],
        "file server": [ghost, "mcp", "--server", "file"],
    }
    sides = [_starting(place, argv) for argv in served.values()]
    *found, floor = await turns(
        place.rounds(10), *sides, _starting(place, [sys.executable, "-c", PLAIN])
    )
    return [
        Row(
            what=f"{name} over stdio answers tools/list",
            unit="ms",
            samples=samples,
            floor=floor,
            floor_what="plain mcp stdio server, one tool",
            goal_ratio=1.3,
        )
        for name, samples in zip(served, found, strict=True)
    ]


def _starting(place: Place, argv: Sequence[str]) -> Side:
    async def side() -> float:
        started = time.perf_counter()
        with stdio.connected(argv, place.environment) as connection:
            connection.greet()
            assert connection.request("tools/list")["tools"]
            return (time.perf_counter() - started) * 1e3

    return side


async def stdio_read(place: Place) -> list[Row]:
    """The file server's read against the npm filesystem server's, each over stdio."""
    files = place.folder / "files"
    files.mkdir(exist_ok=True)
    path = files / "text"
    path.write_text(TEXT)
    with (
        stdio.connected([program("ghost"), "mcp", "--server", "file"], place.environment) as ours,
        stdio.connected([str(NODE), str(FILESYSTEM), str(files)], place.environment) as theirs,
    ):
        for connection in (ours, theirs):
            connection.greet()
        ours.call("write", {"path": "text", "content": TEXT})
        samples, floor = await turns(
            place.rounds(100),
            _reading(ours, "read", "text"),
            _reading(theirs, "read_text_file", str(path)),
            block=3,
        )
    return [
        Row(
            what="file read of 4 KB over stdio MCP",
            unit="ms",
            samples=samples,
            floor=floor,
            floor_what="npm server-filesystem, read_text_file",
            goal_ratio=1.0,
        )
    ]


def _reading(connection: stdio.RawClient, tool_name: str, path: str) -> Side:
    async def act() -> None:
        found = connection.call(tool_name, {"path": path})
        assert found["structuredContent"]["content"] == TEXT, found

    return lambda: taken(act)
