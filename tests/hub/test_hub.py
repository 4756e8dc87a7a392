"""The hub's own tools through a real client: one of each server, all in the same cave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextResourceContents

from ghost_hub.server import hub_calls, hub_server
from ghost_mcp.places import Places, SessionCaves
from tests.hub.conftest import ERAS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ghost_mcp import Ghost

PAGE = "<title>Results</title><h1>Forty-two</h1><button>Again</button>"


@asynccontextmanager
async def connected(ghost: Ghost, era: str) -> AsyncIterator[Client]:
    async with (
        Places(ghost) as places,
        SessionCaves(places) as caves,
        Client(hub_server(hub_calls(), lambda _: caves), mode=ERAS[era]) as client,
    ):
        yield client


async def call(client: Client, name: str, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    assert result.content[0].type == "text"
    assert result.content[0].text.strip()
    return result


async def test_one_tool_of_each_server_in_one_cave(ghost: Ghost, era: str) -> None:
    async with connected(ghost, era) as client:
        await call(client, "file_write", path="site/index.html", content=PAGE)
        done = await call(client, "shell_exec", command="cat site/index.html")
        assert done.structured_content["stdout"] == PAGE
        told = await call(client, "markitdown_convert", path="site/index.html")
        assert "# Forty-two" in told.structured_content["markdown"]


@pytest.mark.slow
async def test_the_browser_sees_what_the_shell_serves(ghost: Ghost, era: str) -> None:
    async with connected(ghost, era) as client:
        await call(client, "file_write", path="index.html", content=PAGE)
        serve = (
            "python3 -m http.server 5000 >/dev/null 2>&1 & until curl -s localhost:5000; do :; done"
        )
        await call(client, "shell_exec", command=serve, timeout_s=30)
        seen = await call(client, "browser_navigate", url="http://localhost:5000/")
        assert (seen.structured_content["title"], seen.structured_content["status"]) == (
            "Results",
            200,
        )
        shot = await call(client, "browser_screenshot")
        assert any(isinstance(part, ImageContent) for part in shot.content)


async def test_large_output_is_read_back_by_its_link(ghost: Ghost, era: str) -> None:
    async with connected(ghost, era) as client:
        done = await call(client, "shell_exec", command="seq 1000000")
        assert done.content[0].type == "text"
        assert len(done.content[0].text) <= 8_000
        [link] = [part for part in done.content if isinstance(part, ResourceLink)]
        found = await client.read_resource(f"{link.uri}?search=%5E777777%24")
        assert isinstance(found.contents[0], TextResourceContents)
        assert found.contents[0].text == "777777:777777"
        lines = await call(client, "file_search", path=str(link.uri), pattern="^777777$")
        assert "777777" in str(lines.structured_content["matches"])
