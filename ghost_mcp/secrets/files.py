# A file of the store is its old content or its new one, whatever happens meanwhile; nobody else may read it.
"""Private files: read with their permissions checked, replaced in one step; and the lock of a folder."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ghost_mcp.errors import PermissionRefused, TimedOut, map_os_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["locked", "read_private", "replace"]

LOCK_S = 30.0
_POLL_S = 0.005


def read_private(path: Path, limit_bytes: int) -> bytes | None:
    """The file's content, None when there is none. Raises PermissionRefused for one that others may read."""
    with map_os_errors(f"cannot read {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            _check_private(path, os.fstat(fd))
            data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise PermissionRefused(f"{path} is larger than anything Ghost writes there")
    return data


def _check_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PermissionRefused(f"{path} is not a plain file")
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionRefused(
            f"{path} belongs to another user",
            hint=f"Make it yours: chown {os.geteuid()} {path}",
        )
    if found.st_mode & 0o077:
        raise PermissionRefused(
            f"{path} may be read by others (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"Whoever could read it may know the key. If nobody did: chmod 600 {path}",
        )


def replace(path: Path, data: bytes) -> None:
    """Put the file there in one step, on the disk before this returns."""
    with map_os_errors(f"cannot write {path}"):
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when its holder dies. Raises TimedOut after LOCK_S.

    Whoever comes to write removes what a killed writer left half done.
    """
    with map_os_errors(f"cannot use {folder}"):
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, folder)
        if not shared:
            for left in folder.glob(".*.*"):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, kind: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimedOut(f"another process holds {folder}/lock") from None
            time.sleep(_POLL_S)
