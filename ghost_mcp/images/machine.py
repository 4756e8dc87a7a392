# Only this file reads the machine's own settings of pip, npm and apt for a build: they enter as secrets, never a layer.
"""What a build needs to reach the package registries that this machine uses."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL  # noqa: TID251 - a number; processes are anyio's

import anyio

__all__ = ["secrets"]

ANSWER_S = 60
SUITE = "bookworm"
# Each names a file with the certificates that this machine trusts, in the order that we believe them.
_BUNDLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_PIP_KEYS = frozenset({"index-url", "extra-index-url", "trusted-host", "timeout"})
_NPM_LINES = re.compile(r"(//|@[^:\s]+:registry|registry|replace-registry-host|strict-ssl)")


async def secrets() -> dict[str, str]:
    """The build's secrets by id: ``ca``, ``pip``, ``npm``, ``apt``; those the machine has."""
    pip = await _pip_settings()
    found = {
        "ca": _certificates(pip),
        "pip": _pip_file(pip),
        "npm": await _npm_file(),
        "apt": await _apt_mirrors(),
    }
    return {name: text for name, text in found.items() if text}


async def _answer(*argv: str) -> str:
    """What a program of this machine says; nothing when it is not here, fails or takes too long."""
    if shutil.which(argv[0]) is None:
        return ""
    with anyio.move_on_after(ANSWER_S):
        done = await anyio.run_process(argv, check=False, stdin=DEVNULL)
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
    return ""


async def _pip_settings() -> dict[str, str]:
    """pip's settings as it sees them, files and environment; a later one of a name counts."""
    listed = await _answer(sys.executable, "-m", "pip", "config", "list")
    listed = listed or await _answer("pip", "config", "list")
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'\"")
    return found


def _pip_file(settings: Mapping[str, str]) -> str:
    lines = []
    for name in sorted(_PIP_KEYS & set(settings)):
        # A folder of this machine is not there in a build.
        value = " ".join(word for word in settings[name].split() if not word.startswith("file:"))
        if value:
            lines.append(f"{name} = {value}")
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def _certificates(pip: Mapping[str, str]) -> str:
    for path in (*(os.environ.get(name, "") for name in _BUNDLES), pip.get("cert", "")):
        if text := _text(path):
            return text
    return ""


def _text(path: str) -> str:
    """A file's text; nothing when there is no such file."""
    known = path and os.path.isfile(path)
    return Path(path).read_text(encoding="utf-8", errors="replace") if known else ""


async def _npm_file() -> str:
    registry = (await _answer("npm", "config", "get", "registry")).strip()
    if not registry:
        return ""
    lines = [f"registry={registry}"]
    for which in ("globalconfig", "userconfig"):
        text = _text((await _answer("npm", "config", "get", which)).strip())
        lines += [line for line in text.splitlines() if _NPM_LINES.match(line.strip())]
    # A variable of this machine is not there in a build.
    return os.path.expandvars("\n".join([*dict.fromkeys(lines), ""]))


async def _apt_mirrors() -> str:
    """This machine's mirrors of the images' Debian; an other system's apt has none of it."""
    listed = await _answer(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Identifier: Packages",
    )
    rows = [line.split() for line in listed.splitlines()]
    places = {row[1]: row[0] for row in reversed(rows) if len(row) == 3 and row[2] == "main"}
    if SUITE not in places or f"{SUITE}-security" not in places:
        return ""
    return f"{places[SUITE]}\n{places[f'{SUITE}-security']}\n"
