# A boundary is called enforced only where something holds it: what is missing here is said, not kept quiet.
"""What is enforced around a local cave, and by what."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ghost_mcp.backends.base import network_line
from ghost_mcp.spec import Assurance

if TYPE_CHECKING:
    from ghost_mcp.backends.local.cgroups import CgroupDriver
    from ghost_mcp.spec import CaveSpec

__all__ = ["assurance"]


def assurance(spec: CaveSpec, uid: int, cgroups: CgroupDriver) -> dict[str, Assurance]:
    """Each boundary of a cave that runs as the host user ``uid``: whether it is enforced, and by what."""
    own = os.geteuid() == 0
    lines = {
        "isolation": Assurance(
            enforced=True,
            how="own user, pid, mount, network, ipc, uts and cgroup namespaces; no capabilities; read-only system",
        ),
        "user": Assurance(
            enforced=own and spec.workspace is None,
            how=f"host user {uid}, this cave's alone"
            if own and spec.workspace is None
            else f"host user {uid}, shared with its owner's other programs",
        ),
        "syscalls": Assurance(enforced=True, how="seccomp filter; no nested user namespaces"),
        "network": Assurance(enforced=True, how=network_line(spec.network)),
        "tmp": Assurance(
            enforced=True, how=f"/tmp is a tmpfs of {spec.limits.tmp_bytes / 2**20:.4g} MiB"
        ),
        "disk": Assurance(
            enforced=spec.limits.disk_bytes is not None,
            how="an ext4 image of that size"
            if spec.limits.disk_bytes is not None
            else "no limit was asked for",
        ),
        "lifetime": Assurance(enforced=True, how="the cave's own PID 1 ends it"),
        "browser": Assurance(
            enforced=False,
            how="Chromium runs without its own sandbox here: the cave around it is the barrier",
        ),
    }
    for name, (enforced, how) in cgroups.assurance(spec.limits).items():
        if name == "pids" and not enforced and spec.limits.pids is not None:
            enforced, how = True, "RLIMIT_NPROC, counted in the cave's user namespace"
        if name == "memory" and not enforced and spec.limits.memory_bytes is not None:
            how += "; each process by itself is held by RLIMIT_DATA"
        lines[name] = Assurance(enforced=enforced, how=how)
    return lines
