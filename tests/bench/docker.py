# The engine of this machine only: what is weighed are its processes.
"""Docker caves, against what the engine itself takes: created, from the pool, in use, many."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from ghost_mcp import Cave, CaveSpec, Ghost, PoolPlan
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.docker.engine import open_client
from tests import engine_images
from tests.bench.measure import Row, Samples, taken, turns
from tests.bench.place import Place, bare

__all__ = ["crowd", "made", "used"]

AMONG, MANY, LIVE = 10, 50, 100
AT_ONCE = 8
READ_BYTES = 4096
SPEC = CaveSpec(ephemeral=True)


@contextmanager
def _image() -> Iterator[str]:
    """An image of the bench's own, for the block."""
    engine = open_client()
    try:
        with contextmanager(engine_images.small)(engine) as image:
            yield image
    finally:
        engine.close()


@asynccontextmanager
async def _ghost(place: Place, image: str, pool: int = 0) -> AsyncIterator[Ghost]:
    backend = DockerBackend(image=image, instance="bench", cache=place.folder / "docker")
    plans = [PoolPlan(template=SPEC, size=pool)] if pool else []
    async with Ghost(backend=backend, pools=plans) as ghost:
        yield ghost


def _fresh(**settings: float) -> CaveSpec:
    return CaveSpec.from_dict({"ephemeral": True, **settings})


async def _create(ghost: Ghost, spec: CaveSpec) -> Cave:
    cave = await ghost.create(spec)
    await _answer(cave)
    return cave


async def _answer(cave: Cave) -> None:
    done = await cave.exec(["true"])
    assert done.exit_code == 0, done


async def made(place: Place) -> list[Row]:
    """From nothing, and from the pool, to the first program's result."""
    with _image() as image:
        run = ("docker", "run", "--rm", image, "true")

        async def floor() -> float:
            return await taken(partial(anyio.to_thread.run_sync, partial(bare, *run)))

        async def ours(ghost: Ghost) -> float:
            spec = _fresh()
            spent = await taken(partial(_create, ghost, spec))
            await ghost.destroy(spec.id)
            await ghost.warm()
            return spent

        async with _ghost(place, image) as ghost, _ghost(place, image, pool=1) as pooled:
            await pooled.warm()
            cold, warm, bare_run = await turns(
                place.rounds(15), partial(ours, ghost), partial(ours, pooled), floor
            )
    what = " ".join(run[:3]) + " IMAGE true"
    return [
        Row(
            what="docker: create a cave and get a result",
            unit="ms",
            samples=cold,
            floor=bare_run,
            floor_what=what,
            goal_ratio=1.15,
        ),
        Row(
            what="docker: the same from the warm pool",
            unit="ms",
            samples=warm,
            floor=bare_run,
            floor_what=what,
            goal_ratio=0.15,
        ),
    ]


async def used(place: Place) -> list[Row]:
    """A program and a file of a cave that lives, beside a local cave's."""
    data = bytes(range(256)) * (READ_BYTES // 256)

    async def read(cave: Cave) -> float:
        async def act() -> None:
            assert (await cave.read("data")).data == data

        return await taken(act)

    async def run(cave: Cave) -> float:
        return await taken(partial(_answer, cave))

    with _image() as image:
        async with (
            _ghost(place, image) as ghost,
            place.ghost() as beside,
            await ghost.create(SPEC) as cave,
            await beside.create(SPEC) as local,
        ):
            for one in (cave, local):
                await one.write("data", data)
            runs = await turns(place.rounds(200), partial(run, cave), partial(run, local))
            reads = await turns(
                place.rounds(200), partial(read, cave), partial(read, local), block=5
            )
    return [
        Row(
            what=f"docker: {what}",
            unit="ms",
            samples=ours,
            floor=floor,
            floor_what="the same in a local cave",
            goal_ratio=2.0,
        )
        for what, (ours, floor) in {
            'cave.exec(["true"])': runs,
            "cave.read of 4 KB": reads,
        }.items()
    ]


async def crowd(place: Place) -> list[Row]:
    """What an idle cave weighs, how fast many come, whether a hundred answer."""
    with _image() as image:
        async with _ghost(place, image) as ghost:
            one = [await taken(partial(_create, ghost, _fresh())) for _ in range(5)]
            weight = await _weight(ghost)
            started = time.perf_counter()
            caves = await _many(ghost, MANY)
            took_ms = (time.perf_counter() - started) * 1e3
            caves += await _many(ghost, LIVE - MANY)
            answers = [await taken(partial(_answer, cave)) for cave in caves]
    return [
        Row(
            what=f"docker: memory of an idle cave among {AMONG} (PSS)",
            unit="MB",
            samples=Samples((weight,)),
            goal_value=12,
            notes=("warden and relay; the engine's own shim is there for every container",),
        ),
        Row(
            what=f"docker: {MANY} caves from cold, for each",
            unit="ms",
            samples=Samples((took_ms / MANY,)),
            floor=Samples(tuple(one)),
            floor_what="one cave from cold",
            goal_ratio=1.0,
        ),
        Row(
            what=f"docker: exec in {LIVE} live caves in turn",
            unit="ms",
            samples=Samples(tuple(answers)),
            notes=(f"all {LIVE} answered",),
        ),
    ]


async def _many(ghost: Ghost, count: int) -> list[Cave]:
    waiting = iter(range(count))
    found: list[Cave] = []

    async def work() -> None:
        found.extend([await _create(ghost, _fresh()) for _ in waiting])

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(work)
    return found


async def _weight(ghost: Ghost) -> float:
    """Megabytes of the processes in each of some caves that have answered once."""
    caves = await _many(ghost, AMONG)
    engine = open_client()
    try:
        sizes = []
        for cave in caves:
            name = f"ghost-bench-{cave.info.full_name}"
            for process in engine.top(name, "-o pid")["Processes"]:
                rollup = Path(f"/proc/{process[0]}/smaps_rollup").read_text()
                (line,) = [line for line in rollup.splitlines() if line.startswith("Pss:")]
                sizes.append(int(line.split()[1]) * 1024)
    finally:
        engine.close()
    for cave in caves:
        await cave.destroy()
    return sum(sizes) / AMONG / 1e6
