"""What holds for the life of a cave, on any backend."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, State
from ghost_mcp.errors import CaveNotFound

__all__ = ["answers", "destroyed_by_many", "made_in_a_thread"]

AT_ONCE = 20


async def answers(cave: Cave) -> bool:
    return (await cave.exec(["echo", "alive"])).stdout == "alive\n"


async def destroyed_by_many(ghost: Ghost) -> Cave:
    """Destroy one cave many times at once, and one that never was; another goes on. Returns the one that is gone."""
    other, victim = [await ghost.create(CaveSpec(ephemeral=True)) for _ in range(2)]
    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(victim.destroy)
    await ghost.destroy("never-was")
    with pytest.raises(CaveNotFound):
        await ghost.get(victim.id)
    assert await answers(other)
    return victim


async def made_in_a_thread(opened: Callable[[], Ghost]) -> None:
    """The thread ends, and its Ghost: the cave lives on, for another Ghost on the same engine."""

    async def make() -> None:
        async with opened() as ghost:
            await ghost.create(CaveSpec(name="threaded"))

    thread = threading.Thread(target=lambda: anyio.run(make))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    async with opened() as ghost:
        cave = await ghost.get("threaded")
        assert cave.info.state is State.RUNNING
        assert await answers(cave)
        await cave.destroy()
