# Only this file asks an engine what belongs to a project. Labels say it: nothing is remembered.
"""Conversations with an engine about the side services, networks and volumes of caves. They block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, NotFound

from ghost_mcp.backends.compose.document import OF, PROJECT, project_name
from ghost_mcp.backends.docker.container import ID, INSTANCE
from ghost_mcp.errors import NotFound as NoSuchService

if TYPE_CHECKING:
    import docker

__all__ = ["Projects"]

STOP_S = 5
# The tool's own labels: the same in version 1 and in version 2.
NAME, SERVICE = "com.docker.compose.project", "com.docker.compose.service"


class Projects:
    """The projects of one instance."""

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def services(self, engine: docker.APIClient, cave_id: str) -> list[dict[str, Any]]:
        """The containers beside a cave, as the engine lists them, whatever their state; oldest first."""
        asked = {"label": [f"{PROJECT}={self._instance}", f"{OF}={cave_id}"]}
        found: list[dict[str, Any]] = engine.containers(all=True, filters=asked)
        return sorted(found, key=lambda one: int(one["Created"]))

    def service(self, engine: docker.APIClient, cave_id: str, name: str) -> str:
        """The container of a side service. Raises NotFound."""
        found = {
            one["Labels"].get(SERVICE, ""): one["Id"] for one in self.services(engine, cave_id)
        }
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise NoSuchService(f"no side service {name[:64]!r}", hint=f"There are: {known}.")
        return str(found[name])

    def address(self, engine: docker.APIClient, cave_id: str, name: str, joined: list[str]) -> str:
        """The address of a side service in a network that the cave has joined. Raises NotFound."""
        seen = engine.inspect_container(self.service(engine, cave_id, name))
        for network in joined:
            found = (seen["NetworkSettings"]["Networks"] or {}).get(network) or {}
            if found.get("IPAddress"):
                return str(found["IPAddress"])
        raise NoSuchService(
            f"the side service {name} cannot be reached from the cave",
            hint="Does it run, and does it share a network with the cave?",
        )

    def condition(self, cave_id: str, name: str, engine: docker.APIClient) -> str:
        """``healthy``, ``completed``, ``failed``, or ``waiting`` for what may still become one of them."""
        state = engine.inspect_container(self.service(engine, cave_id, name))["State"]
        if not state["Running"] and not state["Restarting"] and state["Status"] != "created":
            return "completed" if state["ExitCode"] == 0 else "failed"
        health = (state.get("Health") or {}).get("Status", "")
        return {"healthy": "healthy", "unhealthy": "failed"}.get(health, "waiting")

    def start(self, cave_id: str, engine: docker.APIClient) -> None:
        """Start or go on with all side services."""
        self._each(engine, cave_id, engine.unpause, "paused")
        self._each(engine, cave_id, engine.start, "exited", "created")

    def pause(self, cave_id: str, engine: docker.APIClient) -> None:
        self._each(engine, cave_id, engine.pause, "running")

    def stop(self, cave_id: str, engine: docker.APIClient) -> None:
        self._each(engine, cave_id, engine.unpause, "paused")
        self._each(
            engine, cave_id, lambda one: engine.stop(one, timeout=STOP_S), "running", "restarting"
        )

    def _each(
        self, engine: docker.APIClient, cave_id: str, act: Callable[[str], object], *states: str
    ) -> None:
        """Do it to all side services that are in one of these states; what has changed meanwhile is passed."""
        for one in self.services(engine, cave_id):
            if one["State"] in states:
                with suppress(NotFound):
                    _unless_busy(act, one["Id"])

    def remove(self, engine: docker.APIClient, cave_id: str) -> bool:
        """Remove all of a project that goes at once. Returns whether nothing is left."""
        asked = {"label": f"{NAME}={project_name(cave_id)}"}
        for one in self.services(engine, cave_id):
            with suppress(NotFound):
                _unless_busy(engine.remove_container, one["Id"], v=True, force=True)
        networks = engine.networks(filters=asked)
        for network in networks:
            with suppress(NotFound):
                _unless_busy(engine.remove_network, network["Id"])
        for volume in engine.volumes(filters=asked)["Volumes"] or ():
            with suppress(NotFound):
                _unless_busy(engine.remove_volume, volume["Name"])
        return not (
            self.services(engine, cave_id)
            or engine.networks(filters=asked)
            or engine.volumes(filters=asked)["Volumes"]
        )

    def present(self, engine: docker.APIClient, cave_id: str) -> bool:
        """Whether there is a cave of that id, or anything beside it."""
        asked = {"label": f"{NAME}={project_name(cave_id)}"}
        return bool(
            engine.containers(all=True, filters=asked)
            or engine.networks(filters=asked)
            or engine.volumes(filters=asked)["Volumes"]
        )

    def orphans(self, engine: docker.APIClient) -> set[str]:
        """The ids of caves that are gone and of which something is left."""
        ours = {"label": f"{PROJECT}={self._instance}"}
        # First what is left, then what is there: a cave is there before anything is beside it.
        things = [
            *(one["Labels"] for one in engine.containers(all=True, filters=ours)),
            *(one["Labels"] for one in engine.networks(filters=ours)),
            *(one["Labels"] for one in engine.volumes(filters=ours)["Volumes"] or ()),
        ]
        left = {labels[OF] for labels in things if OF in labels}
        if not left:
            return left
        caves = {"label": [f"{INSTANCE}={self._instance}", ID]}
        return left - {one["Labels"][ID] for one in engine.containers(all=True, filters=caves)}

    def clear(self, cave_id: str, engine: docker.APIClient) -> bool:
        """Remove what is left of that cave, if it is gone. Returns whether there is nothing more to do."""
        return cave_id not in self.orphans(engine) or self.remove(engine, cave_id)

    def sweep(self, engine: docker.APIClient) -> bool:
        """Remove what caves have left, and stop what is beside ended ones. Returns whether all of it is gone."""
        ended = {"status": "exited", "label": [f"{INSTANCE}={self._instance}", ID]}
        for one in engine.containers(all=True, filters=ended):
            self.stop(one["Labels"][ID], engine)
        gone = {cave_id: self.remove(engine, cave_id) for cave_id in self.orphans(engine)}
        return all(gone.values())


def _unless_busy(act: Callable[..., object], what: str, **how: bool) -> None:
    """What is still used, or being removed by somebody else, is left to the next time."""
    try:
        act(what, **how)
    except NotFound:
        raise
    except APIError as exc:
        if exc.status_code not in (403, 409):
            raise
