"""The program that ends a project's side services when its hub cannot: the hub's end of it."""

from __future__ import annotations

import gc

from ghost_mcp.backends.compose.janitor import Janitor


async def test_one_that_has_died_leaves_nothing_when_the_next_takes_its_place() -> None:
    janitor = Janitor("ghost-test-janitor")
    try:
        await janitor.watch("a")
        first = janitor._process
        assert first is not None
        first.kill()
        first.wait()
        await janitor.watch("b")
        assert janitor._process is not first
        del first
        gc.collect()  # a pipe that is still open says so now
    finally:
        await janitor.aclose()
