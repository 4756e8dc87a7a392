"""A hub that is told to end, and calls that its patience does not reach."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio

from ghost_hub.guard import Guard
from ghost_hub.settings import HubSettings


async def test_a_call_that_is_cut_off_is_told_so() -> None:
    said: list[dict[str, Any]] = []
    began = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        await anyio.sleep_forever()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/caves", "query_string": b"", "scheme": "http"}  # fmt: skip
    guard = Guard(endless, HubSettings(auth=False), None)
    call = asyncio.create_task(guard({**scope, "headers": [(b"host", b"localhost:1")]}, receive, send))  # fmt: skip
    await began.wait()
    call.cancel()  # as the server does when its grace is over
    await call
    start, body = said
    told = json.loads(body["body"])
    assert (start["status"], told["code"], told["retryable"]) == (503, "backend_unavailable", True)
    assert (b"connection", b"close") in start["headers"]
