"""Packing a tree into an archive. Imported by workers only."""

from __future__ import annotations

import os
import stat as modes
import tarfile
import zlib

from . import files
from .folders import Walk
from .peers import CHUNK, WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .trees import Output


def pack(head: dict[str, Any], out: Output) -> dict[str, Any]:
    """See trees.pack."""
    root = files.real(head.get("path"))
    form = str(head.get("format") or "tar")
    if form not in ("tar", "tar.gz"):
        raise WardenError("invalid_argument", f"cannot pack {form[:40]}", "Use tar or tar.gz.")
    try:
        single = not modes.S_ISDIR(os.stat(root).st_mode)
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such file: {root}", files.near(root)) from None
    packer = _Packer(out, compress=form == "tar.gz")
    if single:
        os.close(files.opened(root)[0])
        packer.add(os.path.basename(root), root, os.lstat(root))
        return {"path": root, **packer.end()}
    walk = Walk(root, lambda path, entry: True)
    for path, entry in walk:
        try:
            packer.add(path, entry.path, entry.stat(follow_symlinks=False))
        except OSError:  # gone meanwhile, or unreadable
            packer.skipped += 1
    if walk.full:
        raise WardenError(
            "too_large",
            f"{root} has too many entries for one archive",
            "Pack its folders one by one.",
        )
    packer.skipped += walk.unreadable
    return {"path": root, **packer.end()}


class _Packer:
    """Writes one tar archive."""

    def __init__(self, out: Output, *, compress: bool) -> None:
        self.skipped = 0
        self._out = out
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 31) if compress else None
        self._known: dict[tuple[int, int], str] = {}  # files with several names -> the first one
        self._entries = self._bytes = 0

    def add(self, name: str, full: str, info: os.stat_result) -> None:
        """One entry. Raises OSError before anything of it is written."""
        header = tarfile.TarInfo(name)
        header.mode, header.mtime = modes.S_IMODE(info.st_mode) & 0o777, int(info.st_mtime)
        identity = (info.st_dev, info.st_ino)
        if modes.S_ISDIR(info.st_mode):
            header.type = tarfile.DIRTYPE
        elif modes.S_ISLNK(info.st_mode):
            header.type, header.linkname = tarfile.SYMTYPE, os.readlink(full)
        elif not modes.S_ISREG(info.st_mode):
            self.skipped += 1
            return
        elif identity in self._known:
            header.type, header.linkname = tarfile.LNKTYPE, self._known[identity]
        else:
            self._content(header, full)
            if info.st_nlink > 1:
                self._known[identity] = name
            return
        self._begin(header)

    def _begin(self, header: tarfile.TarInfo) -> None:
        self._entries += 1
        self._put(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _content(self, header: tarfile.TarInfo, full: str) -> None:
        """A file with as many bytes as it had when it was opened, even if it shrinks or grows meanwhile."""
        fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            left = header.size = os.fstat(fd).st_size
            self._begin(header)
            self._bytes += left
            while left:
                data = os.read(fd, min(CHUNK, left)) or bytes(min(CHUNK, left))
                self._put(data)
                left -= len(data)
        finally:
            os.close(fd)
        self._put(bytes(-header.size % tarfile.BLOCKSIZE))

    def _put(self, data: bytes) -> None:
        data = data if self._gzip is None else self._gzip.compress(data)
        if data:
            self._out.write(data)

    def end(self) -> dict[str, Any]:
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        if self._gzip is not None:
            self._out.write(self._gzip.flush())
        return {"entries": self._entries, "bytes": self._bytes, "skipped": self.skipped}
