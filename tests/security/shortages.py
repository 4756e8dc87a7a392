"""What a hub's own process runs out of, on any backend: it says so, what it has goes on, and so does it afterwards."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.errors import BackendUnavailable
from tests.security.lives import answers

__all__ = ["no_more_files", "without_files"]


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open nothing during the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as next_free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free.fileno(), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def without_files(ghost: Ghost) -> None:
    """No cave is made without descriptors, by its name; one that was there answers; then others are made."""
    cave = await ghost.create(CaveSpec(ephemeral=True))
    assert await answers(cave)
    with no_more_files():
        with pytest.raises(BackendUnavailable, match="Too many open files"):
            await ghost.create(CaveSpec(ephemeral=True))
        assert await answers(cave)
    assert await answers(await ghost.create(CaveSpec(ephemeral=True)))
