# A claim is one patch that tests before it changes: whatever else two hubs do, one pod becomes one cave.
"""Pods that wait in a pool: what makes them alike, and how they are made, claimed and removed."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.finding import core
from ghost_mcp.backends.kubernetes.manifests import (
    ID,
    LATER_S,
    MAKER,
    NAME,
    OWNER,
    POOL,
    SPARE_S,
    TAKEN,
)
from ghost_mcp.errors import CaveNotFound, Conflict, InvalidArgument, Unsupported
from ghost_mcp.spec import CaveSpec

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.finding import Finder
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["Spares", "pod_of", "shape", "template"]

Patch = list[dict[str, Any]]


class Spares:
    """The pods of one instance that wait, for the hub ``maker``."""

    def __init__(self, cluster: Cluster, finder: Finder, config: Settings, maker: str) -> None:
        self._cluster, self._finder, self._config, self._maker = cluster, finder, config, maker

    @property
    def _pods(self) -> str:
        return f"{core(self._config.namespace)}/pods"

    def template(self, like: CaveSpec) -> CaveSpec:
        """A nameless cave of the shape of ``like``. Raises Unsupported, InvalidArgument."""
        if not self._config.shared:
            raise Unsupported(
                "a pod cannot move to an owner's namespace: no pool",
                hint="Set a namespace without {owner} in the Kubernetes settings.",
            )
        spec = template(like, self._config)
        manifests.check(spec, self._config)
        return spec

    async def make(self, spec: CaveSpec) -> dict[str, Any]:
        """Ask for a pod that can become a cave like ``spec``; ``spec.id`` is its id until then."""
        return await self._cluster.ask("POST", self._pods, pod_of(spec, self._config, self._maker))

    async def take(self, spare_id: str, spec: CaveSpec) -> dict[str, Any]:
        """The pod, as the one of ``spec`` from now on. Raises CaveNotFound when it is another's, or has ended."""
        name = f"ghost-{spare_id}"
        found = await self._patch(name, _claiming(spec, self._config, self._maker))
        if found is not None and reading.runs(found):
            return found
        if found is not None:
            await self.remove(name)
        raise CaveNotFound(f"the prepared cave {spare_id} is gone")

    async def put_back(self, spare_id: str, spec: CaveSpec) -> None:
        """Undo take(): the pod waits again, or is removed when it cannot."""
        name = f"ghost-{spare_id}"
        # A deadline that the cluster has been given stays.
        if spec.timeout_s is not None or not await self._patch(
            name, _unclaiming(spec, self._config, spare_id)
        ):
            await self.remove(name)

    async def retire(self, name: str, pool: str) -> None:
        """Remove a pod that waits. One that is claimed meanwhile stays."""
        if await self._patch(name, _exchange(pool, TAKEN)) is not None:
            await self.remove(name)

    async def remove(self, name: str) -> None:
        await self._finder.delete(self._config.namespace, "pods", name)

    async def _patch(self, name: str, patch: Patch) -> dict[str, Any] | None:
        """The pod after the patch; None when it was not as the patch expects."""
        with suppress(InvalidArgument, CaveNotFound, Conflict):
            return await self._cluster.ask("PATCH", f"{self._pods}/{name}", patch)
        return None


def template(like: CaveSpec, settings: Settings) -> CaveSpec:
    """A nameless cave of the shape of ``like``."""
    return CaveSpec(
        backend="kubernetes",
        image=like.image or settings.image,
        limits=like.limits,
        network=like.network,
        ephemeral=True,
    )


def shape(spec: CaveSpec, settings: Settings) -> str:
    """What pods have in common that can stand in for each other: image, limits, network, settings, warden."""
    made = manifests.pod(template(spec, settings), settings, name="", maker="", pool="")
    seen = json.dumps([settings.instance, made["spec"], repr(spec.network)], sort_keys=True)
    return hashlib.sha256(seen.encode()).hexdigest()[:16]


def pod_of(spec: CaveSpec, settings: Settings, maker: str) -> dict[str, Any]:
    """A pod that waits to become a cave."""
    pool = shape(spec, settings)
    return manifests.pod(spec, settings, name=f"ghost-{spec.id}", maker=maker, pool=pool)


def _claiming(spec: CaveSpec, settings: Settings, maker: str) -> Patch:
    """What makes a waiting pod this cave's, if it still waits: of several such patches one succeeds."""
    given = {MAKER: maker, **manifests.labels_of(spec, settings.instance)}
    patch = _exchange(shape(spec, settings), TAKEN)
    patch += [{"op": "add", "path": _label(key), "value": value} for key, value in given.items()]
    if spec.timeout_s is not None:  # the cluster counts from the pod's start, which was earlier
        most = math.ceil(spec.timeout_s) + SPARE_S + LATER_S
        patch.append({"op": "add", "path": "/spec/activeDeadlineSeconds", "value": most})
    return patch


def _unclaiming(spec: CaveSpec, settings: Settings, spare_id: str) -> Patch:
    """The way back, for a pod whose warden nobody has configured, and that got no deadline: that stays."""
    patch = _exchange(TAKEN, shape(spec, settings))
    patch.append({"op": "replace", "path": _label(ID), "value": spare_id})
    return patch + [{"op": "remove", "path": _label(key)} for key in (OWNER, NAME)]


def _exchange(before: str, after: str) -> Patch:
    return [
        {"op": "test", "path": _label(POOL), "value": before},
        {"op": "replace", "path": _label(POOL), "value": after},
    ]


def _label(key: str) -> str:
    return "/metadata/labels/" + key.replace("~", "~0").replace("/", "~1")
