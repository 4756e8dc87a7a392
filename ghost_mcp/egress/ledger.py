# On the host, never in the cave: what a cave was granted while it runs, and where it went. No cave can write here.
"""One cave's grants and connections, as files that every process of this machine which serves the cave shares.

::

    grants.json     [{rule, until}]: rules added to the cave's own while it lives; until is seconds since the epoch
    log.jsonl       one line for each step of a connection, newest last; log.1.jsonl the lines before
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.egress.policy import MAX_RULES, read_rules
from ghost_mcp.errors import LimitExceeded

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Grant", "Ledger"]

MAX_LOG_BYTES = 1 << 20
POLL_S = 0.2
SKEW_S = 0.1  # several write into one log, each its own time


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A rule added to a live cave's own; ``until`` is seconds since the epoch, None for its whole life."""

    rule: str
    until: float | None = None


class Ledger:
    """Use one for each cave and process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "log.jsonl"
        self._older = folder / "log.1.jsonl"
        self._grants = folder / "grants.json"
        self._read: tuple[tuple[int, ...], tuple[Grant, ...]] = ((), ())

    # --- grants ----------------------------------------------------------------------------------

    def grants(self) -> tuple[Grant, ...]:
        """What holds now. Read again only when the file has changed."""
        try:
            seen = os.stat(self._grants)
        except FileNotFoundError:
            return ()
        mark = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
        if self._read[0] != mark:
            found = json.loads(self._grants.read_bytes())
            self._read = (mark, tuple(Grant(**one) for one in found))
        now = time.time()
        return tuple(one for one in self._read[1] if one.until is None or one.until > now)

    def grant(self, rule: str, *, for_s: float | None = None) -> Grant:
        """Add a rule, which all that serve the cave heed from the next connection on. Raises as read_rules."""
        import fcntl

        read_rules([rule])
        added = Grant(rule=rule, until=None if for_s is None else time.time() + for_s)
        self.prepare()
        lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = [one for one in self.grants() if one.rule != rule]
            if len(kept) >= MAX_RULES:
                raise LimitExceeded("this cave has as many grants as it may have")
            told = [{"rule": one.rule, "until": one.until} for one in (*kept, added)]
            fresh = self.folder / f".grants-{os.getpid()}"
            fresh.write_text(json.dumps(told))
            os.replace(fresh, self._grants)
        finally:
            os.close(lock)
        return added

    # --- connections -----------------------------------------------------------------------------

    def write(self, **record: Any) -> None:
        """Append one line, with the time as ``at``. Lost when the disk is full, and when the cave is gone."""
        line = json.dumps({"at": time.time(), **record}).encode() + b"\n"
        with suppress(OSError):
            self._append(line)

    def _append(self, line: bytes) -> None:
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            full = os.fstat(fd).st_size > MAX_LOG_BYTES
        finally:
            os.close(fd)
        if full:
            os.replace(self._log, self._older)

    def prepare(self) -> None:
        """Make the folder, while the cave is there."""
        self.folder.mkdir(0o700, parents=True, exist_ok=True)

    def records(self, *, since: float = 0.0) -> list[dict[str, Any]]:
        """The lines from a time on, oldest first."""
        data = b"".join(_after(path, 0)[1] for path in (self._older, self._log))
        found: list[dict[str, Any]] = []
        # From the newest on: after each call a moment is asked for, and a cave can fill the log at will.
        for record in _parsed(reversed(data.splitlines())):
            if record["at"] < since - SKEW_S:
                break
            if record["at"] >= since:
                found.append(record)
        return found[::-1]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """All lines, then each new one as it comes."""
        inode, at = 0, 0
        for path in (self._older, self._log):
            inode, data = _after(path, 0)
            at = len(data)
            for record in _parsed(data.splitlines()):
                yield record
        while True:
            await anyio.sleep(POLL_S)
            now, data = _after(self._log, at)
            if inode and now != inode:  # the log has become the older one: what came last to it
                for record in _parsed(_after(self._older, at)[1].splitlines()):
                    yield record
                now, data = _after(self._log, 0)
                at = 0
            inode, at = now, at + len(data)
            for record in _parsed(data.splitlines()):
                yield record


def _after(path: Path, start: int) -> tuple[int, bytes]:
    """The file's number, 0 when there is none, and its bytes from ``start`` on."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return os.fstat(file.fileno()).st_ino, file.read()
    except OSError:
        return 0, b""


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)
