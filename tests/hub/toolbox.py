"""Tools for the tests of the serving layer: each acts in a real cave, or fails in one particular way.

Run as a program it serves them over stdio, as the hub would: ``python -m tests.hub.toolbox [CAVE]``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_hub.catalog import published
from ghost_mcp.calls import Calls
from ghost_mcp.errors import NotFound
from ghost_mcp.places import Caves
from ghost_mcp.reply import Handle, Picture, Reply
from ghost_mcp.tool import Call, Toolset, tool
from ghost_servers.serving import CaveResources, Context, build, run

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c"
    "49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


class Result(TypedDict, total=False):
    content: str
    stdout: str
    exit_code: int


@tool(title="Run", effect="destroy", open_world=True, result=Result)
async def run_line(
    call: Call, *, command: Annotated[str, Field(description="A shell line.")]
) -> Reply:
    """Run a shell line."""
    done = await call.cave.exec(command)
    return Reply(text=done.stdout, data={"stdout": done.stdout, "exit_code": done.exit_code})


@tool(title="Say", effect="read", result=Result)
async def say(call: Call, *, content: str = "", times: int = 1) -> Reply:
    """Say it again."""
    return Reply(text=content * times, data={"content": content})


@tool(title="Count", effect="write", idempotent=True, result=Result)
async def count(call: Call, *, to: int) -> Reply:
    """Report progress."""
    for number in range(1, to + 1):
        await call.progress(number, to, f"step {number} " + "." * 300)
    return Reply(text=str(to), data={"content": str(to)})


@tool(title="Whose", effect="read", result=Result)
async def whose(call: Call) -> Reply:
    """Name the cave."""
    return Reply(text=call.cave.name, data={"content": call.cave.name})


@tool(title="Picture", effect="read", result=Result)
async def picture(call: Call, *, padding: int = 0) -> Reply:
    """A picture, of any size."""
    shown = Picture(data=PNG + bytes(padding), mime_type="image/png")
    return Reply(text="a pixel", data={}, pictures=[shown])


@tool(title="Flood", effect="write", result=Result)
async def flood(call: Call, *, command: str) -> Reply:
    """Run a line and keep what it writes."""
    head, _ = await call.cave.call("exec", {"line": command, "keep": True, "excerpt": 0})
    size = head["output"]["1"]["size"]
    uri = f"ghost://caves/{call.cave.name}/outputs/{head['id']}/stdout"
    handle = Handle(uri=uri, name=f"{head['id']}-stdout.txt", size_bytes=size)
    return Reply(text=f"{size} bytes: {uri}", data={}, handles=[handle])


@tool(title="Data", effect="read", result=Result)
async def data(call: Call, *, size: int) -> Reply:
    """Structured data of any size."""
    return Reply(text="data", data={"content": "x" * size})


@tool(title="Odd", effect="read", result=Result)
async def odd(call: Call) -> Reply:
    """What a cave with strange file names gives."""
    return Reply(text="a\udcffb", data={"content": "a\udcffb"})


@tool(title="Refuse", effect="read", result=Result)
async def refuse(call: Call) -> Reply:
    """Fail as foreseen, in a task group."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_refuse)
    raise AssertionError


async def _refuse() -> None:
    raise NotFound("no such thing: \udcff", hint="Near names: thing.", data={"near": ["thing"]})


@tool(title="Crash", effect="read", result=Result)
async def crash(call: Call) -> Reply:
    """Fail as nobody foresaw."""
    raise RuntimeError("a secret of the host")


@tool(title="Hang", effect="write", result=Result)
async def hang(call: Call) -> Reply:
    """Start a program that does not end; report progress when it runs."""
    async with call.cave.process("echo up; exec sleep 1000") as process:
        await process.receive()
        await call.progress(1, None, "up")
        await process.wait()
    raise AssertionError


@tool(title="Nap", effect="write", result=Result)
async def nap(call: Call) -> Reply:
    """Report progress, then take a moment to answer."""
    await call.progress(1, None, "up")
    await call.cave.exec("sleep 0.1")
    return Reply(text="slept", data={"content": "slept"})


@tool(title="Chatter", effect="read", result=Result)
async def chatter(call: Call) -> Reply:
    """Write to standard output in every way."""
    print("printed")
    os.write(1, b"written\n")
    await anyio.run_process(["echo", "echoed"], stdout=None)
    return Reply(text="quiet", data={"content": sys.stdin.read()})


class Kept:
    """Says in the cave when it is closed: on a live link."""

    def __init__(self, call: Call) -> None:
        self._cave = call.cave
        self.uses = 0

    async def aclose(self) -> None:
        await self._cave.write("closed", "yes")


@tool(title="Remember", effect="write", result=Result)
async def remember(call: Call) -> Reply:
    """How often this cave was asked."""
    kept = call.keep.get("test", lambda: Kept(call))
    kept.uses += 1
    return Reply(text=str(kept.uses), data={"exit_code": kept.uses})


TOOLSET = Toolset(
    name="test",
    instructions="Tools of the tests.",
    tools=(
        run_line, say, count, whose, picture, flood, data, odd, refuse, crash, hang, nap, chatter,
        remember,
    ),
)  # fmt: skip


def make(caves: Callable[[Context], Caves]) -> Any:
    return build(
        "toolbox",
        instructions=TOOLSET.instructions,
        calls=Calls(published([TOOLSET])),
        resources=CaveResources(),
        caves=caves,
    )


if __name__ == "__main__":
    sys.exit(run(make, cave=sys.argv[1] if len(sys.argv) > 1 else None))
