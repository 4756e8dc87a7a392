"""A client connected to the toolbox in memory, in each era of the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from mcp import Client

from ghost_mcp.places import Places, SessionCaves
from tests.hub import toolbox

if TYPE_CHECKING:
    from ghost_mcp import Ghost

ERAS = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=list(ERAS))
def era(request: pytest.FixtureRequest) -> str:
    """A protocol version."""
    return str(request.param)


@pytest.fixture
def connect(ghost: Ghost, era: str) -> Connect:
    """``async with connect() as client``: one connection to a server of the toolbox, over ``ghost``."""

    @asynccontextmanager
    async def connected(pinned: str | None = None) -> AsyncIterator[Client]:
        async with Places(ghost) as places, SessionCaves(places, pinned=pinned) as caves:
            server = toolbox.make(lambda _: caves)
            async with Client(server, mode=ERAS[era]) as client:
                assert client.protocol_version == era
                yield client

    return connected
