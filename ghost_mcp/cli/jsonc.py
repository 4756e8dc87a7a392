# Changes one member of a JSON text and leaves every other byte as it was: comments, order, indentation, line ends.
"""A small editor for JSON, with or without comments and trailing commas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ghost_mcp.errors import Conflict, InvalidArgument

__all__ = ["parse", "put", "remove"]

MAX_DEPTH = 100
_GAP = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n]*")
_BARE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)


@dataclass(slots=True)
class _Node:
    """A value, where it stands, and the members of an object."""

    start: int
    end: int
    value: Any
    members: list[_Member] | None = None

    def member(self, key: str) -> _Member | None:
        return next((one for one in self.members or () if one.key == key), None)


@dataclass(slots=True)
class _Member:
    key: str
    start: int
    node: _Node
    comma: int | None = None


class _Reader:
    """Reads one value; says where a text is broken."""

    def __init__(self, text: str, *, comments: bool) -> None:
        self.text = text
        self.comments = comments
        self.at = 0
        self.depth = 0

    def document(self) -> _Node:
        node = self._value()
        if self._peek():
            raise self._broken("more text after the value")
        return node

    def _broken(self, what: str) -> InvalidArgument:
        before = self.text[: self.at]
        line, column = before.count("\n") + 1, self.at - before.rfind("\n")
        return InvalidArgument(f"line {line}, column {column}: {what}")

    def _peek(self) -> str:
        """The next character that means something, empty at the end."""
        found = (_GAP if self.comments else _BLANK).match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    def _take(self, wanted: str, what: str) -> int:
        if self._peek() != wanted:
            raise self._broken(what)
        self.at += 1
        return self.at - 1

    def _value(self) -> _Node:
        first, start = self._peek(), self.at
        if first in ("{", "["):
            if self.depth == MAX_DEPTH:
                raise self._broken("nested too deeply")
            self.depth += 1
            node = self._object() if first == "{" else self._array()
            self.depth -= 1
            return node
        if first == '"':
            value = self._string()
            return _Node(start, self.at, value)
        found = _BARE.match(self.text, self.at)
        if found is None:
            raise self._broken("a value is missing")
        self.at = found.end()
        return _Node(start, self.at, json.loads(found[0]))

    def _string(self) -> str:
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except ValueError as exc:
            raise self._broken("a string is broken or does not end") from exc
        return str(value)

    def _object(self) -> _Node:
        start = self._take("{", "an object is missing")
        members: list[_Member] = []
        while self._peek() != "}":
            if members and members[-1].comma is None:
                raise self._broken("a comma is missing")
            if self._peek() != '"':
                raise self._broken("a key is missing")
            begin, key = self.at, self._string()
            self._take(":", "a colon is missing")
            members.append(_Member(key, begin, self._value()))
            if self._peek() == ",":
                members[-1].comma = self._take(",", "")
        self._no_comma_at_end(bool(members) and members[-1].comma is not None)
        self.at += 1
        value = {one.key: one.node.value for one in members}
        if len(value) != len(members):
            raise self._broken("an object has a key twice")
        return _Node(start, self.at, value, members)

    def _array(self) -> _Node:
        start = self._take("[", "an array is missing")
        values: list[Any] = []
        comma = True
        while self._peek() != "]":
            if not comma:
                raise self._broken("a comma is missing")
            values.append(self._value().value)
            comma = self._peek() == ","
            self.at += comma
        self._no_comma_at_end(bool(values) and comma)
        self.at += 1
        return _Node(start, self.at, values)

    def _no_comma_at_end(self, comma: bool) -> None:
        if comma and not self.comments:
            raise self._broken("a comma before the end")


def parse(text: str, *, comments: bool) -> Any:
    """The value of a text. Raises InvalidArgument, which says where it is broken; a key twice is refused too."""
    return _Reader(text, comments=comments).document().value


def put(text: str, path: Sequence[str], value: Any, *, comments: bool) -> str:
    """The text with ``value`` at ``path``; objects on the way are made. Raises InvalidArgument, Conflict."""
    node = _Reader(text, comments=comments).document()
    indent = ""
    for depth, key in enumerate(path):
        if node.members is None:
            raise _no_object(path[:depth])
        member = node.member(key)
        if member is None:
            for outer in reversed(path[depth + 1 :]):
                value = {outer: value}
            return _insert(text, node, depth, key, value)
        node, indent = member.node, _indent(text, member.start)
    if node.value == value:
        return text
    new = _dump(value, _step(text), indent, _line_end(text))
    return text[: node.start] + new + text[node.end :]


def remove(text: str, path: Sequence[str], *, comments: bool) -> str:
    """The text without the member at ``path``; unchanged when there is none. Raises InvalidArgument, Conflict."""
    node = _Reader(text, comments=comments).document()
    found: tuple[_Node, _Member] | None = None
    for depth, key in enumerate(path):
        if node.members is None:
            raise _no_object(path[:depth])
        member = node.member(key)
        if member is None:
            return text
        found = node, member
        node = member.node
    return _cut(text, *found) if found else text


def _no_object(path: Sequence[str]) -> Conflict:
    return Conflict(f"{'.'.join(path) or 'the whole'} is not an object")


def _insert(text: str, parent: _Node, depth: int, key: str, value: Any) -> str:
    """Put a member behind the last one, as its neighbours are indented."""
    step, end = _step(text), _line_end(text)
    members = parent.members or []
    # All in one line: it stays so.
    if members and "\n" not in text[parent.start : members[0].start]:
        last = members[-1]
        here = last.node.end if last.comma is None else last.comma + 1
        comma = ", " if last.comma is None else " "
        return f"{text[:here]}{comma}{json.dumps(key)}: {json.dumps(value)}{text[here:]}"
    inner = _indent(text, members[0].start) if members else step * (depth + 1)
    added = f"{end}{inner}{json.dumps(key)}: {_dump(value, step, inner, end)}"
    here = _content_end(text, parent)
    if not members:
        return text[:here] + added + end + step * depth + text[parent.end - 1 :]
    last = members[-1]
    if last.comma is not None:  # the text ends its lists with a comma: so does this
        return text[:here] + added + "," + text[here:]
    return text[: last.node.end] + "," + text[last.node.end : here] + added + text[here:]


def _cut(text: str, parent: _Node, member: _Member) -> str:
    """Take a member out, with one comma and the space before it."""
    end = member.node.end if member.comma is None else member.comma + 1
    start = len(text[: member.start].rstrip(" \t"))
    if text[end:].lstrip(" \t").startswith(("\n", "\r\n")):  # it has its lines to itself
        start = len(text[:start].removesuffix("\n").removesuffix("\r"))
    members = parent.members or []
    if member.comma is not None or len(members) == 1:
        return text[:start] + text[end:]
    comma = members[-2].comma or 0
    return text[:comma] + text[comma + 1 : start] + text[end:]


def _content_end(text: str, parent: _Node) -> int:
    """Where the content of an object ends, comments included, the space before its brace not."""
    return len(text[: parent.end - 1].rstrip())


def _indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _step(text: str) -> str:
    """One step of the text's indentation; two spaces when it shows none."""
    found = re.search(r"\n([ \t]{1,8})[^\s*]", text)
    return found[1] if found else "  "


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _dump(value: Any, step: str, indent: str, end: str) -> str:
    return json.dumps(value, indent=step, ensure_ascii=False).replace("\n", end + indent)
