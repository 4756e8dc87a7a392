# Only this file says what a file becomes by an edit. It writes nothing: whoever asked does, with the version.
"""Replacing text, exact or by regular expression: several edits, all or none. Imported by workers only.

A regular expression may run forever: the worker's limits, and whoever waits for it, end it.
"""

from __future__ import annotations

import os
import re

from . import files
from .heads import number
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .trees import Output

    Span = tuple[int, int, str]  # where in the text, and what comes there
    Change = tuple[int, int, int, int]  # old[a:b] became new[c:d]

MAX_FILE_BYTES = 8 << 20
MAX_EDITS = 100
MAX_SPANS = 100_000
NAMED = 10
DIFF_CHARS = 3000
SHOWN = 300
CONTEXT = 3
_LOOKED_AT = 20_000
_ALIKE = 0.6


def edit(head: dict[str, Any], given: dict[str, Any], out: Output) -> dict[str, Any]:
    """See trees.edit."""
    edits = _checked(given.get("edits"))
    old, full, version = _text(head.get("path"))
    text, replaced = old, []
    changes: list[Change] = []
    for index, (wanted, becomes) in enumerate(edits):
        where = f"edit {index + 1}: " if len(edits) > 1 else ""
        spans = _spans(text, wanted, becomes, head, where)
        text, made = _apply(text, spans)
        changes = compose(changes, made)
        replaced.append(len(spans))
    diff, cut = unified(old, text, changes, full)
    out.write(text.encode("utf-8", "surrogateescape"))
    return {"path": full, "version": version, "replaced": sum(replaced), "diff": diff, "cut": cut}


def _checked(edits: Any) -> list[tuple[str, str]]:
    if not isinstance(edits, list) or not 0 < len(edits) <= MAX_EDITS:
        raise WardenError("invalid_argument", f"1 to {MAX_EDITS} edits at once")
    pairs = [(one["old"], one["new"]) for one in edits]
    if not all(old for old, _ in pairs):
        raise WardenError("invalid_argument", "old is empty", "To make a new file, write it.")
    return pairs


def _text(path: Any) -> tuple[str, str, str]:
    """The file's text, every byte of it kept; its path and version."""
    fd, info, full = files.opened(path)
    try:
        if info.st_size > MAX_FILE_BYTES:
            raise WardenError(
                "too_large",
                f"{full} is larger than {MAX_FILE_BYTES} bytes",
                "Change it with a command, for example sed -i.",
            )
        raw = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)
    if b"\0" in raw:
        raise WardenError("not_a_file", f"{full} is not a text")
    return raw.decode("utf-8", "surrogateescape"), full, files.version(info)


# --- finding ---------------------------------------------------------------------------------------


def _spans(text: str, old: str, new: str, head: dict[str, Any], where: str) -> list[Span]:
    """What to replace; as many as asked for. Raises not_found, conflict, bad_pattern."""
    if head.get("regex"):
        spans = _matching(text, old, new, where)
    else:
        if "\r\n" in text and "\r" not in old:  # a reader of the file does not see its line ends
            old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        spans = _equal(text, old, new)
    if len(spans) > MAX_SPANS:
        raise WardenError("too_large", f"{where}more than {MAX_SPANS} matches")
    count = number(head, "count", 0, 0, MAX_SPANS)
    if not spans:
        hint = "" if head.get("regex") else _nearest(text, old)
        raise WardenError("not_found", f"{where}old is not in the file", hint)
    if head.get("all"):
        return spans
    if len(spans) < count or (len(spans) > 1 and not count):
        lines = [text.count("\n", 0, start) + 1 for start, _, _ in spans[:NAMED]]
        named = ", ".join(map(str, lines)) + (", ..." if len(spans) > NAMED else "")
        raise WardenError(
            "conflict",
            f"{where}{len(spans)} matches, at line {named}",
            "Make old longer, or set all or count.",
            {"matches": len(spans), "lines": lines},
        )
    return spans[: count or 1]


def _equal(text: str, old: str, new: str) -> list[Span]:
    spans: list[Span] = []
    at = text.find(old)
    while at >= 0 and len(spans) <= MAX_SPANS:
        spans.append((at, at + len(old), new))
        at = text.find(old, at + len(old))
    return spans


def _matching(text: str, pattern: str, template: str, where: str) -> list[Span]:
    spans: list[Span] = []
    try:
        for found in re.compile(pattern, re.MULTILINE).finditer(text):
            spans.append((found.start(), found.end(), found.expand(template)))
            if len(spans) > MAX_SPANS:
                break
    except (re.error, IndexError, OverflowError, RecursionError) as exc:
        hint = "Without regex, old and new are taken as they are."
        raise WardenError("bad_pattern", f"{where}bad pattern: {exc}"[:300], hint) from None
    return spans


def _nearest(text: str, old: str) -> str:
    """A hint: which line looks most like what was sought, and where the two part."""
    sought = old.split("\n")
    first = next((i for i, line in enumerate(sought) if line.strip()), 0)
    lines = text.split("\n")
    best = (0, -1)
    for at, line in enumerate(lines):
        if line.strip() == sought[first].strip():
            best = max(best, (_run(lines, at - first, sought), -at + first))
    if best[0]:
        start = -best[1]
        for shift, line in enumerate(sought):
            there = lines[start + shift] if start + shift < len(lines) else "(end of file)"
            if there != line:
                return (
                    f"Line {start + shift + 1} is {_quoted(there)} where old has {_quoted(line)}."
                )
    alike = _alike(lines, sought[first])
    return "" if alike < 0 else f"Most alike is line {alike + 1}: {_quoted(lines[alike])}."


def _run(lines: list[str], start: int, sought: list[str]) -> int:
    """How many lines of what is sought stand at ``start``, white space aside."""
    if start < 0:
        return 0
    count = 0
    for there, line in zip(lines[start : start + len(sought)], sought):
        if there.strip() != line.strip():
            break
        count += 1
    return count


def _alike(lines: list[str], wanted: str) -> int:
    import difflib

    matcher = difflib.SequenceMatcher(None, "", wanted[:SHOWN].strip())
    best, found = _ALIKE, -1
    for at, line in enumerate(lines[:_LOOKED_AT]):
        matcher.set_seq1(line[:SHOWN].strip())
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best:
            ratio = matcher.ratio()
            if ratio > best:
                best, found = ratio, at
    return found


def _quoted(line: str) -> str:
    return repr(_shown(line[:120]))


def _shown(text: str) -> str:
    """As UTF-8 can hold it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- changing --------------------------------------------------------------------------------------


def _apply(text: str, spans: list[Span]) -> tuple[str, list[Change]]:
    pieces, changes = [], []
    at = grown = 0
    for start, end, becomes in spans:
        pieces += [text[at:start], becomes]
        changes.append((start, end, start + grown, start + grown + len(becomes)))
        grown += len(becomes) - (end - start)
        at = end
    return "".join([*pieces, text[at:]]), changes


def compose(first: list[Change], second: list[Change]) -> list[Change]:
    """Changes and then changes of their result, as one list: what overlaps or touches is one change."""
    marks = sorted(
        [(c, d, (b - a) - (d - c), 0) for a, b, c, d in first]
        + [(a, b, 0, (d - c) - (b - a)) for a, b, c, d in second]
    )
    both: list[Change] = []
    back = ahead = at = 0
    while at < len(marks):
        start, end, less, more = marks[at]
        at += 1
        while at < len(marks) and marks[at][0] <= end:
            end = max(end, marks[at][1])
            less, more = less + marks[at][2], more + marks[at][3]
            at += 1
        both.append((start + back, end + back + less, start + ahead, end + ahead + more))
        back, ahead = back + less, ahead + more
    return both


# --- showing ---------------------------------------------------------------------------------------


def unified(old: str, new: str, changes: list[Change], path: str) -> tuple[str, bool]:
    """A unified diff of at most about DIFF_CHARS characters, and whether something is left out.

    Made from the changes themselves: comparing two large texts could take minutes.
    """
    out: list[str] = []
    size = line = shift = at = 0
    blocks = [b for b in _blocks(old, new, changes) if old[b[0] : b[1]] != new[b[2] : b[3]]]
    for hunk in _hunks(old, blocks):
        if size > DIFF_CHARS:
            return "".join(out), True
        start = _back(old, hunk[0][0])
        line += old.count("\n", at, start)
        at = start
        body, removed, added = _hunk(old, new, hunk, start)
        header = f"@@ -{_range(line, removed)} +{_range(line + shift, added)} @@\n"
        shift += added - removed
        out += [header if out else f"--- {path}\n+++ {path}\n{header}"]
        for piece in body:
            size += len(piece)
            if size > DIFF_CHARS:
                return "".join(out), True
            out.append(piece)
    return "".join(out), False


def _range(line: int, count: int) -> str:
    return f"{line + 1 if count else line},{count}"


def _blocks(old: str, new: str, changes: list[Change]) -> list[Change]:
    """The changes widened to whole lines, and made one where they share a line."""
    blocks: list[Change] = []
    for a, b, c, d in changes:
        shift = a - (old.rfind("\n", 0, a) + 1)
        a, c = a - shift, c - shift
        if not (_at_line(old, b) and _at_line(new, d)):
            stop = old.find("\n", b)
            stop = len(old) if stop < 0 else stop + 1
            b, d = stop, d + stop - b
        if blocks and a <= blocks[-1][1]:
            last = blocks.pop()
            a, c = last[0], last[2]
        blocks.append((a, b, c, d))
    return [_trimmed(old, new, block) for block in blocks]


def _trimmed(old: str, new: str, block: Change) -> Change:
    """Without the lines at its two ends that stayed the same."""
    a, b, c, d = block
    gone, come = _lines(old, a, b), _lines(new, c, d)
    same = _same(gone, come)
    head = sum(map(len, gone[:same]))
    behind = gone[same:][::-1]
    tail = sum(map(len, behind[: _same(behind, come[same:][::-1])]))
    return a + head, b - tail, c + head, d - tail


def _same(first: list[str], second: list[str]) -> int:
    """How many lines they begin with in common."""
    count = 0
    for one, other in zip(first, second):
        if one != other:
            break
        count += 1
    return count


def _at_line(text: str, at: int) -> bool:
    return at == 0 or text[at - 1] == "\n"


def _hunks(old: str, blocks: list[Change]) -> list[list[Change]]:
    hunks: list[list[Change]] = []
    reach = -1
    for block in blocks:
        if _back(old, block[0]) <= reach:
            hunks[-1].append(block)
        else:
            hunks.append([block])
        reach = _ahead(old, block[1])
    return hunks


def _back(text: str, at: int) -> int:
    """Where the context before a line's start begins."""
    for _ in range(CONTEXT):
        if at == 0:
            break
        at = text.rfind("\n", 0, at - 1) + 1
    return at


def _ahead(text: str, at: int) -> int:
    for _ in range(CONTEXT):
        at = text.find("\n", at) + 1
        if at == 0:
            return len(text)
    return at


def _hunk(old: str, new: str, hunk: list[Change], start: int) -> tuple[list[str], int, int]:
    """Its lines, and how many there are of the old text and of the new."""
    body: list[str] = []
    at = start
    removed = added = 0
    for a, b, c, d in hunk:
        same, gone, come = _lines(old, at, a), _lines(old, a, b), _lines(new, c, d)
        body += [_line(" ", one) for one in same]
        body += [_line("-", one) for one in gone] + [_line("+", one) for one in come]
        removed, added = removed + len(same) + len(gone), added + len(same) + len(come)
        at = b
    same = _lines(old, at, _ahead(old, at))
    body += [_line(" ", one) for one in same]
    return body, removed + len(same), added + len(same)


def _lines(text: str, start: int, end: int) -> list[str]:
    lines = text[start:end].split("\n")
    return [one + "\n" for one in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _line(sign: str, line: str) -> str:
    ended = line.endswith("\n")
    text = _shown(line.rstrip("\r\n"))
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}[... {len(text) - SHOWN} more]"
    return f"{sign}{text}\n" if ended else f"{sign}{text}\n\\ No newline at end of file\n"
