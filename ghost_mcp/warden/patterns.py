# Only this file says what a glob means: one grammar, that of gitignore(5), wherever a glob is taken.
"""Globs and .gitignore files. Imported by workers only: it needs re.

``*`` and ``?`` stay within a name, ``[a-z]`` and ``[!a-z]`` are one character of it, ``**`` is any number of
folders, a backslash takes the next character as it is. A glob with a slash before its end stands at the top
of the tree it is about; one without matches at any depth.
"""

from __future__ import annotations

import os
import re

from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Match = Callable[[str], "re.Match[str] | None"]

MAX_GLOB = 4096
MAX_RULES_BYTES = 1 << 20
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "\\x21-\\x7e",
    "lower": "a-z",
    "print": "\\x20-\\x7e",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


class BadGlob(ValueError):
    """A glob that can match nothing."""


def glob(pattern: str) -> Match:
    """What tells whether a relative path matches. Raises bad_pattern."""
    try:
        return re.compile(translate(pattern), re.DOTALL).fullmatch
    except (BadGlob, re.error) as exc:
        raise WardenError("bad_pattern", f"bad glob {pattern[:200]!r}: {exc}") from None


def translate(pattern: str) -> str:
    """The regular expression for whole relative paths. Raises BadGlob."""
    if len(pattern) > MAX_GLOB:
        raise BadGlob("too long")
    parts = [part for part in pattern.split("/") if part]
    if not parts:
        raise BadGlob("it names nothing")
    out = "" if "/" in pattern.rstrip("/") else "(?:.*/)?"
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part != "**":
            out += _name(part) + ("" if last else "/")
        elif last:
            out += ".+"
        elif not out.endswith("(?:.*/)?"):
            out += "(?:.*/)?"
    return out


def _name(text: str) -> str:
    """One name of a path."""
    out, at = "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            out += "" if out.endswith("[^/]*") else "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            piece, at = _set(text, at)
            out += piece
        elif char == "\\":
            if at == len(text):
                raise BadGlob("a backslash at the end")
            out += re.escape(text[at])
            at += 1
        else:
            out += re.escape(char)
    return out


def _set(text: str, at: int) -> tuple[str, int]:
    """What follows ``[``, and where it ends."""
    start, negated = at, text[at : at + 1] in ("!", "^")
    at += negated
    pieces: list[str] = []
    first = True
    while first or text[at : at + 1] != "]":
        first = False
        if text.startswith("[:", at) and (end := text.find(":]", at)) > 0:
            pieces.append(_CLASSES.get(text[at + 2 : end], ""))
            at = end + 2
            continue
        low, at = _member(text, at, start)
        if text[at : at + 1] == "-" and text[at + 1 : at + 2] not in ("", "]"):
            high, at = _member(text, at + 1, start)
            if low <= high:  # a range backwards holds nothing
                pieces.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            pieces.append(re.escape(low))
    members = "".join(pieces)
    if not members:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"(?!/)[{'^' * negated}{members}]", at + 1


def _member(text: str, at: int, start: int) -> tuple[str, int]:
    if text[at : at + 1] == "\\":
        at += 1
    if at >= len(text):
        raise BadGlob(f"the [ before position {start} is not closed")
    return text[at], at + 1


# --- .gitignore ----------------------------------------------------------------------------------

# A rule's text: up to its trailing spaces, of which a backslash keeps one.
_RULE = re.compile(r"((?:\\.|[^\\])*?) *", re.DOTALL)


class Rules:
    """The rules of one .gitignore file: the last one that matches a path decides about it."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[Match, bool, bool, bool]] = []
        for line in text.removeprefix("\ufeff").split("\n"):
            self._add(line.removesuffix("\r"))

    def _add(self, line: str) -> None:
        found = _RULE.fullmatch(line) if line[:1] != "#" and len(line) <= MAX_GLOB else None
        pattern = found.group(1) if found is not None else ""
        negated = pattern.startswith("!")
        pattern = pattern[negated:]
        by_name = "/" not in pattern.rstrip("/")
        try:
            match = re.compile(
                translate(pattern.rstrip("/") if by_name else pattern), re.DOTALL
            ).fullmatch
        except (BadGlob, re.error):  # as git: such a rule matches nothing
            return
        self._rules.append((match, by_name, negated, pattern.endswith("/")))

    def __bool__(self) -> bool:
        return bool(self._rules)

    def verdict(self, path: str, name: str, *, folder: bool) -> bool | None:
        """True to leave a path out, False to keep it, None when no rule is about it."""
        for match, by_name, negated, folders_only in reversed(self._rules):
            if (folder or not folders_only) and match(name if by_name else path) is not None:
                return not negated
        return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class Ignored:
    """What .gitignore files leave out below ``root``: those in the tree, and those above it in its repository.

    Ask about a folder before what is in it, and leave out all of a folder that is left out: as in git, no
    rule brings back what stands in one.
    """

    def __init__(self, root: str) -> None:
        self._chains: dict[str, tuple[tuple[str, Rules], ...]] = {}
        above, folder = [], root.rstrip("/")
        while folder and not os.path.lexists(f"{folder}/.git"):
            folder = os.path.dirname(folder).rstrip("/")
            above.append(folder)
        repository = folder or None
        chain: tuple[tuple[str, Rules], ...] = ()
        if repository is not None:
            chain = self._with(chain, repository, ".git/info/exclude")
            for folder in reversed(above):
                chain = self._with(chain, folder, ".gitignore")
        self._chains[root.rstrip("/")] = self._with(chain, root.rstrip("/"), ".gitignore")

    @staticmethod
    def _with(
        chain: tuple[tuple[str, Rules], ...], folder: str, name: str
    ) -> tuple[tuple[str, Rules], ...]:
        """A chain with the rules of one more file before it: the innermost speaks first."""
        try:
            with open(f"{folder}/{name}", "rb", opener=_open) as file:
                raw = file.read(MAX_RULES_BYTES) or b""
        except OSError:  # most folders have none
            return chain
        rules = Rules(raw.decode("utf-8", "surrogateescape"))
        return ((folder, rules), *chain) if rules else chain

    def _chain(self, folder: str) -> tuple[tuple[str, Rules], ...]:
        found = self._chains.get(folder)
        if found is None:
            found = self._with(self._chain(os.path.dirname(folder)), folder, ".gitignore")
            self._chains[folder] = found
        return found

    def __call__(self, path: str, name: str, *, folder: bool) -> bool:
        """Whether the absolute ``path``, whose last part is ``name``, is left out."""
        for base, rules in self._chain(path[: -len(name) - 1]):
            verdict = rules.verdict(path[len(base) + 1 :], name, folder=folder)
            if verdict is not None:
                return verdict
        return False
