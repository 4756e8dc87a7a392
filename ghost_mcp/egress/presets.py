# Hosts of others are named in this file only. It opens names alone: where they lead is checked as for any name.
"""Names that belong together, as ``@pip`` in a policy: the public hosts, and those that this machine uses itself.

A preset is asked for because a program shall work that somebody knows by its name. So the default hosts of the program
are listed, each with where the list is from; a cave's programs know no others unless they are told. And what the
machine that runs Ghost has configured for the same program (a mirror, an index of a company's own) is added: an agent
is told to use what its user uses. Only names are taken from there, never addresses, credentials or proxies; a name
that leads to a private network or to this machine is refused like any other that does, until its address is listed
too. The configuration is read once in a process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from glob import glob
from pathlib import Path

from ghost_mcp.egress.hosts import normal_host, read_port
from ghost_mcp.errors import InvalidArgument

__all__ = ["PRESETS", "configured", "preset"]

PRESETS: dict[str, tuple[str, ...]] = {
    # https://docs.pypi.org/api/ (the index, and the host of its files)
    "pip": ("pypi.org", "files.pythonhosted.org"),
    # https://docs.npmjs.com/cli/using-npm/registry (metadata and tarballs)
    "npm": ("registry.npmjs.org",),
    # https://www.debian.org/mirror/list and https://www.debian.org/security/
    "debian": ("deb.debian.org", "security.debian.org"),
    # https://api.github.com/meta, "domains": the site, archives, and where files and releases are served from
    "github": (
        "github.com",
        "api.github.com",
        "codeload.github.com",
        "*.githubusercontent.com",
    ),
}
MAX_BYTES = 1 << 16
MAX_HOSTS = 32
# What each program reads: variables, files, and the lines of a file that say where packages come from.
_VARIABLES = {
    "pip": ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"),
    "npm": ("NPM_CONFIG_REGISTRY", "npm_config_registry"),
}
_FILES = {
    "pip": ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", "$PIP_CONFIG_FILE"),
    "npm": ("/etc/npmrc", "~/.npmrc", "$NPM_CONFIG_USERCONFIG"),
    "debian": ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*"),
}
_LINES = {
    # A value may go on in lines that are indented.
    "pip": re.compile(
        r"^(?:extra-index-url|index-url|find-links)[ \t]*[=:].*(?:\n[ \t]+\S.*)*", re.MULTILINE
    ),
    "npm": re.compile(r"^(?:@[^\s=]+:)?registry[ \t]*=.*", re.MULTILINE),
    "debian": re.compile(r"^(?:deb |URIs:).*", re.MULTILINE),
}
_URL = re.compile(r"\bhttps?://(?:[^\s/?#@]*@)?([^\s/?#@]+)")


def preset(name: str) -> tuple[str, ...] | None:
    """The rules of a preset; None when there is no such one."""
    if name not in PRESETS:
        return None
    return tuple(dict.fromkeys((*PRESETS[name], *_of_this_machine(name))))


@cache
def _of_this_machine(name: str) -> tuple[str, ...]:
    return configured(name, os.environ)


def configured(name: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts that this machine's own configuration names, as rules: a name, and a port when it is given."""
    found = (rule for text in _texts(name, environ) for rule in _rules(text))
    return tuple(dict.fromkeys(found))[:MAX_HOSTS]


def _texts(name: str, environ: Mapping[str, str]) -> Iterator[str]:
    yield from (environ.get(variable, "") for variable in _VARIABLES.get(name, ()))
    home = environ.get("HOME", "")
    for pattern in _FILES.get(name, ()):
        place = environ.get(pattern[1:], "") if pattern[0] == "$" else pattern
        if place.startswith("~/"):
            place = f"{home}{place[1:]}" if home else ""
        for path in sorted(glob(place)):
            with suppress(OSError), Path(path).open("rb") as file:
                text = file.read(MAX_BYTES).decode("utf-8", "replace")
                yield "\n".join(found[0] for found in _LINES[name].finditer(text))


def _rules(text: str) -> Iterator[str]:
    for found in _URL.finditer(text):
        host, _, port = found[1].partition(":")
        with suppress(InvalidArgument):
            form = normal_host(host)
            if isinstance(form, str):
                yield f"{form}:{read_port(port)}" if port else form
