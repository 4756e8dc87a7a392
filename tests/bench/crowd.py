"""Many caves: what an idle one weighs among ten, and how a hundred answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import anyio
import psutil

from ghost_mcp import Cave, CaveSpec, Ghost
from tests.bench.measure import Row, Samples, taken
from tests.bench.place import Place

__all__ = ["live", "memory"]

AMONG = 10
LIVE, STRETCH = 100, 200
AT_ONCE = 8
GOAL_MB = 12
ALONE = "one cave alone"


async def memory(place: Place) -> list[Row]:
    """The proportional set size of all processes of ten caves that have answered once, for each."""
    already = {process.pid for process in _descendants()}
    async with place.ghost() as ghost:
        for cave in await _crowd(ghost, AMONG):
            await _answer(cave)
        sizes = [
            size for process in _descendants() if process.pid not in already
            if (size := _proportional_bytes(process))
        ]  # fmt: skip
    each = sum(sizes) / AMONG / 1e6
    return [
        Row(
            what=f"memory of an idle cave among {AMONG} (PSS)",
            unit="MB",
            samples=Samples((each,)),
            goal_value=GOAL_MB,
            notes=(f"{len(sizes) / AMONG:g} processes each",),
        )
    ]


async def live(place: Place) -> list[Row]:
    """How long a program takes in one of many live caves, in turn and several at once, against one alone."""
    rows = await _many(place, LIVE)
    return rows + (await _many(place, STRETCH) if place.stretch else [])


async def _many(place: Place, count: int) -> list[Row]:
    """One cave alone is measured before and after the crowd, so that a drift of the machine meets both."""
    rounds = place.rounds(5)
    async with place.ghost() as ghost:
        one = await ghost.create(ephemeral=True)
        await _answer(one)
        half = [one] * (count * rounds // 2)
        alone, alone_at_once = await _in_turn(half), await _at_once(half)
        started = time.perf_counter()
        others = await _crowd(ghost, count - 1)
        took_s = time.perf_counter() - started
        caves = [one, *others]
        for cave in caves:
            await _answer(cave)
        in_turn, at_once = await _in_turn(caves * rounds), await _at_once(caves * rounds)
        for cave in others:
            await cave.destroy()
        alone += await _in_turn(half)
        alone_at_once += await _at_once(half)
    made = f"all {count} answered; created in {took_s:.1f} s, one after the other"
    return [
        Row(
            what=f"exec in {count} live caves in turn, p95",
            unit="ms",
            samples=Samples(tuple(in_turn)),
            floor=Samples(tuple(alone)),
            floor_what=ALONE,
            statistic="p95",
            goal_ratio=3.0,
            notes=(made,),
        ),
        Row(
            what=f"exec in {count} live caves, {AT_ONCE} at once, p95",
            unit="ms",
            samples=Samples(tuple(at_once)),
            floor=Samples(tuple(alone_at_once)),
            floor_what=f"{ALONE}, {AT_ONCE} at once",
            statistic="p95",
            goal_ratio=3.0,
        ),
    ]


async def _crowd(ghost: Ghost, count: int) -> list[Cave]:
    return [await ghost.create(CaveSpec(ephemeral=True)) for _ in range(count)]


async def _answer(cave: Cave) -> None:
    done = await cave.exec(["true"])
    assert done.exit_code == 0, done


async def _in_turn(caves: Sequence[Cave]) -> list[float]:
    return [await taken(partial(_answer, cave)) for cave in caves]


async def _at_once(caves: Sequence[Cave]) -> list[float]:
    """The same with AT_ONCE programs under way at any time."""
    waiting = iter(caves)
    found: list[float] = []

    async def work() -> None:
        found.extend([await taken(partial(_answer, cave)) for cave in waiting])

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(work)
    return found


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _proportional_bytes(process: psutil.Process) -> int:
    """From smaps_rollup; 0 for a process that has ended. Raises AccessDenied where only root may look."""
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_full_info().pss)
    return 0
