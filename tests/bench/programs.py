"""Whole processes of the command line, against the interpreter that runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.bench.measure import Row, Side, taken, turns
from tests.bench.place import PROGRAM_S, Place, program

__all__ = ["doctor", "exec_", "version"]

FLOOR = "python -c pass"


async def version(place: Place) -> list[Row]:
    """The least the command line does."""
    return [await _row(place, "ghost version", [program("ghost"), "version"], 4.0)]


async def exec_(place: Place) -> list[Row]:
    """A program in a cave that lives."""
    async with place.ghost() as ghost, await ghost.create(ephemeral=True) as cave:
        argv = [program("ghost"), "exec", cave.name, "--", "true"]
        return [await _row(place, "ghost exec CAVE -- true", argv, 6.0)]


async def doctor(place: Place) -> list[Row]:
    """The self-test: a cave is made and each of its walls is tried. It comes with the look at the machine."""
    samples, floor = await turns(
        place.rounds(10),
        _running(place, [program("ghost"), "doctor"]),
        _running(place, [sys.executable, "-c", "pass"]),
    )
    return [
        Row(
            what="ghost doctor, the walls' self-test included",
            unit="ms",
            samples=samples,
            floor=floor,
            floor_what=FLOOR,
            goal_value=3000.0,
        )
    ]


async def _row(place: Place, what: str, argv: Sequence[str], goal: float) -> Row:
    sides = (_running(place, argv), _running(place, [sys.executable, "-c", "pass"]))
    samples, floor = await turns(place.rounds(60), *sides)
    return Row(
        what=what, unit="ms", samples=samples, floor=floor, floor_what=FLOOR, goal_ratio=goal
    )


def _running(place: Place, argv: Sequence[str]) -> Side:
    async def act() -> None:
        subprocess.run(
            argv,
            env=dict(place.environment),
            check=True,
            timeout=PROGRAM_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    return lambda: taken(act)
