"""The pool of a cluster, by the backend's own code on a simulated API server: who refills, who gets what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from ghost_mcp.backends.kubernetes.lease import RENEW_S
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import Conflict
from ghost_mcp.pool import Pool, PoolPlan
from ghost_mcp.spec import CaveSpec
from tests.bench.cluster import Hub
from tests.bench.simulated import SPACE, Server

PATIENCE_S = 30


@asynccontextmanager
async def pooled(server: Server, **plan: float) -> AsyncIterator[tuple[Hub, Pool]]:
    """A hub of its own with a pool, closed as Ghost does."""
    settings = Settings(image="debian:12", namespace=SPACE)
    async with Hub(server, settings) as hub, anyio.create_task_group() as tasks:
        pool = hub.pool(PoolPlan(**plan), tasks)
        tasks.start_soon(pool.run)
        try:
            with anyio.fail_after(PATIENCE_S):
                await pool.filled.wait()
            yield hub, pool
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await pool.aclose()


def quick() -> Server:
    return Server(start_s=0.05)


async def until(count: int, pool: Pool) -> None:
    with anyio.fail_after(PATIENCE_S):
        while pool.ready != count:
            await anyio.sleep(0.01)


async def test_hubs_that_race_never_get_the_same_pod() -> None:
    server = quick()
    async with AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(pooled(server, size=6)) for _ in range(4)]
        assert server.requests["POST pods"] == 6  # one pool, whoever looks at it
        claimed: list[str] = []

        async def claim(pool: Pool) -> None:
            found = await pool.claim(CaveSpec(ephemeral=True), {})
            if found is not None:
                claimed.append(found[0].id)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(claim, hubs[number % 4][1])
        pods = [
            p
            for p in server.all("pods")
            if p["metadata"]["labels"]["ghost-mcp.dev/pool"] == "taken"
        ]
        assert sorted(p["metadata"]["labels"]["ghost-mcp.dev/id"] for p in pods) == sorted(claimed)
        assert len(claimed) >= 6
        for _, pool in hubs:
            await until(6, pool)
        assert server.requests["POST pods"] == 6 + len(claimed)
    assert server.all("pods") == []


async def test_a_hub_that_goes_leaves_the_pool_to_another_and_the_last_one_leaves_nothing() -> None:
    server, going, there = quick(), anyio.Event(), anyio.Event()

    def names() -> set[str]:
        return {pod["metadata"]["name"] for pod in server.all("pods")}

    async def first() -> None:
        async with pooled(server, size=2):
            there.set()
            await going.wait()

    hub = asyncio.create_task(first())
    await there.wait()
    before = names()
    async with pooled(server, size=2) as (_, second):
        going.set()
        await hub
        assert names() == before
        assert second.ready == 2
        assert await second.claim(CaveSpec(ephemeral=True), {}) is not None
        await until(2, second)
    assert names() == set()


async def test_an_empty_pool_that_another_hub_keeps_is_asked_for_more() -> None:
    server = quick()
    async with (
        pooled(server, size=2, idle_s=0.5) as (_, keeper),
        pooled(server, size=2) as (_, other),
    ):
        await until(0, keeper)
        await until(0, other)
        assert await other.claim(CaveSpec(ephemeral=True), {}) is None
        with anyio.fail_after(PATIENCE_S):
            while not (other.ready and keeper.ready):
                await anyio.sleep(0.01)


async def test_a_taken_name_leaves_the_pod_in_the_pool() -> None:
    server = quick()
    async with pooled(server, size=1) as (hub, pool):
        taken = CaveSpec(name="taken", ephemeral=True)
        await hub.create(taken)
        with pytest.raises(Conflict):
            await pool.claim(CaveSpec(name="taken", ephemeral=True), {})
        await until(1, pool)
        assert await pool.claim(CaveSpec(name="free", ephemeral=True), {}) is not None


async def test_a_claimed_life_takes_six_requests() -> None:
    server = quick()
    async with pooled(server, size=1) as (hub, pool):
        # The pod's own making is part of its life; so is that of the one that takes its place.
        before, began = hub.cluster.calls, time.monotonic()
        for _ in range(5):
            claimed = await pool.claim(CaveSpec(ephemeral=True), {})
            assert claimed is not None
            await hub.destroy(claimed[0].id)
            await until(1, pool)
        renewals = 1 + (time.monotonic() - began) / RENEW_S
        assert hub.cluster.calls - before <= 5 * 6 + renewals
