# Only this file decides what a local cave is made of: what it sees, who it is, what it may ask the kernel.
"""The bubblewrap command line of a cave, and starting it without a moment outside its limits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ghost_mcp.backends.local.etc import ENVIRONMENT as ETC_ENVIRONMENT
from ghost_mcp.backends.local.etc import build_etc
from ghost_mcp.backends.local.seccomp import filter_bytes
from ghost_mcp.errors import BackendUnavailable, InvalidArgument
from ghost_mcp.warden import runtime

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from ghost_mcp.backends.local.state import CaveDir
    from ghost_mcp.spec import CaveSpec

__all__ = ["Launch", "launch", "require_bwrap"]

INNER_UID = 1000
SHM_BYTES = 256 << 20
LISTEN_FD, LIFELINE_FD, SECCOMP_FD, INFO_FD = 3, 4, 5, 6
CREATION_S = 30  # a cave that nobody has configured by then ends

ENVIRONMENT = {
    **ETC_ENVIRONMENT,
    "PATH": "/home/cave/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin",
    "HOME": "/home/cave",
    "USER": "cave",
    "LOGNAME": "cave",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
    "TMPDIR": "/tmp",
    # The system's Python and npm refuse or cannot write to /usr: their packages go to $HOME/.local.
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_USER": "1",
    "NPM_CONFIG_PREFIX": "/home/cave/.local",
}

# A root tree keeps its own /etc, so that what is ours lies elsewhere; ghost-full has programs of its own in /opt/venv.
PRELOAD = "/run/node.cjs"
TREE_ENVIRONMENT = {
    **ENVIRONMENT,
    "NODE_OPTIONS": f"--require={PRELOAD}",
    "PATH": f"{ENVIRONMENT['PATH']}:/opt/venv/bin",
}

# Joins the cgroups, then becomes the next program: nothing of the cave ever runs outside its limits.
JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 41; shift; done; shift; exec "$@"'
# The same in a mount namespace of its own, which goes with the cave: root mounts there what the cave's user
# could not reach by path. Arguments: options, source, target, ..., --, next program.
MOUNT = (
    'while [ "$1" != -- ]; do mount -o "$1" "$2" "$3" || exit 42; shift 3; done; shift; exec "$@"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of one cave. ``uid`` is the host's; ``cgroups`` the files that take the process."""

    cave: CaveDir
    spec: CaveSpec
    uid: int
    gid: int
    cgroups: Sequence[str]
    cache: Path
    disk: bool


@cache
def require_bwrap() -> str:
    """The path of bubblewrap. Raises BackendUnavailable with the way to get it."""
    found = shutil.which("bwrap", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if found is None:
        raise BackendUnavailable(
            "bubblewrap (bwrap) is not installed: no local cave can be made",
            hint="Install it: apt-get install bubblewrap. Then see: ghost doctor",
        )
    return found


def launch(request: Launch, listener: socket.socket, lifeline: int | None) -> int:
    """Start the cave; returns the pid of its outer process, which is in no process group of ours.

    ``listener`` is the socket the warden will accept on; ``lifeline`` the end whose closing ends the cave.
    """
    argv = _argv(request, has_lifeline=lifeline is not None)
    told = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    with ExitStack() as ours:

        def opened(fd: int) -> int:
            ours.callback(os.close, fd)
            return fd

        log = opened(os.open(request.cave.log, told | os.O_APPEND, 0o600))
        info = opened(os.open(request.cave.path / "info.json", told | os.O_TRUNC, 0o600))
        seccomp = opened(_filter_fd())
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        pairs = [(listener.fileno(), LISTEN_FD), (seccomp, SECCOMP_FD), (info, INFO_FD)]
        if lifeline is not None:
            pairs.append((lifeline, LIFELINE_FD))
        # Through numbers that no target has, so that no pair overwrites another's source.
        actions += [(os.POSIX_SPAWN_DUP2, source, 200 + target) for source, target in pairs]
        actions += [(os.POSIX_SPAWN_DUP2, 200 + target, target) for _, target in pairs]
        actions += [(os.POSIX_SPAWN_CLOSE, 200 + target) for _, target in pairs]
        return os.posix_spawn(
            "/bin/sh",
            argv,
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=actions,
            setsid=True,
        )


def _filter_fd() -> int:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.write(fd, filter_bytes())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _argv(request: Launch, *, has_lifeline: bool) -> list[str]:
    argv = ["sh", "-c", JOIN, "ghost", *request.cgroups, "--"]
    folder = request.cave.path
    files = folder / "disk" if request.disk else folder
    mounts = dict(request.spec.mounts)
    if os.geteuid() == 0:
        argv += _private_mounts(request, mounts)
        # Becomes the cave's user, in no other group; unshare(1) is the lightest program that can.
        argv += ["unshare", "--setuid", str(request.uid), "--setgid", str(request.gid)]
    argv += [
        require_bwrap(),
        *_isolation(),
        *_root(request),
        *_own(request, files, mounts),
        *_environment(request.spec.image),
    ]
    argv += ["--seccomp", str(SECCOMP_FD), "--info-fd", str(INFO_FD), "--chdir", "/workspace", "--"]
    argv += [*runtime.argv("/.ghost"), "--listen-fd", str(LISTEN_FD), "--lonely", str(CREATION_S)]
    if has_lifeline:
        argv += ["--lifeline-fd", str(LIFELINE_FD)]
    return argv


def _isolation() -> list[str]:
    inner = str(INNER_UID)
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--as-pid-1"),
        *("--cap-drop", "ALL", "--uid", inner, "--gid", inner, "--hostname", "cave", "--clearenv"),
    ]


def _root(request: Launch) -> list[str]:
    """The read-only root: the host's /usr with an /etc of our own, or the tree given as image."""
    argv = (
        _image_root(request.spec.image, request.cache)
        if request.spec.image
        else _host_root(request.cache)
    )
    argv += ["--ro-bind", str(runtime.build_runtime(request.cache)), "/.ghost"]
    argv += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    return argv


def _host_root(cache_dir: Path) -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            argv += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            argv += ["--ro-bind", f"/{name}", f"/{name}"]
    argv += _python()
    return [*argv, "--ro-bind", str(build_etc(cache_dir)), "/etc", "--symlink", "/tmp", "/var/tmp"]


def _python() -> list[str]:
    """``python`` for those who write it so, agents first: distributions name the program python3."""
    usual = ENVIRONMENT["PATH"].partition(":")[2]
    has, lacks = shutil.which("python3", path=usual), shutil.which("python", path=usual)
    return ["--symlink", has, "/opt/bin/python"] if has and not lacks else []


_OWN = frozenset({"proc", "sys", "dev", "tmp", "run", "home", "root", "workspace", ".ghost"})


def _image_root(image: str, cache_dir: Path) -> list[str]:
    """Each entry of the tree by itself, so that the cave's own folders need not exist in it."""
    if not os.path.isabs(image) or not os.path.isdir(image) or os.path.realpath(image) == "/":
        raise InvalidArgument(
            f"not a root tree: {image[:200]}",
            hint="For the local backend image is the absolute path of a folder that holds bin, etc, usr ...",
        )
    argv = []
    for entry in sorted(os.scandir(image), key=lambda e: e.name):
        if entry.name in _OWN:
            continue
        if entry.is_symlink():
            argv += ["--symlink", os.readlink(entry.path), f"/{entry.name}"]
        else:
            argv += ["--ro-bind", entry.path, f"/{entry.name}"]
    return [*argv, "--ro-bind", str(build_etc(cache_dir) / "ghost/node.cjs"), PRELOAD]


def _private_mounts(request: Launch, mounts: dict[str, str]) -> list[str]:
    """Mounts that need root: the cave's disk, and stand-ins for its mounts, which replace their sources."""
    folder = request.cave.path
    wanted = []
    if request.disk:
        wanted += ["loop,nosuid,nodev,noatime", str(folder / "disk.ext4"), str(folder / "disk")]
    for number, (path, source) in enumerate(request.spec.mounts.items()):
        stand_in = folder / "mounts" / str(number)
        wanted += ["bind", source, str(stand_in)]
        mounts[path] = str(stand_in)
    if not wanted:
        return []
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        MOUNT,
        "ghost",
        *wanted,
        "--",
    ]


def _own(request: Launch, files: Path, mounts: dict[str, str]) -> list[str]:
    """What the cave may write: its sized tmpfs, its run folder, its home and its workspace."""
    workspace = request.spec.workspace or str(files / "workspace")
    return [
        *("--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"),
        *("--size", str(request.spec.limits.tmp_bytes), "--tmpfs", "/tmp"),
        *("--bind", str(files / "run"), "/run/ghost"),
        *("--bind", str(files / "home"), "/home/cave"),
        *("--bind", workspace, "/workspace"),
        *(word for path, source in mounts.items() for word in ("--ro-bind", source, path)),
        # bubblewrap's own root and /dev are tmpfs without a size: closed once everything is in place.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
    ]


def _environment(image: str | None) -> list[str]:
    found = TREE_ENVIRONMENT if image else ENVIRONMENT
    return [word for name, value in found.items() for word in ("--setenv", name, value)]
