"""Resources that somebody wants to have again: made once, closed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio

__all__ = ["Keep"]

_T = TypeVar("_T")
CLOSE_S = 2.0


class Keep:
    """Resources by name, each made once and closed in reverse order."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def get(self, name: str, make: Callable[[], _T]) -> _T:
        """The resource of that name, made by ``make()`` on first use. It has an ``aclose()``."""
        if name not in self._made:
            self._made[name] = make()
        made: _T = self._made[name]
        return made

    async def aclose(self) -> None:
        """Close all, also when one fails. One that does not close in CLOSE_S is left: its cave ends anyway."""
        if not self._made:
            return
        _, made = self._made.popitem()
        try:
            with anyio.move_on_after(CLOSE_S):
                await made.aclose()
        finally:
            await self.aclose()
