"""Tools as a client sees them: much output, a picture of a page, a document."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent

from ghost_hub.catalog import toolset
from tests import documents
from tests.bench.measure import Row, Samples, taken, turns
from tests.bench.place import Place
from tests.bench.serving import client

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["convert", "output", "screenshot"]

OUTPUT_BYTES = 5_000_000
FLOOD = f"yes 'a line of output that says little' | head -c {OUTPUT_BYTES}"
MAX_ANSWER_CHARS = 8_000
CONVERT_S = 120.0

SITE = "site"
PORT = 8000
PAGE = """<!doctype html><title>Results</title><style>
body { font: 16px sans-serif; margin: 2em; background: linear-gradient(#fff, #dde) }
td, th { border: 1px solid #889; padding: 4px 12px } .bar { height: 14px; background: #36c }
</style><h1>Results of the week</h1><form><input name=q><button>Search</button></form><table>"""
ROW = "<tr><th>Row {0}<td>{1}<td><div class=bar style='width:{1}px'></div><td><a href=#{0}>more</a>"

# The library in a warm process of the same interpreter: one path a line in, milliseconds and characters out.
LIBRARY = """
import json, sys, time
from markitdown import MarkItDown
library = MarkItDown(enable_plugins=False)
for line in sys.stdin:
    started = time.perf_counter()
    text = library.convert(line.strip()).markdown
    print(json.dumps([(time.perf_counter() - started) * 1e3, len(text)]), flush=True)
"""


async def _call(connection: Client, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
    done = await connection.call_tool(name, dict(arguments), read_timeout_seconds=CONVERT_S)
    assert not done.is_error, done
    return done


async def output(place: Place) -> list[Row]:
    """5 MB on standard output: the time, and what of it comes back."""
    answer: CallToolResult | None = None
    async with place.ghost() as ghost, client(ghost, toolset("shell")) as connection:

        async def ours() -> float:
            async def act() -> None:
                nonlocal answer
                answer = await _call(connection, "shell_exec", {"command": FLOOD})

            return await taken(act)

        async def floor() -> float:
            async def act() -> None:
                done = subprocess.run(
                    ["bash", "-c", FLOOD], capture_output=True, check=True, timeout=60
                )
                assert len(done.stdout) == OUTPUT_BYTES

            return await taken(act)

        samples, captured = await turns(place.rounds(40), ours, floor)
    assert answer is not None
    assert answer.structured_content is not None
    assert answer.structured_content["stdout_size"] == OUTPUT_BYTES, answer.structured_content
    return [
        Row(
            what="5 MB of stdout through shell_exec",
            unit="ms",
            samples=samples,
            floor=captured,
            floor_what="subprocess.run(capture_output=True)",
            goal_ratio=3.0,
        ),
        _size(answer),
    ]


def _size(answer: CallToolResult) -> Row:
    text = sum(len(block.text) for block in answer.content if isinstance(block, TextContent))
    links = sum(isinstance(block, ResourceLink) for block in answer.content)
    assert links, "no handle leads to the rest"
    structured = len(json.dumps(answer.structured_content))
    return Row(
        what="text of that answer",
        unit="chars",
        samples=Samples((float(text),)),
        goal_value=MAX_ANSWER_CHARS,
        notes=(f"{links} handle; the structured result has {structured} characters of JSON",),
    )


async def screenshot(place: Place) -> list[Row]:
    """A picture of a page that is open, served by a program in the cave."""
    page = PAGE + "".join(ROW.format(n, n * 37 % 500) for n in range(40))
    shown: CallToolResult | None = None
    async with (
        place.ghost() as ghost,
        await ghost.create(ephemeral=True) as cave,
        client(ghost, toolset("browser"), cave=cave) as connection,
    ):
        await cave.write(f"{SITE}/index.html", page, parents=True)
        async with cave.process(
            ["python3", "-u", "-m", "http.server", str(PORT), "--directory", SITE]
        ) as server:
            assert await server.receive(), "the page's server said nothing"
            await _call(connection, "browser_navigate", {"url": f"http://localhost:{PORT}/"})

            async def ours() -> float:
                async def act() -> None:
                    nonlocal shown
                    shown = await _call(connection, "browser_screenshot", {})

                return await taken(act)

            (samples,) = await turns(place.rounds(30), ours)
    assert shown is not None
    pictures = [block for block in shown.content if isinstance(block, ImageContent)]
    assert pictures, shown
    return [
        Row(
            what="warm screenshot, 1280x800",
            unit="ms",
            samples=samples,
            goal_value=150,
            notes=(f"{pictures[0].mime_type}, {len(pictures[0].data)} characters of base64",),
        )
    ]


async def convert(place: Place) -> list[Row]:
    """A document of twenty pages, the converter being warm."""
    path = documents.folder() / "long.docx"
    lengths: set[int] = set()
    with _library() as library:
        async with (
            place.ghost() as ghost,
            await ghost.create(ephemeral=True) as cave,
            client(ghost, toolset("markitdown"), cave=cave) as connection,
        ):
            await cave.write("long.docx", path.read_bytes())

            async def ours() -> float:
                async def act() -> None:
                    done = await _call(connection, "markitdown_convert", {"path": "long.docx"})
                    assert done.structured_content is not None
                    lengths.add(done.structured_content["size"])

                return await taken(act)

            async def floor() -> float:
                spent_ms, length = _ask(library, str(path))
                lengths.add(length)
                return spent_ms

            samples, called = await turns(place.rounds(15), ours, floor)
    assert len(lengths) == 1, f"the two made different texts: {sorted(lengths)} characters"
    return [
        Row(
            what=f"warm conversion of a DOCX, {documents.LONG_PAGES} pages",
            unit="ms",
            samples=samples,
            floor=called,
            floor_what="markitdown in a warm process",
            goal_ratio=1.3,
        )
    ]


@contextmanager
def _library() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LIBRARY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    patience = Timer(CONVERT_S, process.kill)
    patience.daemon = True
    patience.start()
    try:
        with process:
            yield process
    finally:
        patience.cancel()


def _ask(library: subprocess.Popen[str], path: str) -> tuple[float, int]:
    assert library.stdin is not None
    assert library.stdout is not None
    library.stdin.write(path + "\n")
    library.stdin.flush()
    line = library.stdout.readline()
    if not line:
        raise RuntimeError("the library's process ended")
    spent_ms, length = json.loads(line)
    return float(spent_ms), int(length)
