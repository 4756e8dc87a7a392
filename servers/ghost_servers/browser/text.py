# Text of a page, of its URL, of the browser's log is hostile. Only this file makes it fit to be shown.
"""Bounded lines of printable text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["bounded", "clean"]

# Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def clean(text: object, limit: int) -> str:
    """The text as one line of at most ``limit`` characters, without characters that hide or reorder others."""
    raw = str(text)[: 4 * limit]
    if not raw.isascii() or not raw.isprintable():
        raw = "".join(" " if unicodedata.category(c) in _HIDDEN else c for c in raw)
    raw = " ".join(raw.split())
    return raw if len(raw) <= limit else f"{raw[: limit - 1]}…"


def bounded(lines: Sequence[str], limit: int, what: str = "more") -> list[str]:
    """As many of the lines as have ``limit`` characters together; the last one says how many are left out."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line) + 1
        if size > limit:
            return [*lines[:number], f"[{len(lines) - number} {what}]"]
    return list(lines)
