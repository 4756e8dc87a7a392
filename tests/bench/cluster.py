# A simulation, and what it says is no measurement: the backend's own code against an API server that is made up here.
"""``python -m tests.bench.cluster [--caves N | --pool N] [--hubs N]``: many hubs and caves on one simulated cluster.

Real are the backend's requests, retries, pace, watches, lists and tables. Made up are the API server, which answers
from dictionaries after the times below, its scheduler and its nodes; and the links, whose time is that of an exec.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.cluster import Cluster, _Clock, _Pace
from ghost_mcp.backends.kubernetes.finding import Finder
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.backends.kubernetes.starting import Starter
from ghost_mcp.errors import Conflict
from ghost_mcp.spec import CaveSpec
from ghost_mcp.warden.link import Link
from tests.bench.simulated import EXEC_S, SPACE, Server

__all__ = ["Hub", "Result", "simulate"]

OWNERS = 500


class SimulatedCluster(Cluster):
    """The backend's connection, with its retries and its pace, to a server in this process."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self._server = server
        self._pace = _Pace(settings.calls_per_s, settings.calls_burst)
        self._clock = _Clock()
        self.calls = 0

    async def aclose(self) -> None:
        pass

    async def _once(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None
    ) -> tuple[int, dict[str, Any], float]:
        await self._pace.wait()
        self.calls += 1
        status, answer = await self._server.answer(method, path, body, query or {})
        return status, answer, 0.0

    async def watch(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        await self._pace.wait()
        self.calls += 1
        async for event in self._server.watch(path, query):
            yield event


class _Wire:
    """A link that is there."""

    name, masker, alive = "", None, True

    async def call(self, name: str, *given: Any) -> dict[str, Any]:
        return {}

    async def aclose(self) -> None:
        pass


class _Starter(Starter):
    async def link(self, space: str, pod: str) -> Link:
        cluster = cast("SimulatedCluster", self._cluster)
        await cluster._pace.wait()
        cluster.calls += 1
        cluster._server.requests["GET pods/exec"] += 1
        await asyncio.sleep(EXEC_S)
        return cast("Link", _Wire())


class Hub(KubernetesBackend):
    """The backend as it is, on a simulated cluster."""

    def __init__(self, server: Server, config: Settings) -> None:
        super().__init__(config)
        self._server = server

    async def __aenter__(self) -> Self:
        cluster = SimulatedCluster(self._server, self.config)
        starter = _Starter(cluster, self.config, self._maker)
        self._open = cluster, Finder(cluster, self.config), starter
        await starter.begin()
        return self

    def table_bytes(self) -> int:
        """What this hub remembers of its caves."""
        seen = [watcher._seen for watcher in self.starter._watchers.values()]
        return _size([seen, {key: asdict(own) for key, own in self._own.items()}])


def _size(thing: Any) -> int:
    whole = sys.getsizeof(thing)
    if isinstance(thing, dict):
        return whole + sum(_size(key) + _size(value) for key, value in thing.items())
    return whole + (sum(map(_size, thing)) if isinstance(thing, list) else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Times are seconds. ``requests`` is all that was asked of the API server, by kind."""

    caves: int
    hubs: int
    calls_per_cave: float
    create_p50_s: float
    create_p99_s: float
    creates_per_s: float
    table_bytes_per_hub: float
    list_s: float
    list_calls: int
    list_bytes: int
    owner_list_s: float
    owner_list_calls: int
    owner_list_bytes: int
    race_won: int
    race_conflicts: int
    race_calls: int
    requests: dict[str, int]


async def simulate(caves: int, hubs: int) -> Result:
    """All caves at once, evenly over the hubs; then one hub's list, a race for one name, and the end of all."""
    server = Server()
    settings = Settings(image="debian:12", namespace=SPACE)
    several = [Hub(server, settings) for _ in range(hubs)]
    for hub in several:
        await hub.__aenter__()
    took: list[float] = []

    async def create(number: int) -> None:
        began = time.monotonic()
        await several[number % hubs].create(
            CaveSpec(owner=f"owner-{number % OWNERS}", ephemeral=True)
        )
        took.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(create(number) for number in range(caves)))
    whole_s = time.monotonic() - began
    remembered = statistics.fmean(hub.table_bytes() for hub in several)
    list_s, list_calls, list_bytes = await _listed(server, several[0], caves)
    owned_s, owned_calls, owned_bytes = await _listed(
        server, several[0], len(range(0, caves, OWNERS)), "owner-0"
    )
    before, refused = _calls(several), server.refused[409]
    race = await asyncio.gather(
        *(hub.create(CaveSpec(name="default", owner="alice", ephemeral=True)) for hub in several),
        return_exceptions=True,
    )
    assert all(isinstance(one, Conflict) for one in race if isinstance(one, BaseException))
    raced, conflicts = _calls(several) - before, server.refused[409] - refused
    await asyncio.gather(*(hub.__aexit__(None, None, None) for hub in several))
    life = _calls(several) - raced - list_calls - owned_calls
    return Result(
        caves=caves,
        hubs=hubs,
        calls_per_cave=round(life / caves, 2),
        create_p50_s=round(statistics.median(took), 3),
        create_p99_s=round(sorted(took)[int(len(took) * 0.99)], 3),
        creates_per_s=round(caves / whole_s, 1),
        table_bytes_per_hub=round(remembered),
        list_s=round(list_s, 3),
        list_calls=list_calls,
        list_bytes=list_bytes,
        owner_list_s=round(owned_s, 3),
        owner_list_calls=owned_calls,
        owner_list_bytes=owned_bytes,
        race_won=sum(not isinstance(one, BaseException) for one in race),
        race_conflicts=conflicts,
        race_calls=raced,
        requests=dict(server.requests),
    )


async def _listed(
    server: Server, hub: Hub, caves: int, owner: str | None = None
) -> tuple[float, int, int]:
    calls, sent, began = hub.cluster.calls, server.bytes_listed, time.monotonic()
    assert len(await hub.list(owner)) == caves
    return time.monotonic() - began, hub.cluster.calls - calls, server.bytes_listed - sent


def _calls(hubs: list[Hub]) -> int:
    return sum(hub.cluster.calls for hub in hubs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a simulation, not a measurement")
    parser.add_argument("--caves", type=int, default=10_000)
    parser.add_argument("--hubs", type=int, default=50)
    parser.add_argument("--pool", type=int, help="instead: one pool of that size for all hubs")
    options = parser.parse_args()
    if options.pool:
        from tests.bench.cluster_pool import simulate_pool

        result: Any = asyncio.run(simulate_pool(options.hubs, options.pool))
    else:
        result = asyncio.run(simulate(options.caves, options.hubs))
    print(json.dumps({"simulation": True} | asdict(result), indent=2))
