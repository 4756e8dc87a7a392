# Only this file tells whether who began something in an engine can still finish it.
"""A process of this machine, as a label: what it has left half made need not wait until its time is over."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MAKER", "died", "this_process"]

MAKER = "ghost.maker"
_PROC = Path("/proc")


def this_process() -> str:
    """``BOOT/NAMESPACE/PID/START``: no process ever was or will be called the same. Empty where this system does
    not say."""
    try:
        pid = os.getpid()
        return f"{_seen_from()}/{pid}/{_started(pid)}"
    except (OSError, IndexError):
        return ""


def died(maker: str) -> bool:
    """Whether it is certain that this process has ended: only of one that can be seen from here."""
    try:
        *place, pid, started = maker.split("/")
        return "/".join(place) == _seen_from() and _started(int(pid)) != started
    except (FileNotFoundError, ProcessLookupError):
        return bool(maker)
    except (OSError, ValueError, IndexError):
        return False


def _seen_from() -> str:
    """This machine since its start, and the processes that are seen here."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.readlink(_PROC / 'self/ns/pid')}"


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks. Raises OSError; a dead one that is not yet reaped counts
    as gone."""
    fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    state, *rest = fields.rpartition(")")[2].split()
    if state in "ZX":
        raise ProcessLookupError(pid)
    return rest[18]
