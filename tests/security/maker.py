"""A hub that is killed: makes ephemeral caves and works in them without end. Arguments: state folder, count."""

import sys
from pathlib import Path

import anyio

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError


async def work(ghost: Ghost, number: int) -> None:
    while True:
        cave: Cave = await ghost.create(CaveSpec(ephemeral=True))
        print(f"made {cave.id}", flush=True)
        for step in range(3):
            path = f"/workspace/{step}"
            await cave.write(path, "x" * 4096)
            await cave.exec("(setsid sleep 300 &) ; sleep 0.01")
        if number % 2:
            await cave.destroy()


async def main() -> None:
    async with (
        Ghost(backend="local", state_dir=Path(sys.argv[1])) as ghost,
        anyio.create_task_group() as tasks,
    ):
        for number in range(int(sys.argv[2])):
            tasks.start_soon(work, ghost, number)


try:
    anyio.run(main)
except GhostError as exc:
    sys.exit(str(exc))
