# Only this file decides where in the cgroup trees caves may live.
"""Finding the groups below which caves get theirs, from /proc/self and without a daemon's help.

v1: below our own group of each hierarchy that we may write to.

v2 does not let a group hold both processes and limited children, so caves cannot be children of our own,
populated group as it stands. When that group was delegated to us (systemd's ``Delegate=yes``), or when its
parent is not ours, its processes move one level down into the leaf ``ghost-hub`` and caves become siblings of
that leaf; limits an administrator put on the unit then bound the caves too. Otherwise caves become siblings of
our own group: its parent holds no processes and passes on exactly the controllers our group has.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CONTROLLERS", "FOLDER", "Base", "find_bases", "make_group", "pids_in", "read", "write"]

CONTROLLERS = ("memory", "pids", "cpu")
FOLDER = "ghost"
HUB_LEAF = "ghost-hub"


@dataclass(frozen=True, slots=True)
class Base:
    """The group below which ``ghost/<cave>`` lies, in a hierarchy of cgroup ``version`` 1 or 2."""

    version: int
    path: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted hierarchy, as /proc/self/mountinfo has it."""

    kind: str
    root: str
    point: str
    options: frozenset[str]


def find_bases() -> dict[str, Base]:
    """Controller (and v1's ``freezer``) to base, all of one version; empty when nothing is ours to pass on.

    On v2 this may move the processes of our own group into the leaf ``ghost-hub``, see above.
    """
    if not os.path.exists("/proc/self/cgroup"):
        return {}
    own = dict(own_groups(read("/proc/self/cgroup")))
    mounts = list(cgroup_mounts(read("/proc/self/mountinfo")))
    unified = folder_of(own.get("", ""), mounts, "cgroup2")
    if unified is not None and (bases := delegated(unified)):
        return bases
    found = {}
    for controller in (*CONTROLLERS, "freezer"):
        folder = folder_of(own.get(controller, ""), mounts, "cgroup", controller)
        if folder is not None and os.access(folder, os.W_OK | os.X_OK):
            found[controller] = Base(1, folder)
    # A cave's processes are found, counted and ended through its memory or its pids group.
    return found if {"memory", "pids"} & set(found) else {}


def own_groups(text: str) -> Iterator[tuple[str, str]]:
    """(controller, path) from /proc/self/cgroup; the controller of v2 is the empty string."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def cgroup_mounts(text: str) -> Iterator[Mount]:
    """The cgroup hierarchies in /proc/self/mountinfo."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield Mount(kind, fields[3].rstrip("/"), fields[4], frozenset(options.split(",")))


def folder_of(own: str, mounts: list[Mount], kind: str, controller: str = "") -> str | None:
    """The folder of our group ``own``; None when its hierarchy is not mounted or shows another part."""
    for mount in mounts:
        if mount.kind != kind or not own or (controller and controller not in mount.options):
            continue
        inside = own == mount.root or own.startswith(f"{mount.root}/")
        if inside and ".." not in own.split("/"):
            path = f"{mount.point}/{own[len(mount.root) :].strip('/')}".rstrip("/")
            if os.path.isdir(path):
                return path
    return None


def delegated(own: str) -> dict[str, Base]:
    """The v2 bases for a process in the group ``own``."""
    wanted = [c for c in CONTROLLERS if c in read(f"{own}/cgroup.controllers").split()]
    if not wanted:
        return {}
    parent = os.path.dirname(own)
    # The root of the tree is the one group without a type: nothing is ever put there.
    sibling = os.path.exists(f"{parent}/cgroup.type") and _ours(parent)
    prefer_own = _marked_as_delegated(own) or not sibling
    for path in [own, parent] if prefer_own else [parent, own]:
        usable = _ours(own) if path == own else sibling
        if usable and _pass_on(path, own, wanted):
            return {controller: Base(2, path) for controller in wanted}
    return {}


def _ours(group: str) -> bool:
    """May we make groups here and move processes between them? The kernel asks for both."""
    return os.access(group, os.W_OK | os.X_OK) and os.access(f"{group}/cgroup.procs", os.W_OK)


def _marked_as_delegated(group: str) -> bool:
    """systemd marks the groups it gives away."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _pass_on(path: str, own: str, wanted: list[str]) -> bool:
    """Make ``path/ghost`` with the wanted controllers for its children; only our own group is ever switched."""
    try:
        if not set(wanted) <= set(read(f"{path}/cgroup.subtree_control").split()):
            if path != own:
                return False
            _pass_down(path, wanted)
        make_folder(f"{path}/{FOLDER}", wanted)
    except OSError:
        return False
    return True


def _pass_down(path: str, wanted: list[str]) -> None:
    try:
        write(f"{path}/cgroup.subtree_control", switch_on(wanted))
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # busy: it holds processes, ours among them
            raise
        _step_down(path)
        write(f"{path}/cgroup.subtree_control", switch_on(wanted))


def _step_down(path: str) -> None:
    """Move the processes of a group into its leaf; the group's own limits and accounting still hold for them."""
    with suppress(FileExistsError):
        os.mkdir(f"{path}/{HUB_LEAF}", 0o755)
    for _ in range(10):  # what forks while it is being moved is seen in the next round
        pids = pids_in(path)
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                write(f"{path}/{HUB_LEAF}/cgroup.procs", str(pid))


def make_group(group: str, *, controllers: Iterable[str] = ()) -> bool:
    """mkdir; False when it is there already. A folder of all caves that is missing is made first.

    On v2 that folder must pass ``controllers`` on to its children.
    """
    folder = os.path.dirname(group)
    for _ in range(3):  # another hub may tidy the folder away in between
        try:
            os.mkdir(group, 0o755)
        except FileExistsError:
            return False
        except FileNotFoundError:
            make_folder(folder, controllers)
        else:
            return True
    os.mkdir(group, 0o755)
    return True


def make_folder(folder: str, controllers: Iterable[str]) -> None:
    with suppress(FileExistsError):
        os.mkdir(folder, 0o755)
    if controllers:
        write(f"{folder}/cgroup.subtree_control", switch_on(controllers))


def switch_on(controllers: Iterable[str]) -> str:
    return " ".join(f"+{controller}" for controller in controllers)


def pids_in(group: str) -> list[int]:
    """The processes of a group, those of other pid namespaces (0) left out; none when it is gone."""
    try:
        return [int(pid) for pid in read(f"{group}/cgroup.procs").split() if pid != "0"]
    except OSError:
        return []


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces).decode()


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from None  # os.write does not know the name
    finally:
        os.close(fd)
