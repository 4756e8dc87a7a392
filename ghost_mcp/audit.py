# Only this file decides what is written down about a call: never an argument's value, an answer's text or a secret.
"""The audit trail: one JSON line for each tool call, in files that only their owner reads, bounded in size and number.

A line says when, who, where and which tool, how it ended, how long it took, and how much went in and out. The
arguments are there as a digest under a key of the state folder: equal arguments can be told to be equal, but
a short one cannot be found by guessing without that key.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import lru_cache
from hashlib import blake2b
from typing import IO, TYPE_CHECKING, Any, Protocol

from ghost_mcp.errors import GhostError
from ghost_mcp.spec import check_full_name

if TYPE_CHECKING:
    from ghost_mcp.calls import Answer, Asked, Layer, Run

__all__ = ["Audit", "Files", "Sink", "Stream", "layers", "read"]

MAX_FILE_BYTES = 16 << 20
FILES = 8
_NAME = "calls.jsonl"
_KEY_BYTES = 32
_POLL_S = 0.2
_LOCK_TRIES = 20
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_encode = json.JSONEncoder(
    ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str
).encode
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where lines go."""

    @property
    def key(self) -> bytes:
        """What the digests of arguments are made under."""

    def write(self, line: bytes) -> None:
        """Append one line, whole. Raises OSError."""


def layers(where: str | None = None, *, stream: int = 2) -> list[Layer]:
    """The layers for a ``Calls``: ``where`` is ``-`` for the descriptor ``stream``, ``off``, or a folder.

    None asks ``$GHOST_AUDIT``, and means the folder ``audit`` in the state folder when that is not set.
    """
    from ghost_mcp.backends.local.door import state_folder

    where = where or os.environ.get("GHOST_AUDIT") or os.path.join(state_folder(), "audit")
    if where == "off":
        return []
    return [Audit(Stream(stream) if where == "-" else Files(where))]


class Audit:
    """A layer around calls that leaves a line for each, however it ends."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._broken = False

    async def __call__(self, run: Run, asked: Asked) -> Answer:
        at, began = time.time(), time.perf_counter()
        done: Answer | None = None
        try:
            done = await run(asked)
            return done
        finally:
            self._leave(at, time.perf_counter() - began, asked, done)

    def _leave(self, at: float, took_s: float, asked: Asked, done: Answer | None) -> None:
        try:
            key = self._sink.key
            self._sink.write(_line(key, at, took_s, asked, done))
        except OSError as exc:
            if not self._broken:  # said once, not at each call
                _log.error("the audit trail cannot be written: %s", exc)
            self._broken = True
        else:
            self._broken = False


def _line(key: bytes, at: float, took_s: float, asked: Asked, done: Answer | None) -> bytes:
    given = _encode(asked.arguments).encode()
    seconds = int(at)
    entry: dict[str, Any] = {
        "time": f"{_second(seconds)}.{int((at - seconds) * 1000):03d}Z",
        "call": asked.id,
        "owner": asked.caves.owner,
        "cave": _cave(asked),
        "tool": asked.name,
        "arguments_digest": blake2b(given, key=key, digest_size=16).hexdigest(),
        "arguments_bytes": len(given),
        "outcome": "cancelled",
        "duration_ms": round(took_s * 1000, 3),
    }
    if done is not None:
        outcome = done.outcome
        if isinstance(outcome, GhostError):
            entry["outcome"] = outcome.code
        else:
            entry["outcome"] = "ok"
            pictures = sum(len(picture.data) for picture in outcome.pictures)
            entry["answer_bytes"] = len(outcome.text.encode("utf-8", "replace")) + pictures
    return _encode(entry).encode() + b"\n"


def _cave(asked: Asked) -> str | None:
    """The cave's full name. One that was asked for in vain is only written when it can be a name."""
    if asked.place is not None:
        return asked.place.cave.info.full_name
    owner = asked.caves.owner
    try:
        name = check_full_name(asked.cave) if asked.cave else ""
    except GhostError:
        return None
    if owner and "/" in name:  # of another owner's nothing was done, whatever was asked
        return None
    return f"{owner}/{name}" if name and owner else name or None


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Stream:
    """Lines to a descriptor that somebody else collects, as a container's log."""

    def __init__(self, fd: int) -> None:
        self.key = os.urandom(_KEY_BYTES)
        self._fd = fd

    def write(self, line: bytes) -> None:
        os.write(self._fd, line)


class Files:
    """Lines to a file in a folder; when it is full it is set aside, and the oldest one goes.

    Several processes may write to one folder: a line is one write to the end of the file.
    """

    def __init__(
        self, folder: str, *, max_file_bytes: int = MAX_FILE_BYTES, files: int = FILES
    ) -> None:
        self._folder = folder
        self._path = os.path.join(folder, _NAME)
        self._max_file_bytes = max_file_bytes
        self._files = files
        self._fd = -1
        self._inode = -1
        self._key = b""

    @property
    def key(self) -> bytes:
        if not self._key:
            os.makedirs(os.path.dirname(self._folder), mode=0o711, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            self._key = _key(os.path.join(self._folder, "key"))
        return self._key

    def write(self, line: bytes) -> None:
        for _ in range(3):  # another process may set the file aside meanwhile
            try:
                found = os.stat(self._path, follow_symlinks=False)
            except FileNotFoundError:
                self._open()
                break
            if found.st_ino != self._inode:
                self._open()
            if found.st_size + len(line) <= self._max_file_bytes:
                break
            self._rotate(len(line))
        os.write(self._fd, line)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = self._inode = -1

    def _open(self) -> None:
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS, 0o600)
        self._inode = os.fstat(self._fd).st_ino

    def _rotate(self, more: int) -> None:
        """Set the full file aside, unless another process is at it for long: then it grows a little more."""
        lock = os.open(os.path.join(self._folder, "lock"), os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            _lock(lock)
            if os.stat(self._path).st_size + more > self._max_file_bytes:
                for number in range(self._files - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        os.replace(_aside(self._path, number - 1), _aside(self._path, number))
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(lock)


def _lock(fd: int) -> None:
    """Take the lock, which is held for some renames. Raises BlockingIOError after _LOCK_TRIES milliseconds."""
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.001)
    raise BlockingIOError


def _aside(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def _key(path: str) -> bytes:
    """The folder's key, made by the first who asks; whoever is second takes the first one's. Raises OSError."""
    if not os.path.exists(path):
        made = f"{path}.{os.urandom(4).hex()}"
        with open(
            os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600), "wb"
        ) as file:
            file.write(os.urandom(_KEY_BYTES))
        try:
            with suppress(FileExistsError):
                os.link(made, path)
        finally:
            os.unlink(made)
    with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
        return file.read(_KEY_BYTES)


def read(folder: str, *, follow: bool = False) -> Iterator[Mapping[str, Any]]:
    """The entries of a folder's files, oldest first; with ``follow`` it goes on and waits for more.

    What is no entry is left out. A file that is set aside meanwhile is read to its end.
    """
    path = os.path.join(folder, _NAME)
    with ExitStack() as stack:
        opened: dict[int, IO[bytes]] = {}
        # Newest first: what is set aside now comes again.
        for number in range(_highest(folder) + 1):
            with suppress(FileNotFoundError):
                there = stack.enter_context(open(_aside(path, number), "rb"))
                opened.setdefault(os.fstat(there.fileno()).st_ino, there)
        for file in reversed(opened.values()):
            yield from _entries(file)
        while follow:
            time.sleep(_POLL_S)
            for file in reversed(opened.values()):
                yield from _entries(file)
            with suppress(FileNotFoundError):
                inode = os.stat(path).st_ino
                if inode not in opened:
                    stack.pop_all().close()
                    opened = {inode: stack.enter_context(open(path, "rb"))}


def _highest(folder: str) -> int:
    """The number of the oldest file."""
    try:
        found = [name.removeprefix(f"{_NAME}.") for name in os.listdir(folder)]
    except FileNotFoundError:
        return 0
    return max((int(number) for number in found if number.isdecimal()), default=0)


def _entries(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """The whole lines there are now."""
    while (line := file.readline()).endswith(b"\n"):
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("time"), str):
                yield entry
    file.seek(-len(line), os.SEEK_CUR)
