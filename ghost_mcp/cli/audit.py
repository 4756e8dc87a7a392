# What was done in which cave, for whoever runs this Ghost.
"""``ghost audit``."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ghost_mcp import audit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from ghost_mcp.cli.output import Output

__all__ = ["show"]


def show(options: argparse.Namespace, out: Output) -> int:
    """The calls that were written down, oldest first: one line each, with ``--json`` one JSON text each."""
    from ghost_mcp.backends.local.door import state_folder

    where = os.environ.get("GHOST_AUDIT", "")
    folder = where if where not in ("", "-", "off") else os.path.join(state_folder(), "audit")
    since = _since(options.since)
    found = 0
    for entry in audit.read(folder, follow=options.follow):
        if entry["time"] >= since and _wanted(entry, options):
            found += 1
            _tell(entry, out)
    if not found:
        out.note(f"No such calls in {folder}.")
    return 0


def _since(span: str | None) -> str:
    from ghost_mcp.spec import parse_span

    if span is None:
        return ""
    at = datetime.fromtimestamp(time.time() - parse_span(span), UTC)
    return at.isoformat(timespec="milliseconds")


def _wanted(entry: Mapping[str, Any], options: argparse.Namespace) -> bool:
    cave = entry.get("cave")
    return (
        (options.cave is None or options.cave in (cave, str(cave).rpartition("/")[2]))
        and (options.owner is None or entry.get("owner") == options.owner)
        and (options.tool is None or entry.get("tool") == options.tool)
        and (not options.failed or entry.get("outcome") != "ok")
    )


def _tell(entry: Mapping[str, Any], out: Output) -> None:
    if out.json:
        out.entry(entry)
        return
    sizes = f"{entry.get('arguments_bytes', 0)} B in, {entry.get('answer_bytes', 0)} B out"
    out.line(
        f"{entry['time']}  {entry.get('cave') or '-':<20} {entry.get('tool', ''):<26} "
        f"{entry.get('outcome', ''):<18} {entry.get('duration_ms', 0):>9.1f} ms  {sizes}"
    )
