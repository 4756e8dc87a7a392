# What a cave, a page or a caller chose must not steer the terminal it is shown on, nor the log it is written to.
"""Text with its control characters made visible; no other module needs to be imported for it."""

from __future__ import annotations

__all__ = ["plain"]

_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
} | {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(text: str) -> str:
    """The text with control characters visible, and those that turn the direction in which text is read."""
    return text.translate(_CONTROLS)
