# Only this file says what the objects of a cave mean: whether it runs, in which state it is, since when.
"""From a cave's record and its pod, as the API server tells them, to a CaveInfo. Pure: no cluster is asked here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.kubernetes.assurance import assurance
from ghost_mcp.backends.kubernetes.manifests import CREATED, POOL, SPEC, STOPPED
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import CaveInfo, CaveSpec

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.settings import Settings

__all__ = ["info_of", "runs"]


def runs(seen: Mapping[str, Any]) -> bool | None:
    """Whether a pod's cave runs: None when it has not begun yet."""
    status = seen.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed") or seen["metadata"].get("deletionTimestamp"):
        return False
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        if "running" in state:
            return True
        if "terminated" in state:
            return False
    return None


def info_of(
    there: Mapping[str, Any], seen: Mapping[str, Any] | None, settings: Settings
) -> CaveInfo | None:
    """The cave of a record and of its pod, if there is one; None: it is being made, or removed."""
    marks = there["metadata"]["annotations"]
    spec = CaveSpec.from_dict(json.loads(marks[SPEC]))
    running = None if seen is None else runs(seen)
    if running:
        state = State.RUNNING
    elif seen is not None and running is None:
        return None
    else:
        state = State.STOPPED if STOPPED in marks else State.ENDED
    started = _started(seen) if running and seen else None
    # One that waited in a pool: its time began with its name.
    if started and seen and POOL in seen["metadata"]["labels"]:
        started = float(marks[CREATED])
    return CaveInfo(
        spec=spec,
        state=state,
        created_at=float(marks[CREATED]),
        deadline_at=started + spec.timeout_s if started and spec.timeout_s is not None else None,
        assurance=assurance(spec, settings),
    )


def _started(seen: Mapping[str, Any]) -> float | None:
    for container in seen["status"].get("containerStatuses") or ():
        at = ((container.get("state") or {}).get("running") or {}).get("startedAt")
        if at:
            return datetime.fromisoformat(at).timestamp()
    return None
