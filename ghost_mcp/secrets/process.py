# Only this file keeps what a process knows out of what is left of it when it crashes.
"""For programs that handle secrets; a library leaves its caller's process alone."""

from __future__ import annotations

import resource

__all__ = ["no_core_dump"]


def no_core_dump() -> None:
    """A crash of this process leaves no image of its memory, nor does one of what it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
