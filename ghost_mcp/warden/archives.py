"""Unpacking archives. Imported by workers only.

An archive is hostile. Whoever made it chose every length in it, so this file reads tar headers itself, bounded,
and takes nothing from the libraries but the form of one header and zip's directory. Where an entry may go is
decided, and written, by its target alone.
"""

from __future__ import annotations

import io
import os
import stat as modes
import struct
import tarfile
import zlib

from . import files
from .extracting import MAX_BYTES, MAX_LINK, Target, broken, unsafe
from .failures import error_head
from .heads import number
from .peers import CHUNK, WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO, Callable

MAX_HEADER_BYTES = 1 << 20
FORMATS = ("tar", "tar.gz", "zip")


def unpack(head: dict[str, Any], given: int) -> dict[str, Any]:
    """See trees.unpack."""
    form = str(head.get("format") or "")
    if form and form not in FORMATS:
        raise WardenError(
            "invalid_argument", f"cannot unpack {form[:40]}", f"Use {', '.join(FORMATS)}."
        )
    target = Target(files.real(head.get("path")), number(head, "strip", 0, 0, 100))
    try:
        _extract(form, given, target)
    except (WardenError, OSError, zlib.error) as exc:
        bad = isinstance(exc, zlib.error)
        error = error_head(broken("its compressed data is damaged") if bad else exc)
        raise WardenError(
            error["code"], error["message"], error.get("hint", ""), target.summary()
        ) from exc
    finally:
        target.close()
    return {"path": target.root, **target.summary()}


def _extract(form: str, given: int, target: Target) -> None:
    """Without ``form`` the first bytes tell."""
    with io.BufferedReader(io.FileIO(given), CHUNK) as source:
        start = source.peek(2)
        if form == "zip" or (not form and start.startswith(b"PK")):
            _unpack_zip(source, target)
        else:
            gzip = form == "tar.gz" or (not form and start.startswith(b"\x1f\x8b"))
            _unpack_tar(_Gunzip(source).read if gzip else source.read, target)


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
            self._raw = self._inflate.unused_data or self._source.read(CHUNK)
            if not self._raw.startswith(b"\x1f"):  # nothing more, or padding
                return False
            self._inflate = zlib.decompressobj(31)
        elif not self._raw:
            self._raw = self._source.read(CHUNK)
            if not self._raw:
                raise broken("it is cut off")
        self._ready += self._inflate.decompress(self._raw, CHUNK)
        self._raw = self._inflate.unconsumed_tail
        return True


def _unpack_tar(read: Callable[[int], bytes], target: Target) -> None:
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
            raise unsafe(entry.name, f"is neither file, folder nor link (type {entry.type!r})")


class _Tar:
    """A tar archive's entries, one after the other: V7, ustar, pax, and GNU's long names."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = self._padding = 0

    def content(self) -> Iterator[bytes]:
        """The current entry's bytes; what is not taken is passed over."""
        while self._left:
            piece = self._exactly(min(CHUNK, self._left))
            self._left -= len(piece)
            yield piece

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        said: dict[str, str] = {}
        while True:
            for _ in self.content():
                continue
            self._exactly(self._padding)
            block = self._exactly(tarfile.BLOCKSIZE)
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
            raise broken("a header makes no sense") from None
        self._resize(
            entry.size if entry.isreg() or entry.type not in tarfile.SUPPORTED_TYPES else 0
        )
        if entry.type in b"xgXLK":
            self._resize(entry.size)
        return entry

    def _resize(self, size: int) -> None:
        if size < 0:
            raise broken("an entry has a negative size")
        self._left, self._padding = size, -size % tarfile.BLOCKSIZE

    def _apply(self, entry: tarfile.TarInfo, said: dict[str, str]) -> None:
        """What the headers before an entry say about it."""
        if any(key.startswith("GNU.sparse.") for key in said):
            raise broken(f"{entry.name[:300]!r} is a sparse file, which is not supported")
        entry.name = said.get("path", entry.name)
        entry.linkname = said.get("linkpath", entry.linkname)
        try:
            if "size" in said and entry.isreg():
                self._resize(int(said["size"]))
            entry.mtime = max(0.0, min(float(said.get("mtime", entry.mtime)), 1e11))
        except ValueError:
            raise broken("a number in a header makes no sense") from None

    def _extension(self) -> bytes:
        if self._left > MAX_HEADER_BYTES:
            raise broken("a header is too long")
        return b"".join(self.content())

    def _exactly(self, count: int) -> bytes:
        data = self._read(count)
        if len(data) != count:
            raise broken("it is cut off")
        return data


def _pax(raw: bytes) -> dict[str, str]:
    """The records ``length key=value newline`` of a pax header."""
    said = {}
    while raw.rstrip(b"\0"):
        size, _, _ = raw.partition(b" ")
        if not size.isdigit() or not len(size) < int(size[:8]) <= len(raw):
            raise broken("a pax header makes no sense")
        key, found, value = raw[len(size) + 1 : int(size) - 1].partition(b"=")
        if not found:
            raise broken("a pax header makes no sense")
        said[key.decode("utf-8", "replace")] = os.fsdecode(value)
        raw = raw[int(size) :]
    return said


# --- zip -----------------------------------------------------------------------------------------


def _unpack_zip(source: BinaryIO, target: Target) -> None:
    """zip's directory stands at its end: the archive is kept in an unnamed file until it has come."""
    import tempfile
    import zipfile

    with tempfile.TemporaryFile(dir=target.root) as spool:
        size = 0
        while piece := source.read(CHUNK):
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
            raise broken(str(exc)[:200]) from exc


def _unsupported(why: str) -> WardenError:
    return WardenError("unsupported", f"cannot unpack this archive: {why[:200]}")


def _zip_entry(archive: Any, entry: Any, target: Target) -> None:
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0
    name = entry.filename
    if entry.is_dir():
        target.folder(name, mode or 0o755)
        return
    kind = modes.S_IFMT(mode)
    if kind not in (0, modes.S_IFREG, modes.S_IFLNK):
        raise unsafe(name, "is neither file, folder nor link")
    if entry.compress_type not in (0, 8):
        raise _unsupported(f"{name[:200]!r} is compressed by method {entry.compress_type}")
    with archive.open(entry) as content:
        if kind == modes.S_IFLNK:
            target.symlink(name, os.fsdecode(content.read(MAX_LINK + 1)))
            return
        pieces = iter(lambda: content.read(CHUNK), b"")
        target.file(name, mode or 0o644, _zip_time(entry.date_time), pieces)


def _zip_time(parts: tuple[int, int, int, int, int, int]) -> float:
    """Seconds since 1970; zip has no time zone, and sometimes a month 0."""
    import datetime

    try:
        return datetime.datetime(*parts, tzinfo=datetime.timezone.utc).timestamp()
    except ValueError:
        return 0.0
