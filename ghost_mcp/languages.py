# Only this file knows how code in a language becomes a program.
"""The languages that ``Ghost.execute`` and ``ghost exec`` run code in."""

from __future__ import annotations

from typing import Literal

from ghost_mcp.errors import InvalidArgument

__all__ = ["Language", "program"]

Language = Literal["python", "bash", "javascript"]
MAX_CODE = 60_000  # it travels in the head of a frame, which is at most 64 KiB
_INTERPRETERS = {
    "python": ("python3", "-c"),
    "bash": ("bash", "-c"),
    "javascript": ("node", "-e"),
}


def program(code: str, language: str) -> list[str]:
    """The program and its arguments. Raises InvalidArgument."""
    if language not in _INTERPRETERS:
        raise InvalidArgument(
            f"unknown language: {language!r}", hint="Use python, bash or javascript."
        )
    if len(code.encode("utf-8", "surrogateescape")) > MAX_CODE:
        raise InvalidArgument(
            "the code is too long for one call", hint="Write it to a file and run that."
        )
    return [*_INTERPRETERS[language], code]
