# Only this file writes what an archive says, and only below the folder it is extracted into.
"""The folder that an archive is extracted into. Imported by workers only.

Whoever made the archive chose the names, the types and the links. Parents are opened one name after the other
and never through a link; a link may only point to what is, and will stay, inside: upwards no further than the
folder, and never upwards after a name.
"""

from __future__ import annotations

import os
import stat as modes

from . import files
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self

MAX_ENTRIES = 100_000
MAX_BYTES = 4 << 30
MAX_LINK = 4095
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def broken(why: str) -> WardenError:
    return WardenError("invalid_argument", f"not a good archive: {why}")


def unsafe(name: str, why: str) -> WardenError:
    return WardenError(
        "path_outside",
        f"the archive is not safe: {name[:300]!r} {why}",
        "Nothing of it was followed.",
    )


class Target:
    """The folder an archive goes into. Every method takes names as the archive says them."""

    def __init__(self, root: str, strip: int) -> None:
        self.root = root
        self._strip = strip
        self._entries = self._bytes = 0
        os.makedirs(root, exist_ok=True)
        self._fd = os.open(root, _FOLDER)

    def close(self) -> None:
        os.close(self._fd)

    def summary(self) -> dict[str, Any]:
        return {"entries": self._entries, "bytes": self._bytes}

    def folder(self, name: str, mode: int) -> None:
        parts = self._parts(name)
        if parts:
            fd = self._descend(parts, name)
            try:
                os.fchmod(fd, mode & 0o777 | 0o700)
            finally:
                os.close(fd)
            self._count()

    def file(self, name: str, mode: int, mtime: float, content: Iterable[bytes]) -> None:
        """A regular file that takes the place of any other, and never writes through what was there."""
        with _Place(self, name) as place:
            if place.name:
                place.clear()
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(place.name, flags, 0o600, dir_fd=place.fd)
                try:
                    for piece in content:
                        self._count_bytes(len(piece))
                        view = memoryview(piece)
                        while view:
                            view = view[os.write(fd, view) :]
                    os.fchmod(fd, mode & 0o777)
                    os.utime(fd, (mtime, mtime))
                finally:
                    os.close(fd)
                self._count()

    def symlink(self, name: str, to: str) -> None:
        with _Place(self, name) as place:
            if place.name:
                self._check_link(name, to, place.depth)
                place.clear()
                os.symlink(to, place.name, dir_fd=place.fd)
                self._count()

    def hardlink(self, name: str, to: str) -> None:
        """One more name for a regular file of the folder."""
        with _Place(self, name) as place, _Place(self, to) as source:
            if not place.name or not source.name:
                return
            try:
                info = os.stat(source.name, dir_fd=source.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise broken(f"{name[:300]!r} is a link to what it does not have") from None
            if not modes.S_ISREG(info.st_mode):
                raise unsafe(name, "is a link to what is no file")
            if (place.depth, place.name) != (source.depth, source.name) or not os.path.samestat(
                os.fstat(place.fd), os.fstat(source.fd)
            ):
                place.clear()
                os.link(
                    source.name,
                    place.name,
                    src_dir_fd=source.fd,
                    dst_dir_fd=place.fd,
                    follow_symlinks=False,
                )
            self._count()

    def _check_link(self, name: str, to: str, depth: int) -> None:
        if not to or "\0" in to or len(os.fsencode(to)) > MAX_LINK:
            raise unsafe(name, "is a link to no path")
        inside = self.root.rstrip("/") + "/"
        if to.startswith("/"):
            if not to.startswith(inside):
                raise unsafe(name, f"is a link to {to[:300]!r}, out of the folder")
            to = to[len(inside) :]
            depth = 0
        parts = [part for part in to.split("/") if part not in ("", ".")]
        ups = 0
        while ups < len(parts) and parts[ups] == "..":
            ups += 1
        if ups > depth or ".." in parts[ups:]:
            raise unsafe(name, f"is a link to {to[:300]!r}, out of the folder")

    def _parts(self, name: str) -> list[str]:
        """The names that lead to an entry; none when all of it is stripped."""
        if "\0" in name or len(os.fsencode(name)) > files.MAX_PATH:
            raise unsafe(name, "is no path")
        if name.startswith("/"):
            raise unsafe(name, "is absolute")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise unsafe(name, "leaves the folder")
        parts = parts[self._strip :]
        if parts:
            # A folder such as / holds places that are not files.
            files.resolve(os.path.join(self.root, *parts))
        return parts

    def _descend(self, parts: list[str], name: str) -> int:
        """Open a folder below this one, made where it is missing; the caller closes it."""
        fd = os.dup(self._fd)
        try:
            for part in parts:
                try:
                    inner = os.open(part, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=fd)
                    inner = os.open(part, _FOLDER, dir_fd=fd)
                except NotADirectoryError:  # O_NOFOLLOW says this of a link, too
                    raise unsafe(
                        name, f"leads through {part[:200]!r}, which is no folder"
                    ) from None
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _count(self) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise WardenError("too_large", f"the archive has more than {MAX_ENTRIES} entries")

    def _count_bytes(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise WardenError("too_large", f"the archive holds more than {MAX_BYTES >> 30} GiB")


class _Place:
    """Where an entry goes: the folder it stands in, opened, and its name there (empty: stripped away)."""

    def __init__(self, target: Target, name: str) -> None:
        parts = target._parts(name)
        self.depth = max(0, len(parts) - 1)
        self.name = parts[-1] if parts else ""
        self.fd = target._descend(parts[:-1], name)

    def clear(self) -> None:
        try:
            os.unlink(self.name, dir_fd=self.fd)
        except FileNotFoundError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
