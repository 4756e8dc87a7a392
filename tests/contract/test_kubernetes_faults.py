"""What a real cluster does to its caves and to who uses it: outages, throttling, evictions, a drained node.

The API server itself is left alone, since others use it: a proxy before it breaks, which looks the same from here.
A node that is lost and preemption need a second node: ``tests/unit/test_kubernetes_pool.py`` simulates them.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from ghost_mcp import Cave, CaveSpec, Ghost, PoolPlan
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import CaveGone, GhostError
from ghost_mcp.testing.basis import until
from tests.clusters import NAMESPACE, own_settings
from tests.faulty_api import EXPIRED, FaultyApi, faulty_api

pytestmark = pytest.mark.kubernetes
OUTAGE_S = 1.5


@pytest.fixture
def settings(small_image: str, brought: str) -> Settings:
    return own_settings("faults", small_image, brought)


@asynccontextmanager
async def ghosted(settings: Settings, pool: int = 0) -> AsyncIterator[Ghost]:
    plans = [PoolPlan(size=pool)] if pool else []
    async with Ghost(backend=KubernetesBackend(settings), pools=plans) as ghost:
        yield ghost


@asynccontextmanager
async def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultyApi]:
    """A proxy that whoever opens the cluster from now on meets."""
    file = tmp_path / "kubeconfig"
    async with faulty_api(file) as api:
        with monkeypatch.context() as patch:
            patch.setenv("KUBECONFIG", str(file))
            yield api


async def pods(settings: Settings) -> list[str]:
    """The pods there are of this test's, asked past the proxy."""
    cluster = await Cluster.open(settings)
    try:
        query = {"labelSelector": f"ghost-mcp.dev/instance={settings.instance}"}
        found = await cluster.pages(f"/api/v1/namespaces/{NAMESPACE}/pods", query)
    finally:
        await cluster.aclose()
    return [pod["metadata"]["name"] for pod in found]


async def answers(cave: Cave) -> bool:
    with suppress(GhostError):
        return (await cave.exec(["true"])).exit_code == 0
    return False


async def test_an_outage_in_the_middle_of_calls(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is under way says that its connection broke; the cave, ephemeral as it is, and its files are there after it."""
    async with behind(tmp_path, monkeypatch) as api, ghosted(settings) as ghost:
        cave = await ghost.create(CaveSpec(ephemeral=True))
        await cave.write("note", b"kept")
        started = anyio.Event()
        failed: list[Exception] = []

        async def call() -> None:
            try:
                async with cave.process(["sh", "-c", "echo up; sleep 60"]) as program:
                    await program.receive()
                    started.set()
                    await program.wait()
            except GhostError as exc:
                failed.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await started.wait()
            await api.down()
            await anyio.sleep(OUTAGE_S)
            await api.up()
        assert [type(exc) for exc in failed] == [CaveGone]
        await until(lambda: answers(cave))
        assert (await cave.read("note")).data == b"kept"


async def test_an_outage_while_a_cave_is_made(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind(tmp_path, monkeypatch) as api, ghosted(settings) as ghost:
        await ghost.backend()
        made: list[Cave] = []

        async def create() -> None:
            made.append(await ghost.create(CaveSpec(ephemeral=True)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create)
            record = f"POST /api/v1/namespaces/{NAMESPACE}/configmaps"

            async def written() -> bool:
                return record in api.answered

            await until(written)
            await api.down()
            await anyio.sleep(OUTAGE_S / 3)
            await api.up()
        assert await answers(made[0])
    assert await pods(settings) == []


async def test_a_watch_that_expires_begins_anew(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """410, as an answer and within one: what happened meanwhile comes with the list."""
    told: list[str] = []

    def expired(request: web.Request) -> web.StreamResponse | None:
        if request.query.get("watch") != "true" or len(told) >= 2:
            return None
        told.append(request.path)
        if len(told) == 1:
            return web.json_response(EXPIRED, status=410)
        return web.json_response({"type": "ERROR", "object": EXPIRED})

    async with behind(tmp_path, monkeypatch) as api, ghosted(settings) as ghost:
        api.fault = expired
        assert await answers(await ghost.create(CaveSpec(ephemeral=True)))
    assert len(told) == 2


async def test_a_server_that_throttles_is_asked_again_when_it_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 for every other request: a life in the pool, and one without."""
    seen = 0

    def throttle(request: web.Request) -> web.StreamResponse | None:
        nonlocal seen
        seen += 1
        if seen % 2:
            return None
        return web.json_response({"code": 429}, status=429, headers={"Retry-After": "0"})

    async with behind(tmp_path, monkeypatch) as api, ghosted(settings, pool=1) as ghost:
        api.fault = throttle
        await ghost.warm()
        for limit in (None, 0.5):  # the pool's shape, and another
            cave = await ghost.create(
                CaveSpec.from_dict({"ephemeral": True, "limits": {"cpus": limit}})
            )
            assert await answers(cave)
            await cave.destroy()
        assert seen > 12
    assert await pods(settings) == []


def kubectl(*words: str) -> None:
    subprocess.run(["kubectl", *words], check=True, capture_output=True, timeout=60)


async def evict(name: str) -> None:
    cluster = await Cluster.open(Settings())
    try:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
        body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name}}
        await cluster.ask("POST", path, {**body, "deleteOptions": {"gracePeriodSeconds": 0}})
    finally:
        await cluster.aclose()


async def refuses(cave: Cave, codes: set[str]) -> bool:
    """Whether it no longer answers, and says so by one of ``codes``."""
    try:
        await cave.exec(["true"])
    except GhostError as exc:
        assert exc.code in codes
        return True
    return False


async def test_a_cave_that_is_evicted(settings: Settings) -> None:
    """An ephemeral one is gone, and says so; one that is kept comes back with its files."""
    async with ghosted(settings) as ghost:
        short, kept = await ghost.create(CaveSpec(ephemeral=True)), await ghost.create(CaveSpec())
        try:
            await kept.write("note", b"kept")
            for name in await pods(settings):
                await evict(name)

            async def ended() -> bool:
                return (await ghost.get(kept.id)).info.state == "ended"

            await until(ended)
            # The cluster forgets a pod a moment before its node has killed it.
            await until(lambda: refuses(kept, {"cave_gone"}))
            await until(lambda: refuses(short, {"cave_gone", "cave_not_found"}))
            await kept.start()
            assert (await kept.read("note")).data == b"kept"
            assert [info.id for info in await ghost.list()] == [kept.id]
        finally:
            await kept.destroy()


async def test_a_node_that_is_drained(settings: Settings) -> None:
    """Cordoned and emptied of this test's pods: a start waits until there is a node again, and the pool fills again."""
    (node,) = subprocess.check_output(["kubectl", "get", "nodes", "-o", "name"], text=True).split()
    async with ghosted(settings, pool=1) as ghost:
        await ghost.warm()
        kept = await ghost.create(CaveSpec())
        try:
            await kept.write("note", b"kept")
            kubectl("cordon", node)
            try:
                for name in await pods(settings):
                    await evict(name)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kept.start)
                    await anyio.sleep(0.5)
                    kubectl("uncordon", node)
            finally:
                kubectl("uncordon", node)
            assert (await kept.read("note")).data == b"kept"
            backend = await ghost.backend()
            (pool,) = ghost._pools[backend.name]

            async def full() -> bool:
                return pool.ready == 1

            await until(full)
        finally:
            await kept.destroy()
