# Only this file writes what an archive says, and only below the folder it is extracted into.
"""Packing a tree and unpacking archives. Imported by workers only.

An archive is hostile. Whoever made it chose the names, the types, the links and every length in it, so this
file reads tar headers itself, bounded, and takes nothing from the libraries but the form of one header and
zip's directory. Parents are opened one name after the other and never through a link; a link may only point
to what is, and will stay, inside: upwards no further than the folder, and never upwards after a name.
"""

from __future__ import annotations

import io
import os
import stat as modes
import struct
import tarfile
import zlib

from . import files
from .failures import error_head
from .folders import Walk, number
from .program import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, BinaryIO, Callable, Self

    from .trees import Output

MAX_ENTRIES = 100_000
MAX_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20
MAX_LINK = 4095
BLOCK = 512
PIECE = 1 << 16
FORMATS = ("tar", "tar.gz", "zip")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# --- pack ----------------------------------------------------------------------------------------


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
                data = os.read(fd, min(PIECE, left)) or bytes(min(PIECE, left))
                self._put(data)
                left -= len(data)
        finally:
            os.close(fd)
        self._put(bytes(-header.size % BLOCK))

    def _put(self, data: bytes) -> None:
        data = data if self._gzip is None else self._gzip.compress(data)
        if data:
            self._out.write(data)

    def end(self) -> dict[str, Any]:
        self._put(bytes(2 * BLOCK))
        if self._gzip is not None:
            self._out.write(self._gzip.flush())
        return {"entries": self._entries, "bytes": self._bytes, "skipped": self.skipped}


# --- unpack --------------------------------------------------------------------------------------


def unpack(head: dict[str, Any], given: int) -> dict[str, Any]:
    """See trees.unpack."""
    form = str(head.get("format") or "")
    if form and form not in FORMATS:
        raise WardenError(
            "invalid_argument", f"cannot unpack {form[:40]}", f"Use {', '.join(FORMATS)}."
        )
    target = _Target(files.real(head.get("path")), number(head, "strip", 0, 0, 100))
    try:
        with io.BufferedReader(io.FileIO(given), PIECE) as source:
            start = source.peek(BLOCK)[:4]
            if form == "zip" or (not form and start[:2] == b"PK"):
                _unpack_zip(source, target)
            else:
                gzip = form == "tar.gz" or (not form and start[:2] == b"\x1f\x8b")
                _unpack_tar(_Gunzip(source).read if gzip else source.read, target)
    except (WardenError, OSError, zlib.error) as exc:
        bad = isinstance(exc, zlib.error)
        error = error_head(_broken("its compressed data is damaged") if bad else exc)
        raise WardenError(
            error["code"], error["message"], error.get("hint", ""), target.summary()
        ) from exc
    finally:
        target.close()
    return {"path": target.root, **target.summary()}


def _broken(why: str) -> WardenError:
    return WardenError("invalid_argument", f"not a good archive: {why}")


def _unsafe(name: str, why: str) -> WardenError:
    return WardenError(
        "path_outside",
        f"the archive is not safe: {name[:300]!r} {why}",
        "Nothing of it was followed.",
    )


class _Target:
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
                raise _broken(f"{name[:300]!r} is a link to what it does not have") from None
            if not modes.S_ISREG(info.st_mode):
                raise _unsafe(name, "is a link to what is no file")
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
            raise _unsafe(name, "is a link to no path")
        inside = self.root.rstrip("/") + "/"
        if to.startswith("/"):
            if not to.startswith(inside):
                raise _unsafe(name, f"is a link to {to[:300]!r}, out of the folder")
            to = to[len(inside) :]
            depth = 0
        parts = [part for part in to.split("/") if part not in ("", ".")]
        ups = 0
        while ups < len(parts) and parts[ups] == "..":
            ups += 1
        if ups > depth or ".." in parts[ups:]:
            raise _unsafe(name, f"is a link to {to[:300]!r}, out of the folder")

    def _parts(self, name: str) -> list[str]:
        """The names that lead to an entry; none when all of it is stripped."""
        if "\0" in name or len(os.fsencode(name)) > files.MAX_PATH:
            raise _unsafe(name, "is no path")
        if name.startswith("/"):
            raise _unsafe(name, "is absolute")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise _unsafe(name, "leaves the folder")
        parts = parts[self._strip :]
        if parts:
            files.resolve(
                os.path.join(self.root, *parts)
            )  # a folder such as / holds places that are not files
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
                    raise _unsafe(
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

    def __init__(self, target: _Target, name: str) -> None:
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


# --- tar -----------------------------------------------------------------------------------------


class _Gunzip:
    """A gzip stream, or several after one another, inflated as it is read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._inflate = zlib.decompressobj(31)
        self._raw = b""
        self._ready = bytearray()

    def read(self, count: int) -> bytes:
        while len(self._ready) < count and self._more():
            pass
        taken = bytes(self._ready[:count])
        del self._ready[:count]
        return taken

    def _more(self) -> bool:
        if self._inflate.eof:
            self._raw = self._inflate.unused_data or self._source.read(PIECE)
            if not self._raw.startswith(b"\x1f"):  # nothing more, or padding
                return False
            self._inflate = zlib.decompressobj(31)
        elif not self._raw:
            self._raw = self._source.read(PIECE)
            if not self._raw:
                raise _broken("it is cut off")
        self._ready += self._inflate.decompress(self._raw, PIECE)
        self._raw = self._inflate.unconsumed_tail
        return True


def _unpack_tar(read: Callable[[int], bytes], target: _Target) -> None:
    tar = _Tar(read)
    for entry in tar:
        if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            target.file(entry.name, entry.mode, float(entry.mtime), tar.content())
        elif entry.type == tarfile.DIRTYPE:
            target.folder(entry.name, entry.mode)
        elif entry.type == tarfile.SYMTYPE:
            target.symlink(entry.name, entry.linkname)
        elif entry.type == tarfile.LNKTYPE:
            target.hardlink(entry.name, entry.linkname)
        else:
            raise _unsafe(entry.name, f"is neither file, folder nor link (type {entry.type!r})")


class _Tar:
    """A tar archive's entries, one after the other: V7, ustar, pax, and GNU's long names."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = self._padding = 0

    def content(self) -> Iterator[bytes]:
        """The current entry's bytes; what is not taken is passed over."""
        while self._left:
            piece = self._exactly(min(PIECE, self._left))
            self._left -= len(piece)
            yield piece

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        said: dict[str, str] = {}
        while True:
            for _ in self.content():
                continue
            self._exactly(self._padding)
            block = self._exactly(BLOCK)
            if not any(block):
                return
            entry = self._header(block)
            if entry.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = "path" if entry.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                said[key] = os.fsdecode(self._extension().rstrip(b"\0"))
            elif entry.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                said.update(_pax(self._extension()))
            elif entry.type == tarfile.XGLTYPE:
                self._extension()
            else:
                self._apply(entry, said)
                said = {}
                yield entry

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise _broken("a header makes no sense") from None
        self._resize(
            entry.size if entry.isreg() or entry.type not in tarfile.SUPPORTED_TYPES else 0
        )
        if entry.type in b"xgXLK":
            self._resize(entry.size)
        return entry

    def _resize(self, size: int) -> None:
        if size < 0:
            raise _broken("an entry has a negative size")
        self._left, self._padding = size, -size % BLOCK

    def _apply(self, entry: tarfile.TarInfo, said: dict[str, str]) -> None:
        """What the headers before an entry say about it."""
        if any(key.startswith("GNU.sparse.") for key in said):
            raise _broken(f"{entry.name[:300]!r} is a sparse file, which is not supported")
        entry.name = said.get("path", entry.name)
        entry.linkname = said.get("linkpath", entry.linkname)
        try:
            if "size" in said and entry.isreg():
                self._resize(int(said["size"]))
            entry.mtime = max(0.0, min(float(said.get("mtime", entry.mtime)), 1e11))
        except ValueError:
            raise _broken("a number in a header makes no sense") from None

    def _extension(self) -> bytes:
        if self._left > MAX_HEADER_BYTES:
            raise _broken("a header is too long")
        return b"".join(self.content())

    def _exactly(self, count: int) -> bytes:
        data = self._read(count)
        if len(data) != count:
            raise _broken("it is cut off")
        return data


def _pax(raw: bytes) -> dict[str, str]:
    """The records ``length key=value newline`` of a pax header."""
    said = {}
    while raw.rstrip(b"\0"):
        size, _, _ = raw.partition(b" ")
        if not size.isdigit() or not len(size) < int(size[:8]) <= len(raw):
            raise _broken("a pax header makes no sense")
        key, found, value = raw[len(size) + 1 : int(size) - 1].partition(b"=")
        if not found:
            raise _broken("a pax header makes no sense")
        said[key.decode("utf-8", "replace")] = os.fsdecode(value)
        raw = raw[int(size) :]
    return said


# --- zip -----------------------------------------------------------------------------------------


def _unpack_zip(source: BinaryIO, target: _Target) -> None:
    """zip's directory stands at its end: the archive is kept in an unnamed file until it has come."""
    import tempfile
    import zipfile

    with tempfile.TemporaryFile(dir=target.root) as spool:
        size = 0
        while piece := source.read(PIECE):
            size += len(piece)
            if size > MAX_BYTES:
                raise WardenError("too_large", f"the archive is larger than {MAX_BYTES >> 30} GiB")
            spool.write(piece)
        try:
            with zipfile.ZipFile(spool) as archive:
                for entry in archive.infolist():
                    _zip_entry(archive, entry, target)
        except RuntimeError as exc:  # encrypted, or of a later version
            raise _unsupported(str(exc)) from exc
        except (zipfile.BadZipFile, EOFError, ValueError, LookupError, struct.error) as exc:
            raise _broken(str(exc)[:200]) from exc


def _unsupported(why: str) -> WardenError:
    return WardenError("unsupported", f"cannot unpack this archive: {why[:200]}")


def _zip_entry(archive: Any, entry: Any, target: _Target) -> None:
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0
    name = entry.filename
    if entry.is_dir():
        target.folder(name, mode or 0o755)
        return
    kind = modes.S_IFMT(mode)
    if kind not in (0, modes.S_IFREG, modes.S_IFLNK):
        raise _unsafe(name, "is neither file, folder nor link")
    if entry.compress_type not in (0, 8):
        raise _unsupported(f"{name[:200]!r} is compressed by method {entry.compress_type}")
    with archive.open(entry) as content:
        if kind == modes.S_IFLNK:
            target.symlink(name, os.fsdecode(content.read(MAX_LINK + 1)))
            return
        pieces = iter(lambda: content.read(PIECE), b"")
        target.file(name, mode or 0o644, _zip_time(entry.date_time), pieces)


def _zip_time(parts: tuple[int, int, int, int, int, int]) -> float:
    """Seconds since 1970; zip has no time zone, and sometimes a month 0."""
    import datetime

    try:
        return datetime.datetime(*parts, tzinfo=datetime.timezone.utc).timestamp()
    except ValueError:
        return 0.0
