# Pure: text in, text out. What cannot be read counts as nothing; nothing here fails, whatever a file holds.
"""What the files of pip, npm and apt say of where packages come from: their settings, and their own defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["apt_lines", "apt_stanzas", "npm_default", "npm_settings", "pip_default", "pip_settings"]

_PIP_DEFAULT = re.compile(r"^PyPI = \w+\(([^()]{0,400})\)", re.MULTILINE)
_PIP_FILES = re.compile(r"file_storage_domain=[\"']([^\"'\s/:]+)[\"']")
# A value may go on in lines that are indented.
_PIP_SETTING = re.compile(
    r"^(?:extra[-_]index[-_]url|index[-_]url|find[-_]links)[ \t]*[=:].*(?:\n[ \t]+\S.*)*",
    re.MULTILINE | re.IGNORECASE,
)
# registry: new Definition('registry', { default: 'URL'     define('registry', { default: 'URL'     registry: 'URL'
_NPM_DEFAULT = re.compile(
    r"(?<![\w-])registry[\"']?[:,]\s*(?:new \w+\([\"']registry[\"'],\s*)?(?:\{\s*default:\s*)?"
    r"[\"'](https?://[^\"'\s]{1,200})[\"']"
)
_NPM_SETTING = re.compile(r"^[ \t]*(?:@[^\s=]+:)?registry[ \t]*=.*", re.MULTILINE)
_NPM_VARIABLE = re.compile(r"\$\{([^{}?]+)\??\}")
_APT_COMMENT = re.compile(r"^[ \t]*#.*\n?", re.MULTILINE)
_APT_LINE = re.compile(r"^[ \t]*deb[ \t]+(?:\[[^\]\n]*\][ \t]*)?(\S+)", re.MULTILINE)
_APT_STANZA = re.compile(r"\n[ \t]*\n")
_APT_FIELD = re.compile(r"^(\w[\w-]*):[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_NO = frozenset({"no", "false", "without", "off", "disable", "0"})  # as apt reads it


def pip_default(source: str) -> str:
    """The index that is written into pip, and the host of its files, from the module that says so."""
    said = _PIP_DEFAULT.search(source)
    if said is None:
        return ""
    return " ".join([said[1], *(f"https://{host}" for host in _PIP_FILES.findall(said[1]))])


def pip_settings(text: str) -> str:
    """What a pip.conf says of indexes and links, as its lines."""
    return "\n".join(found[0] for found in _PIP_SETTING.finditer(text))


def npm_default(source: str) -> str:
    """The registry that is written into npm, from the module that defines its settings."""
    said = _NPM_DEFAULT.search(source)
    return said[1] if said else ""


def npm_settings(text: str, environ: Mapping[str, str]) -> str:
    """What an npmrc says of registries, as its lines with their variables filled in."""
    told = "\n".join(found[0] for found in _NPM_SETTING.finditer(text))
    return _NPM_VARIABLE.sub(lambda found: environ.get(found[1], ""), told)


def apt_lines(text: str) -> str:
    """The addresses of binary packages in a ``.list``."""
    return "\n".join(found[1] for found in _APT_LINE.finditer(text))


def apt_stanzas(text: str) -> str:
    """The addresses of binary packages in a ``.sources`` (deb822), without what is turned off."""
    found = []
    for stanza in _APT_STANZA.split(_APT_COMMENT.sub("", text)):
        fields = {name.lower(): value for name, value in _APT_FIELD.findall(stanza)}
        on = fields.get("enabled", "yes").strip().lower() not in _NO
        if on and "deb" in fields.get("types", "").split():
            found.append(fields.get("uris", ""))
    return "\n".join(found)
