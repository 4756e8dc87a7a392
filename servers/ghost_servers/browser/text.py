# Text of a page, of its URL, of the browser's log is hostile. Only this file makes it fit to be shown.
"""One bounded line of printable text."""

from __future__ import annotations

import unicodedata

__all__ = ["clean"]

# Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def clean(text: object, limit: int) -> str:
    """The text as one line of at most ``limit`` characters, without characters that hide or reorder others."""
    raw = str(text)[: 4 * limit]
    if not raw.isascii() or not raw.isprintable():
        raw = "".join(" " if unicodedata.category(c) in _HIDDEN else c for c in raw)
    raw = " ".join(raw.split())
    return raw if len(raw) <= limit else f"{raw[: limit - 1]}…"
