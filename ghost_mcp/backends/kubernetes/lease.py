# A lease keeps two hubs from doing the same work, and no more: nothing breaks when for a moment both do it.
"""Who of several hubs looks after something: a Lease of the cluster, as its own controllers use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.backends.kubernetes.manifests import INSTANCE
from ghost_mcp.backends.kubernetes.watcher import Watcher
from ghost_mcp.errors import CaveNotFound, Conflict, GhostError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["LEASES", "Lease"]

DURATION_S = 15
RENEW_S = 5.0
SURE_S = (
    12.0  # a holder that could not renew stops this long after it last did: before others begin
)
RETRY_S = 2.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"  # the path, of a namespace
ASKED = "ghost-mcp.dev/asked"


class Lease:
    """The lease of that name in a namespace. ``run()`` takes it when it is free and renews it, until cancelled.

    Others' renewals are watched, not asked for; how old one is, this process's own clock tells, since the clocks
    of machines differ. ``told`` is called when anything about it changes.
    """

    def __init__(
        self, cluster: Cluster, config: Settings, name: str, me: str, told: Callable[[], None]
    ) -> None:
        self._cluster, self._name, self._me = cluster, name, me
        self._labels = {INSTANCE: config.instance}
        self._path = LEASES.format(config.namespace)
        query = {"fieldSelector": f"metadata.name={name}"}
        self._watcher = Watcher(cluster, self._path, query, told)
        self._told = told
        self._renewed = -DURATION_S * 2.0
        self._heard: tuple[Any, float] = (
            None,
            0.0,
        )  # what others' last renewal said, and when it came

    @property
    def held(self) -> bool:
        """Whether it is ours, as far as this process can be sure."""
        return time.monotonic() - self._renewed < SURE_S

    @property
    def asked(self) -> str:
        """What ask() has left last: another one than before means that somebody has asked."""
        return str(self._spec_and_marks()[1].get(ASKED, ""))

    @property
    def taken(self) -> bool:
        """Whether somebody else has it, as far as was told."""
        return self._spec_and_marks()[0].get("holderIdentity") not in (None, "", self._me)

    def _spec_and_marks(self) -> tuple[dict[str, Any], dict[str, str]]:
        there = self._watcher.get(self._name) or {}
        return there.get("spec") or {}, (there.get("metadata") or {}).get("annotations") or {}

    def watch(self, tasks: TaskGroup) -> None:
        """Begin to watch. It goes on when run() has ended, so that it can be handed over."""
        tasks.start_soon(self._watcher.run, name=f"watch of {self._name}")

    async def run(self) -> None:
        while True:
            try:
                await self._watcher.started()
                pause_s = await self._step()
            except GhostError:  # the server restarts; as long as it is ours, held says so
                pause_s = RETRY_S
            with anyio.move_on_after(pause_s):
                await self._watcher.change()

    async def _step(self) -> float:
        """Do what is to be done now; returns the seconds until something may be, unless there is news."""
        there, now = self._watcher.get(self._name), time.monotonic()
        spec = self._spec_and_marks()[0]
        holder, renewal = (
            spec.get("holderIdentity"),
            (spec.get("holderIdentity"), spec.get("renewTime")),
        )
        if renewal != self._heard[0]:
            self._heard = renewal, now
        if self.held:
            left_s = self._renewed + RENEW_S - now
        else:
            left_s = (
                self._heard[1] + DURATION_S - now if holder not in (None, "", self._me) else 0.0
            )
        if left_s > 0:
            return left_s
        try:
            await self._write(there, self._me)
        except (Conflict, CaveNotFound):  # another one was faster
            return RETRY_S
        self._renewed = now
        self._told()
        return RENEW_S

    async def _write(self, there: Mapping[str, Any] | None, holder: str | None) -> None:
        """Raises Conflict when it has changed since."""
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {"holderIdentity": holder, "leaseDurationSeconds": DURATION_S, "renewTime": at}
        if there is None:
            body = {"metadata": {"name": self._name, "labels": self._labels}, "spec": spec}
            await self._cluster.ask("POST", self._path, body)
            return
        version = there["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        await self._cluster.ask("PATCH", f"{self._path}/{self._name}", body)

    async def ask(self, word: str) -> None:
        """Leave a word for who holds it."""
        body = {"metadata": {"annotations": {ASKED: word}}}
        await self._cluster.ask("PATCH", f"{self._path}/{self._name}", body)

    async def hand_over(self, within_s: float) -> bool:
        """Give it up; whether somebody has taken it by then. run() must have ended."""
        self._renewed = -DURATION_S * 2.0
        for _ in range(3):  # what is known of it may be older than its last renewal
            with anyio.move_on_after(within_s):
                try:
                    await self._write(self._watcher.get(self._name), None)
                    break
                except Conflict:
                    await self._watcher.change()
        with anyio.move_on_after(within_s):
            while not self.taken:
                await self._watcher.change()
        return self.taken

    async def remove(self) -> None:
        """Remove it from the cluster, unless somebody has changed it since."""
        if (there := self._watcher.get(self._name)) is not None:
            version = there["metadata"]["resourceVersion"]
            body = {"preconditions": {"resourceVersion": version}}
            with suppress(Conflict, CaveNotFound):
                await self._cluster.ask("DELETE", f"{self._path}/{self._name}", body)
