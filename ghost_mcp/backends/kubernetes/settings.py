# Only this file says what an operator can set about caves in a cluster. No tool call reaches it.
"""How caves are placed in a cluster: the file that ``GHOST_KUBERNETES_CONFIG`` names, or defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ghost_mcp.errors import InvalidArgument

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``namespace`` may hold ``{owner}``: then each owner's caves are in a namespace of their own.

    ``runtime_image`` brings the warden; ``image`` is for specs that name none. ``requests`` is what the scheduler
    sets aside for a cave, its limits are the spec's. ``network_enforced`` is the operator's word that the cluster
    enforces NetworkPolicies, ``storage_enforced`` that volumes cannot outgrow their claims: nothing in the API tells.
    ``disk_default_bytes`` bounds a cave's local files where the
    spec does not. ``calls_per_s`` and ``calls_burst`` bound what one hub asks of the API server.
    """

    namespace: str = "ghost"
    instance: str = "default"
    image: str | None = None
    runtime_image: str = "ghost-runtime:latest"
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    storage_class: str | None = None
    storage_bytes: int = 10 << 30
    runtime_class: str | None = None
    priority_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    requests: Mapping[str, str] = field(
        default_factory=lambda: {"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "64Mi"}
    )
    disk_default_bytes: int = 2 << 30
    seccomp: Mapping[str, str] = field(default_factory=lambda: {"type": "RuntimeDefault"})
    network_enforced: bool = False
    storage_enforced: bool = False
    calls_per_s: float = 50.0
    calls_burst: int = 100

    @classmethod
    def load(cls) -> Self:
        """From the file that the environment names. Raises InvalidArgument."""
        path = os.environ.get("GHOST_KUBERNETES_CONFIG")
        if not path:
            return cls()
        import yaml

        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as exc:
            raise InvalidArgument(f"cannot read {path}: {exc}") from exc
        return cls.from_dict(given)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Raises InvalidArgument for what is not known."""
        known = {one.name for one in fields(cls)}
        if not isinstance(given, Mapping) or (unknown := sorted(set(given) - known)):
            raise InvalidArgument(
                f"unknown in the Kubernetes settings: {unknown[0] if isinstance(given, Mapping) else given!r}",
                hint=f"Known: {', '.join(sorted(known))}.",
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        return cls(**values)

    def namespace_of(self, owner: str) -> str:
        """Where an owner's caves are."""
        return self.namespace.replace("{owner}", owner or "local")

    @property
    def shared(self) -> bool:
        """Whether all caves are in one namespace."""
        return "{owner}" not in self.namespace
