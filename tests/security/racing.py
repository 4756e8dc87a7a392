"""Random interleavings of create, exec and destroy, on any backend."""

from __future__ import annotations

import random

import anyio

from ghost_mcp import CaveSpec, Ghost, GhostError

__all__ = ["races"]

CODES = {"conflict", "cave_gone", "cave_not_found", "backend_unavailable"}
RACE_S = 90


async def races(ghost: Ghost, *, seed: int, racers: int, steps: int, names: int) -> None:
    """``racers`` do ``steps`` each, on ``names`` names; then all caves are destroyed. Each error has its code."""
    dice = random.Random(seed)

    async def one(name: str, choices: list[str]) -> None:
        for step in choices:
            try:
                if step == "create":
                    await ghost.create(CaveSpec(name=name, ephemeral=True))
                elif step == "exec":
                    await (await ghost.get(name)).exec(["true"])
                else:
                    await ghost.destroy(name)
            except GhostError as exc:
                assert exc.code in CODES, exc.render()

    with anyio.fail_after(RACE_S):
        async with anyio.create_task_group() as tasks:
            for number in range(racers):
                choices = dice.choices(["create", "exec", "destroy"], k=steps)
                tasks.start_soon(one, f"racer-{number % names}", choices)
    for info in await ghost.list():
        await ghost.destroy(info.id)
