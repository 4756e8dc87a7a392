# A boundary that nobody vouches for is said to be none: what a cluster enforces, only its operator knows.
"""What is enforced around a cave in a cluster, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_mcp.backends.kubernetes.manifests import CAVE_UID, TMP
from ghost_mcp.spec import Assurance

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.settings import Settings
    from ghost_mcp.spec import CaveSpec

__all__ = ["assurance"]


def assurance(spec: CaveSpec, settings: Settings) -> dict[str, Assurance]:
    """Each boundary of a cave: whether it is enforced, and by what."""
    limits = spec.limits
    unasked = (False, "no limit was asked for")
    lines = {
        "isolation": (
            True,
            "a pod of its own: no capabilities, a read-only system, no service account's token; "
            + (
                f"runtime class {settings.runtime_class}"
                if settings.runtime_class
                else "the node's kernel is shared"
            ),
        ),
        "user": (False, f"user {CAVE_UID}, as in every cave of the cluster"),
        "syscalls": (
            settings.seccomp.get("type") in ("RuntimeDefault", "Localhost"),
            f"seccomp profile {settings.seccomp.get('type')}",
        ),
        "network": _network(spec, settings),
        "memory": unasked if limits.memory_bytes is None else (True, "the pod's cgroup"),
        "cpu": unasked if limits.cpus is None else (True, "the pod's cgroup"),
        "pids": (False, "a cluster bounds them for all pods alike: the kubelet's podPidsLimit"),
        "tmp": (
            False,
            f"{TMP} is memory, bounded with it; its own size is up to the node's kubelet",
        ),
        "disk": _disk(spec, settings),
        "lifetime": (True, "the cave's own PID 1 ends it; activeDeadlineSeconds stands behind"),
    }
    return {name: Assurance(enforced=enforced, how=how) for name, (enforced, how) in lines.items()}


def _disk(spec: CaveSpec, settings: Settings) -> tuple[bool, str]:
    if spec.ephemeral:
        return False, "the kubelet ends a cave that stays above its limit"
    if settings.storage_enforced:
        return True, "the claim's size; that the storage class bounds it is the operator's word"
    return False, "what the storage class provides for the claim"


def _network(spec: CaveSpec, settings: Settings) -> tuple[bool, str]:
    way = "no way out" if spec.network.mode == "none" else "no way out but Ghost's proxy, over TCP"
    if settings.network_enforced:
        return True, f"{way}: a NetworkPolicy; that the cluster enforces it is the operator's word"
    return (
        False,
        f"{way}, where the cluster enforces NetworkPolicies: nothing tells whether it does",
    )
