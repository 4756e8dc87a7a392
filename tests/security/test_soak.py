"""Use goes on and on: what is open does not grow with it, nor does memory. Four hours of it under ``make test-long``, or
``GHOST_TEST_SOAK_S`` seconds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import psutil
import pytest

from ghost_mcp import CaveSpec, Ghost, GhostError
from ghost_mcp.places import Places
from ghost_mcp.testing.basis import until
from tests.security.results import LONG

SOAK_S = float(os.environ.get("GHOST_TEST_SOAK_S") or (4 * 3600 if LONG else 0))
FEW = 5
LEAST = 12  # caves, however long it takes
SAMPLES = 1000  # of memory: one for each cave would be a growth of its own
SETTLE_S = 30.0
MIB_PER_HOUR = 1.0


def opened() -> tuple[int, int, int]:
    """This process's descriptors, threads and children."""
    me = psutil.Process()
    return me.num_fds(), me.num_threads(), len(me.children(recursive=True))


async def one_cave(ghost: Ghost) -> None:
    """The life of a cave: calls of each kind, one that is broken off among them."""
    async with await ghost.create(CaveSpec(ephemeral=True)) as cave:
        await cave.write("a", b"x" * 100_000)
        assert (await cave.exec("cat a | wc -c")).stdout.strip() == "100000"
        assert len((await cave.read("a")).data) == 100_000
        with anyio.move_on_after(0.05):
            await cave.exec("sleep 60")
        assert (await cave.exec(["false"])).exit_code == 1


def slope(samples: list[tuple[float, int]]) -> float:
    """MiB an hour, after a first tenth in which what is kept is filled."""
    later = samples[len(samples) // 10 :]
    hours, sizes = zip(*((at / 3600, size / (1 << 20)) for at, size in later), strict=True)
    return statistics.linear_regression(hours, sizes).slope


@pytest.mark.timeout(SOAK_S + 300)
async def test_what_is_open_does_not_grow_with_use(
    state_dir: Path, record_property: Callable[[str, object], None]
) -> None:
    state = state_dir / "soak"
    state.mkdir(mode=0o711)
    me = psutil.Process()
    samples: list[tuple[float, int]] = []
    caves, began = 0, time.monotonic()
    async with Ghost(backend="local", state_dir=state) as ghost:
        for _ in range(3):  # what is loaded and kept once
            await one_cave(ghost)
        before = opened()
        while caves < LEAST or time.monotonic() - began < SOAK_S:
            await one_cave(ghost)
            caves, at = caves + 1, time.monotonic() - began
            if at >= len(samples) * SOAK_S / SAMPLES:
                samples.append((at, me.memory_info().rss))
        with anyio.move_on_after(SETTLE_S):
            while any(now > then for now, then in zip(opened(), before, strict=True)):
                await anyio.sleep(0.05)
        after = opened()
        assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
    assert list((state / "caves").iterdir()) == []
    record_property("figure", f"{caves} caves, {slope(samples):.2f} MiB/h")
    if LONG:
        assert slope(samples) <= MIB_PER_HOUR


def held(*things: object) -> dict[str, int]:
    """How much each of them has in its tables."""
    return {
        f"{type(thing).__name__}.{name}": len(table)
        for thing in things
        for name, table in vars(thing).items()
        if isinstance(table, dict | list | set)
    }


async def test_of_a_cave_that_ended_by_itself_its_hub_keeps_nothing(state_dir: Path) -> None:
    """Nobody destroys it, nor asks for it again: what was open for it is closed, and what was known is forgotten."""
    state = state_dir / "ended"
    state.mkdir(mode=0o711)
    async with Ghost(backend="local", state_dir=state) as ghost, Places(ghost) as places:
        backend = await ghost.backend()
        await one_cave(ghost)
        tables, before = held(ghost, places, backend), opened()
        for number in range(FEW):
            cave = await ghost.create(CaveSpec(name=f"n{number}", ephemeral=True, timeout_s=1))
            with suppress(GhostError):  # on a busy machine it may have ended already
                await places.named(cave.name)
                await cave.exec(["true"])

        async def forgotten() -> bool:
            kept = held(ghost, places, backend)
            del kept["Ghost._homes"]  # which is bounded
            there = await ghost.list()
            closed = all(now <= then for now, then in zip(opened(), before, strict=True))
            return not there and closed and kept.items() <= tables.items()

        await until(forgotten)
