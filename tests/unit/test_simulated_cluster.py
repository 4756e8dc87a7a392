"""The simulation that SCALING.md speaks of, in short: it runs, and holds the backend to its bounds."""

from __future__ import annotations

from tests.bench.cluster import simulate


async def test_many_hubs_on_one_simulated_cluster() -> None:
    result = await simulate(200, 5)
    assert result.calls_per_cave <= 6
    assert (result.race_won, result.race_conflicts) == (1, 4)
    # One watch for each hub, whatever it has; nothing is asked about a pod that the watch tells.
    assert result.requests["WATCH pods"] == 5
    assert result.requests["POST pods"] == result.requests["POST configmaps"] == 205
    assert result.table_bytes_per_hub / (200 / 5) < 10_000
