# A cave is never asked through its warden what it uses: to look at a cave is not to use it.
"""What a cave uses, look by look: see :class:`Series`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["Sample", "Series"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a cave used at a time. None: its backend cannot tell. Network: moved by connections that have closed."""

    at: float
    cpus: float | None
    memory_bytes: int | None
    pids: int | None
    disk_bytes: int | None
    sent_bytes: int
    received_bytes: int


class Series:
    """The last samples of one cave, ``kept`` at most, and what the next one is compared with."""

    def __init__(self, kept: int) -> None:
        self.samples: deque[Sample] = deque(maxlen=kept)
        self._cpu: tuple[float, float] | None = None
        self._sent = self._received = 0
        self._logged_to = 0.0

    async def take(self, cave: Cave) -> None:
        """Look once: what ``Cave.usage`` costs, and the lines its network has logged since. Raises what those raise."""
        usage = await cave.usage()
        if cave.info.spec.network.mode != "none":
            read = partial(cave.connections, since=self._logged_to)
            self._count(await anyio.to_thread.run_sync(read))
        at = time.time()
        self.samples.append(
            Sample(
                at=round(at, 3),
                cpus=self._cpus(at, usage.cpu_s),
                memory_bytes=usage.memory_bytes,
                pids=usage.pids,
                disk_bytes=usage.disk_bytes,
                sent_bytes=self._sent,
                received_bytes=self._received,
            )
        )

    def _cpus(self, at: float, cpu_s: float | None) -> float | None:
        """Processors in use since the last sample; None for the first, and after a restart."""
        before, self._cpu = self._cpu, None if cpu_s is None else (at, cpu_s)
        if before is None or cpu_s is None or cpu_s < before[1] or at <= before[0]:
            return None
        return round((cpu_s - before[1]) / (at - before[0]), 4)

    def _count(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["at"] > self._logged_to:
                self._logged_to = record["at"]
                if record.get("event") == "closed":
                    self._sent += record["sent_bytes"]
                    self._received += record["received_bytes"]
