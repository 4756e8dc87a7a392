# Only this file reads the engine's containers as caves. What it cannot read is no cave of ours.
"""Conversations with an engine about which caves are there. They block: run them in Engine.ask()."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, NotFound

from ghost_mcp.backends.docker.container import (
    ID,
    INSTANCE,
    POOL,
    SPEC,
    Claim,
    Seen,
    cave_name,
    claim_of,
    stage_name,
)
from ghost_mcp.backends.docker.engine import clock
from ghost_mcp.backends.docker.makers import MAKER, died
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.spec import CaveSpec, check_full_name, is_id

if TYPE_CHECKING:
    import docker

__all__ = ["Finder"]


class Finder:
    """The caves of one instance."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._claims: dict[str, Claim] = {}  # by container: a claim never changes

    def containers(self, engine: docker.APIClient, *labels: str) -> list[dict[str, Any]]:
        """What the engine lists of this instance, at whatever stage."""
        asked = {"label": [f"{INSTANCE}={self._instance}", *labels]}
        found: list[dict[str, Any]] = engine.containers(all=True, filters=asked)
        return found

    def all(self, engine: docker.APIClient) -> list[Seen]:
        """The caves there are, claimed ones too; what waits or is being made is none."""
        names = [(one["Id"], _name(one)) for one in self.containers(engine)]
        there = {one for one, _ in names}
        self._claims = {one: claim for one, claim in list(self._claims.items()) if one in there}
        seen = [self.look(engine, one) for one, name in names if name.startswith("ghost-")]
        return [one for one in seen if one is not None]

    def stale(self, engine: docker.APIClient, older_s: float) -> list[str]:
        """Containers that were to become caves, and of which it is certain that nobody goes on with them: they
        have ended, or are not finished and either were begun so long ago or by a process that has died."""
        found, doubtful = [], []
        for one in self.containers(engine):
            name, state = _name(one), one["State"]
            unfinished = name.startswith("ghost_making_") or state == "created"
            if not name.startswith("ghost_"):
                continue
            if state in ("exited", "dead") or (unfinished and died(one["Labels"].get(MAKER, ""))):
                found.append(name)
            elif unfinished:
                doubtful.append((name, one["Created"]))
        if doubtful:
            # By the clock that has dated them, as it stands now: it may have been set since we came, and so may ours.
            before = clock(engine) - older_s
            found += [name for name, created in doubtful if created < before]
        return found

    def abandoned(self, engine: docker.APIClient, cave_id: str) -> list[str]:
        """Of stale ones, those that were to become the cave of that id, whose maker is certain to have died."""
        asked = self.containers(engine, f"{ID}={cave_id}")
        gone = [one for one in asked if died(one["Labels"].get(MAKER, ""))]
        return [one["Id"] for one in gone if _name(one) == stage_name("making", cave_id)]

    def find(self, engine: docker.APIClient, ref: str) -> Seen | None:
        """The cave of that full name or id."""
        found = self.with_id(engine, ref) if is_id(ref) else None
        with suppress(InvalidArgument):
            check_full_name(ref)
            found = found or self.look(engine, cave_name(self._instance, ref))
        return found if found is not None and ref in (found.spec.id, found.spec.full_name) else None

    def with_id(self, engine: docker.APIClient, cave_id: str) -> Seen | None:
        for label in (f"{ID}={cave_id}", POOL):
            for one in self.containers(engine, label):
                if _name(one).startswith("ghost-"):
                    found = self.look(engine, one["Id"])
                    if found is not None and found.spec.id == cave_id:
                        return found
        return None

    def look(self, engine: docker.APIClient, container: str) -> Seen | None:
        """The cave that a container is, by the container's id or name."""
        try:
            raw: Mapping[str, Any] = engine.inspect_container(container)
        except NotFound:
            return None
        labels = raw["Config"]["Labels"] or {}
        if labels.get(INSTANCE) != self._instance or SPEC not in labels:
            return None
        with suppress(ValueError, KeyError, TypeError, InvalidArgument):  # another Ghost's, newer
            if POOL not in labels:
                spec = CaveSpec.from_dict(json.loads(labels[SPEC]))
                return Seen(raw, spec) if self._named(raw, spec) else None
            claim = self._claims.get(raw["Id"]) or self._read_claim(engine, raw)
            if claim is not None and self._named(raw, claim.spec):
                self._claims[raw["Id"]] = claim
                return Seen(raw, claim.spec, claim.at)
        return None

    def _named(self, raw: Mapping[str, Any], spec: CaveSpec) -> bool:
        return bool(raw["Name"] == f"/{cave_name(self._instance, spec.full_name)}")

    def _read_claim(self, engine: docker.APIClient, raw: Mapping[str, Any]) -> Claim | None:
        execs = []
        for one in raw["ExecIDs"] or ():
            with suppress(APIError):  # it has ended meanwhile
                execs.append(engine.exec_inspect(one))
        return claim_of(execs, raw["Name"].lstrip("/"), self._instance)

    def of_cave(self, engine: docker.APIClient, cave_id: str) -> list[str]:
        """The containers to remove with a cave, or a prepared one, of that id: at whatever stage they are."""
        found = []
        for one in self.containers(engine, f"{ID}={cave_id}"):
            # One that was prepared under this id and then claimed is another cave now.
            if POOL not in one["Labels"]:
                found.append(one["Id"])
            elif _name(one) == stage_name("pool", cave_id):
                found.append(stage_name("pool", cave_id))  # by name: a claim may come first
        claimed = self.with_id(engine, cave_id)
        return found if claimed is None else [*found, claimed.container]


def _name(listed: Mapping[str, Any]) -> str:
    """A container's own name, from a list's entry: other names are links of other containers to it."""
    own = [name[1:] for name in listed["Names"] or () if name.count("/") == 1]
    return own[0] if own else ""
