"""One cave: created, from the pool, a program in it, a file of it."""

from __future__ import annotations

from functools import partial

from ghost_mcp import CaveSpec, Ghost
from tests.bench.measure import Row, taken, turns
from tests.bench.place import Place, bare

__all__ = ["create", "exec_", "pool", "read"]

SUBPROCESS = 'subprocess.run(["true"])'
READ_BYTES = 4096


async def spawned() -> float:
    """The floor of most: a program that does nothing."""

    async def act() -> None:
        bare("true")

    return await taken(act)


async def first_result(ghost: Ghost) -> float:
    """A new cave and what a program in it says. It is destroyed, off the clock."""
    spec = CaveSpec(ephemeral=True)

    async def act() -> None:
        cave = await ghost.create(spec)
        assert (await cave.exec(["true"])).exit_code == 0

    spent = await taken(act)
    await ghost.destroy(spec.id)
    return spent


async def create(place: Place) -> list[Row]:
    """From nothing to the first program's result, without a pool."""

    async def floor() -> float:
        async def act() -> None:
            bare("bwrap", "--ro-bind", "/", "/", "--unshare-all", "true")

        return await taken(act)

    async with place.ghost() as ghost:
        samples, bubblewrap = await turns(place.rounds(60), partial(first_result, ghost), floor)
    return [
        Row(
            what="create a cave and get a result",
            unit="ms",
            samples=samples,
            floor=bubblewrap,
            floor_what="bwrap --ro-bind / / --unshare-all true",
            goal_ratio=4.0,
        )
    ]


async def pool(place: Place) -> list[Row]:
    """The same with a cave that waits in the pool; the pool is full again before each turn."""
    async with place.ghost(pool_size=2) as ghost:

        async def ours() -> float:
            await ghost.warm()
            spent = await first_result(ghost)
            await ghost.warm()
            return spent

        samples, floor = await turns(place.rounds(60), ours, spawned)
    return [
        Row(
            what="the same from the warm pool",
            unit="ms",
            samples=samples,
            floor=floor,
            floor_what=SUBPROCESS,
            goal_ratio=3.0,
        )
    ]


async def exec_(place: Place) -> list[Row]:
    """A program in a cave that lives."""
    async with place.ghost() as ghost, await ghost.create(ephemeral=True) as cave:

        async def ours() -> float:
            async def act() -> None:
                assert (await cave.exec(["true"])).exit_code == 0

            return await taken(act)

        samples, floor = await turns(place.rounds(500), ours, spawned)
    return [
        Row(
            what='cave.exec(["true"])',
            unit="ms",
            samples=samples,
            floor=floor,
            floor_what=SUBPROCESS,
            goal_ratio=1.5,
        )
    ]


async def read(place: Place) -> list[Row]:
    """A small file of a cave, through the link."""
    data = bytes(range(256)) * (READ_BYTES // 256)
    async with place.ghost() as ghost, await ghost.create(ephemeral=True) as cave:
        await cave.write("data", data)

        async def ours() -> float:
            async def act() -> None:
                assert (await cave.read("data")).data == data

            return await taken(act)

        (samples,) = await turns(place.rounds(200), ours, block=5)
    return [Row(what="cave.read of 4 KB", unit="ms", samples=samples, goal_value=0.5)]
