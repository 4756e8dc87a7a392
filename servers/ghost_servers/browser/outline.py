# A page is shown to a model only as these lines: bounded, printable, each element with its reference.
"""The outline of a page: what world.js saw, as lines; an excerpt of it; what changed between two of them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ghost_servers.browser.text import bounded, clean

__all__ = ["OUTLINE_CHARS", "Line", "compare", "excerpt", "near", "parse"]

OUTLINE_CHARS = 2_500
CHANGES_CHARS = 1_500
# The places are headings of their own; what stands in them is not indented, to save characters.
_MAX_LINES = 1_300
_MAX_WORD = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing on a page. ``at``: -1 above the window, 0 in it, 1 below. ``ref`` is empty for plain text."""

    ref: str
    role: str
    name: str
    text: str
    at: int
    focused: bool = False

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Self:
        """From what world.js told, which a page may have tampered with all the same."""
        ref, role = clean(item.get("ref") or "", 12), clean(item.get("role") or "", 20)
        name = clean(item.get("name") or "", 200)
        at = item.get("at")
        text = name if role == "text" else " ".join(_words(item, ref, role, name))
        focused = bool(ref) and item.get("focused") is True
        where = at if isinstance(at, int) and -1 <= at <= 1 else 0
        return cls(ref=ref, role=role, name=name, text=text, at=where, focused=focused)

    def __str__(self) -> str:
        return f"{self.text} [focused]" if self.focused else self.text


def _words(item: Mapping[str, Any], ref: str, role: str, name: str) -> Iterable[str]:
    if ref:
        yield ref
    level = item.get("level")
    yield f"h{level}" if role == "heading" and isinstance(level, int) else role
    if name:
        yield f'"{name}"'
    if value := clean(item.get("value") or "", 100):
        yield f"= {value}"
    if isinstance(options := item.get("options"), list):
        more = item.get("more")
        rest = [f"{more} more"] if isinstance(more, int) and more > 0 else []
        yield f"({' | '.join([*(clean(o, _MAX_WORD) for o in options[:8]), *rest])})"
    if isinstance(states := item.get("states"), list):
        yield f"[{' '.join(clean(s, 16) for s in states[:8])}]"


def parse(items: object) -> list[Line]:
    """The lines of one frame; what is no item is left out."""
    listed = items if isinstance(items, list) else []
    return [Line.of(item) for item in listed[:_MAX_LINES] if isinstance(item, dict)]


def excerpt(lines: Sequence[Line], limit: int = OUTLINE_CHARS) -> str:
    """The lines, or as many as fit from the first that is in the window, saying how many are left out."""
    whole = "\n".join(map(str, lines))
    if len(whole) <= limit:
        return whole
    start = next((i for i, line in enumerate(lines) if line.at == 0), 0)
    above = [f"[{start} lines above]"] if start else []
    shown = bounded(
        [str(line) for line in lines[start:]], limit - 80, "more lines: scroll to see them"
    )
    return "\n".join([*above, *shown])


def compare(before: Sequence[Line], after: Sequence[Line], limit: int = CHANGES_CHARS) -> str:
    """What changed, a line each: ``+`` came, ``-`` went, ``~`` is different now. Empty when nothing did.

    That an element lost the focus is told by which one has it now.
    """
    known = {line.ref: line for line in before if line.ref}
    now = {line.ref for line in after if line.ref}
    was = Counter(line.text for line in before if not line.ref)
    came = Counter(line.text for line in after if not line.ref) - was
    went = was - Counter(line.text for line in after if not line.ref)
    told = []
    for line in after:
        old = known.get(line.ref)
        if not line.ref:
            told += [f"+ {line}"] if _take(came, line.text) else []
        elif old is None:
            told.append(f"+ {line}")
        elif old.text != line.text or (line.focused and not old.focused):
            told.append(f"~ {line}")
    for line in before:
        if line.ref not in now if line.ref else _take(went, line.text):
            told.append(f"- {line.text}")
    return "\n".join(bounded(told, limit, "more changes"))


def _take(counts: Counter[str], text: str) -> bool:
    """One of so many: whether there was one left."""
    if counts[text] < 1:
        return False
    counts[text] -= 1
    return True


def near(wanted: str, lines: Iterable[Line], count: int = 4) -> list[Line]:
    """The elements that are most like ``wanted``: a name, or the text a reference once stood for."""
    goal = wanted.partition('"')[2].rpartition('"')[0] or wanted
    matcher = difflib.SequenceMatcher(b=goal.lower(), autojunk=False)

    def likeness(line: Line, exact: bool) -> float:
        matcher.set_seq1(line.name.lower())
        return matcher.ratio() if exact else matcher.quick_ratio()

    acting = [line for line in lines if line.ref]
    likely = sorted(acting, key=lambda line: -likeness(line, exact=False))[:20]
    scored = sorted(((likeness(line, exact=True), line) for line in likely), key=lambda p: -p[0])
    return [line for score, line in scored[:count] if score > 0.5]
