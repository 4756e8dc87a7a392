# The directory of a cave and its warden's socket are the truth; nothing here remembers anything else.
"""The state directory of local caves. Synchronous and cheap: a few small file operations a call.

::

    <state>/instance                  this Ghost's id
    <state>/names/NAME, OWNER@NAME -> ID  reserves a name (a symbolic link is made by one process only)
    <state>/pool/ID/                  a prepared cave; claiming it renames it into caves/
    <state>/gone/ID-...               a destroyed cave's files, on their way out
    <state>/caves/ID/                 cave.json  warden.sock  info.json  log  lock  workspace/  home/  run/

Folders above a cave's own are mode 0711: the cave's user passes through them and sees nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghost_mcp.backends.local import door
from ghost_mcp.backends.local.cgroups import CaveGroup, CgroupDriver
from ghost_mcp.errors import BackendUnavailable, CaveGone, CaveNotFound, Conflict
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec

__all__ = ["CaveDir", "StateDir", "info_of"]

# Room for what a stream sends at once, and more: a hub and a warden then seldom wait for each other.
SEND_BUFFER = 1 << 19
# Above what systemd, containers and subordinate ids use (systemd's UIDS-GIDS.md: "unused").
FIRST_UID = 1_879_100_000
UIDS = 200_000_000
# What every cave.json holds; one without it was written by another version of Ghost.
RECORDED = {"spec", "created_at", "assurance", "uid", "gid", "group", "cgroups"}


@dataclass(frozen=True, slots=True)
class CaveDir:
    """One cave's directory."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def socket_path(self) -> Path:
        return self.path / "warden.sock"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def record(self) -> dict[str, Any]:
        """cave.json. Raises CaveNotFound when there is none (yet, or any more)."""
        try:
            with open(self.path / "cave.json", encoding="utf-8") as file:
                data: dict[str, Any] = json.load(file)
                if not (isinstance(data, dict) and data.keys() >= RECORDED):
                    raise ValueError("something is missing")
                return data
        except (FileNotFoundError, NotADirectoryError):
            raise CaveNotFound(f"no such cave: {self.id}") from None
        except ValueError as exc:
            raise BackendUnavailable(
                f"unreadable record of cave {self.id}", hint=f"Remove {self.path}."
            ) from exc

    def write_record(self, record: Mapping[str, Any]) -> None:
        temporary = self.path / f".cave.{os.urandom(4).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.rename(temporary, self.path / "cave.json")

    def connect(self) -> socket.socket:
        """A connected, non-blocking socket. Raises CaveGone when nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            door.connect(sock, os.fspath(self.path))
        except BaseException:
            sock.close()
            raise
        return sock

    def alive(self) -> bool:
        try:
            self.connect().close()
        except CaveGone:
            return False
        except BackendUnavailable:
            return True  # its backlog is full: there, but busy
        return True

    def warden_pid(self) -> int | None:
        """The warden's pid on the host, if that process still is this cave's."""
        try:
            info = json.loads((self.path / "info.json").read_text())
            pid = int(info["child-pid"])
            namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
        except (OSError, ValueError, KeyError):
            return None
        return pid if namespace == info.get("pid-namespace", namespace) else None

    def try_lock(self) -> int | None:
        """Take the cave's lock for a change of its state: a descriptor to close, or None when it is held.

        Raises CaveNotFound when there is no such cave.
        """
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise CaveNotFound(f"no such cave: {self.id}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(self.path / "lock")
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:  # it was swept meanwhile
            os.close(fd)
            raise CaveNotFound(f"no such cave: {self.id}") from None
        if not os.path.samestat(there, os.fstat(fd)):
            os.close(fd)
            return None
        return fd

    def info(self, *, frozen: bool) -> CaveInfo:
        record = self.record()
        if self.alive():
            state = State.PAUSED if frozen else State.RUNNING
        else:
            state = State.STOPPED if record.get("stopped") else State.ENDED
        return info_of(record, state)


def info_of(record: Mapping[str, Any], state: State) -> CaveInfo:
    """What a cave's record and its state say together."""
    return CaveInfo(
        spec=CaveSpec.from_dict(record["spec"]),
        state=state,
        created_at=record["created_at"],
        deadline_at=record.get("deadline_at"),
        assurance={name: Assurance(**line) for name, line in record["assurance"].items()},
    )


class StateDir:
    """All local caves of one Ghost."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(door.state_folder())
        self.caves = self.path / "caves"
        self.pool = self.path / "pool"
        self.gone = self.path / "gone"
        self.names = self.path / "names"
        self.cache = self.path / "cache"

    def prepare(self) -> None:
        """Make the folders. Raises BackendUnavailable when a cave's user could not pass through them."""
        try:
            for folder in (self.path, self.caves, self.pool, self.gone, self.names, self.cache):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    folder.chmod(0o711 if folder is not self.cache else 0o755)
        except OSError as exc:
            raise BackendUnavailable(
                f"cannot make the state folder {self.path}: {exc.strerror}",
                hint="Set GHOST_STATE_DIR to a folder you own.",
            ) from exc
        if os.geteuid() == 0:
            for folder in (self.path, *self.path.parents):
                if not folder.stat().st_mode & 0o001:
                    raise BackendUnavailable(
                        f"{folder} is closed to other users, so a cave's own user cannot reach {self.path}",
                        hint=f"chmod o+x {folder}, or set GHOST_STATE_DIR to another place.",
                    )

    @property
    def instance(self) -> str:
        """This Ghost's id, made on first use."""
        file = self.path / "instance"
        with suppress(FileNotFoundError):
            return file.read_text().strip()
        temporary = self.path / f".instance.{os.urandom(4).hex()}"
        temporary.write_text(os.urandom(4).hex())
        with suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()
        return file.read_text().strip()

    def cave(self, cave_id: str) -> CaveDir:
        return CaveDir(self.caves / os.path.basename(cave_id))

    def prepared(self, cave_id: str) -> CaveDir:
        return CaveDir(self.pool / os.path.basename(cave_id))

    def find(self, name: str) -> CaveDir:
        """The cave of that full name or id. Raises CaveNotFound, with the names there are."""
        return CaveDir(Path(door.find(os.fspath(self.path), name)))

    def info(self, cave: CaveDir, cgroups: CgroupDriver) -> CaveInfo:
        """What is there now. Raises CaveNotFound."""
        info = cave.info(frozen=False)
        if info.state is State.RUNNING and self.group(cave, cgroups).frozen():
            return cave.info(frozen=True)
        return info

    def listed(self, cave: CaveDir, cgroups: CgroupDriver) -> CaveInfo | None:
        """The same for a list: None for what is to be swept, an ended ephemeral cave or half a creation."""
        with suppress(CaveNotFound):
            info = self.info(cave, cgroups)
            if not (info.state is State.ENDED and info.spec.ephemeral):
                return info
        return None

    def group(self, cave: CaveDir, cgroups: CgroupDriver) -> CaveGroup:
        """The cave's cgroup. ``cgroups`` is this process's driver: it serves while there is no record yet.

        The record names the driver and the group: another process, in another group of its own, may have
        made the cave, and a claimed one was made under another id.
        """
        try:
            record = cave.record()
        except CaveNotFound:
            return CaveGroup(cgroups, f"{self.instance}-{cave.id}")
        return CaveGroup(
            CgroupDriver.from_dict(record["cgroups"]), f"{self.instance}-{record['group']}"
        )

    def all(self, *, prepared: bool = False) -> list[CaveDir]:
        """The caves; with ``prepared`` also those that wait in the pool."""
        folders = (self.caves, self.pool) if prepared else (self.caves,)
        return [CaveDir(folder / name) for folder in folders for name in self._entries(folder)]

    @staticmethod
    def _entries(folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def discard(self, cave: CaveDir) -> Path:
        """Take a cave's folder out of sight, in one step; returns where its files wait to be removed."""
        target = self.gone / f"{cave.id}-{os.urandom(4).hex()}"
        with suppress(FileNotFoundError):
            os.rename(cave.path, target)
        return target

    def discarded(self) -> list[Path]:
        """What is left of destroyed caves, by this process or by one that was killed over it."""
        return [self.gone / name for name in self._entries(self.gone)]

    def reserve(self, name: str, cave_id: str) -> None:
        """Take a full name for a cave whose directory exists. Raises Conflict when a live directory has it."""
        for _ in range(3):
            try:
                os.symlink(cave_id, self.names / door.entry(name))
                return
            except FileExistsError:
                holder = self.holder(name)
                if holder == cave_id:
                    return
                if holder is not None and (self.caves / holder).is_dir():
                    raise Conflict(
                        f"a cave named {name} is already there",
                        hint=f"Choose another name, or: ghost destroy {name}",
                    ) from None
                with suppress(FileNotFoundError):
                    os.unlink(self.names / door.entry(name))  # its cave is gone
        raise Conflict(f"the name {name} is being taken by others")

    def holder(self, name: str) -> str | None:
        try:
            return os.path.basename(os.readlink(self.names / door.entry(name)))
        except OSError:
            return None

    def release(self, name: str, cave_id: str) -> None:
        if self.holder(name) == cave_id:
            with suppress(FileNotFoundError):
                os.unlink(self.names / door.entry(name))

    def free_uid(self) -> int:
        """A host uid that no cave here has. Raises BackendUnavailable when none is found."""
        from secrets import randbelow  # it brings OpenSSL along, which who only looks does not need

        used = set()
        for cave in self.all(prepared=True):
            with suppress(OSError):
                used.add((cave.path / "run").stat().st_uid)
        for _ in range(100):
            uid = FIRST_UID + randbelow(UIDS)
            if uid not in used:
                return uid
        raise BackendUnavailable("no free user id for a cave")

    def listen(self, cave: CaveDir) -> socket.socket:
        """A fresh listening socket for the cave's warden."""
        with suppress(FileNotFoundError):
            os.unlink(cave.socket_path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            door.on_socket(sock.bind, os.fspath(cave.socket_path))
            os.chmod(cave.socket_path, 0o600)
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
        return sock
