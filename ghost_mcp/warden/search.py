# Only this file reads files for a search: where a cave has ripgrep, that does it instead.
"""Searching text files by line. Imported by workers only: it needs re."""

from __future__ import annotations

import io
import os
import re
import stat as modes
from collections import deque

from . import files, patterns
from .folders import Walk
from .heads import number
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .streams import Spool
    from .trees import Output

MAX_FILE_BYTES = 16 << 20
MAX_MATCHES = 10_000
MAX_CONTEXT = 20
MAX_PATTERN = 10_000
MAX_GLOBS = 100
SHOWN = 500  # characters of a line
LEAD = 80  # of these, before a match that lies far behind in its line
_SNIFF_BYTES = 8192


def search(head: dict[str, Any], out: Output) -> dict[str, Any]:
    """See trees.search."""
    root = files.real(head.get("path"))
    found = _Search(head, out)
    try:
        single = not modes.S_ISDIR(os.stat(root).st_mode)
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such file: {root}", files.near(root)) from None
    if single:
        os.close(files.opened(root)[0])  # says what is wrong with a name that was given, not met
        root, name = os.path.split(root)
        found.file(f"{root}/{name}", name)
        if found.skipped:
            hint = "Search it with a command, for example grep -a."
            message = f"{name} is binary, or larger than {MAX_FILE_BYTES} bytes"
            raise WardenError("not_a_file", message, hint)
    else:
        _tree(root, head, found)
    return {"path": root, **found.summary()}


def kept(spool: Spool, head: dict[str, Any], out: Output) -> dict[str, Any]:
    """Search a kept output as one file without a name; its lines are counted as far as they are kept."""
    found = _Search(head, out)
    raw: Any = io.BufferedReader(_Kept(spool), 1 << 16)
    found.text(io.TextIOWrapper(raw, "utf-8", "replace", newline="\n"), "")
    return {"path": "", "gap": spool.gap[0] < spool.gap[1], **found.summary()}


class _Kept(io.RawIOBase):
    """A spool as a file, without what fell into its gap."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._at = 0
        spool.reopen()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        start, data = self._spool.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at = start + len(data)
        return len(data)


def _tree(root: str, head: dict[str, Any], found: _Search) -> None:
    hidden = bool(head.get("hidden"))
    ignored = patterns.Ignored(root) if head.get("gitignore", True) else None
    include, exclude = _globs(head, "include"), _globs(head, "exclude")

    def sees(path: str, entry: os.DirEntry[str], *, folder: bool) -> bool:
        if entry.name.startswith(".") and not hidden:
            return False
        if any(match(path) for match in exclude):
            return False
        if ignored is None:
            return True
        return entry.name != ".git" and not ignored(entry.path, entry.name, folder=folder)

    walk = Walk(root, lambda path, entry: sees(path, entry, folder=True))
    for path, entry in walk:
        if not entry.is_file(follow_symlinks=False) or (
            include and not any(match(path) for match in include)
        ):
            continue
        if sees(path, entry, folder=False):
            found.file(entry.path, path)
        if found.truncated:
            return
    found.skipped += walk.unreadable
    found.truncated = walk.full


def _globs(head: dict[str, Any], key: str) -> list[patterns.Match]:
    given = head.get(key) or []
    if (
        not isinstance(given, list)
        or len(given) > MAX_GLOBS
        or not all(isinstance(g, str) for g in given)
    ):
        raise WardenError("invalid_argument", f"{key} is not a list of at most {MAX_GLOBS} globs")
    return [patterns.glob(pattern) for pattern in given]


def _compile(head: dict[str, Any]) -> re.Pattern[str]:
    pattern = head.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN:
        raise WardenError("bad_pattern", f"a pattern has 1 to {MAX_PATTERN} characters")
    flags = re.IGNORECASE if head.get("ignore_case") else re.RegexFlag(0)
    flags |= re.MULTILINE if head.get("multiline") else re.RegexFlag(0)
    try:
        return re.compile(re.escape(pattern) if head.get("fixed") else pattern, flags)
    except re.error as exc:
        message = f"bad pattern: {exc.msg} at position {exc.pos}"
    except (OverflowError, RecursionError) as exc:
        message = f"bad pattern: {str(exc)[:200]}"
    raise WardenError("bad_pattern", message, "To find the text as it is, set fixed.")


class _Search:
    """What is looked for, and what was found so far."""

    def __init__(self, head: dict[str, Any], out: Output) -> None:
        self.truncated = False
        self.skipped = 0
        self._pattern = _compile(head)
        self._multiline = bool(head.get("multiline"))
        self._before = number(head, "before", 0, 0, MAX_CONTEXT)
        self._after = number(head, "after", 0, 0, MAX_CONTEXT)
        self._limit = number(head, "limit", 1000, 1, MAX_MATCHES)
        self._out = out
        self._matches = self._files = self._searched = 0

    def summary(self) -> dict[str, Any]:
        return {
            "matches": self._matches,
            "files": self._files,
            "searched": self._searched,
            "skipped": self.skipped,
            "truncated": self.truncated,
        }

    def file(self, full: str, shown: str) -> None:
        """Search one file; ``shown`` is its path in the answer. Binary, large and unreadable ones are skipped."""
        try:
            text = _opened(full)
        except OSError:
            text = None
        if text is None:
            self.skipped += 1
        else:
            self.text(text, shown)

    def text(self, text: io.TextIOWrapper, shown: str) -> None:
        """Search one text to its end, and close it."""
        before = self._matches
        with text:
            try:
                self._whole(text, shown) if self._multiline else self._lines(text, shown)
            except OSError:
                self.skipped += 1
        self._searched += 1
        if self._matches > before:
            self._files += 1
            self._out.flush()

    def _counts(self) -> bool:
        """Whether one more match may be told; if not, the search is over."""
        if self._matches == self._limit:
            self.truncated = True
            return False
        self._matches += 1
        return True

    def _lines(self, text: io.TextIOWrapper, shown: str) -> None:
        find = self._pattern.search
        before: deque[str] = deque(maxlen=self._before)
        waiting: deque[dict[str, Any]] = deque()  # matches that still lack lines after them
        for at, raw in enumerate(text, 1):
            line = raw.rstrip("\r\n")
            for match in waiting:
                match["after"].append(line[:SHOWN])
            while waiting and len(waiting[0]["after"]) == self._after:
                self._out.line(waiting.popleft())
            found = find(line)
            if found is not None:
                if not self._counts():
                    break
                told = _match(shown, at, found.start(), line)
                if self._before:
                    told["before"] = list(before)
                if self._after:
                    told["after"] = []
                    waiting.append(told)
                else:
                    self._out.line(told)
            before.append(line[:SHOWN])
        for match in waiting:
            self._out.line(match)

    def _whole(self, text: io.TextIOWrapper, shown: str) -> None:
        whole = text.read(MAX_FILE_BYTES)
        at, line, last = 0, 1, 0
        for found in self._pattern.finditer(whole):
            line += whole.count("\n", at, found.start())
            at = found.start()
            if line == last:
                continue
            if not self._counts():
                break
            last = line
            start = whole.rfind("\n", 0, at) + 1
            end = whole.find("\n", max(at, found.end() - 1))
            end = len(whole) if end < 0 else end
            told = _match(shown, line, at - start, whole[start:end].rstrip("\r"))
            told["end_line"] = line + whole.count("\n", start, end)
            if self._before:
                told["before"] = _lines_before(whole, start, self._before)
            if self._after:
                told["after"] = _lines_after(whole, end + 1, self._after)
            self._out.line(told)


def _match(path: str, line: int, at: int, text: str) -> dict[str, Any]:
    told: dict[str, Any] = {"path": path, "line": line, "column": at + 1}
    if len(text) <= SHOWN:
        return {**told, "text": text}
    start = 0 if at <= SHOWN - LEAD else at - LEAD
    return {**told, "text": text[start : start + SHOWN], "cut": True}


def _lines_before(text: str, end: int, count: int) -> list[str]:
    """The last lines that end before ``end``, the start of a line."""
    lines: list[str] = []
    while end > 0 and len(lines) < count:
        start = text.rfind("\n", 0, end - 1) + 1
        lines.append(text[start : min(end - 1, start + SHOWN)].rstrip("\r"))
        end = start
    return lines[::-1]


def _lines_after(text: str, start: int, count: int) -> list[str]:
    lines: list[str] = []
    while start < len(text) and len(lines) < count:
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        lines.append(text[start : min(end, start + SHOWN)].rstrip("\r"))
        start = end + 1
    return lines


def _opened(full: str) -> io.TextIOWrapper | None:
    """A file as text, bad UTF-8 replaced; None for what is no text file of a searchable size."""
    fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
    raw = io.BufferedReader(io.FileIO(fd), 1 << 16)
    info = os.fstat(fd)
    sizable = modes.S_ISREG(info.st_mode) and info.st_size <= MAX_FILE_BYTES
    if not sizable or b"\0" in raw.peek(_SNIFF_BYTES)[:_SNIFF_BYTES]:
        raw.close()
        return None
    return io.TextIOWrapper(raw, "utf-8-sig", "replace", newline="\n")
