# Which backends there are. They are imported when asked for, and only then.
"""Finds a backend's class by name: Ghost's own, or one that a package registers under ``ghost_mcp.backends``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from ghost_mcp.errors import BackendUnavailable, InvalidArgument

if TYPE_CHECKING:
    from ghost_mcp.backends.base import Backend

__all__ = ["BUILTIN", "default_backend", "find_backend", "is_local"]

BUILTIN = MappingProxyType(
    {
        "local": "ghost_mcp.backends.local.backend:LocalBackend",
        "compose": "ghost_mcp.backends.compose.backend:ComposeBackend",
        "docker": "ghost_mcp.backends.docker.backend:DockerBackend",
        "kubernetes": "ghost_mcp.backends.kubernetes.backend:KubernetesBackend",
    }
)


def default_backend() -> str:
    """``$GHOST_BACKEND``, else ``local`` on Linux; elsewhere there are no namespaces, and docker has its own Linux."""
    return os.environ.get("GHOST_BACKEND") or ("local" if sys.platform == "linux" else "docker")


def is_local(backend: str | None) -> bool:
    """Whether a command that names this backend, or none, means the local one."""
    return (backend or default_backend()) == "local"


def find_backend(name: str) -> type[Backend]:
    """The backend's class. Raises InvalidArgument for an unknown name, BackendUnavailable when it cannot load."""
    where = BUILTIN.get(name)
    if where is None:
        from importlib.metadata import entry_points  # costs more than all else here

        others = {entry.name: entry.value for entry in entry_points(group="ghost_mcp.backends")}
        where = others.get(name)
        if where is None:
            known = ", ".join(sorted({*BUILTIN, *others}))
            raise InvalidArgument(f"unknown backend: {name[:64]}", hint=f"Known backends: {known}.")
    module, _, attribute = where.partition(":")
    try:
        found: type[Backend] = getattr(import_module(module), attribute)
    except ImportError as exc:
        raise BackendUnavailable(f"the backend {name} cannot be loaded: {exc}") from exc
    return found
