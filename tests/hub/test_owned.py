"""How many caves an owner has, counted on an engine that takes its time."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import anyio.lowlevel
import pytest

from ghost_hub.owned import OwnerCaves
from ghost_mcp import CaveInfo, CaveSpec, Ghost
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.errors import QuotaExceeded
from ghost_mcp.places import Places

MOST = 2


class Slow(FakeBackend):
    """Lists nothing of what is being made, as a cluster does, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_go_on = 0, anyio.Event()

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        self.begun += 1
        await self.may_go_on.wait()
        return await super().create(spec, secrets=secrets)


async def test_t5_caves_that_are_just_being_made_count() -> None:
    backend = Slow()
    async with Ghost(backend=backend) as ghost, Places(ghost) as places:
        owned = OwnerCaves(places, "many", most=MOST, idle_timeout_s=None)
        async with anyio.create_task_group() as tasks:
            for _ in range(MOST):
                tasks.start_soon(owned.create, CaveSpec(ephemeral=True))
            with anyio.fail_after(30):
                while backend.begun < MOST:
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(QuotaExceeded):
                    await owned.create(CaveSpec(ephemeral=True))
            backend.may_go_on.set()
        assert len(await owned.list()) == MOST
        with pytest.raises(QuotaExceeded):
            await owned.create(CaveSpec(ephemeral=True))
        await ghost.destroy((await owned.list())[0].id)
        await owned.create(CaveSpec(ephemeral=True))
