"""What the serving layer costs, against the plain SDK in the same run: ``python -m tests.hub.measure [ROUNDS]``.

Start: from the start of the process to the answer to tools/list, both eras. Call: a tool that does nothing,
in memory. Each pair is measured in turns, so that other load meets both alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
from mcp import Client
from mcp.server import MCPServer
from typing_extensions import TypedDict

from ghost_hub.catalog import published
from ghost_mcp import Ghost
from ghost_mcp.calls import Calls
from ghost_mcp.places import Places, SessionCaves
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, Toolset, tool
from ghost_servers.serving import CaveResources, build

PLAIN = """
from mcp.server import MCPServer
server = MCPServer("plain")
@server.tool()
async def echo(text: str) -> str:
    return text
server.run("stdio")
"""
SERVERS = {
    "plain SDK server, one tool": [sys.executable, "-c", PLAIN],
    "ghost mcp": [sys.executable, "-m", "ghost_mcp.cli", "mcp"],
    "ghost mcp --server file": [sys.executable, "-m", "ghost_mcp.cli", "mcp", "--server", "file"],
}
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "measure", "version": "0"},
}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": HELLO["clientInfo"],
    "io.modelcontextprotocol/clientCapabilities": {},
}
LEGACY = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]
MODERN = [{"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": ENVELOPE}}]


class Echoed(TypedDict):
    result: str


@tool(title="Echo", effect="read", result=Echoed)
async def echo(call: Call, *, text: str) -> Reply:
    """Say it again."""
    return Reply(text=text, data={"result": text})


def ready_s(argv: list[str], messages: list[dict[str, Any]]) -> float:
    """Seconds until a fresh server has answered tools/list."""
    started = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"".join(json.dumps(one).encode() + b"\n" for one in messages))
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if message.get("id") == 2:
                assert message["result"]["tools"]
                return time.perf_counter() - started
    raise AssertionError(f"no answer from {argv}")


def starts(rounds: int) -> None:
    for era, messages in (("2025-11-25", LEGACY), ("2026-07-28", MODERN)):
        taken: dict[str, list[float]] = {name: [] for name in SERVERS}
        for _ in range(rounds):
            for name, argv in SERVERS.items():
                taken[name].append(ready_s(argv, messages))
        floor = statistics.median(taken["plain SDK server, one tool"])
        for name, times in taken.items():
            middle = statistics.median(times)
            print(f"{era}  {name:28} {middle * 1e3:7.0f} ms  {middle / floor:5.2f}x")


async def calls(rounds: int) -> None:
    plain = MCPServer("plain")

    @plain.tool(name="echo")
    async def plain_echo(text: str) -> str:
        """Say it again."""
        return text

    tools = published([Toolset(name="test", instructions="", tools=(echo,))])
    async with (
        Ghost() as ghost,
        Places(ghost) as places,
        SessionCaves(places) as caves,
    ):
        ours = build(
            "ours",
            instructions="",
            calls=Calls(tools),
            resources=CaveResources(),
            caves=lambda _: caves,
        )
        for mode in ("legacy", "2026-07-28"):
            async with Client(plain, mode=mode) as one, Client(ours, mode=mode) as other:
                await _compare(mode, rounds, lambda: one.call_tool("echo", {"text": "x"}),
                               lambda: other.call_tool("test_echo", {"text": "x"}))  # fmt: skip


async def _compare(
    mode: str, rounds: int, one: Callable[[], Any], other: Callable[[], Any]
) -> None:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, times in zip((one, other), taken, strict=True):
            for _ in range(20):
                started = time.perf_counter()
                done = await call()
                times.append(time.perf_counter() - started)
                assert not done.is_error, done
    floor, ours = (statistics.median(times) for times in taken)
    print(
        f"call, {mode}: MCPServer {floor * 1e6:.0f} us, ours {ours * 1e6:.0f} us, {ours / floor:.2f}x"
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    starts(count)
    anyio.run(calls, count * 5)
