# What the guard decides is told by these two, and by nothing else.
"""How a request ends before any route has seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

    from ghost_mcp.errors import GhostError

__all__ = ["Answered", "Refused"]


class Answered(Exception):
    """It is answered with ``answer``: a browser that came with a token, or a ticket, in its address."""

    def __init__(self, answer: Response) -> None:
        super().__init__("answered")
        self.answer = answer


class Refused(Exception):
    """It is refused. ``status`` is for one that the error does not know; ``wait_s`` is when to come again."""

    def __init__(self, error: GhostError, *, status: int | None = None, wait_s: float = 0) -> None:
        super().__init__(error.message)
        self.error, self.status, self.wait_s = error, status, wait_s
