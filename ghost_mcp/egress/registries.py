# Only files are read here: no program is started, nobody is asked over the network, nothing but names comes out.
"""Where this machine's own pip, npm and apt get their packages from, as rules of a policy.

Each tool is taken at its word: what it uses when nobody tells it anything stands in its own files, as they are
installed; what it was told stands in its settings. Both count, since a cave's programs know the first and a user
expects the second. Names are taken, and ports that are given: no addresses, credentials or proxies. The files are the
user's own, and may be broken: what cannot be read counts as nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from glob import glob
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from ghost_mcp.egress import places
from ghost_mcp.egress.hosts import normal_host, read_port
from ghost_mcp.errors import InvalidArgument

__all__ = ["TOOLS", "built_in", "configured", "hosts"]

MAX_BYTES = 1 << 18
MAX_FILES = 64
MAX_HOSTS = 32
_PIP_MODULE = "pip/_internal/models/index.py"
_PIP_SYSTEM = "/usr/lib/python3/dist-packages"
_PIP_WHEELS = "/usr/share/python-wheels"  # Debian's, for new environments
# Below npm's own folder: as it comes by itself, as Debian takes it apart, and as it was before npm 9 and before 7.
_NPM_MODULES = (
    "node_modules/@npmcli/config/lib/definitions/definitions.js",
    "../@npmcli/config/lib/definitions/definitions.js",
    "lib/utils/config/definitions.js",
    "lib/config/defaults.js",
)
_APT = "/etc/apt"
_URL = re.compile(r"\bhttps?://(?:[^\s/?#@]*@)?([^\s/?#@]+)")
_MIRRORS = re.compile(r"\bmirror\+file:(?://)?(/\S+)")


def built_in(name: str) -> tuple[str, ...]:
    """The hosts a tool uses when it is told nothing; none when it is not here, and for apt, which is always told."""
    said = filter(None, _BUILT_IN[name]()) if name in _BUILT_IN else iter(())
    return hosts(islice(said, 1))


def configured(name: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts that this machine's settings name for a tool."""
    return hosts(_CONFIGURED[name](environ))


def hosts(texts: Iterator[str]) -> tuple[str, ...]:
    """The host of each URL in the texts: a name, and a port when it is given. Bounded."""
    found = (rule for text in texts for url in _URL.finditer(text) for rule in _rule(url[1]))
    return tuple(islice(dict.fromkeys(found), MAX_HOSTS))


def _rule(place: str) -> Iterator[str]:
    host, _, port = place.partition(":")
    with suppress(InvalidArgument):
        form = normal_host(host)
        if isinstance(form, str):
            yield f"{form}:{read_port(port)}" if port else form


def _text(path: str | Path) -> str:
    """A file's text, bounded; nothing when there is none that can be read."""
    with suppress(OSError, ValueError):
        if os.path.isfile(path):  # a pipe would be waited for
            with Path(path).open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    return ""


# --- pip ---


def _pip_built_in() -> Iterator[str]:
    """From the first pip there is: this Python's, the system's, or the one that new environments get."""
    for folder in (*_package("pip"), f"{_PIP_SYSTEM}/pip"):
        yield places.pip_default(_text(Path(folder).parent / _PIP_MODULE))
    for folder in (*(f"{place}/_bundled" for place in _package("ensurepip")), _PIP_WHEELS):
        for wheel in sorted(glob("pip-*.whl", root_dir=folder)):
            yield places.pip_default(_packed(f"{folder}/{wheel}", _PIP_MODULE))


def _package(name: str) -> list[str]:
    """Where a package lies; it is not imported."""
    spec = find_spec(name)
    return list((spec and spec.submodule_search_locations) or ())


def _packed(archive: str, name: str) -> str:
    broken = (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    with suppress(*broken), zipfile.ZipFile(archive) as packed, packed.open(name) as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")
    return ""


def _pip_configured(environ: Mapping[str, str]) -> Iterator[str]:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        yield environ.get(name, "")
    own, home = environ.get("PIP_CONFIG_FILE", ""), environ.get("HOME", "")
    if own == os.devnull:  # how one tells pip to read no file
        return
    everybody = (environ.get("XDG_CONFIG_DIRS", "") or "/etc/xdg").split(":")[:MAX_FILES]
    yours = environ.get("XDG_CONFIG_HOME", "") or f"{home}/.config"
    folders = [*everybody, yours]
    files = [*(f"{folder}/pip/pip.conf" for folder in folders), f"{home}/.pip/pip.conf"]
    files += ["/etc/pip.conf", f"{environ.get('VIRTUAL_ENV', '') or sys.prefix}/pip.conf", own]
    yield from (places.pip_settings(_text(path)) for path in files)


# --- npm ---


def _npm_folder() -> Path | None:
    """Where npm lies, when the program of that name is npm itself and no other's shim."""
    program = shutil.which("npm")
    return Path(os.path.realpath(program)).parents[1] if program else None


def _npm_built_in() -> Iterator[str]:
    if folder := _npm_folder():
        yield from (places.npm_default(_text(folder / name)) for name in _NPM_MODULES)


def _npm_configured(environ: Mapping[str, str]) -> Iterator[str]:
    start = len("npm_config_")
    settings = {
        key[start:]: text for key, text in environ.items() if key[:start].lower() == "npm_config_"
    }
    yield from (
        text for key, text in settings.items() if key.lower().rpartition(":")[2] == "registry"
    )
    files = ["/etc/npmrc", settings.get("globalconfig", ""), settings.get("userconfig", "")]
    files.append(f"{environ.get('HOME', '')}/.npmrc")
    if folder := _npm_folder():  # PREFIX/lib/node_modules/npm
        files += [f"{folder}/npmrc", os.path.normpath(f"{folder}/../../../etc/npmrc")]
    yield from (places.npm_settings(_text(path), environ) for path in files)


# --- apt ---


def _apt_configured(_environ: Mapping[str, str]) -> Iterator[str]:
    # apt reads no file of another ending.
    lists = [f"{_APT}/sources.list", *_some(f"{_APT}/sources.list.d/*.list")]
    named = [places.apt_lines(_text(path)) for path in lists]
    stanzas = _some(f"{_APT}/sources.list.d/*.sources")
    named += [places.apt_stanzas(_text(path)) for path in stanzas]
    yield from named
    # And the lists of mirrors that a source may be, as in Debian's images for clouds.
    mirrors = (found[1] for text in named for found in _MIRRORS.finditer(text))
    yield from (_text(path) for path in islice(mirrors, MAX_FILES))


def _some(pattern: str) -> list[str]:
    return sorted(glob(pattern))[:MAX_FILES]


_BUILT_IN: dict[str, Callable[[], Iterator[str]]] = {"pip": _pip_built_in, "npm": _npm_built_in}
_CONFIGURED: dict[str, Callable[[Mapping[str, str]], Iterator[str]]] = {
    "pip": _pip_configured,
    "npm": _npm_configured,
    "debian": _apt_configured,
}
TOOLS = tuple(_CONFIGURED)
