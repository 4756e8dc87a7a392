"""What a hostile program behind a forwarded WebSocket can make the hub hold."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from websockets.server import ServerProtocol

from ghost_hub.preview.headers import Upstream
from ghost_hub.preview.sockets import forward_socket
from ghost_mcp.sockets import Wired

SCOPE = {"type": "websocket", "path": "/", "query_string": b"", "headers": [(b"host", b"x")], "subprotocols": [], "scheme": "ws"}  # fmt: skip
LARGE = 8 << 20  # more than sockets hold
PING = b"\x89\x00"
FEW = 400_000  # more than all buffers between a program and the hub hold of pings


async def test_pongs_that_nobody_reads_are_not_heaped_up() -> None:
    ours, theirs = (Wired(one) for one in socket.socketpair())
    opened, asked = anyio.Event(), 0

    @asynccontextmanager
    async def dial() -> AsyncIterator[Wired]:
        yield ours

    async def program() -> None:
        """Greets, reads no more, and asks and asks."""
        nonlocal asked
        conn = ServerProtocol()
        while not conn.handshake_exc and conn.state.name == "CONNECTING":
            conn.receive_data(await theirs.receive())
            for request in conn.events_received():
                conn.send_response(conn.accept(request))  # type: ignore[arg-type]
        await theirs.send(b"".join(conn.data_to_send()))
        await opened.wait()
        while True:
            await theirs.send(PING * 1_000)
            asked += 1_000

    said = [{"type": "websocket.connect"}, {"type": "websocket.receive", "bytes": bytes(LARGE)}]

    async def receive() -> Any:
        if said:
            return said.pop(0)
        return await anyio.sleep_forever()

    async def send(message: Any) -> None:
        opened.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(program)
            upstream = Upstream(dial=dial, host="localhost:1", shared=False)
            tasks.start_soon(forward_socket, SCOPE, receive, send, upstream)
            await opened.wait()
            before, still = -1, 0
            while still < 20:  # as long as it is let ask
                await anyio.sleep(0.05)
                before, still = asked, still + 1 if asked == before and asked else 0
                assert asked < FEW
            tasks.cancel_scope.cancel()
        await ours.aclose()
        await theirs.aclose()
