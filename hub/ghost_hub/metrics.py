# Labels come from fixed sets only: no caller can make a time series.
"""What Prometheus reads at /metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ghost_mcp import __version__
from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    from ghost_mcp.calls import Answer, Asked, Run

__all__ = ["Metrics"]

BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120)


class Metrics:
    """A layer around calls that counts them."""

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "ghost_calls",
            "Tool calls by how they ended.",
            ["tool", "outcome"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "ghost_call_seconds",
            "How long tool calls took.",
            ["tool"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._running = Gauge(
            "ghost_calls_running", "Tool calls under way.", registry=self._registry
        )
        Gauge("ghost_info", "Which Ghost this is.", ["version"], registry=self._registry).labels(
            __version__
        ).set(1)

    async def __call__(self, run: Run, asked: Asked) -> Answer:
        began = time.perf_counter()
        outcome = "cancelled"
        self._running.inc()
        try:
            done = await run(asked)
            outcome = done.outcome.code if isinstance(done.outcome, GhostError) else "ok"
            return done
        finally:
            self._running.dec()
            calls, seconds = self._of(asked.name, outcome)
            calls.inc()
            seconds.observe(time.perf_counter() - began)

    def _of(self, tool: str, outcome: str) -> tuple[Counter, Histogram]:
        """The two series of a call. To look one up by its labels takes a lock and a sort."""
        found = self._series.get((tool, outcome))
        if found is None:
            found = self._calls.labels(tool, outcome), self._seconds.labels(tool)
            self._series[tool, outcome] = found
        return found

    def text(self) -> bytes:
        return generate_latest(self._registry)
