"""A proxy before a real API server that breaks what a test tells it to: nothing behind it is harmed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from aiohttp import web
from kubernetes.aio import config as cluster_config
from kubernetes.aio.client import ApiClient, Configuration

__all__ = ["FaultyApi", "faulty_api"]

#: What a request is answered with instead of being passed on; None: it is passed on.
Fault = Callable[[web.Request], web.StreamResponse | None]
EXPIRED = {
    "kind": "Status",
    "code": 410,
    "reason": "Expired",
    "message": "too old resource version",
}


class FaultyApi:
    """Passes requests, watches and execs on with its own identity. ``fault`` is asked about each request first."""

    def __init__(self, upstream: aiohttp.ClientSession, host: str) -> None:
        self._upstream, self._host = upstream, host
        self._open: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.fault: Fault = lambda request: None
        #: The requests that were answered, as ``METHOD /path``.
        self.answered: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def up(self) -> None:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """As a server that is killed: what is connected is cut, and nothing listens."""
        for transport in list(self._open):
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._open.add(request.transport)
        try:
            if (answer := self.fault(request)) is not None:
                return answer
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._socket(request)
            return await self._plain(request)
        finally:
            self._open.discard(request.transport)

    async def _plain(self, request: web.Request) -> web.StreamResponse:
        kept = {k: v for k, v in request.headers.items() if k == "Content-Type"}
        async with self._upstream.request(
            request.method,
            self._host + request.raw_path,
            data=await request.read() or None,
            headers=kept,
        ) as found:
            headers = {"Content-Type": found.headers.get("Content-Type", "application/json")}
            answer = web.StreamResponse(status=found.status, headers=headers)
            await answer.prepare(request)
            async for piece in found.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            self.answered.append(f"{request.method} {request.path}")
            return answer

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        protocols = ("v4.channel.k8s.io",)
        try:
            there = await self._upstream.ws_connect(
                self._host + request.raw_path, protocols=protocols, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as exc:
            return web.Response(status=exc.status, text=exc.message)
        here = web.WebSocketResponse(protocols=protocols, max_msg_size=0)
        await here.prepare(request)

        async def back() -> None:
            async for message in there:
                await here.send_bytes(message.data)
            await here.close()

        pump = asyncio.create_task(back())
        try:
            async for message in here:
                await there.send_bytes(message.data)
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, aiohttp.ClientError):
                await pump
            await there.close()
        return here


@asynccontextmanager
async def faulty_api(kubeconfig: Path) -> AsyncIterator[FaultyApi]:
    """A proxy to the cluster of KUBECONFIG; ``kubeconfig`` is written to lead to it."""
    configuration = Configuration()
    await cluster_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    timeout = aiohttp.ClientTimeout(total=None)
    async with AsyncExitStack() as stack:
        client = ApiClient(configuration)
        stack.push_async_callback(client.close)
        connector = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, limit=0)
        upstream = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout)
        )
        api = FaultyApi(upstream, configuration.host.rstrip("/"))
        await api.up()
        place = {"cluster": {"server": api.url}, "name": "x"}
        context = {"context": {"cluster": "x", "user": "x"}, "name": "x"}
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [place],
            "contexts": [context],
            "current-context": "x",
            "users": [{"name": "x", "user": {}}],
        }
        kubeconfig.write_text(json.dumps(whole))
        try:
            yield api
        finally:
            await api.down()
