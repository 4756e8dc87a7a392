# Only this file says how a run is shown.
"""What was measured where: a header, and one line for each row."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ghost_mcp import __version__
from tests.bench.measure import Row
from tests.bench.place import NODE

__all__ = ["machine", "render"]

COLUMNS = ("what", "runs", "p50", "p95", "least", "floor", "ratio", "best", "goal", "met")
PROGRAMS = {
    "bubblewrap": ("bwrap", "--version"),
    "chromium": ("chromium", "--version"),
    "node": (str(NODE), "--version"),
}


def machine() -> dict[str, Any]:
    """Where a run takes place. ``load`` is the mean number of running programs of the last 1, 5 and 15 minutes."""
    return {
        "ghost": __version__,
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mcp": metadata.version("mcp"),
        **{name: _version(argv) for name, argv in PROGRAMS.items()},
    }


def _version(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "none"
    words = done.stdout.split()
    return next((word for word in words if word.lstrip("v")[:1].isdigit()), "none")


def render(rows: Sequence[Row], before: dict[str, Any], load_after: Sequence[float]) -> str:
    """For people. ``best`` is the ratio of the least values, which other load disturbs least."""
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(COLUMNS))]
    about = ", ".join(f"{name} {value}" for name, value in before.items() if name != "load")
    loads = [" ".join(f"{load:.1f}" for load in loads) for loads in (before["load"], load_after)]
    out = [about, f"load average: {loads[0]} before, {loads[1]} after", ""]
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        out.append("  ".join([line[0].ljust(len(first)), *others]))
    out += ["", "floors, and what else was seen:"]
    out += [f"  {row.what}: {'; '.join(told)}" for row in rows if (told := _told(row))]
    return "\n".join(out)


def _cells(row: Row) -> tuple[str, ...]:
    goals = []
    if row.goal_ratio is not None:
        goals.append(f"{row.goal_ratio:g}x")
    if row.goal_value is not None:
        goals.append(f"{row.goal_value:g} {row.unit}")
    unit = f" {row.unit}"
    return (
        row.what,
        str(len(row.samples.values)),
        _number(row.samples.p50) + unit,
        _number(row.samples.p95),
        _number(row.samples.least),
        "" if row.floor_value is None else _number(row.floor_value),
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        "" if row.best_ratio is None else f"{row.best_ratio:.2f}x",
        " and ".join(goals),
        {True: "yes", False: "NO", None: ""}[row.met],
    )


def _told(row: Row) -> list[str]:
    return ([f"against {row.floor_what}"] if row.floor_what else []) + list(row.notes)


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
