# A cave here is a docker cave in all but its surroundings: what it is made of, only the docker backend decides.
"""Caves with side services: each is a Compose project of the cave and of what its file sets beside it.

::

    project    ghost_ID              what the compose tool makes: side services, networks, volumes
    container  ghost-INSTANCE.compose-NAME    the cave, made as a docker cave, in the project's networks

The compose tool brings a project up. Everything else (finding, starting, stopping, removing) is asked of the
engine by label, so that no file has to be kept, and what is half made is found too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ghost_mcp.backends.compose import document as compose
from ghost_mcp.backends.compose.janitor import Janitor
from ghost_mcp.backends.compose.projects import NAME, SERVICE, Projects
from ghost_mcp.backends.compose.tool import UP_S, Tool
from ghost_mcp.backends.docker.backend import DockerBackend, Made
from ghost_mcp.errors import BackendUnavailable
from ghost_mcp.spec import CaveInfo, CaveSpec, Project

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import docker

__all__ = ["ComposeBackend"]

GONE_S = 60.0
AWAITED_S = 300.0
PAUSE_S = 0.1
ALONE = Project()
WANTED = {"service_healthy": "healthy", "service_completed_successfully": "completed"}


class ComposeBackend(DockerBackend):
    """See :class:`~ghost_mcp.backends.base.Backend`. The truth is what the engine's labels say.

    The settings are those of the docker backend. Its caves and these do not see each other.
    """

    name = "compose"
    projects = True
    _kind = ".compose"
    _making_s = UP_S + AWAITED_S + 60.0

    def __init__(
        self,
        *,
        image: str | None = None,
        instance: str | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(image=image, instance=instance, cache=cache)
        self._projects = Projects(self._instance)
        self._tool = Tool()
        self._janitor = Janitor(self._instance)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(kind, exc, trace)
        finally:
            with anyio.CancelScope(shield=True):
                await self._janitor.aclose()

    # --- making ----------------------------------------------------------------------------------

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        project = spec.project or ALONE
        await anyio.to_thread.run_sync(compose.check, project)
        spec = spec.with_(
            image=spec.image or compose.image(project),
            env={**compose.environment(project), **spec.env},
        )
        if project.sides and (spec.ephemeral or spec.timeout_s or spec.idle_timeout_s):
            await self._janitor.watch(spec.id)
        return await super().create(spec, secrets=secrets)

    async def _make_from(
        self, spec: CaveSpec, stage: str, check: Callable[[docker.APIClient], None], *, pool: bool
    ) -> Made:
        try:
            return await super()._make_from(spec, stage, check, pool=pool)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._clear(spec.id)
            raise

    def _parts(
        self, spec: CaveSpec, runtime: str, *, pool: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A docker cave, as a service of its project, in the project's networks."""
        project = spec.project or ALONE
        config, walls = super()._parts(spec, runtime, pool=pool)
        config["labels"] |= {
            NAME: compose.project_name(spec.id),
            SERVICE: project.service,
            "com.docker.compose.oneoff": "False",
            "com.docker.compose.container-number": "1",
        }
        if project.sides:
            first = self._joined(spec)[0]
            walls["network_mode"] = first
            if spec.network.mode != "open":
                # The engine asks other servers in its own place for names that it does not know itself.
                # Nobody else is asked here, and one who asks for such a name shall not wait long for nothing.
                walls["dns"] = ["127.0.0.1"]
                walls["dns_opt"] = ["timeout:1", "attempts:2"]
            config["networking_config"] = {
                "EndpointsConfig": {first: {"Aliases": [project.service]}}
            }
        return config, walls

    def settings(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        names = compose.beside(spec.project or ALONE)
        return {**super().settings(spec, secrets), "direct": names}

    def _joined(self, spec: CaveSpec) -> list[str]:
        """The networks that the cave is in, as the engine names them."""
        name = compose.project_name(spec.id)
        return [f"{name}_{key}" for key in compose.networks(spec.project or ALONE)]

    async def _surround(self, spec: CaveSpec, container: str) -> None:
        """Bring up what is beside the cave, before it starts."""
        project = spec.project or ALONE
        sides = project.sides
        if not sides:
            return
        file = compose.document(spec, project, self._instance)
        names = [name for name, one in sides.items() if not one.get("profiles")]
        await self._tool.up(compose.project_name(spec.id), file, names, project.folder)
        await self._engine.ask(
            partial(self._join, container, self._joined(spec)[1:], project.service)
        )
        for service, condition in compose.awaited(project).items():
            await self._await(spec.id, service, condition)

    def _join(
        self, container: str, networks: Sequence[str], alias: str, engine: docker.APIClient
    ) -> None:
        for network in networks:
            engine.connect_container_to_network(container, network, aliases=[alias])

    async def _await(self, cave_id: str, service: str, condition: str) -> None:
        wanted = WANTED[condition]
        deadline = time.monotonic() + AWAITED_S
        while True:
            now = await self._engine.ask(partial(self._projects.condition, cave_id, service))
            if now == wanted:
                return
            if now != "waiting" or time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"the side service {service} is {now}, and the cave waits for {wanted}",
                    hint="Does the service come up by itself?",
                )
            await anyio.sleep(PAUSE_S)

    # --- finding and changing --------------------------------------------------------------------

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        """Caves; what others have left is swept, and what is beside one that ended is stopped."""
        found = await super().list(owner)
        await self._engine.ask(self._projects.sweep)
        return found

    async def leftovers(self, *, remove: bool) -> Sequence[str]:
        """Also what is beside caves that are gone."""
        others = await super().leftovers(remove=remove)
        orphans = await self._engine.ask(self._projects.orphans)
        if remove:
            for cave_id in orphans:
                await self._clear(cave_id)
        return [*others, *(compose.project_name(cave_id) for cave_id in sorted(orphans))]

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        info = await super().start(cave_id, secrets=secrets)
        await self._engine.ask(partial(self._projects.start, info.id))
        return info

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        info = await super().stop(cave_id, pause=pause)
        act = self._projects.pause if pause else self._projects.stop
        await self._engine.ask(partial(act, info.id))
        return info

    async def _drop(self, cave_id: str, *containers: str) -> None:
        await super()._drop(cave_id, *containers)
        await self._clear(cave_id)

    async def _clear(self, cave_id: str) -> None:
        """Remove all that is beside a cave that is gone; of one that is there, nothing."""
        deadline = time.monotonic() + GONE_S
        while not await self._engine.ask(partial(self._projects.clear, cave_id)):
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"the side services of cave {cave_id} do not end", hint="ghost gc"
                )
            await anyio.sleep(PAUSE_S)

    # --- the side services -----------------------------------------------------------------------

    async def address(self, cave_id: str, service: str) -> str:
        info = await self.get(cave_id)
        if service == (info.spec.project or ALONE).service:
            return "127.0.0.1"
        joined = self._joined(info.spec)
        return await self._engine.ask(
            lambda engine: self._projects.address(engine, info.id, service, joined)
        )

    async def service_logs(
        self, cave_id: str, service: str, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        info = await self.get(cave_id)
        container = await self._engine.ask(
            lambda engine: self._projects.service(engine, info.id, service)
        )
        async with aclosing(self._containers.log(container, follow=follow)) as pieces:
            async for piece in pieces:
                yield piece
