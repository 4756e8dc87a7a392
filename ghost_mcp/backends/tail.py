"""Reading a log file that is still being written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["tail"]

PAUSE_S = 0.2
PIECE = 1 << 16


async def tail(path: Path, live: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The file from its beginning, in pieces, and what is added to it for as long as ``live()``."""
    offset = 0
    while True:
        more = live()  # asked before reading: what was written until then is read
        while piece := _piece(path, offset):  # nothing is open meanwhile: who reads may just stop
            offset += len(piece)
            yield piece
        if not more:
            return
        await anyio.sleep(PAUSE_S)


def _piece(path: Path, offset: int) -> bytes:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        return file.read(PIECE)
    return b""
