# A full name is one cave's: whoever makes the record of that name first has it, on any hub.
"""The record of a cave: the object that has its name, and says whether it was stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.finding import core
from ghost_mcp.errors import CaveNotFound, Conflict

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.finding import Finder
    from ghost_mcp.backends.kubernetes.settings import Settings
    from ghost_mcp.spec import CaveSpec

__all__ = ["Records"]

TRIES = 3


class Records:
    """What is written of caves in a cluster; ``Finder`` reads it."""

    def __init__(self, cluster: Cluster, finder: Finder, config: Settings) -> None:
        self._cluster, self._finder, self._config = cluster, finder, config

    async def reserve(self, spec: CaveSpec, pod: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take the full name, for as long as ``pod`` is there. Raises Conflict when a cave has it."""
        space = self._config.namespace_of(spec.owner)
        owned_by = None
        if pod is not None:
            meta = pod["metadata"]
            owned_by = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        record = manifests.record(spec, self._config.instance, time.time(), owned_by)
        for _ in range(TRIES):
            try:
                return await self._cluster.ask("POST", f"{core(space)}/configmaps", record)
            except Conflict:
                if not await self._is_stale(space, spec.full_name):
                    raise Conflict(
                        f"a cave named {spec.name} is already there",
                        hint=f"Choose another name, or: ghost destroy {spec.full_name}",
                    ) from None
        raise Conflict(f"the name {spec.name} is being taken by others")

    async def _is_stale(self, space: str, full_name: str) -> bool:
        """Whether nothing is left of the ephemeral cave that has the name; then its record goes."""
        name = manifests.record_name(full_name)
        with suppress(CaveNotFound):
            found = await self._cluster.ask("GET", f"{core(space)}/configmaps/{name}")
            marks = found["metadata"]
            if not marks.get("ownerReferences"):
                return False
            owner = marks["ownerReferences"][0]
            with suppress(CaveNotFound):
                pod = await self._cluster.ask("GET", f"{core(space)}/pods/{owner['name']}")
                if pod["metadata"]["uid"] == owner["uid"] and reading.runs(pod) is not False:
                    return False
            await self._finder.delete(space, "configmaps", name, marks["uid"])
        return True

    async def mark(self, record: Mapping[str, Any], *, stopped: bool) -> dict[str, Any]:
        """Write down whether it was stopped; the record as it is then."""
        meta = record["metadata"]
        path = f"{core(meta['namespace'])}/configmaps/{meta['name']}"
        marks = {manifests.STOPPED: "true" if stopped else None}
        return await self._cluster.ask("PATCH", path, {"metadata": {"annotations": marks}})
