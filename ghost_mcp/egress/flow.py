"""A connection's bytes, counted and bounded: for one cave all its connections together."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream

if TYPE_CHECKING:
    from ghost_mcp.spec import NetworkPolicy

__all__ = ["Counted", "Exhausted", "Meter"]

PIECE = 1 << 18
BURST_S = 0.25


class Exhausted(Exception):
    """The cave has moved as many bytes as it may."""

    def __init__(self) -> None:
        super().__init__("the cave has moved as many bytes as it may")


class Meter:
    """What one cave has moved through this process, and may move."""

    def __init__(self, network: NetworkPolicy) -> None:
        self._per_s = network.bytes_per_s
        self._left = network.total_bytes
        self._free_at = 0.0

    def spend(self, count: int) -> float:
        """Take note of bytes moved; returns the seconds to wait before more. Raises Exhausted."""
        if self._left is not None:
            self._left -= count
            if self._left < 0:
                raise Exhausted
        if self._per_s is None:
            return 0.0
        now = time.monotonic()
        self._free_at = max(self._free_at, now - BURST_S) + count / self._per_s
        return self._free_at - now


class Counted(ByteStream):
    """The far end of one connection. ``cut`` says why it was ended from here."""

    def __init__(self, stream: ByteStream, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter
        self._sent = self._received = 0
        self._began = self._moved_at = time.monotonic()
        self.cut = ""
        self._idle = anyio.CancelScope()
        self._idle_s = self._late_s = math.inf

    @contextmanager
    def idle_for(self, seconds: float) -> Iterator[None]:
        """End the block when nothing has moved for so long, and up to a tenth longer."""
        self._idle_s, self._late_s = seconds, seconds / 10
        with self._idle:
            self._put_off(time.monotonic())
            yield
        if self._idle.cancelled_caught:
            self.cut = f"nothing passed for {seconds:g} s"

    def _put_off(self, now: float) -> None:
        """Not at each movement: to set a deadline costs as much as to pass a piece on."""
        self._moved_at = now
        self._idle.deadline = anyio.current_time() + self._idle_s + self._late_s

    async def receive(self, max_bytes: int = PIECE) -> bytes:
        data = await self._stream.receive(max_bytes)
        self._received += len(data)
        await self._count(len(data))
        return data

    async def send(self, item: bytes) -> None:
        self._sent += len(item)
        await self._count(len(item))
        await self._stream.send(item)

    async def _count(self, count: int) -> None:
        now = time.monotonic()
        if now - self._moved_at > self._late_s:
            self._put_off(now)
        try:
            wait_s = self._meter.spend(count)
        except Exhausted as exc:
            self.cut = str(exc)
            raise
        if wait_s > 0:
            await anyio.sleep(wait_s)

    def summary(self) -> dict[str, Any]:
        """How it went, for the ledger."""
        return {
            "sent_bytes": self._sent,
            "received_bytes": self._received,
            "seconds": round(time.monotonic() - self._began, 3),
            "why": self.cut,
        }

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
