# Changes one table of a TOML text and leaves every other line as it was. tomllib says what a line means.
"""A small editor for TOML: the table ``[outer.name]`` and its sub-tables, as clients write them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghost_mcp.errors import Conflict, InvalidArgument

__all__ = ["parse", "put", "remove"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True, slots=True)
class _Statement:
    """Some lines that mean something together. ``path`` of a header or of a key, empty for blanks and comments."""

    text: str
    path: tuple[str, ...]
    header: bool


def parse(text: str) -> dict[str, Any]:
    """The value of a text. Raises InvalidArgument, which says where it is broken."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InvalidArgument(str(exc)) from exc


def put(text: str, path: tuple[str, str], values: dict[str, Any], own: Collection[str]) -> str:
    """The text with ``values`` in the table ``path``; other keys there stay, but those in ``own`` go.

    Raises Conflict when that table is written in a way that cannot be changed line by line.
    """
    outer, name = path
    there = _tables(parse(text), outer).get(name)
    if isinstance(there, dict) and {key: there[key] for key in there if key in own} == values:
        return text
    end = "\r\n" if "\r\n" in text else "\n"
    lines = [f"{key} = {_value(value)}{end}" for key, value in values.items()]
    if text and not text.endswith("\n"):
        text += end
    kept, at = _without(text, path, own)
    if at is None:
        lines.insert(0, f"{end if text.strip() else ''}[{outer}.{name}]{end}")
        at = len(kept) - 1
    result = "".join([*kept[: at + 1], *lines, *kept[at + 1 :]])
    return _checked(result, text, path, values, own)


def remove(text: str, path: tuple[str, str]) -> str:
    """The text without the table ``path`` and its sub-tables. Raises Conflict as ``put`` does."""
    outer, name = path
    if name not in _tables(parse(text), outer):
        return text
    kept: list[str] = []
    inside = False
    for one in _statements(text):
        if one.header:
            inside = one.path[:2] == path
        if not inside:
            kept.append(one.text)
        elif not one.path and kept and (kept[-1].strip() or one.text.strip()):
            kept.append(one.text)  # a comment above the next table is not ours
    result = "".join(kept)
    end = "\r\n" if result.endswith("\r\n") else "\n"
    result = result.rstrip() + end if result.strip() else ""
    return _checked(result, text, path, None, ())


def _tables(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under a key, an empty one when there is none. Raises Conflict when it is something else."""
    found = document.get(key, {})
    if isinstance(found, dict):
        return found
    raise Conflict(f"its {key} is not a table", hint="Take it out by hand, then run this again.")


def _without(
    text: str, path: tuple[str, str], own: Collection[str]
) -> tuple[list[str], int | None]:
    """The statements without the keys and sub-tables of ours, and which is the header of our table."""
    kept: list[str] = []
    at: int | None = None
    inside: tuple[str, ...] = ()
    for one in _statements(text):
        if one.header:
            inside = one.path
            if inside == path:
                at = len(kept)
        ours = inside[:2] == path and (
            inside[2] in own
            if len(inside) > 2
            else not one.header and bool(one.path) and one.path[0] in own
        )
        if not ours or not one.path:  # comments stay
            kept.append(one.text)
    return kept, at


def _statements(text: str) -> Iterator[_Statement]:
    """The text in pieces: each is as many lines as tomllib needs to understand the first of them."""
    chunk = ""
    for line in _LINE.findall(text):
        chunk += line
        try:
            value = tomllib.loads(chunk)
        except tomllib.TOMLDecodeError:
            continue
        path = tuple(_path(value))
        yield _Statement(chunk, path, bool(path) and chunk.lstrip().startswith("["))
        chunk = ""
    if chunk:
        yield _Statement(chunk, (), header=False)


def _path(value: Any) -> Iterator[str]:
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        yield key


def _checked(
    result: str,
    text: str,
    path: tuple[str, str],
    values: dict[str, Any] | None,
    own: Collection[str],
) -> str:
    """The result, when it means what the text meant with that one change, and nothing else."""
    outer, name = path
    wanted = parse(text)
    servers = dict(_tables(wanted, outer))
    if values is None:
        servers.pop(name, None)
    else:
        there = _tables(servers, name)
        servers[name] = {key: there[key] for key in there if key not in own} | values
    try:
        found = tomllib.loads(result)
    except tomllib.TOMLDecodeError:
        found = {}
    if {**found, outer: found.get(outer, {})} == {**wanted, outer: servers}:
        return result
    raise Conflict(
        f"its {outer}.{name} is not a table of its own ([{outer}.{name}])",
        hint="Take it out by hand, then run this again.",
    )


def _value(value: Any) -> str:
    """A value as TOML writes it: texts, lists and tables of texts."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    pairs = (
        f"{key if _BARE.fullmatch(key) else _value(key)} = {_value(one)}"
        for key, one in value.items()
    )
    return f"{{ {', '.join(pairs)} }}"
