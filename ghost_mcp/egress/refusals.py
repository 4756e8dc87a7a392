"""What a cave was refused during a call, told with the call's outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.errors import GhostError
    from ghost_mcp.reply import Reply

__all__ = ["askable", "granted", "refused_since", "rule_for", "told"]

MAX_TOLD = 5
NEVER, NOT_PUBLIC = "never", "not public"  # rules that no name on a list changes
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


def rule_for(target: str) -> str:
    """The shortest rule that allows a target ``HOST:PORT``."""
    host, _, port = target.rpartition(":")
    return host if port in ("80", "443") else target


def askable(refused: list[dict[str, str]]) -> list[str]:
    """The rules that a person may be asked for. Not what leads to the host or its networks: see ``ghost allow``."""
    return [rule_for(one["blocked"]) for one in refused if one["rule"] not in (NEVER, NOT_PUBLIC)]


def granted(outcome: Reply | GhostError, rules: list[str], for_s: float) -> None:
    """Add to an outcome what the person allowed: as ``allowed`` to its data, as a line to its text or hint."""
    if not rules:
        return
    line = f"Allowed by the user for {for_s / 60:g} minutes: {', '.join(rules)}. Try again."
    if isinstance(outcome, Exception):
        outcome.data = {**outcome.data, "allowed": rules}
        outcome.hint = f"{outcome.hint}\n{line}".strip()
    else:
        outcome.data["allowed"] = rules
        outcome.text = f"{outcome.text}\n{line}"
