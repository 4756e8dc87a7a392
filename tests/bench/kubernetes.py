# The cluster of KUBECONFIG, whose node takes its images from this machine's engine.
"""Caves in a cluster, against what kubectl and a plain exec take: created, from the pool, in use, and what they ask."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import anyio
import anyio.to_thread

from ghost_mcp import Cave, CaveSpec, Ghost, PoolPlan
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.backends.kubernetes import manifests
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.settings import Settings
from tests import engine_images
from tests.bench.measure import Row, Samples, taken, turns
from tests.bench.place import PROGRAM_S, Place
from tests.clusters import NAMESPACE
from tests.contract.images import runtime_image

__all__ = ["made", "used"]

SPEC = CaveSpec(ephemeral=True)


@contextmanager
def _settings(place: Place) -> Iterator[Settings]:
    """The bench's own images, for the block."""
    engine = open_client()
    cache = place.folder / "kubernetes"
    with (
        contextmanager(engine_images.small)(engine) as small,
        contextmanager(runtime_image)(engine, cache) as brought,
    ):
        yield Settings(
            namespace=NAMESPACE,
            instance="bench",
            image=small,
            runtime_image=brought,
            pull_policy="Never",
        )
    engine.close()


@asynccontextmanager
async def _ghost(
    settings: Settings, pool: int = 0
) -> AsyncIterator[tuple[Ghost, KubernetesBackend]]:
    backend = KubernetesBackend(settings)
    plans = [PoolPlan(template=SPEC, size=pool)] if pool else []
    async with Ghost(backend=backend, pools=plans) as ghost:
        await ghost.warm()
        yield ghost, backend


async def _answer(cave: Cave) -> None:
    done = await cave.exec(["true"])
    assert done.exit_code == 0, done


async def made(place: Place) -> list[Row]:
    """From nothing, and from the pool, to the first program's result; and what a whole life asks of the API server."""
    asked: dict[bool, list[float]] = {False: [], True: []}

    async def ours(ghost: Ghost, backend: KubernetesBackend, pooled: bool) -> float:
        spec, before = CaveSpec(ephemeral=True), backend.cluster.calls

        async def act() -> None:
            await _answer(await ghost.create(spec))

        spent = await taken(act)
        await ghost.destroy(spec.id)
        await ghost.warm()  # the making of the next one is the price of this one
        asked[pooled].append(backend.cluster.calls - before)
        return spent

    with _settings(place) as settings:
        async with _ghost(settings) as cold, _ghost(settings, pool=1) as warm:
            created, claimed, bare = await turns(
                place.rounds(10),
                partial(ours, *cold, False),
                partial(ours, *warm, True),
                partial(_kubectl, settings),
            )
    return [
        Row(
            what="kubernetes: create a cave and get a result",
            unit="ms",
            samples=created,
            floor=bare,
            floor_what="kubectl create of the same pod, and kubectl wait until it is Ready",
            goal_ratio=1.2,
        ),
        Row(
            what="kubernetes: the same from the warm pool",
            unit="ms",
            samples=claimed,
            floor=created,
            floor_what="the same without a pool",
            goal_ratio=0.15,
        ),
        *(
            Row(
                what=f"kubernetes: API requests in the life of a {kind} cave",
                unit="",
                samples=Samples(tuple(asked[pooled])),
                goal_value=6,
                notes=(
                    "made, used and destroyed through Ghost; the first one also begins the watch",
                ),
            )
            for kind, pooled in (("cold", False), ("pooled", True))
        ),
    ]


async def _kubectl(settings: Settings) -> float:
    """The same pod as another cave's, by the cluster's own program."""
    spec = CaveSpec(image=settings.image, ephemeral=True)
    pod = manifests.pod(spec, settings, name=f"bench-{spec.id}", maker="kubectl")
    name = pod["metadata"]["name"]

    async def act() -> None:
        await _run("create", "-f", "-", given=json.dumps(pod))
        await _run("wait", "--for=condition=Ready", f"--timeout={PROGRAM_S}s", f"pod/{name}")

    spent = await taken(act)
    await _run("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return spent


async def _run(*words: str, given: str = "") -> None:
    run = partial(
        subprocess.run,
        ["kubectl", "-n", NAMESPACE, *words],
        input=given.encode(),
        check=True,
        capture_output=True,
        timeout=PROGRAM_S,
    )
    await anyio.to_thread.run_sync(run)


async def used(place: Place) -> list[Row]:
    """A program of a cave that lives, beside a local cave's and beside an exec of the cluster."""

    async def run(cave: Cave) -> float:
        return await taken(partial(_answer, cave))

    with _settings(place) as settings:
        async with (
            _ghost(settings) as (ghost, backend),
            place.ghost() as beside,
            await ghost.create(SPEC) as cave,
            await beside.create(SPEC) as local,
        ):
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/ghost-{cave.id}/exec"

            async def plain() -> None:
                stream = await backend.cluster.exec(path, ["/bin/true"], manifests.CAVE)
                with suppress(anyio.EndOfStream):
                    await stream.receive()
                await stream.aclose()

            ours, floor = await turns(place.rounds(200), partial(run, cave), partial(run, local))
            again, bare = await turns(place.rounds(30), partial(run, cave), partial(taken, plain))
    what = 'kubernetes: cave.exec(["true"])'
    return [
        Row(
            what=what,
            unit="ms",
            samples=ours,
            floor=floor,
            floor_what="the same in a local cave",
            goal_ratio=3.0,
        ),
        Row(
            what=f"{what}, beside a plain exec",
            unit="ms",
            samples=again,
            floor=bare,
            floor_what="an exec of true in the same pod, by the API",
            goal_ratio=0.1,
        ),
    ]
