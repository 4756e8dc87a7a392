# Hosts of others are named in this file only. It opens names alone: where they lead is checked as for any name.
"""Names that belong together, as ``@pip`` in a policy.

A preset is asked for because a program shall work that somebody knows by its name. ``@pip``, ``@npm`` and ``@debian``
are the hosts that this machine's own pip, npm and apt use, by themselves and as they are configured here (a mirror, an
index of a company's own): no list of ours could know them. A name that leads to a private network or to this machine
is refused like any other that does, until its address is listed too. A machine is read once in a process.
"""

from __future__ import annotations

import os
from functools import cache

from ghost_mcp.egress import registries
from ghost_mcp.errors import Unsupported

__all__ = ["PRESETS", "preset"]

# https://api.github.com/meta, "domains": the site, archives, and where files and releases are served from
_GITHUB = ("github.com", "api.github.com", "codeload.github.com", "*.githubusercontent.com")
PRESETS = (*registries.TOOLS, "github")
_CONFIGURE = {
    "pip": "pip config set global.index-url URL",
    "npm": "npm config set registry URL",
    "debian": "a source in /etc/apt/sources.list.d",
}


def preset(name: str) -> tuple[str, ...]:
    """The hosts of one of PRESETS, as rules. Raises Unsupported for one that this machine knows nothing of."""
    return _GITHUB if name == "github" else _of_this_machine(name)


@cache  # what is raised is not kept: a tool may be installed while we run
def _of_this_machine(name: str) -> tuple[str, ...]:
    hosts = (*registries.built_in(name), *registries.configured(name, os.environ))
    if not hosts:
        tool = "apt" if name == "debian" else name
        raise Unsupported(
            f"@{name} holds nothing on this machine: no {tool} here says where its packages are",
            hint=f"Name the host (--allow HOST), or configure {tool}: {_CONFIGURE[name]}",
        )
    return tuple(dict.fromkeys(hosts))
