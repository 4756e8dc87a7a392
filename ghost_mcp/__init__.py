"""Ghost: an LLM agent gets a computer of its own, safely.

The names below are imported when first used, so that ``import ghost_mcp`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ghost_mcp._version import __version__

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave, FileContent
    from ghost_mcp.errors import GhostError
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.lifecycle import State
    from ghost_mcp.pool import PoolPlan
    from ghost_mcp.process import ExecResult, Process
    from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec, Limits, NetworkPolicy, Project, Usage

__all__ = [
    "Assurance",
    "Cave",
    "CaveInfo",
    "CaveSpec",
    "ExecResult",
    "FileContent",
    "Ghost",
    "GhostError",
    "Limits",
    "NetworkPolicy",
    "PoolPlan",
    "Process",
    "Project",
    "State",
    "Usage",
    "__version__",
]

_HOMES = {
    **dict.fromkeys(("Cave", "FileContent"), "cave"),
    **dict.fromkeys(("ExecResult", "Process"), "process"),
    **dict.fromkeys(
        ("Assurance", "CaveInfo", "CaveSpec", "Limits", "NetworkPolicy", "Project", "Usage"), "spec"
    ),
    "Ghost": "ghost",
    "GhostError": "errors",
    "PoolPlan": "pool",
    "State": "lifecycle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
