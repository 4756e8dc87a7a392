"""The guard alone, around an application that only waits or answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ghost_hub.guard import BODIES, Guard
from ghost_hub.settings import Bounds, HubSettings

BODY_BYTES = 1024
SCOPE = {"type": "http", "method": "GET", "path": "/v1/caves", "query_string": b"", "scheme": "http"}  # fmt: skip
HOST = (b"host", b"localhost:1")


async def asked(guard: Guard, body: bytes = b"", **more: Any) -> int:
    """The status that a request is answered with."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {**SCOPE, "headers": [HOST, *more.pop("headers", [])], **more}
    await guard(scope, receive, send)
    return statuses[0]


async def test_what_an_owner_sends_at_once_is_bounded() -> None:
    """Each body is read before anything else bounds it, and its sender may take long over its last byte."""
    read, go_on = 0, anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        if (await receive())["type"] == "http.disconnect":
            return
        read += 1
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    settings = HubSettings(auth=False, bounds=Bounds(body_bytes=BODY_BYTES))
    ask = partial(asked, Guard(app, settings, None), method="POST")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(BODIES):
                tasks.start_soon(ask, bytes(BODY_BYTES))
            while read < BODIES:
                await anyio.lowlevel.checkpoint()
            assert await ask(b"x") == 429
            as_json = {
                "path": "/v1/filesystem/upload",
                "headers": [(b"content-type", b"Application/JSON")],
            }
            assert await ask(b"x", **as_json) == 429
            go_on.set()
        assert await ask(b"x") == 200


SITE, MODE, DEST = (f"sec-fetch-{word}".encode() for word in ("site", "mode", "dest"))


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ([], 200),
        ([(SITE, b"same-origin")], 200),
        ([(SITE, b"none"), (MODE, b"navigate")], 200),
        ([(SITE, b"cross-site"), (MODE, b"navigate"), (DEST, b"document")], 200),
        ([(SITE, b"cross-site"), (MODE, b"navigate"), (DEST, b"iframe")], 403),
        ([(SITE, b"cross-site"), (MODE, b"no-cors"), (DEST, b"image")], 403),
        ([(SITE, b"same-site"), (MODE, b"no-cors"), (DEST, b"script")], 403),
    ],
    ids=str,
)
async def test_without_tokens_no_foreign_page_asks_anything(
    told: list[tuple[bytes, bytes]], status: int
) -> None:
    """A picture on any page could make a cave here, or ask a program in one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    guard = Guard(app, HubSettings(auth=False), None)
    assert await asked(guard, headers=told) == status


async def test_that_a_sockets_client_has_left_is_no_failure() -> None:
    """The server hears its own word for it, and logs nothing, whoever was just speaking."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, {"type": "websocket.accept"})

    async def send(message: Any) -> None:
        raise ConnectionResetError

    guard = Guard(app, HubSettings(auth=False), None)
    with pytest.raises(ConnectionResetError):
        await guard({**SCOPE, "type": "websocket", "headers": [HOST]}, anyio.sleep_forever, send)
