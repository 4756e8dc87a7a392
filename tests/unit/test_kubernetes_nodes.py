"""What one node cannot show, a node that is lost and preemption, on a simulated API server: no cluster is asked."""

from __future__ import annotations

import anyio
import pytest

from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.errors import CaveNotFound
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import CaveSpec
from tests.bench.cluster import Hub
from tests.bench.simulated import SPACE, Server
from tests.unit.test_kubernetes_pool import PATIENCE_S, pooled, quick, until


def hub_on(server: Server) -> Hub:
    return Hub(server, Settings(image="debian:12", namespace=SPACE))


def names(server: Server) -> list[str]:
    return [pod["metadata"]["name"] for pod in server.all("pods")]


async def test_a_kept_cave_of_a_lost_node_starts_on_another() -> None:
    """The old pod, which no kubelet ends any more, is removed by force; the claim is the same."""
    server = quick()
    async with hub_on(server) as hub:
        info = await hub.create(CaveSpec(name="kept"))
        (before,), claims = names(server), server.all("persistentvolumeclaims")
        server.lose_node(before)
        assert (await hub.get("kept")).state is State.ENDED
        assert (await hub.start(info.id)).state is State.RUNNING
        (after,) = names(server)
        assert after != before
        assert server.all("persistentvolumeclaims") == claims
        await hub.destroy(info.id)


@pytest.mark.parametrize("loss", [Server.lose_node, Server.preempt])
async def test_an_ephemeral_cave_that_lost_its_pod_is_swept(loss: object) -> None:
    server = quick()
    async with hub_on(server) as hub:
        info = await hub.create(CaveSpec(name="short", ephemeral=True))
        assert callable(loss)
        loss(server, *names(server))
        assert await hub.list() == []
        assert server.all("pods") == server.all("configmaps") == []
        with pytest.raises(CaveNotFound):
            await hub.get(info.id)


@pytest.mark.parametrize("loss", [Server.lose_node, Server.preempt])
async def test_a_pool_that_lost_a_pod_fills_again(loss: object) -> None:
    server = quick()
    async with pooled(server, size=2) as (_, pool):
        first = names(server)
        assert callable(loss)
        loss(server, first[0])
        with anyio.fail_after(PATIENCE_S):
            while first[0] in names(server) or len(names(server)) < 2:
                await anyio.sleep(0.01)
        await until(2, pool)
        assert first[1] in names(server)
