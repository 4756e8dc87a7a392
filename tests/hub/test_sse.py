"""The hub to clients that listen by SSE: bounded, and no hindrance to its end."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel
import httpx2
import pytest
from anyio.abc import TaskStatus
from starlette.types import Message, Send

from ghost_hub import sse
from ghost_hub.answered import Refused
from ghost_hub.hub import Hub
from ghost_hub.principal import LOCAL, PRINCIPAL
from ghost_hub.serve import GRACE_S
from ghost_hub.sse import Sse
from ghost_mcp.errors import QuotaExceeded, Unauthenticated
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


async def test_one_that_may_hear_no_more_ends_and_nobody_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its token was revoked, say: what it is told next finds that out, and be it a ping of all sessions."""
    monkeypatch.setattr(sse, "PING_S", 0.05)
    sessions, heard = Sse(Hub().server, most=2), anyio.Event()
    scope = {"type": "http", "headers": [], PRINCIPAL: LOCAL}
    revoked = False

    async def refuse(message: Message) -> None:
        if revoked:
            raise Refused(Unauthenticated("the token is not valid any more"))

    async def hear(message: Message) -> None:
        if b"ping" in message.get("body", b"") and revoked:
            heard.set()

    async def listen(send: Send, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await sessions.listen(dict(scope), anyio.sleep_forever, send)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sessions.ping)
            for send in (refuse, hear):
                await tasks.start(listen, send)
            while len(sessions._sessions) < 2:
                await anyio.lowlevel.checkpoint()
            revoked = True
            while len(sessions._sessions) > 1:
                await anyio.sleep(0.01)
            await heard.wait()
            tasks.cancel_scope.cancel()


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


async def test_no_more_is_taken_of_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer that waits costs the hub a hundred times what its question cost the client."""
    monkeypatch.setattr(sse, "MOST_WAITING", 4)
    sessions = Sse(Hub().server, most=2)
    reads, taken, refused = anyio.Event(), 0, anyio.Event()

    async def slow(message: Message) -> None:
        if b"event: message" in message.get("body", b""):
            await reads.wait()

    async def ask(number: int) -> None:
        nonlocal taken
        body = json.dumps({"jsonrpc": "2.0", "id": number, "method": "ping"}).encode()
        (name,) = sessions._sessions
        query = f"session_id={name}".encode()
        asked = {"type": "http", "headers": [], "query_string": query, PRINCIPAL: LOCAL}

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def answered(message: Message) -> None:
            nonlocal taken
            taken += message.get("status") == 202

        try:
            await sessions.take(asked, receive, answered)
        except QuotaExceeded:
            refused.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            scope = {"type": "http", "headers": [], PRINCIPAL: LOCAL}
            tasks.start_soon(sessions.listen, scope, anyio.sleep_forever, slow)
            while not sessions._sessions:
                await anyio.lowlevel.checkpoint()
            for number in range(100):
                tasks.start_soon(ask, number)
                await anyio.sleep(0.005)
            await refused.wait()
            assert taken < 20
            reads.set()
            while sessions._waiting:
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
