# A file that belongs to another program is changed in one step or not at all, and what was there is kept.
"""Reading and replacing a client's file: symbolic links followed, owner and permissions kept, a backup beside it."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

from ghost_mcp.errors import Conflict, InvalidArgument, LimitExceeded, map_os_errors

__all__ = ["Settings", "read"]

MAX_BYTES = 16 << 20
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A file as it was read. ``path`` is where it really is; ``found`` is None when there was none."""

    path: str
    text: str = ""
    bom: str = ""
    found: os.stat_result | None = None

    def write(self, text: str, *, mode: int, private: bool) -> str:
        """Replace the file; returns where the old one is kept, empty when there was none.

        A new file gets ``mode``, an old one keeps its own; ``private`` takes it from all but its owner.
        Raises Conflict when somebody changed the file meanwhile.
        """
        if self.found is not None:
            mode = stat.S_IMODE(self.found.st_mode)
        data = _encoded(self.bom + text)
        with map_os_errors(f"cannot write {self.path}"):
            os.makedirs(os.path.dirname(self.path), mode=0o700 if private else 0o777, exist_ok=True)
            temporary = f"{self.path}.{os.urandom(4).hex()}.tmp"
            self._make(temporary, data, mode & 0o700 if private else mode)
            try:
                self._unchanged()
                backup = self._keep()
                os.replace(temporary, self.path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        return backup

    def _make(self, path: str, data: bytes, mode: int) -> None:
        """A new file on the disk, owned as the old one."""
        with open(path, "xb", opener=_private) as file:
            if self.found is not None and (self.found.st_uid, self.found.st_gid) != _owner(path):
                os.chown(path, self.found.st_uid, self.found.st_gid)
            os.chmod(path, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _keep(self) -> str:
        if self.found is None:
            return ""
        made = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = f"{self.path}.{made}-{os.urandom(2).hex()}.bak"
        self._make(path, _encoded(self.bom + self.text), stat.S_IMODE(self.found.st_mode))
        return path

    def _unchanged(self) -> None:
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            now = None
        if _identity(now) != _identity(self.found):
            raise Conflict(
                f"{self.path} was changed by another program just now",
                hint="Close the client, then run this again.",
            )


def read(path: str) -> Settings:
    """The file behind a path. Raises InvalidArgument for one that is no text, LimitExceeded for a huge one."""
    real = os.path.realpath(path)
    with map_os_errors(f"cannot read {path}"):
        try:
            with open(real, "rb", opener=_unblocked) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise InvalidArgument(f"{path} is not a plain file")
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return Settings(path=real)
    if len(data) > MAX_BYTES:
        raise LimitExceeded(f"{path} is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{path} is not UTF-8 text; it was left as it is") from exc
    bom = _BOM if text.startswith(_BOM) else ""
    return Settings(path=real, text=text.removeprefix(_BOM), bom=bom, found=found)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument("a path that is not UTF-8 cannot be written into it") from exc


def _owner(path: str) -> tuple[int, int]:
    made = os.stat(path)
    return made.st_uid, made.st_gid


def _identity(found: os.stat_result | None) -> tuple[int, ...] | None:
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unblocked(path: str, flags: int) -> int:
    """A pipe in the file's place must not hold us."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
