# Only this file speaks inotify. A watch runs in a worker and ends with its stream.
"""Telling what changes in a tree, while it changes."""

from __future__ import annotations

import errno
import os
import select
import struct
from time import monotonic

from . import files
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .peers import Stream
    from .trees import Output

MAX_WATCHES = 8192
BATCH_S = 0.05  # a burst of writes to one file is one change
MAX_BATCH = 10_000

_MODIFY, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_Q_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x40000000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK = 0x01000000, 0x02000000, 0x04000000
_WANTED = _MODIFY | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_WATCHED = _WANTED | _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
_EVENT = struct.Struct("iIII")


def watch(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, recursive}``: what changes below a folder, as JSON lines, until the stream is reset.

    The first line is ``{event: "watching", folders}``: from then on nothing is missed. Then ``{event:
    created|changed|removed|moved, path, type, from?}`` with paths relative to the folder; ``moved`` within
    the tree says ``from``. ``{event: "overflow", path}`` says that changes (below ``path``) may be missing:
    look for yourself. Folders full of noise, such as node_modules, are not looked into. The answer comes
    when the folder itself is gone: ``{path, ended}``.
    """
    from . import trees

    root = files.real(head.get("path"))
    recursive = bool(head.get("recursive"))

    def job(out: Output, given: int) -> dict[str, Any]:
        return _Watcher(root, out, recursive=recursive).run()

    trees.work(stream, job, cpu_s=None)


class _Inotify:
    """The three calls of inotify(7)."""

    def __init__(self) -> None:
        import ctypes

        self._libc = ctypes.CDLL("libc.so.6", use_errno=True)
        self._errno = ctypes.get_errno
        self.fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "")

    def add(self, path: str) -> int:
        return self._checked(
            self._libc.inotify_add_watch(self.fd, os.fsencode(path), _WATCHED), path
        )

    def remove(self, number: int) -> None:
        self._libc.inotify_rm_watch(self.fd, number)

    def _checked(self, result: int, path: str) -> int:
        if result < 0:
            raise OSError(self._errno(), os.strerror(self._errno()), path)
        return result

    def events(self) -> Iterator[tuple[int, int, int, str]]:
        """(watch, mask, cookie, name) of all that is waiting now."""
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                number, mask, cookie, size = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                yield number, mask, cookie, os.fsdecode(data[at : at + size].rstrip(b"\0"))
                at += size


class _Watcher:
    """The folders that are watched, and what is to be told of them."""

    def __init__(self, root: str, out: Output, *, recursive: bool) -> None:
        self.root = root
        self._out = out
        self._recursive = recursive
        self._inotify = _Inotify()
        self._folders: dict[int, str] = {}  # watch -> its folder, "" or "relative/"
        self._told: dict[
            tuple[str, str], dict[str, Any]
        ] = {}  # (event, path) -> line, in this batch
        self._leaving: dict[int, str] = {}  # cookie -> path that moved away in this batch
        self._found: set[str] = set()  # told because a new folder had it: its own event may follow
        self._ended = ""

    def run(self) -> dict[str, Any]:
        self._add("", announce=False)
        if not self._folders:
            raise WardenError(
                "file_not_found", f"no such folder: {self.root}", files.near(self.root)
            )
        self._out.line({"event": "watching", "folders": len(self._folders)})
        self._flush()
        poll = select.poll()
        poll.register(self._inotify.fd, select.POLLIN)
        while not self._ended:
            poll.poll()
            self._batch(poll)
        return {"path": self.root, "ended": self._ended}

    def _batch(self, poll: select.poll) -> None:
        """Take what comes within one short while, and tell each thing once."""
        end = monotonic() + BATCH_S
        while True:
            for number, mask, cookie, name in self._inotify.events():
                self._event(number, mask, cookie, name)
            self._found.clear()
            left = end - monotonic()
            if left <= 0 or len(self._told) >= MAX_BATCH or not poll.poll(left * 1000):
                break
        self._leaving.clear()
        self._flush()

    def _flush(self) -> None:
        for line in self._told.values():
            self._out.line(line)
        self._told.clear()
        self._out.flush()

    def _event(self, number: int, mask: int, cookie: int, name: str) -> None:
        if mask & _Q_OVERFLOW:
            self._overflow("")
            return
        folder = self._folders.get(number)
        if folder is None:
            return
        if mask & _IGNORED:
            del self._folders[number]
        if not folder and mask & (_DELETE_SELF | _MOVE_SELF | _IGNORED):
            self._ended = "moved" if mask & _MOVE_SELF else "removed"
        if name:
            self._named(folder + name, mask, cookie)

    def _named(self, path: str, mask: int, cookie: int) -> None:
        is_folder = bool(mask & _ISDIR)
        if mask & _MOVED_FROM:
            self._leaving[cookie] = path
            self._tell(
                "removed", path, is_folder
            )  # until its other half says that it is still in the tree
            if is_folder:
                self._left(path)
        elif mask & _MOVED_TO and cookie in self._leaving:
            came_from = self._leaving.pop(cookie)
            self._told.pop(("removed", came_from), None)
            self._tell("moved", path, is_folder, came_from)
            if is_folder:
                self._add(path + "/", announce=False)
        elif mask & (_CREATE | _MOVED_TO):
            if path not in self._found:
                self._tell("created", path, is_folder)
            if is_folder:
                self._add(path + "/", announce=True)
        elif mask & _DELETE:
            self._tell("removed", path, is_folder)
        elif ("created", path) not in self._told:
            self._tell("changed", path, is_folder)

    def _tell(self, event: str, path: str, is_folder: bool, came_from: str = "") -> None:
        kind = "directory" if is_folder else self._kind(path)
        line = {"event": event, "path": path, "type": kind}
        if came_from:
            line["from"] = came_from
        self._told.pop((event, path), None)  # the last of its kind stands last
        self._told[(event, path)] = line

    def _kind(self, path: str) -> str:
        try:
            return files.kind(os.lstat(f"{self.root}/{path}"))
        except OSError:  # gone already
            return "file"

    def _overflow(self, path: str) -> None:
        self._told[("overflow", path)] = {"event": "overflow", "path": path}

    def _left(self, path: str) -> None:
        """A folder has gone elsewhere: what is watched in it would be told under a wrong name."""
        for number, folder in list(self._folders.items()):
            if folder.startswith(path + "/"):
                del self._folders[number]
                self._inotify.remove(number)

    def _add(self, folder: str, *, announce: bool) -> None:
        """Watch a folder (``""`` or ``"relative/"``) and, if asked for, those in it; ``announce`` what it has."""
        from .folders import NOISE

        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            name = folder.rstrip("/").rpartition("/")[2]
            full = f"{self.root}/{folder}".rstrip("/") or "/"
            if folder and (not self._recursive or name in NOISE or full in files.OUTSIDE):
                continue
            if not self._watch(full, folder):
                continue
            try:
                with os.scandir(full) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if announce:
                    self._found.add(folder + entry.name)
                    self._tell("created", folder + entry.name, is_folder)
                if is_folder:
                    waiting.append(f"{folder}{entry.name}/")

    def _watch(self, full: str, folder: str) -> bool:
        if len(self._folders) >= MAX_WATCHES:
            self._overflow(folder.rstrip("/"))
            return False
        try:
            self._folders[self._inotify.add(full)] = folder
        except OSError as exc:
            if not folder and exc.errno != errno.ENOENT:
                raise
            if exc.errno == errno.ENOSPC:  # the kernel's own bound for this user
                self._overflow(folder.rstrip("/"))
            return False
        return True
