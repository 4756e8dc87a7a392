"""Connections to an API server that breaks them: nothing of them is left to the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from aiohttp.connector import Connection
from kubernetes.aio.client import ApiClient, Configuration

from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import BackendUnavailable, Conflict, GhostError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def still_open() -> list[Connection]:
    """Connections whose owner has not let go of them: collected like this, they warn, or not, by chance."""
    found = (one for one in gc.get_objects() if isinstance(one, Connection))
    return [one for one in found if one.protocol is not None]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Cluster]:
    """A cluster at a server that answers everything by ``handler``; what it left open fails the test."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    before = still_open()
    cluster = Cluster(ApiClient(Configuration(host=f"http://{host}:{port}")), Settings())
    try:
        yield cluster
    finally:
        await cluster.aclose()
        left = [one for one in still_open() if one not in before]
        await runner.cleanup()
    assert left == []


def cut(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def test_an_exec_whose_connection_breaks_is_closed() -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        await socket.send_bytes(b"\x01hello")
        cut(request)
        return socket

    async with served(breaks) as cluster:
        stream = await cluster.exec("/exec", ["true"], "cave")
        assert await stream.receive() == b"hello"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()


async def waits(request: web.Request) -> web.StreamResponse:
    """An exec that says nothing, until its client goes."""
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    await socket.receive()
    return socket


async def test_an_exec_that_nobody_closed_is_closed_with_the_cluster() -> None:
    async with served(waits) as cluster:
        stream = await cluster.exec("/exec", ["true"], "cave")
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_an_exec_that_is_refused_is_closed(status: int) -> None:
    async def refuses(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with served(refuses) as cluster:
        with pytest.raises(GhostError):
            await cluster.exec("/exec", ["true"], "cave")


async def test_a_watch_that_is_cut_says_that_the_cluster_does_not_answer() -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b'{"type":"ADDED","object":{"metadata":{}}}\n')
        cut(request)
        return answer

    async with served(breaks) as cluster:
        seen = []
        with pytest.raises(BackendUnavailable):
            async for kind, _ in cluster.watch("/pods", {}):
                seen.append(kind)
        assert seen in (["ADDED"], [])


@pytest.mark.parametrize("inside", [False, True])
async def test_a_watch_of_a_version_that_is_gone_has_expired(inside: bool) -> None:
    async def gone(request: web.Request) -> web.StreamResponse:
        status = {"kind": "Status", "code": 410}
        if inside:
            return web.json_response({"type": "ERROR", "object": status})
        return web.json_response(status, status=410)

    async with served(gone) as cluster:
        with pytest.raises(Conflict):
            async for _ in cluster.watch("/pods", {}):
                pass


async def test_what_is_throttled_is_asked_again() -> None:
    asked = 0

    async def busy(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response({"asked": asked}, status=429 if asked < 3 else 201)

    async with served(busy) as cluster:
        assert await cluster.ask("POST", "/pods", {}) == {"asked": 3}


async def test_what_may_have_been_done_is_not_done_twice() -> None:
    asked = 0

    async def breaks(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        cut(request)
        return web.Response()

    async with served(breaks) as cluster:
        with pytest.raises(BackendUnavailable):
            await cluster.ask("POST", "/pods", {})
        assert asked == 1


async def test_what_is_in_the_cluster_is_as_old_as_the_server_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine's clock may be wrong, or be set; and a proxy's answer need not be dated."""
    dates = [{"Date": "Thu, 01 Jan 2037 00:00:00 GMT"}, {"Date": "some day"}, {"Date": ""}]

    async def dated(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, headers=dates.pop(0))

    async with served(dated) as cluster:
        while dates:
            await cluster.ask("GET", "/version")
            monkeypatch.setattr(time, "time", lambda: 0.0)
            assert 0 <= cluster.now_s() - datetime(2037, 1, 1, tzinfo=UTC).timestamp() < 60


async def test_a_cluster_is_closed_whole_by_one_who_is_cancelled() -> None:
    async with served(waits) as cluster:
        for _ in range(2):
            await cluster.exec("/exec", ["true"], "cave")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cluster.aclose()
        assert cluster._execs == set()
        assert cluster._session.closed


async def test_a_backend_that_nobody_waits_for_any_more_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who opened it was cancelled after it had connected."""

    async def answers(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async with served(answers) as there:
        config = tmp_path / "config"
        server = {"server": there._configuration.host}
        contexts = [{"name": "x", "context": {"cluster": "x", "user": "x"}}]
        users, clusters = [{"name": "x", "user": {}}], [{"name": "x", "cluster": server}]
        known = {"contexts": contexts, "users": users, "clusters": clusters}
        config.write_text(json.dumps({**known, "current-context": "x"}))
        monkeypatch.setenv("KUBECONFIG", str(config))
        backend = KubernetesBackend(Settings())
        opening = asyncio.create_task(backend.__aenter__())
        with anyio.fail_after(30):
            while backend._open is None:
                await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        assert backend.cluster._session.closed
