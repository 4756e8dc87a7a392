"""Many caves: what an idle one weighs among ten, and how a hundred answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
CYCLES = 3
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
    """How long a program takes in one of many live caves, against one that is alone before and after them."""
    rows = await _many(place, LIVE)
    return rows + (await _many(place, STRETCH) if place.stretch else [])


async def _many(place: Place, count: int) -> list[Row]:
    crowd, alone = _Times(), _Times()
    took_s = []
    async with place.ghost() as ghost, await ghost.create(ephemeral=True) as one:
        await _answer(one)
        for _ in range(1 if place.quick else CYCLES):
            await alone.add([one] * count)
            started = time.perf_counter()
            others = await _crowd(ghost, count - 1)
            took_s.append(time.perf_counter() - started)
            for cave in others:
                await _answer(cave)
            await crowd.add([one, *others] * 2)
            for cave in others:
                await cave.destroy()
            await alone.add([one] * count)
    made = f"all {count} answered; created in {min(took_s):.1f} s, one after the other"
    return [
        Row(
            what=f"exec in {count} live caves in turn, p95",
            unit="ms",
            samples=Samples(tuple(crowd.in_turn)),
            floor=Samples(tuple(alone.in_turn)),
            floor_what=ALONE,
            statistic="p95",
            goal_ratio=3.0,
            notes=(made,),
        ),
        Row(
            what=f"exec in {count} live caves, {AT_ONCE} at once, p95",
            unit="ms",
            samples=Samples(tuple(crowd.at_once)),
            floor=Samples(tuple(alone.at_once)),
            floor_what=f"{ALONE}, {AT_ONCE} at once",
            statistic="p95",
            goal_ratio=3.0,
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Times:
    """How long programs took, started one after the other and AT_ONCE at any time."""

    in_turn: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)

    async def add(self, caves: Sequence[Cave]) -> None:
        """One program in each of ``caves``, in both ways."""
        self.in_turn.extend(await _in_turn(caves))
        self.at_once.extend(await _at_once(caves))


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
