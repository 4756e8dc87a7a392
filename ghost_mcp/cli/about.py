"""``ghost version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_mcp import __version__

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli.output import Output

__all__ = ["version"]


def version(options: argparse.Namespace, out: Output) -> int:
    if out.json:
        import platform

        python, machine = platform.python_version(), platform.machine()
        out.document({"version": __version__, "python": python, "platform": machine})
    else:
        out.line(f"ghost {__version__}")
    return 0
