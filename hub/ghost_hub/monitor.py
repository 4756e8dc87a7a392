# A cave is asked what it uses only while somebody looks.
"""What the caves of an owner use, now and during the last hour.

One look of ``STEP_S`` costs what ``Cave.usage`` costs (local: some small files of /proc and /sys; docker: one request).
It goes on for ``LINGER_S`` after the last time anybody asked.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.calls import foreseen
from ghost_mcp.errors import GhostError
from ghost_mcp.lifecycle import State
from ghost_mcp.sampling import Series

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ghost_mcp.ghost import Ghost
    from ghost_mcp.spec import CaveInfo

__all__ = ["KEPT", "STEP_S", "Monitor"]

STEP_S = 5.0
KEPT = 720  # an hour
LINGER_S = 3600.0
CAVES = 256  # all owners together; the one that was sampled longest ago is forgotten first
ASK_S = 4.0
AT_ONCE = 8


class Monitor:
    """``run`` is the one task that samples; the rest reads what it has found."""

    def __init__(self, ghost: Ghost) -> None:
        self._ghost = ghost
        self._looked: dict[str, float] = {}
        self._series: OrderedDict[str, Series] = OrderedDict()
        self._wanted = anyio.Event()
        self._sampled = anyio.Event()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            now = time.monotonic()
            self._looked = {o: at for o, at in self._looked.items() if now - at < LINGER_S}
            if not self._looked:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            try:
                await self._look()
            except Exception as exc:  # noqa: BLE001 - one look less, and never the end of the hub
                foreseen(exc, "the monitor")
            self._sampled.set()
            self._sampled = anyio.Event()
            await anyio.sleep(STEP_S)

    def samples(self, info: CaveInfo, last: int = KEPT) -> list[dict[str, Any]]:
        """The last samples, oldest first; to ask is what makes them."""
        self._looked[info.spec.owner] = time.monotonic()
        self._wanted.set()
        series = self._series.get(info.id)
        return [] if series is None else [asdict(one) for one in list(series.samples)[-last:]]

    async def follow(self, info: CaveInfo) -> AsyncIterator[dict[str, Any]]:
        """Each new sample as it comes, beginning with the last one there is."""
        told = 0.0
        while True:
            sampled = self._sampled
            for one in self.samples(info, 1):
                if one["at"] > told:
                    told = one["at"]
                    yield one
            with anyio.move_on_after(STEP_S):
                await sampled.wait()

    async def _look(self) -> None:
        try:
            with anyio.fail_after(ASK_S):
                asked = list(self._looked)
                found = [info for owner in asked for info in await self._ghost.list(owner)]
        except (GhostError, TimeoutError):
            return
        there = {info.id for info in found}
        for gone in self._series.keys() - there:
            del self._series[gone]
        room = anyio.CapacityLimiter(AT_ONCE)
        live = [info for info in found if info.state is State.RUNNING]
        async with anyio.create_task_group() as tasks:
            for info in live[:CAVES]:
                tasks.start_soon(self._sample, info, room)

    async def _sample(self, info: CaveInfo, room: anyio.CapacityLimiter) -> None:
        series = self._series.get(info.id) or Series(KEPT)
        try:
            async with room:
                with anyio.fail_after(ASK_S):
                    await series.take(await self._ghost.get(info.id))
        except (GhostError, TimeoutError, OSError):  # it has gone, or its engine is busy: next time
            return
        self._series[info.id] = series
        self._series.move_to_end(info.id)
        while len(self._series) > CAVES:
            self._series.popitem(last=False)
