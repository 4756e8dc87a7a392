# A simulation, as tests/bench/cluster.py is one: the pool's own code, and a server that is made up.
"""``python -m tests.bench.cluster --pool N``: one pool for many hubs, in use, in a rush, and when its keeper dies."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
import anyio.abc

from ghost_mcp.backends.kubernetes.pool import ClusterPool
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.pool import PoolPlan
from ghost_mcp.spec import CaveSpec
from tests.bench.cluster import Hub
from tests.bench.simulated import SPACE, Server

__all__ = ["PoolResult", "simulate_pool"]

SEED = 20261129
PATIENCE_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolResult:
    """Times are seconds. In use: ``per_s`` caves are asked for by any hub, for ``use_s``; in the rush, twice the pool."""

    hubs: int
    size: int
    first_fill_s: float
    per_s: float
    claim_p50_s: float
    claim_p99_s: float
    from_pool: float
    calls_per_cave: float
    lost_claims: int
    rush_from_pool: float
    rush_claim_p50_s: float
    rush_lost_claims: int
    refill_s: float
    keeper_dead_refill_s: float
    idle_calls_per_hub_minute: float


class _Crowd:
    """Hubs with one plan on one server; whoever asks one for a cave notes how long that took."""

    def __init__(self, server: Server, hubs: int, plan: PoolPlan) -> None:
        self.server, self._count, self._plan = server, hubs, plan
        self.hubs: list[tuple[Hub, ClusterPool, anyio.CancelScope]] = []
        self.took: list[float] = []
        self.cold = 0
        self._dice = random.Random(SEED)

    async def enter(self, stack: AsyncExitStack, tasks: anyio.abc.TaskGroup) -> None:
        for _ in range(self._count):
            hub = Hub(self.server, Settings(image="debian:12", namespace=SPACE))
            await stack.enter_async_context(hub)
            pool = hub.pool(self._plan, tasks)
            assert isinstance(pool, ClusterPool)
            scope = anyio.CancelScope()
            self.hubs.append((hub, pool, scope))
            tasks.start_soon(_within, scope, pool.run)

    @property
    def calls(self) -> int:
        return sum(hub.cluster.calls for hub, _, _ in self.hubs)

    async def full(self) -> float:
        """Wait until all see a full pool; how long that was."""
        began = time.monotonic()
        with anyio.fail_after(PATIENCE_S):
            while any(p.ready < self._plan.size for _, p, s in self.hubs if not s.cancel_called):
                await anyio.sleep(0.01)
        return time.monotonic() - began

    async def ask(self) -> None:
        """Make a cave at some hub, and end it again."""
        alive = [(hub, pool) for hub, pool, scope in self.hubs if not scope.cancel_called]
        hub, pool = self._dice.choice(alive)
        spec, began = CaveSpec(ephemeral=True), time.monotonic()
        if await pool.claim(spec, {}) is not None:
            self.took.append(time.monotonic() - began)
        else:
            self.cold += 1
            await hub.create(spec)
        await hub.destroy(spec.id)

    def kill_keeper(self) -> None:
        for _, pool, scope in self.hubs:
            if pool.keeps:
                scope.cancel()

    def told(self) -> tuple[list[float], float]:
        """What was taken since the last time, sorted, and the share that came from the pool."""
        took, cold = sorted(self.took), self.cold
        self.took, self.cold = [], 0
        return took, len(took) / max(1, len(took) + cold)


async def _within(scope: anyio.CancelScope, run: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await run()


async def _arrive(crowd: _Crowd, count: int, per_s: float) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(crowd.ask)
            if per_s:
                await anyio.sleep(1 / per_s)


async def _rushed(crowd: _Crowd, count: int) -> float:
    """So many are asked for at once; the seconds from then until the pool is full again."""
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_arrive, crowd, count, 0.0)
        await anyio.sleep(0.5)  # until all have seen the claims
        await crowd.full()
        full_s = time.monotonic() - began
    return full_s


async def simulate_pool(
    hubs: int, size: int, *, per_s: float = 10.0, use_s: float = 20.0
) -> PoolResult:
    """First use, then a rush, then a keeper that dies while the pool is emptied."""
    server = Server()
    crowd = _Crowd(server, hubs, PoolPlan(size=size, refill_s=0.0))
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        began = time.monotonic()
        await crowd.enter(stack, tasks)
        await crowd.full()
        first_s = time.monotonic() - began
        before, lost = crowd.calls, server.refused[422]
        await anyio.sleep(use_s / 2)
        idle = crowd.calls - before
        before = crowd.calls
        await _arrive(crowd, int(per_s * use_s), per_s)
        await crowd.full()
        used = crowd.calls - before - 2 * idle
        took, share = crowd.told()
        used_lost, lost = server.refused[422] - lost, server.refused[422]
        refill_s = await _rushed(crowd, 2 * size)
        rush, rush_share = crowd.told()
        rush_lost = server.refused[422] - lost
        crowd.kill_keeper()
        dead_s = await _rushed(crowd, size)
        tasks.cancel_scope.cancel()
    return PoolResult(
        hubs=hubs,
        size=size,
        first_fill_s=round(first_s, 2),
        per_s=per_s,
        claim_p50_s=round(statistics.median(took), 3),
        claim_p99_s=round(took[int(len(took) * 0.99)], 3),
        from_pool=round(share, 3),
        calls_per_cave=round(used / (per_s * use_s), 2),
        lost_claims=used_lost,
        rush_from_pool=round(rush_share, 3),
        rush_claim_p50_s=round(statistics.median(rush), 3),
        rush_lost_claims=rush_lost,
        refill_s=round(refill_s, 2),
        keeper_dead_refill_s=round(dead_s, 2),
        idle_calls_per_hub_minute=round(idle / hubs / (use_s / 2) * 60, 2),
    )
