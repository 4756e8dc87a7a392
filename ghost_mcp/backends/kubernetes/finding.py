# Only this file asks the cluster which caves there are.
"""Records and pods: how a cave is found by id, by full name, and all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.manifests import ID, INSTANCE, SPEC
from ghost_mcp.errors import CaveNotFound, Conflict, InvalidArgument
from ghost_mcp.spec import CaveInfo, CaveSpec, check_full_name, is_id

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["Finder", "Found", "core"]

NOW = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}


@dataclass(frozen=True, slots=True)
class Found:
    """A cave, its record, and its newest pod, if it has one."""

    record: dict[str, Any]
    pod: dict[str, Any] | None
    info: CaveInfo

    @property
    def space(self) -> str:
        return str(self.record["metadata"]["namespace"])


class Finder:
    """The caves of one instance, as the API server tells."""

    def __init__(self, cluster: Cluster, config: Settings) -> None:
        self._cluster, self._config = cluster, config

    def everywhere(self, kind: str) -> str:
        """The path that lists objects of a kind wherever our caves are."""
        if self._config.shared:
            return f"{core(self._config.namespace)}/{kind}"
        return f"/api/v1/{kind}"

    async def every(self, kind: str, **labels: str) -> list[dict[str, Any]]:
        """All objects of a kind that are ours and have these labels."""
        query = manifests.selector(self._config.instance, **labels)
        return await self._cluster.pages(self.everywhere(kind), query)

    async def record(self, ref: str, owner: str | None = None) -> dict[str, Any] | None:
        """The record of a cave by id (its owner may be known) or by full name."""
        if is_id(ref):
            path = self.everywhere("configmaps")
            if owner is not None:
                path = f"{core(self._config.namespace_of(owner))}/configmaps"
            query = manifests.selector(self._config.instance, id=ref)
            if found := await self._cluster.pages(path, query):
                return found[0]
        return await self._named(ref)

    async def _named(self, full_name: str) -> dict[str, Any] | None:
        if not _is_full_name(full_name):
            return None
        space = self._config.namespace_of(full_name.rpartition("/")[0])
        path = f"{core(space)}/configmaps/{manifests.record_name(full_name)}"
        with suppress(CaveNotFound):
            found = await self._cluster.ask("GET", path)
            labels = found["metadata"].get("labels") or {}
            return found if labels.get(INSTANCE) == self._config.instance else None
        return None

    async def pod(self, space: str, cave_id: str) -> dict[str, Any] | None:
        """The newest pod of a cave; one that is going only when there is no other."""
        query = manifests.selector(self._config.instance, id=cave_id)
        found = await self._cluster.pages(f"{core(space)}/pods", query)
        return max(found, key=_newest, default=None)

    async def find(self, ref: str) -> Found | None:
        """The cave of an id or full name; None when there is none, or when it is being made or removed."""
        record = await self.record(ref)
        if record is None:
            return None
        meta = record["metadata"]
        pod = await self.pod(meta["namespace"], meta["labels"][ID])
        info = reading.info_of(record, pod, self._config)
        return None if info is None else Found(record, pod, info)

    async def all(self, owner: str | None = None) -> list[CaveInfo]:
        """Every cave there is, or of one owner, also those that have ended."""
        whose = {} if owner is None else {"owner": owner}
        records, listed = await asyncio.gather(
            self.every("configmaps", **whose), self.every("pods", **whose)
        )
        pods: dict[str, dict[str, Any]] = {}
        for pod in sorted(listed, key=_newest):
            pods[pod["metadata"]["labels"].get(ID, "")] = pod
        known = (
            reading.info_of(record, pods.get(record["metadata"]["labels"][ID]), self._config)
            for record in records
        )
        return [info for info in known if info is not None]

    async def names(self, most: int) -> list[str]:
        """The full names of some caves, for a hint: one request, however many there are."""
        query = {**manifests.selector(self._config.instance), "limit": str(most)}
        found = await self._cluster.ask("GET", self.everywhere("configmaps"), query=query)
        specs = [json.loads(one["metadata"]["annotations"][SPEC]) for one in found["items"]]
        return [CaveSpec.from_dict(spec).full_name for spec in specs]

    async def delete(self, space: str, kind: str, name: str, uid: str | None = None) -> None:
        """Remove an object now, if it is there: with ``uid`` only that one, not a later one of the same name."""
        await self.remove(f"{core(space)}/{kind}", {"name": name, "uid": uid})

    async def remove(self, path: str, meta: Mapping[str, Any]) -> None:
        """As delete(), below a path of any kind."""
        uid = meta.get("uid")
        body = NOW if uid is None else {**NOW, "preconditions": {"uid": uid}}
        with suppress(CaveNotFound, Conflict):
            await self._cluster.ask("DELETE", f"{path}/{meta['name']}", body)


def core(space: str) -> str:
    """The path of a namespace's objects."""
    return f"/api/v1/namespaces/{space}"


def _is_full_name(ref: str) -> bool:
    try:
        check_full_name(ref)
    except InvalidArgument:
        return False
    return True


def _newest(pod: dict[str, Any]) -> tuple[bool, str, str]:
    meta = pod["metadata"]
    return "deletionTimestamp" not in meta, meta["creationTimestamp"], meta["name"]
