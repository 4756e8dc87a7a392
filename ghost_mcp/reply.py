# Handlers answer with a Reply; only adapters know MCP, HTTP or a terminal.
"""What a tool answers: short text, structured data, pictures, and handles for what is too large to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXCERPT_CHARS", "MAX_TEXT_CHARS", "Handle", "Picture", "Reply", "clip", "size_text"]

MAX_TEXT_CHARS = 8_000
# What one excerpt of a large output may take: it stands in the text and in the structured data.
EXCERPT_CHARS = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image for the model: encoded bytes and their media type."""

    data: bytes
    mime_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """A way back to what is too large to show: a resource that can be read by range and searched."""

    uri: str
    name: str
    size_bytes: int
    mime_type: str = "text/plain"


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer. ``data`` is the structured result of the tool's schema; ``text`` says the same to a reader."""

    text: str
    data: dict[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)


def clip(text: str, limit: int = EXCERPT_CHARS) -> tuple[str, bool]:
    """Head and tail of a text around a line that says how much is missing; and whether anything is."""
    if len(text) <= limit:
        return text, False
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}", True


def size_text(count: int) -> str:
    """``1.5 MiB``: bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
