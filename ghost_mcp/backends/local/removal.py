# Only this file removes what a cave has left on the disk, whatever its programs have built there.
"""Removing a tree that nobody is to be trusted with: deeper than any path is long, or closed to its own owner."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["remove_tree"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(top: str | os.PathLike[str]) -> None:
    """Remove a folder and all that is in it; one that is not there is fine.

    However deep it is, three descriptors and no recursion do: a folder that holds something is moved up into ``top``
    first. Several may do so at once, but no program may live that could change the tree. What cannot be removed now
    stays, for whoever tries next; no OSError is raised.
    """
    path = os.fspath(top)
    _open_up(path)
    with suppress(OSError):
        root = os.open(path, _FOLDER)
        try:
            waiting = [""]
            while waiting:
                waiting += _emptied(root, waiting.pop())
        finally:
            os.close(root)
        os.rmdir(path)


def _emptied(root: int, name: str) -> list[str]:
    """Remove what a folder in ``root`` holds (``root`` itself for no name), and then the folder; what is to be tried
    after it, as names in ``root``."""
    try:
        folder = os.open(name or ".", _FOLDER, dir_fd=root)
    except OSError:  # another has removed it
        return []
    left: list[str] = []
    removed = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=folder)
                    elif not name:
                        _open_up(entry.name, root)
                        left.append(entry.name)
                    elif not _removed(entry.name, folder):
                        left.append(_moved_up(entry.name, folder, root))
                    removed = True
    except OSError:
        return left
    finally:
        os.close(folder)
    if name and not _removed(name, root) and removed:
        left.append(name)  # the kernel may pass over an entry while others of its folder go
    return left


def _removed(name: str, folder: int) -> bool:
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _moved_up(name: str, folder: int, root: int) -> str:
    """Raises OSError."""
    _open_up(name, folder)
    new = f".{os.urandom(8).hex()}"
    os.rename(name, new, src_dir_fd=folder, dst_dir_fd=root)
    return new


def _open_up(name: str, folder: int | None = None) -> None:
    """Let an ordinary user into a folder that is closed to its owner; root needs no permission."""
    if os.geteuid() != 0:
        with suppress(OSError):
            os.chmod(name, 0o700, dir_fd=folder)
