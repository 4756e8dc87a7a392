# Only this file waits for pods, and keeps the ephemeral caves made here alive.
"""From a pod that was asked for to a cave that answers, and why it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.backends.kubernetes import manifests, reading
from ghost_mcp.backends.kubernetes.finding import core
from ghost_mcp.backends.kubernetes.manifests import CAVE, RELAY
from ghost_mcp.backends.kubernetes.watcher import Watcher
from ghost_mcp.backends.relays import begun
from ghost_mcp.errors import BackendUnavailable, CaveGone, GhostError, InvalidArgument
from ghost_mcp.warden.link import Link

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ghost_mcp.backends.kubernetes.cluster import Cluster
    from ghost_mcp.backends.kubernetes.settings import Settings
    from ghost_mcp.backends.kubernetes.stream import ExecStream

__all__ = ["Starter", "check_hope"]

START_S = 180.0
HOLD_S = 2.0
# Reasons for waiting that do not go away by themselves.
HOPELESS = (
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
)
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")


class Starter:
    """Watches over the pods that one hub makes. ``aclose`` ends what it keeps going.

    ``ended`` is told the id of a cave that was held and is gone.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: Settings,
        maker: str,
        ended: Callable[[str], None] = lambda cave_id: None,
    ) -> None:
        self._cluster, self._config, self._maker = cluster, config, maker
        self._ended = ended
        self._watchers: dict[str, Watcher] = {}
        self._held: dict[str, anyio.CancelScope] = {}
        self._runner: asyncio.Task[None] | None = None
        self._tasks: TaskGroup | None = None

    async def begin(self) -> None:
        running = asyncio.Event()
        self._runner = asyncio.create_task(self._run(running))
        await running.wait()

    async def _run(self, running: asyncio.Event) -> None:
        """The home of what goes on between calls: its task group is entered and left by one task."""
        async with anyio.create_task_group() as self._tasks:
            running.set()
            await anyio.sleep_forever()

    async def aclose(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])

    @property
    def tasks(self) -> TaskGroup:
        if self._tasks is None:
            raise GhostError("the kubernetes backend is not open", hint="Use it as: async with ...")
        return self._tasks

    # --- waiting ---------------------------------------------------------------------------------

    @property
    def maker(self) -> str:
        return self._maker

    async def watcher(self, space: str) -> Watcher:
        """The watch on our own pods in a namespace, once it stands."""
        if space not in self._watchers:
            query = manifests.selector(self._config.instance, maker=self._maker)
            watcher = self._watchers[space] = Watcher(self._cluster, f"{core(space)}/pods", query)
            self.tasks.start_soon(watcher.run, name=f"watch of {space}")
        await self._watchers[space].started()
        return self._watchers[space]

    def seen(self, space: str, name: str) -> dict[str, Any] | None:
        """A pod of ours as it was told last: a hint, never the truth."""
        watcher = self._watchers.get(space)
        return None if watcher is None else watcher.get(name)

    async def running(self, space: str, name: str) -> dict[str, Any]:
        """Wait until a pod of ours runs. Raises InvalidArgument, BackendUnavailable when it never will."""
        with anyio.move_on_after(START_S):
            return await self._running(space, name)
        why = await self._why(space, name)
        raise BackendUnavailable(f"the cave did not start in {START_S:.0f} s: {why}")

    async def _running(self, space: str, name: str) -> dict[str, Any]:
        watcher = await self.watcher(space)
        while True:
            pod = watcher.get(name)
            if pod is not None:
                runs = reading.runs(pod)
                if runs:
                    return pod
                if runs is False:
                    said = await self.said(space, name)
                    raise BackendUnavailable(f"the cave did not start: {said}")
                check_hope(pod)
            await watcher.change()

    async def _why(self, space: str, name: str) -> str:
        """What keeps a pod from starting, as far as its status tells."""
        with suppress(GhostError):
            pod = await self._cluster.ask("GET", f"{core(space)}/pods/{name}")
            for reason, message in _waiting(pod):
                return f"{reason}: {message}"[:300]
            for condition in pod.get("status", {}).get("conditions") or ():
                if condition.get("status") == "False" and condition.get("message"):
                    return str(condition["message"])[:300]
        return "the cluster does not say why"

    async def said(self, space: str, name: str) -> str:
        """The last lines of a cave's log, or of what was to bring its runtime."""
        for container in (CAVE, manifests.COPIER):
            with suppress(GhostError):
                query = {"container": container, "tailLines": "5"}
                async with self._cluster.text(f"{core(space)}/pods/{name}/log", query) as pieces:
                    said = b"".join([piece async for piece in pieces])[-400:]
                if said.strip():
                    return said.decode("utf-8", "replace").strip()
        return "it said nothing"

    # --- talking ---------------------------------------------------------------------------------

    async def relay(self, space: str, pod: str) -> ExecStream:
        """A relay in the pod, once the warden has answered through it. Raises CaveGone."""
        stream = await self._cluster.exec(f"{core(space)}/pods/{pod}/exec", RELAY, CAVE)
        async with begun(stream):
            return stream

    async def link(self, space: str, pod: str) -> Link:
        return await Link.open(await self.relay(space, pod), self.tasks, name=pod)

    # --- holding ---------------------------------------------------------------------------------

    def hold(self, cave_id: str, space: str, pod: str, link: Link | None) -> None:
        """Keep an ephemeral cave alive: say so again and again, by a connection that is made again when it breaks.

        An exec's far end can outlive the connection, so that its being there says nothing. ``link`` may be one
        that serves for calls too; without it there is some time until one is made.
        """
        self.release(cave_id)
        scope = self._held[cave_id] = anyio.CancelScope()
        self.tasks.start_soon(self._keep, scope, cave_id, space, pod, link)

    def release(self, cave_id: str) -> None:
        """Hold it no more."""
        if scope := self._held.pop(cave_id, None):
            scope.cancel()

    async def _keep(
        self, scope: anyio.CancelScope, cave_id: str, space: str, pod: str, link: Link | None
    ) -> None:
        try:
            with scope:
                if link is None:
                    await anyio.sleep(HOLD_S)
                while True:
                    try:
                        if link is None:
                            link = await self.link(space, pod)
                        await link.call("hold")
                    except CaveGone:
                        if link is None:
                            return
                        # It broke: whether the cave is there, the next one tells.
                        await link.aclose()
                        link = None
                        continue
                    except GhostError:
                        pass
                    await anyio.sleep(HOLD_S)
        finally:
            if self._held.get(cave_id) is scope:
                del self._held[cave_id]
                self._ended(cave_id)
            if link is not None:
                await link.aclose()


def _waiting(pod: Mapping[str, Any]) -> list[tuple[str, str]]:
    status = pod.get("status") or {}
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    waits = [(one.get("state") or {}).get("waiting") or {} for one in containers]
    return [(wait["reason"], str(wait.get("message", ""))) for wait in waits if wait.get("reason")]


def check_hope(pod: Mapping[str, Any]) -> None:
    """Raises InvalidArgument, BackendUnavailable for a pod that waits for what will not come."""
    for reason, message in _waiting(pod):
        if reason in NO_IMAGE and (
            reason in HOPELESS or "not found" in message or reason == "ImagePullBackOff"
        ):
            raise InvalidArgument(
                f"the cluster's nodes cannot get an image: {message or reason}"[:400],
                hint="Check the image's name, and imagePullSecrets in the Kubernetes settings.",
            )
        if reason in HOPELESS:
            raise BackendUnavailable(f"the cave cannot start: {reason}: {message}"[:400])
