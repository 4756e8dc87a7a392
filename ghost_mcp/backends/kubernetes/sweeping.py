# What is made is in the cluster before its record is: only what is old enough to have one is left over.
"""Objects of ours that no cave needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.lease import LEASES
from ghost_mcp.backends.kubernetes.manifests import ID, POOL, TAKEN

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.finding import Finder
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["MAKING_S", "leftovers", "made_s"]

MAKING_S = 120.0  # from a cave's first object to its record
UNUSED_S = 3600.0
KINDS = ("pods", "persistentvolumeclaims")

Thing = dict[str, Any]


async def leftovers(
    cluster: Cluster, finder: Finder, config: Settings, *, remove: bool, making_s: float
) -> list[str]:
    """What there is of caves that are gone or were never finished, as ``KIND/NAME``; Secrets and policies of
    their own caves do not have."""
    there = {kind: await finder.every(kind) for kind in KINDS}
    # Asked for last: what has a record by now is no leftover, however old it is.
    caves = {one["metadata"]["labels"][ID] for one in await finder.every("configmaps")}
    found: list[str] = []
    for kind in KINDS:
        for one in _lost(kind, there[kind], caves, cluster.now_s() - making_s):
            meta = one["metadata"]
            found.append(f"{kind}/{meta['name']}")
            if remove:
                await finder.delete(meta["namespace"], kind, meta["name"], meta["uid"])
    return found + await _leases(cluster, finder, config, remove=remove)


def _lost(kind: str, things: list[Thing], caves: set[str], before_s: float) -> Iterator[Thing]:
    for one in things:
        meta = one["metadata"]
        if meta["labels"].get(ID) in caves or "deletionTimestamp" in meta:
            continue
        waits = kind == "pods" and meta["labels"].get(POOL, TAKEN) != TAKEN
        over = kind == "pods" and reading.runs(one) is False
        if over or (not waits and made_s(one) <= before_s):
            yield one


async def _leases(cluster: Cluster, finder: Finder, config: Settings, *, remove: bool) -> list[str]:
    """Those of pools that no hub has any more."""
    if not config.shared:  # then there are no pools
        return []
    path = LEASES.format(config.namespace)
    found = []
    for one in await cluster.pages(path, manifests.selector(config.instance)):
        renewed = datetime.fromisoformat(one["spec"]["renewTime"]).timestamp()
        if cluster.now_s() - renewed > UNUSED_S:
            found.append(f"leases/{one['metadata']['name']}")
            if remove:
                await finder.remove(path, one["metadata"])
    return found


def made_s(thing: Thing) -> float:
    """When an object was made, by the cluster's clock: see Cluster.now_s."""
    return datetime.fromisoformat(thing["metadata"]["creationTimestamp"]).timestamp()
