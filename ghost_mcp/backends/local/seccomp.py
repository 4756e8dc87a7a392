# Which system calls a cave may use is decided in configs/seccomp/policy.toml; this file only hands out the result.
"""The seccomp filters, compiled ahead of time and shipped as bytes for ``bwrap --seccomp FD``.

``configs/seccomp/generate.py`` makes ``filters/<machine>.bpf`` from the policy with libseccomp, so that a
user needs no library.
"""

from __future__ import annotations

import os
from functools import cache

from ghost_mcp.errors import Unsupported

__all__ = ["filter_bytes"]

_FILTERS = os.path.join(os.path.dirname(__file__), "filters")
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64"}


@cache
def filter_bytes(machine: str | None = None) -> bytes:
    """The filter for ``machine`` (as uname(2) names it; default: this one), a list of 8-byte BPF instructions.

    Raises Unsupported for an architecture without one: a cave never starts unfiltered.
    """
    name = os.uname().machine if machine is None else machine
    name = _ALIASES.get(name.lower(), name)
    known = sorted(entry.removesuffix(".bpf") for entry in os.listdir(_FILTERS))
    if name not in known:
        raise Unsupported(
            f"no system call filter for the architecture {name[:32]!r}",
            hint=f"The local backend runs on {', '.join(known)}; use the docker backend here.",
        )
    with open(os.path.join(_FILTERS, f"{name}.bpf"), "rb") as file:
        return file.read()
