"""``ghost create --vnc --code-server --jupyter``: what is started, and what the image lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ghost_mcp.cave import Cave
    from ghost_mcp.cli.output import Output

__all__ = ["started", "tell", "wanted"]

FLAGS = {"vnc": "vnc", "code_server": "code-server", "jupyter": "jupyter"}


def wanted(options: argparse.Namespace) -> list[str]:
    """The services that were asked for."""
    return [name for flag, name in FLAGS.items() if getattr(options, flag)]


async def started(cave: Cave, name: str) -> dict[str, Any]:
    """Start one; a cave that lacks it is made all the same, and the way out is told."""
    try:
        return (await cave.service(name).start()).as_dict()
    except GhostError as exc:
        return {"name": name, "state": "missing", "error": exc.as_dict()}


def tell(told: Sequence[dict[str, Any]], out: Output) -> None:
    for one in told:
        error = one.get("error")
        if error is None:
            out.line(f"  {one['name']}: {one['state']}")
        else:
            out.note(f"  {one['name']}: {error['message']}\n    {error['hint']}")
