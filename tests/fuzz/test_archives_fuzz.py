"""Unpacking against damaged and invented archives: a clear refusal or a tree that stays where it belongs."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import stat
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ghost_mcp.warden import archives
from ghost_mcp.warden.peers import WardenError

KINDS = [
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
]
PARTS = st.sampled_from(["..", ".", "", "a", "b", "c", "a" * 200, "\udcff"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
TARGETS = st.one_of(NAMES, st.sampled_from(["/", "/canary", "../canary", "../../canary"]))
ENTRIES = st.lists(
    st.tuples(
        NAMES, st.sampled_from(KINDS), TARGETS, st.binary(max_size=20), st.integers(0, 0o7777)
    ),
    max_size=12,
)


def unpacked(data: bytes, form: str = "") -> None:
    """Unpack into a folder beside a canary, which must still sing."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as file:
        folder = Path(name) / "deep" / "out"
        canaries = [Path(name) / "canary", Path(name) / "deep" / "canary"]
        folder.parent.mkdir()
        for canary in canaries:
            canary.write_text("safe")
        file.write(data)
        file.seek(0)
        with contextlib.suppress(WardenError):
            archives.unpack({"path": str(folder), "format": form}, os.dup(file.fileno()))
        assert [canary.read_text() for canary in canaries] == ["safe", "safe"]
        assert sorted(p.name for p in folder.parent.iterdir()) == ["canary", "out"]
        assert sorted(p.name for p in Path(name).iterdir()) == ["canary", "deep"]
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
            assert not mode & 0o7000
            assert not path.is_symlink() or stays_inside(path, folder)


def stays_inside(path: Path, folder: Path) -> bool:
    try:
        path.stat()
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # a circle leads nowhere; realpath() may call it "/"
            return True
    return path.resolve().is_relative_to(folder.resolve())


def make_tar(entries: list[tuple[str, bytes, str, bytes, int]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, target, content, mode in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, mode
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@given(ENTRIES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@example([("a", tarfile.SYMTYPE, "a//.", b"", 0)], tarfile.PAX_FORMAT)
def test_invented_tars(entries: list[tuple[str, bytes, str, bytes, int]], form: int) -> None:
    unpacked(make_tar(entries, form))


def resigned(data: bytes) -> bytes:
    """The same with good checksums, so that damage gets past the first check."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if any(out[at : at + 512]):
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % (sum(out[at : at + 512]) & 0o777777)
    return bytes(out)


DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=6)


@given(ENTRIES, DAMAGE, st.integers(0, 1 << 20), st.booleans(), st.booleans())
def test_damaged_tars(
    entries: list[tuple[str, bytes, str, bytes, int]],
    damage: list[tuple[int, bytes]],
    cut: int,
    sign: bool,
    squeeze: bool,
) -> None:
    data = bytearray(make_tar(entries, tarfile.PAX_FORMAT))[:8192]
    for at, piece in damage:
        at %= len(data)
        data[at : at + len(piece)] = piece
    whole = resigned(bytes(data)) if sign else bytes(data)
    if squeeze:
        whole = gzip.compress(whole)
    unpacked(whole[: cut % (len(whole) + 1)] if cut % 3 else whole)


@given(st.binary(max_size=600), st.sampled_from(["", "tar", "tar.gz", "zip"]))
def test_arbitrary_bytes(data: bytes, form: str) -> None:
    unpacked(data, form)


@given(ENTRIES, DAMAGE)
def test_damaged_zips(
    entries: list[tuple[str, bytes, str, bytes, int]], damage: list[tuple[int, bytes]]
) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, kind, target, content, mode in entries:
            info = zipfile.ZipInfo(name.replace("\udcff", "ü") or "x")
            kinds = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}
            info.external_attr = (kinds.get(kind, stat.S_IFREG) | mode) << 16
            archive.writestr(info, target.replace("\udcff", "ü") if kind in kinds else content)
    data = bytearray(buffer.getvalue())
    for at, piece in damage:
        at %= len(data)
        data[at : at + len(piece)] = piece
    unpacked(bytes(data), "zip")
