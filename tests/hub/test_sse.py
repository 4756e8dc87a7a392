"""The hub to clients that listen by SSE: bounded, and no hindrance to its end."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack

import httpx2

from ghost_hub.serve import GRACE_S
from tests.serving import serving

CONFIG = "bounds:\n  sessions: 2\n"


async def test_at_most_so_many_and_gone_is_gone() -> None:
    with serving(config=CONFIG) as hub:
        async with hub.client() as http, AsyncExitStack() as stack:
            for _ in range(2):
                assert (
                    await stack.enter_async_context(http.stream("GET", "/sse"))
                ).status_code == 200
            refused = await http.get("/sse")
            assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        async with hub.client() as http:
            deadline = time.monotonic() + 60
            while (status := await _opens(http)) != 200 and time.monotonic() < deadline:
                pass
            assert status == 200


async def _opens(http: httpx2.AsyncClient) -> int:
    async with http.stream("GET", "/sse") as answer:
        return answer.status_code


async def test_no_message_is_a_clear_refusal() -> None:
    with serving(config=CONFIG) as hub:
        async with hub.client() as http, http.stream("GET", "/sse") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: endpoint"
            where = (await anext(lines)).removeprefix("data: ")
            for body in (b"", b"{}", b"[]", b"\xff", b'{"jsonrpc":"2.0"}'):
                bad = await http.post(where, content=body)
                assert (bad.status_code, bad.json()["code"]) == (400, "invalid_argument"), body
            ping = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
            assert (await http.post(where, json=ping)).status_code == 202
            async for line in lines:
                if line.startswith("data: "):
                    assert json.loads(line.removeprefix("data: "))["id"] == 7
                    break


async def test_a_listener_does_not_keep_the_hub_from_ending() -> None:
    with serving(config=CONFIG) as hub:
        async with hub.client() as http, http.stream("GET", "/sse") as answer:
            assert answer.status_code == 200
            hub.process.terminate()
            began = time.monotonic()
            hub.process.wait(60)
            assert time.monotonic() - began < GRACE_S  # which calls under way would have
