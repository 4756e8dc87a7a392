# What is kept of calls is bounded and masked here, before anybody is shown it; an owner sees its own calls only.
"""The last calls of each owner: what was asked, what came of it, and the pictures."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import GhostError
from ghost_mcp.reply import Picture, clip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.reply import Reply
    from ghost_mcp.secrets.masker import Masker

__all__ = ["Feed", "shown_arguments", "shown_outcome"]

CALLS = 200
PICTURES = 16
PICTURE_BYTES = 1 << 20
# Served under the hub's own address: nothing but what a browser takes for a picture and never runs.
KINDS = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
VALUE_CHARS, ARGUMENTS, DEPTH = 2_000, 32, 4
TEXT_CHARS = 4_000


class Feed:
    """One owner's. Pictures are fewer than calls: they are large."""

    def __init__(self) -> None:
        self.calls: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._pictures: deque[tuple[str, int, Picture]] = deque(maxlen=PICTURES)

    def put(self, call: Mapping[str, Any]) -> None:
        """Keep what is known of a call by now."""
        self.calls[call["id"]] = {**call}
        while len(self.calls) > CALLS:
            self.calls.popitem(last=False)

    def keep(self, call_id: str, outcome: Reply | GhostError | None) -> int:
        """Keep the pictures of an outcome; how many they are."""
        pictures = [] if outcome is None or isinstance(outcome, GhostError) else outcome.pictures
        kept = [p for p in pictures if p.mime_type in KINDS and len(p.data) <= PICTURE_BYTES]
        for number, picture in enumerate(kept[:PICTURES]):
            self._pictures.append((call_id, number, picture))
        return len(kept[:PICTURES])

    def picture(self, call_id: str, number: int) -> Picture | None:
        return next((p for c, n, p in self._pictures if c == call_id and n == number), None)


def shown_arguments(arguments: Mapping[str, Any], masker: Masker | None) -> Any:
    """What was asked, each value cut to a length, after masking: half a secret would not be known as one."""
    return _bounded(arguments if masker is None else masker.value(dict(arguments)), DEPTH)


def _bounded(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return clip(value, VALUE_CHARS)[0]
    if isinstance(value, dict):
        if not depth:
            return "..."
        few = list(value.items())[:ARGUMENTS]
        return {str(key)[:100]: _bounded(one, depth - 1) for key, one in few}
    if isinstance(value, list | tuple):
        return [_bounded(one, depth - 1) for one in value[:ARGUMENTS]] if depth else "..."
    if isinstance(value, bool | float | None):
        return value
    return value if isinstance(value, int) and abs(value) < 1 << 53 else str(value)[:100]


def shown_outcome(outcome: Reply | GhostError | None) -> dict[str, Any]:
    """How a call ended; None is a cancelled one. What it says has been masked by ``Calls``."""
    if outcome is None:
        return {"outcome": "cancelled", "text": ""}
    if isinstance(outcome, GhostError):
        text = f"{outcome.message}\n{outcome.hint}".strip()
        return {"outcome": outcome.code, "text": clip(text, TEXT_CHARS)[0]}
    return {"outcome": "ok", "text": clip(outcome.text, TEXT_CHARS)[0]}
