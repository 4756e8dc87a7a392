# What a command did to files is seen from outside: two snapshots and their difference. Nothing watches it.
"""Which files below a folder were created, changed or removed between two moments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ghost_mcp.errors import TimedOut
from ghost_mcp.outputs import clean

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

SNAPSHOT_S = 20.0
MAX_SNAPSHOT = 64 << 20
# How many names of a kind are told, how long each, and from how many on a folder stands for them.
SHOWN, MAX_NAME, FOLDED = 20, 120, 10

# path -> its kind (f, d, l, o; n: a folder of noise), and what changes with its content
Snapshot = dict[bytes, tuple[bytes, bytes]]


# created, modified, removed, each with names
Changed = dict[str, list[str]]


async def snapshot(cave: Cave, folder: str) -> Snapshot:
    """What stands below a folder now. Raises NotFound, TimedOut, LimitExceeded."""
    try:
        with anyio.fail_after(SNAPSHOT_S):
            _, data = await cave.collect("snapshot", {"path": folder}, limit_bytes=MAX_SNAPSHOT)
    except TimeoutError:
        raise TimedOut(
            f"{folder[:200]} is too large to compare", hint="Leave changes out, or set cwd."
        ) from None
    found: Snapshot = {}
    for record in data.split(b"\0"):
        kind, _, rest = record.partition(b" ")
        *state, path = rest.split(b" ", 3)
        if len(state) == 3:
            # A folder changes with each name in it, which is told of by itself.
            found[path] = (kind, b"" if kind == b"d" else b" ".join(state))
    return found


def compare(before: Snapshot, after: Snapshot) -> Changed:
    """The difference: names by ``created``, ``modified``, ``removed``; the last one may say how many more."""
    found = {
        "created": _folded([path for path in after if path not in before], after),
        "modified": [
            _name(path, after)
            for path, state in after.items()
            if path in before and before[path] != state
        ],
        "removed": _folded([path for path in before if path not in after], before),
    }
    return {key: _bounded(names) for key, names in found.items() if names}


def describe(changed: Changed) -> str:
    """One line for a reader; that nothing changed is said too."""
    return "; ".join(f"{key}: {', '.join(names)}" for key, names in changed.items()) or (
        "no file changed"
    )


def _bounded(names: list[str]) -> list[str]:
    return names if len(names) <= SHOWN else [*names[:SHOWN], f"and {len(names) - SHOWN} more"]


def _folded(paths: list[bytes], snapshot: Snapshot) -> list[str]:
    """Names in the order of the walk; a folder that holds many stands for all in it."""
    groups: list[list[bytes]] = []
    for path in paths:
        if groups and path.startswith(groups[-1][0] + b"/"):
            groups[-1].append(path)
        else:
            groups.append([path])
    names = []
    for group in groups:
        if len(group) > FOLDED:
            names.append(f"{_name(group[0], snapshot)} ({len(group) - 1} entries)")
        else:
            names += [_name(path, snapshot) for path in group]
    return names


def _name(path: bytes, snapshot: Snapshot) -> str:
    name = clean(path.decode("utf-8", "replace"), MAX_NAME)
    return name + "/" if snapshot[path][0] in (b"d", b"n") else name
