"""Many calls by many clients in many caves: each is carried out once, where it belongs, and its own answer comes back."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from tests.serving import Served, serving

CALLS, CAVES, CLIENTS = 10_000, 50, 16
CONFIG = "bounds: {caves_per_owner: 60, requests_per_s: 100000, requests_burst: 100000}"
VERSION = "2026-07-28"
ABOUT = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "crowd", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_call_is_lost_doubled_or_crossed() -> None:
    with serving(config=CONFIG) as hub:
        anyio.run(_crowd, hub)


async def _crowd(hub: Served) -> None:
    expected: dict[str, list[str]] = defaultdict(list)
    async with _caves(hub) as names:

        async def work(number: int) -> None:
            ask = _by_rest if number % 2 else _by_mcp
            async with hub.client() as http:
                for turn in range(CALLS // CLIENTS):
                    cave, nonce = names[(number + turn * 7) % CAVES], secrets.token_hex(8)
                    expected[cave].append(nonce)
                    said = await ask(http, f"echo {nonce} | tee -a log", cave)
                    assert said == f"{nonce}\n"

        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS):
                tasks.start_soon(work, number)
        async with hub.client() as http:
            for cave in names:
                down = await http.get(f"/v1/filesystem/download?path=log&cave={cave}")
                assert sorted(down.text.split()) == sorted(expected[cave])
    assert sum(map(len, expected.values())) == CALLS


@asynccontextmanager
async def _caves(hub: Served) -> AsyncIterator[list[str]]:
    names = [f"crowd-{number}" for number in range(CAVES)]
    async with hub.client() as http:
        try:
            for name in names:
                (await http.post("/v1/caves", json={"name": name})).raise_for_status()
            yield names
        finally:
            for name in names:
                await http.delete(f"/v1/caves/{name}")


async def _by_rest(http: httpx2.AsyncClient, line: str, cave: str) -> str:
    answer = await http.post("/v1/shell/exec", json={"command": line, "cave": cave})
    return str(answer.json()["stdout"])


async def _by_mcp(http: httpx2.AsyncClient, line: str, cave: str) -> str:
    params = {"name": "shell_exec", "arguments": {"command": line, "cave": cave}, "_meta": ABOUT}
    message = {
        "jsonrpc": "2.0",
        "id": secrets.token_hex(4),
        "method": "tools/call",
        "params": params,
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": "shell_exec",
    }
    answer: dict[str, Any] = (await http.post("/mcp", json=message, headers=headers)).json()
    assert answer["id"] == message["id"]
    return str(answer["result"]["structuredContent"]["stdout"])
