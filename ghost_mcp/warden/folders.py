# Only this file walks a tree. It never follows a symbolic link and never enters what is not the cave's.
"""Listing, comparing and removing whole folders; run in workers."""

from __future__ import annotations

import heapq
import os
import stat as modes
from itertools import islice

from . import files
from .failures import error_head
from .heads import number
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable

    from .trees import Output

    Row = tuple[tuple[Any, ...], str, str, os.stat_result]

MAX_VISITED = 200_000
MAX_LISTED = 50_000
MAX_DEPTH = 4096
# Folders that tools fill by the thousand: their content says nothing of what somebody did.
NOISE = frozenset((".git", "node_modules", "__pycache__", ".venv", ".cache"))


class Walk:
    """Everything below ``root``, names in order, each folder before what is in it, as ``(path, entry)``.

    Paths are relative to ``root``. ``enters(path, entry)`` decides about each folder. ``unreadable`` counts
    folders that could not be read; ``full`` says that ``MAX_VISITED`` entries were not all.
    """

    def __init__(self, root: str, enters: Callable[[str, os.DirEntry[str]], bool]) -> None:
        self.root = root
        self.unreadable = 0
        self.full = False
        self._enters = enters

    def __iter__(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        count = 0
        stack = [("", self._sorted(self.root))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            count += 1
            if count > MAX_VISITED:
                self.full = True
                return
            path = prefix + entry.name
            yield path, entry
            if (
                entry.is_dir(follow_symlinks=False)
                and entry.path not in files.OUTSIDE
                and self._enters(path, entry)
            ):
                stack.append((path + "/", self._entries(entry.path)))

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        try:
            return self._sorted(path)
        except OSError:  # no permission, gone meanwhile, or deeper than a path can say
            self.unreadable += 1
            return iter(())

    @staticmethod
    def _sorted(path: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(path) as found:
            return iter(sorted(islice(found, MAX_VISITED + 1), key=lambda entry: entry.name))


def _lstat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return None


# --- list ----------------------------------------------------------------------------------------


class _Filter:
    """Which entries a listing is about, and which folders it must enter for them."""

    def __init__(self, head: dict[str, Any]) -> None:
        glob = head.get("glob")
        if glob is not None and not isinstance(glob, str):
            raise WardenError("bad_pattern", "glob is not a text")
        self.glob = None
        if glob:
            from . import patterns  # it needs re, which costs more than a whole small listing

            self.glob = patterns.glob(glob)
        parts = glob.strip("/").split("/") if glob else []
        reach = MAX_DEPTH if "**" in parts else max(1, len(parts))
        self.depth = number(head, "depth", reach, 1, MAX_DEPTH)
        self.hidden = bool(head.get("hidden")) or any(part.startswith(".") for part in parts)
        self.types = frozenset(map(str, head.get("types") or ()))

    def enters(self, path: str, entry: os.DirEntry[str]) -> bool:
        return path.count("/") + 1 < self.depth and self.sees(entry)

    def sees(self, entry: os.DirEntry[str]) -> bool:
        return self.hidden or not entry.name.startswith(".")

    def takes(self, path: str, entry: os.DirEntry[str]) -> bool:
        return self.sees(entry) and (self.glob is None or self.glob(path) is not None)


# Large and new comes first, as with ls.
_ORDERS: dict[str, Callable[[str, os.stat_result], tuple[Any, ...]]] = {
    "name": lambda path, info: (path.replace("/", "\0"),),  # a folder's entries right behind it
    "size": lambda path, info: (-info.st_size, path),
    "mtime": lambda path, info: (-info.st_mtime_ns, path),
}


def listing(head: dict[str, Any], out: Output) -> dict[str, Any]:
    """See trees.listing."""
    root = files.real(head.get("path"))
    order = _ORDERS.get(str(head.get("sort") or "name"))
    if order is None:
        raise WardenError(
            "invalid_argument",
            f"cannot sort by {str(head['sort'])[:40]}",
            "Use name, size or mtime.",
        )
    chosen = _Filter(head)
    limit = number(head, "limit", 1000, 1, MAX_LISTED)
    walk = Walk(root, chosen.enters)
    total = 0

    def rows() -> Iterator[Row]:
        nonlocal total
        for path, entry in walk:
            info = _lstat(entry) if chosen.takes(path, entry) else None
            if info is None or (chosen.types and files.kind(info) not in chosen.types):
                continue
            total += 1
            yield order(path, info), path, entry.path, info

    try:
        listed = heapq.nsmallest(limit, rows(), key=lambda row: row[0])
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such folder: {root}", files.near(root)) from None
    for _, path, full, info in listed:
        out.line(_entry(path, full, info))
    return {
        "path": root,
        "total": total,
        "truncated": walk.full or total > limit,
        "unreadable": walk.unreadable,
    }


def _entry(path: str, full: str, info: os.stat_result) -> dict[str, Any]:
    line: dict[str, Any] = {
        "path": path,
        "type": files.kind(info),
        "size": info.st_size,
        "mtime": info.st_mtime,
        "mode": modes.S_IMODE(info.st_mode),
    }
    if modes.S_ISLNK(info.st_mode):
        try:
            line["target"] = os.readlink(full)
        except OSError:  # replaced meanwhile
            line["target"] = ""
    return line


# --- snapshot ------------------------------------------------------------------------------------


def snapshot(head: dict[str, Any], out: Output) -> dict[str, Any]:
    """See trees.snapshot."""
    root = files.real(head.get("path"))
    limit = number(head, "limit", 50_000, 1, MAX_VISITED)
    walk = Walk(root, lambda path, entry: entry.name not in NOISE)
    count, records = 0, bytearray()
    truncated = False
    for path, entry in walk:
        info = _lstat(entry)
        if info is None:
            continue
        if count == limit:
            truncated = True
            break
        count += 1
        kind, size = files.kind(info)[0], info.st_size
        if kind == "d":
            kind, size = ("n", _count(entry.path)) if entry.name in NOISE else ("d", 0)
        record = f"{kind} {size} {info.st_mtime_ns} {info.st_ino} {path}\0"
        records += record.encode("utf-8", "surrogateescape")
        if len(records) >= 1 << 15:
            out.write(records)
            records.clear()
    out.write(records)
    return {"path": root, "entries": count, "truncated": truncated or walk.full}


def _count(path: str) -> int:
    try:
        with os.scandir(path) as found:
            return sum(1 for _ in found)
    except OSError:
        return 0


# --- remove --------------------------------------------------------------------------------------


class _Level:
    """A folder being emptied: what it is called, what is still in it, and which folder is above it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.above = _identity()
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.folders: list[str] = []
        self.others: list[str] = []
        try:
            with os.scandir(fd) as found:
                for entry in found:
                    into = self.folders if entry.is_dir(follow_symlinks=False) else self.others
                    into.append(entry.name)
            os.fchdir(fd)
        finally:
            os.close(fd)


def _identity() -> tuple[int, int]:
    info = os.stat(".")
    return info.st_dev, info.st_ino


def remove_tree(full: str) -> int:
    """Remove a folder with everything in it, however deep; returns how many entries that were.

    The worker goes through the tree with its own working directory, one name at a time: no path can be too
    long, and no link put in the way is followed. Raises what stopped it; what was removed stays removed.
    """
    parent, name = os.path.split(full)
    os.chdir(parent)
    levels: list[_Level] = []
    removed = 0
    try:
        levels.append(_Level(name))
        while levels:
            level = levels[-1]
            while level.others:
                name = level.others.pop()
                removed += _gone(os.unlink, name)
            if level.folders:
                name = level.folders.pop()
                try:
                    levels.append(_Level(name))
                except FileNotFoundError:
                    pass  # somebody else removed it
                continue
            name = level.name
            os.chdir("..")
            if _identity() != level.above:
                raise WardenError("conflict", "the folder was moved while it was being removed")
            levels.pop()
            removed += _gone(os.rmdir, name)
    except (OSError, WardenError) as exc:
        where = "/".join([parent.rstrip("/"), *(level.name for level in levels), name])[:1000]
        error = error_head(exc)
        hint = error.get("hint", "")
        message = f"cannot remove {where}: {exc.strerror if isinstance(exc, OSError) else exc}"
        raise WardenError(error["code"], message, hint, {"removed": removed}) from exc
    return removed


def _gone(remove: Callable[[str], None], name: str) -> int:
    try:
        remove(name)
    except FileNotFoundError:  # somebody else removed it
        return 0
    return 1
