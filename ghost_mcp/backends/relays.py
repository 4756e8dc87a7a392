"""The beginning of a relay: a program that an engine runs in a cave, to carry a link to the cave's warden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from ghost_mcp.errors import CaveGone

__all__ = ["begun"]

READY_S = 20.0


class Relay(Protocol):
    """Its input and output as a stream of bytes."""

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error, for an error message."""

    async def begin(self) -> None:
        """Wait for the first output. Raises EndOfStream when there is none."""

    async def aclose(self) -> None:
        """Close it, with the program."""


@asynccontextmanager
async def begun(relay: Relay) -> AsyncIterator[None]:
    """The warden has answered through the relay; what else the block looks at has the rest of READY_S.

    Raises CaveGone when it does not; the relay is closed when anything is raised.
    """
    try:
        with anyio.fail_after(READY_S):
            await relay.begin()
            yield
    except BaseException as exc:
        with anyio.CancelScope(shield=True):
            await relay.aclose()
        if isinstance(exc, TimeoutError | anyio.EndOfStream | anyio.BrokenResourceError):
            raise CaveGone(f"no warden answers: {relay.last_words}") from exc
        raise
