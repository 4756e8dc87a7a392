# Lines never grow past the terminal, so that each screen takes the place of the one before.
"""``ghost top``: what the caves use, beside what they may use."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.cli.caves import on_ghost
from ghost_mcp.errors import GhostError, InvalidArgument
from ghost_mcp.lifecycle import State
from ghost_mcp.plain import plain
from ghost_mcp.reply import size_text
from ghost_mcp.sampling import Sample, Series

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from ghost_mcp.cli.output import Output
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.spec import CaveInfo

__all__ = ["fitted", "top"]

MIN_S, MAX_S = 0.2, 3600.0
#: How use of processors is told by one look: by two, so far apart.
APART_S = 0.5
ASK_S = 5.0
AT_ONCE = 8
# The first goes last where the terminal is narrow.
HEADERS = ("NAME", "CPU", "MEMORY", "PIDS", "DISK", "NET OUT/IN", "BACKEND")
NAME_WIDTH = 12


class _Board:
    """The running caves, and the samples of each."""

    def __init__(self, ghost: Ghost, names: Sequence[str]) -> None:
        self._ghost = ghost
        self._names = names
        self._series: dict[str, Series] = {}

    async def look(self) -> list[tuple[CaveInfo, Sample]]:
        """One sample of each; the busiest first. Raises CaveNotFound for a name that is not there."""
        if self._names:
            found = [(await self._ghost.get(name)).info for name in self._names]
        else:
            found = await self._ghost.list()
        running = {info.id: info for info in found if info.state is State.RUNNING}
        self._series = {key: self._series.get(key) or Series(1) for key in running}
        room = anyio.CapacityLimiter(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for key in running:
                tasks.start_soon(self._take, key, room)
        told = [(info, self._series[key].samples) for key, info in running.items()]
        rows = [(info, samples[-1]) for info, samples in told if samples]
        return sorted(rows, key=lambda row: (-(row[1].cpus or 0), row[0].full_name))

    async def _take(self, key: str, room: anyio.CapacityLimiter) -> None:
        try:
            async with room:
                with anyio.fail_after(ASK_S):
                    await self._series[key].take(await self._ghost.get(key))
        except (GhostError, TimeoutError, OSError):  # it has gone, or its engine is busy
            self._series[key].samples.clear()


def top(options: argparse.Namespace, out: Output) -> int:
    if not MIN_S <= options.interval <= MAX_S:
        raise InvalidArgument(f"--interval: from {MIN_S:g} to {MAX_S:g} seconds")
    once = options.once or out.json or not sys.stdout.isatty()

    async def act(ghost: Ghost) -> None:
        board = _Board(ghost, options.caves)
        await board.look()
        await anyio.sleep(APART_S)
        if once:
            _tell(await board.look(), out)
            return
        with _screen():
            while True:
                _draw(await board.look())
                await anyio.sleep(options.interval)

    on_ghost(options.backend, act)
    return 0


def _tell(rows: Sequence[tuple[CaveInfo, Sample]], out: Output) -> None:
    if out.json:
        out.document([_record(info, sample) for info, sample in rows])
    elif rows:
        wide = shutil.get_terminal_size((1000, 0)).columns
        for line in fitted([_cells(*row) for row in rows], wide):
            out.line(line)
    else:
        out.note("no cave runs; make one: ghost create NAME")


def _record(info: CaveInfo, sample: Sample) -> dict[str, Any]:
    named = {"id": info.id, "name": info.full_name, "backend": info.backend}
    return {**named, **asdict(sample), "limits": asdict(info.spec.limits)}


def _cells(info: CaveInfo, sample: Sample) -> tuple[str, ...]:
    limits = info.spec.limits
    return (
        info.full_name,
        _beside(sample.cpus, limits.cpus, lambda value: f"{value:.2f}", "g"),
        _beside(sample.memory_bytes, limits.memory_bytes, _short),
        _beside(sample.pids, limits.pids, str),
        _beside(sample.disk_bytes, limits.disk_bytes, _short),
        f"{_short(sample.sent_bytes)}/{_short(sample.received_bytes)}",
        info.backend,
    )


def _beside(used: float | None, limit: float | None, say: Any, form: str = "") -> str:
    """``1.2G/2.0G``, ``12`` without a limit, ``-`` where the backend cannot tell."""
    here = "-" if used is None else say(used)
    return here if limit is None else f"{here}/{format(limit, form) if form else say(limit)}"


def _short(count: int) -> str:
    """``1.5M``: as narrow as it gets."""
    number, unit = size_text(count).split(" ")
    return number + unit.removesuffix("iB")


def fitted(rows: Sequence[Sequence[str]], wide: int) -> list[str]:
    """The table in lines of ``wide`` characters at most: columns are left out from the right, names cut."""
    lines = [HEADERS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADERS))]
    widths[0] = min(widths[0], max(NAME_WIDTH, wide - sum(widths[1:4]) - 6))
    while len(widths) > 1 and sum(widths) + 2 * (len(widths) - 1) > wide:
        widths.pop()
    told = []
    for line in lines:
        name, *figures = (cell[:width] for cell, width in zip(line, widths, strict=False))
        cells = [f"{name:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:], strict=True)]
        told.append("  ".join(cells)[:wide].rstrip())
    return told


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, without a cursor; what was there before comes back."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _draw(rows: Sequence[tuple[CaveInfo, Sample]]) -> None:
    wide, high = os.get_terminal_size(sys.stdout.fileno())
    lines = fitted([_cells(*row) for row in rows], wide) if rows else ["no cave runs"]
    room = max(2, high - 1)
    if len(lines) > room:
        lines = [*lines[: room - 1], f"and {len(lines) - room + 1} more"[:wide]]
    text = "\x1b[K\n".join(map(plain, lines))
    sys.stdout.write(f"\x1b[H{text}\x1b[J")
    sys.stdout.flush()
