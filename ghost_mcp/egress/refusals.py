"""What a cave was refused during a call, told with the call's outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.errors import GhostError
    from ghost_mcp.reply import Reply

__all__ = ["refused_since", "told"]

MAX_TOLD = 5
_FIELDS = ("blocked", "rule", "why", "how_to_allow")


def refused_since(cave: Cave, began: float) -> list[dict[str, str]]:
    """``{blocked, rule, why, how_to_allow}`` of each target refused since then, each once, a few at most."""
    steps = cave.connections(since=began)
    refused = {step["blocked"]: step for step in steps if step["event"] == "refused"}
    return [{name: step[name] for name in _FIELDS} for step in list(refused.values())[:MAX_TOLD]]


def told(outcome: Reply | GhostError, refused: list[dict[str, str]]) -> None:
    """Add refusals to an outcome: as ``blocked`` to its data, as lines to its text or hint."""
    data: dict[str, Any] = {"blocked": refused}
    lines = [f"Blocked: {one['blocked']}: {one['why']}. {one['how_to_allow']}" for one in refused]
    if isinstance(outcome, Exception):
        outcome.data = {**outcome.data, **data}
        outcome.hint = "\n".join([outcome.hint, *lines]).strip()
    else:
        outcome.data.update(data)
        outcome.text = "\n".join([outcome.text, *lines])
