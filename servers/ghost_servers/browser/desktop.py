# Only this file decides whether a cave's browser is a window that people see.
"""The cave's desktop, on which its browser is while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_mcp.spec import DESKTOP

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ghost_mcp.cave import Cave

__all__ = ["display", "until_open"]

_SERVICE = "vnc"


async def display(cave: Cave, stack: AsyncExitStack) -> dict[str, str]:
    """The variable that names the desktop, if it is wanted or runs; it is then held as long as the stack."""
    desktop = cave.service(_SERVICE)
    state = (await desktop.status()).state
    wanted = cave.info.spec.labels.get(DESKTOP) == desktop.name
    if state in ("missing", "failed") or (state == "stopped" and not wanted):
        return {}
    await stack.enter_async_context(desktop.using())
    return dict(desktop.declared.env)


async def until_open(cave: Cave) -> None:
    """Return when the desktop runs, which somebody else has started. Raises what the cave raises."""
    await cave.service(_SERVICE).until_ready()
