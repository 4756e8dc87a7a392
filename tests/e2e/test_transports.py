"""Every transport of the served hub, in both eras, by official clients in two languages: what a client sees of each."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent

from tests.documents import png
from tests.serving import Served

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
PEER = ROOT / ".cache/npm/node_modules/@modelcontextprotocol/client"
ERAS = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}
PATHS = ("/mcp", "/caves/pinned/mcp", "/sse")
FLOOD = "head -c 5000000 /dev/zero | tr '\\0' x"


@pytest.fixture
def token(served: Served) -> str:
    return served.make_token(owner=f"wire-{secrets.token_hex(3)}")


@asynccontextmanager
async def connected(served: Served, token: str, path: str, era: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    url = served.url + path
    async with served.client(token) as http:
        if "pinned" in path:
            await http.post("/v1/caves", json={"name": "pinned"})
        transport: Any = (
            sse_client(url, headers=headers)
            if path == "/sse"
            else streamable_http_client(url, http_client=http)
        )
        async with Client(transport, mode=ERAS[era]) as client:
            assert client.protocol_version == era
            yield client
        for cave in (await http.get("/v1/caves")).json()["caves"]:
            await http.delete(f"/v1/caves/{cave['id']}")


def text(result: CallToolResult) -> str:
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


@pytest.mark.parametrize("era", list(ERAS))
@pytest.mark.parametrize("path", PATHS)
async def test_a_client_in_python(served: Served, token: str, path: str, era: str) -> None:
    async with connected(served, token, path, era) as client:
        assert len((await client.list_tools()).tools) == 16
        done = await client.call_tool("shell_exec", {"command": "echo $((6*7))"})
        assert text(done).startswith("42\n")
        await _progress(client)
        await _cancel(client)
        await _picture(client)
        await _flood(client)
        failed = await client.call_tool("file_read", {"path": "no-such"})
        assert failed.is_error
        assert "no such file" in text(failed)
        with pytest.raises(MCPError):
            await client.call_tool("no_such_tool", {})
        async with served.client(token) as http:
            names = {cave["name"] for cave in (await http.get("/v1/caves")).json()["caves"]}
        assert names == {"pinned" if "pinned" in path else "default"}


async def _progress(client: Client) -> None:
    told: list[str | None] = []

    async def tell(done: float, total: float | None, message: str | None) -> None:
        told.append(message)

    line = "for i in 1 2 3 4; do echo step $i; sleep 0.8; done"
    await client.call_tool("shell_exec", {"command": line}, progress_callback=tell)
    assert any(message and message.startswith("step") for message in told)


async def _cancel(client: Client) -> None:
    nap = f"1000.{secrets.randbelow(10**9)}"
    with anyio.move_on_after(1) as scope:
        await client.call_tool("shell_exec", {"command": f"sleep {nap}", "timeout_s": 60})
    assert scope.cancelled_caught
    with anyio.fail_after(60):
        while True:
            line = f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep {nap}'"
            if text(await client.call_tool("shell_exec", {"command": line})).startswith("0"):
                return


async def _picture(client: Client) -> None:
    import base64

    content = base64.b64encode(png(40, 30, "red")).decode()
    await client.call_tool(
        "file_write", {"path": "p.png", "content": content, "encoding": "base64"}
    )
    seen = await client.call_tool("file_read", {"path": "p.png"})
    assert any(isinstance(part, ImageContent) for part in seen.content)


async def _flood(client: Client) -> None:
    done = await client.call_tool("shell_exec", {"command": FLOOD})
    assert len(text(done)) < 9_000
    [link] = [part for part in done.content if isinstance(part, ResourceLink)]
    assert link.size == 5_000_000
    piece = await client.read_resource(f"{link.uri}?offset=4999990&limit=10")
    assert getattr(piece.contents[0], "text", None) == "x" * 10


@pytest.mark.npm
@pytest.mark.skipif(
    not (NODE.exists() and PEER.exists()),
    reason="not run: the npm packages are not installed (scripts/setup --test)",
)
@pytest.mark.parametrize("era", list(ERAS))
@pytest.mark.parametrize("path", PATHS)
def test_a_client_in_typescript(served: Served, token: str, path: str, era: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        http.post("/v1/caves", json={"name": "pinned"})
        asked = {
            "url": served.url + path,
            "token": token,
            "mode": ERAS[era],
            "png": png(40, 30, "red").hex(),
        }
        done = subprocess.run(
            [NODE, Path(__file__).with_name("peer.mjs"), PEER],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "version": era,
            "tools": 16,
            "called": "42\n",
            "progress": True,
            "cancelled": True,
            "left": "0",
            "picture": "image/png",
            "flood": 5_000_000,
            "piece": "x" * 10,
            "failed": True,
            "unknown": -32602,
        }
        for cave in http.get("/v1/caves").json()["caves"]:
            http.delete(f"/v1/caves/{cave['id']}")


def test_curl(served: Served, token: str, tmp_path: Path) -> None:
    """The modern era needs no session: one request is one call. The older one begins with a handshake."""
    (tmp_path / "auth").write_text(f"Authorization: Bearer {token}")

    def curl(*words: str, body: Any = None) -> str:
        command = ["curl", "-sS", "--fail-with-body", "-H", f"@{tmp_path / 'auth'}", *words]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    accept = ("-H", "Accept: application/json, text/event-stream")
    about = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "curl", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "shell_exec", "arguments": {"command": "echo hi"}, "_meta": about}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = [
        *accept,
        "-H",
        "MCP-Protocol-Version: 2026-07-28",
        "-H",
        "Mcp-Method: tools/call",
        "-H",
        "Mcp-Name: shell_exec",
    ]
    answer = json.loads(curl(*headers, f"{served.url}/mcp", body=call))
    assert answer["result"]["structuredContent"]["stdout"] == "hi\n"
    greeting = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "curl", "version": "1"},
    }
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": greeting}
    greeted = curl(*accept, "-i", f"{served.url}/mcp", body=hello)
    assert '"name":"ghost"' in greeted.replace(" ", "")
    assert "mcp-session-id:" in greeted.lower()
    done = json.loads(curl(f"{served.url}/v1/shell/exec", body={"command": "echo $((6*7))"}))
    assert done["stdout"] == "42\n"
    (tmp_path / "data").write_bytes(b"\0data")
    where = f"{served.url}/v1/filesystem/upload?path=up.bin"
    curl(
        "-H",
        "Content-Type: application/octet-stream",
        "--data-binary",
        f"@{tmp_path / 'data'}",
        where,
    )
    curl("-o", str(tmp_path / "back"), f"{served.url}/v1/filesystem/download?path=up.bin")
    assert (tmp_path / "back").read_bytes() == b"\0data"
    curl("-X", "DELETE", f"{served.url}/v1/caves/default")
