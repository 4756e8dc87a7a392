"""What becomes of objects, the pods that one hub made above all: one watch for them, however many wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import BackendUnavailable, GhostError

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.cluster import Cluster

__all__ = ["Watcher"]

PAUSE_S = 1.0


class Watcher:
    """The objects that ``query`` finds below ``path``, by name, as the last event told them: pods without ``spec``.

    ``run()`` goes on until cancelled. Whoever waits gets along with a watch that breaks: it begins anew.
    ``told`` is called after each change.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        query: Mapping[str, str],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._cluster = cluster
        self._told = told
        self._path, self._query = path, query
        self._seen: dict[str, dict[str, Any]] = {}
        self._changed = anyio.Event()
        self._started = anyio.Event()

    async def run(self) -> None:
        while True:
            try:
                version = await self._list()
                self._started.set()
                while True:
                    version = await self._watch(version)
            except GhostError:  # its version is too old, or the server restarts
                await anyio.sleep(PAUSE_S)

    async def _list(self) -> str:
        answer = await self._cluster.ask("GET", self._path, query=self._query)
        self._seen = {pod["metadata"]["name"]: _slim(pod) for pod in answer.get("items") or ()}
        self._tell()
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        query = {**self._query, "resourceVersion": version}
        async for kind, pod in self._cluster.watch(self._path, query):
            meta = pod.get("metadata") or {}
            version = str(meta.get("resourceVersion", version))
            if kind == "DELETED":
                self._seen.pop(meta["name"], None)
            elif kind != "BOOKMARK":
                self._seen[meta["name"]] = _slim(pod)
            self._tell()
        return version

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        self._told()

    async def started(self) -> None:
        """Wait until the watch stands, so that nothing made after this is missed. Raises BackendUnavailable."""
        with anyio.move_on_after(30):
            await self._started.wait()
            return
        raise BackendUnavailable("the cluster does not let Ghost watch its pods")

    async def change(self) -> None:
        """Wait until anything changes."""
        await self._changed.wait()

    def get(self, name: str) -> dict[str, Any] | None:
        """The object of that name as it was told last."""
        return self._seen.get(name)

    @property
    def all(self) -> Mapping[str, dict[str, Any]]:
        """All there are, by name."""
        return self._seen


def _slim(thing: dict[str, Any]) -> dict[str, Any]:
    """An object without what is not asked about it later: there may be thousands."""
    if "containers" in thing.get("spec", {}):
        del thing["spec"]
    thing["metadata"].pop("managedFields", None)
    return thing
