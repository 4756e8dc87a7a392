# How a local cave is found and how its warden is reached: names lead to folders, a folder holds a socket.
"""The part of the state directory that ``ghost exec`` needs, with nothing to import but C modules.

``state`` stands on it and documents the layout.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import BackendUnavailable, CaveGone, CaveNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["connect", "entry", "find", "names", "on_socket", "state_folder"]

SOCKET = "warden.sock"


def state_folder() -> str:
    """``$GHOST_STATE_DIR``, else /var/lib/ghost for root and ~/.local/state/ghost for others."""
    if named := os.environ.get("GHOST_STATE_DIR"):
        return os.path.abspath(named)
    if os.geteuid() == 0:
        return "/var/lib/ghost"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "ghost")


def names(state: str) -> list[str]:
    """The full names that are taken."""
    try:
        return sorted(entry.replace("@", "/") for entry in os.listdir(f"{state}/names"))
    except OSError:
        return []


def entry(name: str) -> str:
    """The entry below ``names`` of a cave's full name."""
    return name.replace("/", "@")


def find(state: str, name: str) -> str:
    """The folder of the cave of that full name or id. Raises CaveNotFound, with the names there are."""
    if "@" not in name and name not in ("", ".", ".."):
        try:
            return f"{state}/caves/{os.path.basename(os.readlink(f'{state}/names/{entry(name)}'))}"
        except (OSError, ValueError):
            pass
    if "/" not in name and name not in ("", ".", ".."):
        for folder in ("caves", "pool"):
            if "\0" not in name and os.path.isdir(f"{state}/{folder}/{name}"):
                return f"{state}/{folder}/{name}"
    raise CaveNotFound.among(name, names(state))


def connect(sock: Any, folder: str) -> None:
    """Connect a unix socket to the warden of the cave in that folder.

    Raises CaveGone when nobody listens, BackendUnavailable when its backlog is full.
    """
    try:
        on_socket(sock.connect, f"{folder}/{SOCKET}")
    except OSError as exc:
        name = os.path.basename(folder)
        if exc.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR):
            raise CaveGone(f"cave {name} is not running") from None
        raise BackendUnavailable(
            f"the warden of cave {name} is not accepting: {exc.strerror}"
        ) from exc


def on_socket(act: Callable[[str], object], path: str) -> None:
    """Bind or connect; a path over the kernel's 108 bytes goes through the folder's descriptor."""
    if len(os.fsencode(path)) < 104:
        act(path)
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)
