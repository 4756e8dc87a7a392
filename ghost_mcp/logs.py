# Only this file says what a line of the log looks like. Names and words that others chose are in many of them.
"""The log of a program of Ghost's: on standard error, from warnings on."""

from __future__ import annotations

import logging
import sys

from ghost_mcp.plain import plain

__all__ = ["Lines", "to_stderr"]


class Lines(logging.Formatter):
    """Nothing in a record steers a terminal, and none of its further lines looks like the first of another."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record)).replace("\n", "\n  ")


def to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("ghost: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
