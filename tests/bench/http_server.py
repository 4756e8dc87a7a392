"""What the measurements over HTTP speak to: ``python -m tests.bench.http_server hub|floor``. Says its port, then serves.

``hub`` is the served hub with one more tool, which does nothing. ``floor`` is a bare Starlette application on the
same server with the same settings: a JSON route, the list of tools as JSON, a file, a terminal, and a proxy.
"""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import sys
from functools import cache
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ghost_hub.app import build_app
from ghost_hub.catalog import published, toolsets
from ghost_hub.hub import Hub
from ghost_hub.settings import Bounds, HubSettings
from ghost_hub.tokens import Tokens
from ghost_mcp.backends.local.door import state_folder
from ghost_servers.serving.answers import listed
from tests.bench.serving import NO_OP


def hub() -> Any:
    bounds = Bounds(requests_per_s=1e6, requests_burst=10**6, calls_per_owner=10_000)
    made = Hub(backend="local", bounds=bounds)
    tools: Any = made.calls.tools
    tools |= published([NO_OP])
    value, _ = (tokens := Tokens(state_folder())).create(scope="admin")
    print(value, flush=True)
    return build_app(made, HubSettings(bounds=bounds), tokens)


def floor() -> Any:
    listing = {
        "tools": [
            listed(name, tool).model_dump(by_alias=True, mode="json", exclude_none=True)
            for name, tool in published(toolsets()).items()
        ]
    }

    async def echo(request: Request) -> Response:
        return JSONResponse({"result": (await request.json())["params"]})

    async def tools(request: Request) -> Response:
        await request.json()
        return JSONResponse(listing)

    async def file(request: Request) -> Response:
        return FileResponse(request.query_params["path"])

    print("-", flush=True)
    return Starlette(
        routes=[
            Route("/echo", echo, methods=["POST"]),
            Route("/tools", tools, methods=["POST"]),
            Route("/file", file),
            WebSocketRoute("/pty", _pty),
            Route("/proxy/{port:int}/{path:path}", _proxy),
        ]
    )


async def _pty(opened: WebSocket) -> None:
    """``cat`` on a terminal of its own, and nothing around it."""
    await opened.accept()
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("cat", ["cat"])  # noqa: S606
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[bytes] = asyncio.Queue()
    loop.add_reader(fd, lambda: said.put_nowait(os.read(fd, 1 << 15)))

    async def show() -> None:
        while True:
            await opened.send_bytes(await said.get())

    showing = asyncio.create_task(show())
    try:
        while True:
            os.write(fd, await opened.receive_bytes())
    except WebSocketDisconnect:
        pass
    finally:
        showing.cancel()
        loop.remove_reader(fd)
        os.kill(pid, signal.SIGKILL)
        os.close(fd)  # the child is reaped with this process


async def _proxy(request: Request) -> Response:
    """What a page of documentation would show: one client for all, bodies piece by piece."""
    client = _client()
    url = f"http://127.0.0.1:{request.path_params['port']}/{request.path_params['path']}"
    answer = await client.send(client.build_request("GET", url), stream=True)
    headers = {"content-length": answer.headers["content-length"]}
    return StreamingResponse(
        answer.aiter_raw(), headers=headers, background=BackgroundTask(answer.aclose)
    )


@cache
def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False)


def main() -> None:
    app = {"hub": hub, "floor": floor}[sys.argv[1]]()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=300,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
