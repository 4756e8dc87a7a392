"""Archives in and out, through a real warden: what comes back is what was packed, and nothing escapes."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.warden import archives, extracting
from ghost_mcp.warden.peers import WardenError

from .conftest import Cave, Client, Refused, alone

LONG = "long-" * 40  # longer than ustar's name field


def tree_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry with its type, mode, time and content or target."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = Path(folder) / name
            info = path.lstat()
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("link", os.readlink(path))
            elif path.is_dir():
                found[key] = ("folder", info.st_mode & 0o777)
            else:
                content = path.read_bytes()
                found[key] = ("file", info.st_mode & 0o777, int(info.st_mtime), content)
    return found


def populate(root: Path) -> None:
    (root / "deep" / LONG / LONG).mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "deep" / LONG / LONG / "f").write_text("deep")
    (root / "script").write_bytes(b"#!/bin/sh\n")
    (root / "script").chmod(0o755)
    (root / "large").write_bytes(os.urandom(3 << 20))
    (root / "block").write_bytes(bytes(512))
    (root / "none").write_bytes(b"")
    (root / "same").hardlink_to(root / "script")
    (root / "up").symlink_to("deep/../script")
    (root / "up").unlink()
    (root / "link").symlink_to("deep")
    (root / "deep" / "back").symlink_to("../script")
    (root / LONG).symlink_to(LONG + "/nowhere")
    Path(os.fsdecode(bytes(root) + b"/\xff \n\xc3\xbc")).write_text("no text")
    os.utime(root / "script", (1_000_000_000, 1_000_000_000))


def unpack(warden: Client, data: bytes, **head: Any) -> dict[str, Any]:
    stream = warden.open("unpack", **{"path": "out", **head})
    stream.send(data)
    stream.eof()
    return stream.finish()[0]


# --- out and in again ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_a_tree_comes_back_as_it_was(cave: Cave, warden: Client, form: str) -> None:
    source = cave.workspace / "in"
    source.mkdir()
    populate(source)
    os.mkfifo(source / "pipe")
    answer, data = warden.call("pack", path="in", format=form)
    assert answer["skipped"] == 1
    (source / "pipe").unlink()
    assert answer["entries"] == len(tree_of(source))
    assert answer["path"] == "/workspace/in"
    assert (data[:2] == b"\x1f\x8b") is (form == "tar.gz")
    assert unpack(warden, data) == {
        "ok": True,
        "path": "/workspace/out",
        "entries": answer["entries"],
        "bytes": answer["bytes"],
    }
    assert tree_of(cave.workspace / "out") == tree_of(source)
    out = cave.workspace / "out"
    assert (out / "same").stat().st_ino == (out / "script").stat().st_ino
    assert unpack(warden, data, format=form)["entries"] == answer["entries"]  # once more, over it
    assert tree_of(cave.workspace / "out") == tree_of(source)


def test_others_read_what_was_packed(cave: Cave, warden: Client, tmp_path: Path) -> None:
    source, out = cave.workspace / "in", tmp_path / "gnu"
    source.mkdir()
    out.mkdir()
    populate(source)
    data = warden.call("pack", path="in", format="tar.gz")[1]
    subprocess.run(["tar", "-xzpf", "-", "-C", str(out)], input=data, check=True)
    assert tree_of(out) == tree_of(source)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {member.uid for member in archive} == {0}


def test_one_file_is_packed_under_its_name(cave: Cave, warden: Client) -> None:
    (cave.workspace / "f").write_text("x")
    (cave.workspace / "l").symlink_to("f")
    for path in ("f", "l"):
        with tarfile.open(fileobj=io.BytesIO(warden.call("pack", path=path)[1])) as archive:
            assert archive.getnames() == ["f"]


@pytest.mark.parametrize(
    ("path", "form", "code"),
    [
        ("none", "tar", "file_not_found"),
        (".", "rar", "invalid_argument"),
        ("/proc/self", "tar", "path_outside"),
        ("pipe", "tar", "not_a_file"),
    ],
)
def test_bad_packs_say_why(cave: Cave, warden: Client, path: str, form: str, code: str) -> None:
    os.mkfifo(cave.workspace / "pipe")
    with pytest.raises(Refused, match=code):
        warden.call("pack", path=path, format=form)


def test_unreadable_files_are_skipped_and_counted(cave: Cave, warden: Client) -> None:
    warden.run("echo 1 > a; echo 2 > b; chmod 0 a; mkdir c; chmod 0 c")
    answer, data = warden.call("pack", path=".")
    assert (answer["entries"], answer["skipped"]) == (2, 2)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["b", "c"]


# --- what others packed --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tars_formats(cave: Cave, warden: Client, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    populate(source)
    if form in ("v7", "ustar"):  # these have no place for long names
        subprocess.run(
            ["rm", "-r", *(str(p) for p in source.iterdir() if "long" in p.name)], check=True
        )
        subprocess.run(["rm", "-r", str(source / "deep" / LONG)], check=True)
    command = ["tar", "-C", str(source), f"--format={form}", "-cf", "-", "."]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    unpack(warden, data)
    assert tree_of(cave.workspace / "out") == tree_of(source)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pythons_formats(cave: Cave, warden: Client, tmp_path: Path, form: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    populate(source)
    buffer = io.BytesIO()
    headers = {"comment": "global"} if form == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as archive:
        archive.add(source, arcname="top")
    unpack(warden, buffer.getvalue(), strip=1)
    assert tree_of(cave.workspace / "out") == tree_of(source)


def test_zip(cave: Cave, warden: Client) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/f.txt", "text" * 10_000)
        archive.writestr("e/", "")
        archive.writestr("ü", b"\0\1")
        run = zipfile.ZipInfo("run", (2020, 2, 3, 4, 5, 6))
        run.external_attr = 0o104755 << 16
        archive.writestr(run, "#!")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "d/f.txt")
        odd = zipfile.ZipInfo("odd", (1980, 0, 0, 0, 0, 0))
        archive.writestr(odd, "")
    assert unpack(warden, buffer.getvalue())["entries"] == 6
    found = tree_of(cave.workspace / "out")
    assert found["d/f.txt"][3] == b"text" * 10_000
    assert found["e"] == ("folder", 0o775)
    assert found["ü"][3] == b"\0\1"
    assert found["run"] == ("file", 0o755, 1580702706, b"#!")
    assert found["link"] == ("link", "d/f.txt")
    assert found["odd"][2] == 0


def test_zips_that_need_more(warden: Client) -> None:
    encrypted = bytearray(zipped("a", b"text"))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(signature) + offset] |= 1
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("f", "text")
    for data, says in ((bytes(encrypted), "encrypted"), (buffer.getvalue(), "method 12")):
        with pytest.raises(Refused, match=f"unsupported: .*{says}"):
            unpack(warden, data)


def test_gzip_in_several_members_and_with_padding(cave: Cave, warden: Client) -> None:
    data = tar(("a", b"1" * 100_000), ("b", b"2"))
    pieces = gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + bytes(1000)
    assert unpack(warden, pieces)["entries"] == 2


def test_empty_archives(cave: Cave, warden: Client) -> None:
    assert unpack(warden, bytes(1024))["entries"] == 0
    assert (cave.workspace / "out").is_dir()
    with pytest.raises(Refused, match="cut off"):
        unpack(warden, b"")


# --- hostile archives ----------------------------------------------------------------------------


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info


def tar(*entries: Any) -> bytes:
    """A tar archive of (name, content) and of members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            if isinstance(entry, tuple):
                info = member(entry[0], size=len(entry[1]))
                archive.addfile(info, io.BytesIO(entry[1]))
            else:
                archive.addfile(entry)
    return buffer.getvalue()


def zipped(name: str, content: bytes = b"evil", mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, content)
    return buffer.getvalue()


def long_path() -> bytes:
    """CVE-2025-4517: a path longer than PATH_MAX once made realpath() stop looking, and so leave the folder."""
    part = "d" * 247
    entries: list[Any] = []
    path = ""
    for step in "abcdefghijklmnop":
        entries += [
            member(path + part, tarfile.DIRTYPE),
            member(path + step, tarfile.SYMTYPE, part),
        ]
        path += part + "/"
    chain = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    entries.append(member(chain, tarfile.SYMTYPE, "../" * 16))
    entries.append(member("escape", tarfile.SYMTYPE, chain + "/../../canary"))
    return tar(*entries, ("escape", b"evil"))


LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
HOSTILE: dict[str, Callable[[], bytes]] = {
    "dot dot": lambda: tar(("../canary", b"evil")),
    "dot dot within": lambda: tar(("a/../../canary", b"evil")),
    "dot dot that stays inside": lambda: tar(("a/../b", b"evil")),
    "absolute": lambda: tar(("/workspace/canary", b"evil")),
    "absolute folder": lambda: tar(member("/workspace/made", FOLDER)),
    "symlink up": lambda: tar(member("l", LINK, ".."), ("l/canary", b"evil")),
    "symlink absolute": lambda: tar(member("l", LINK, "/workspace"), ("l/canary", b"evil")),
    "symlink to a sibling": lambda: tar(member("l", LINK, "/workspace/out-evil")),
    "symlink to the file": lambda: tar(member("canary", LINK, "../canary"), ("canary", b"evil")),
    "symlink up after a name": lambda: tar(member("l", LINK, "a/../../canary")),
    "symlink through symlinks": lambda: tar(
        member("a/b", FOLDER),
        member("a/b/s", LINK, "."),
        member("a/b/x", LINK, "s/../../../canary"),
    ),
    "symlink too high": lambda: tar(member("a/l", LINK, "../../canary")),
    "symlink to nothing": lambda: tar(member("l", LINK, "")),
    "through a good symlink": lambda: tar(
        member("d", FOLDER), member("l", LINK, "d"), ("l/f", b"evil")
    ),
    "folder over a symlink": lambda: tar(member("l", LINK, "."), member("l", FOLDER)),
    "hard link out": lambda: tar(member("h", HARD, "../canary"), ("h", b"evil")),
    "hard link absolute": lambda: tar(member("h", HARD, "/workspace/canary")),
    "hard link to a symlink": lambda: tar(member("l", LINK, "x"), member("h", HARD, "l")),
    "hard link to a folder": lambda: tar(member("d", FOLDER), member("h", HARD, "d")),
    "device": lambda: tar(member("dev", tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "character device": lambda: tar(member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "fifo": lambda: tar(member("pipe", tarfile.FIFOTYPE)),
    "long path": long_path,
    "zip dot dot": lambda: zipped("../canary"),
    "zip absolute": lambda: zipped("/workspace/canary"),
    "zip symlink": lambda: zipped("l", b"../canary", 0o120777),
    "zip device": lambda: zipped("dev", b"", 0o060644),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_escapes(cave: Cave, warden: Client, name: str) -> None:
    (cave.workspace / "canary").write_text("safe")
    (cave.workspace / "out-evil").mkdir()
    with pytest.raises(Refused) as refused:
        unpack(warden, HOSTILE[name]())
    assert refused.value.code == "path_outside"
    assert (cave.workspace / "canary").read_text() == "safe"
    assert sorted(os.listdir(cave.workspace)) == ["canary", "out", "out-evil"]
    for path in (cave.workspace / "out").rglob("*"):
        resolved = path.resolve()
        assert resolved.is_relative_to(cave.workspace / "out"), path


def test_what_was_extracted_before_an_error_is_said(cave: Cave, warden: Client) -> None:
    with pytest.raises(Refused) as refused:
        unpack(warden, tar(("a", b"12345"), ("b", b"1"), ("../c", b"evil")))
    assert refused.value.head["data"] == {"entries": 2, "bytes": 6}
    assert "'../c'" in refused.value.head["message"]


def test_links_that_stay_inside_are_kept(cave: Cave, warden: Client) -> None:
    data = tar(
        member("a/b", FOLDER),
        member("a/b/up", LINK, "../../f"),
        member("abs", LINK, "/workspace/out/a"),
        ("f", b"f"),
        member("a/hard", HARD, "f"),
        member("f", HARD, "f"),
    )
    assert unpack(warden, data)["entries"] == 6
    out = cave.workspace / "out"
    assert (out / "a/b/up").read_text() == "f"
    assert (out / "a/hard").stat().st_nlink == 2


def test_no_file_gets_more_than_plain_permissions(cave: Cave, warden: Client) -> None:
    data = tar(member("suid", mode=0o6755), member("d", FOLDER, mode=0o7000))
    unpack(warden, data)
    assert (cave.workspace / "out/suid").stat().st_mode == 0o100755
    assert (cave.workspace / "out/d").stat().st_mode == 0o040700


def test_files_replace_and_never_write_through(cave: Cave, warden: Client) -> None:
    out = cave.workspace / "out"
    out.mkdir()
    (cave.workspace / "canary").write_text("safe")
    (out / "link").symlink_to("../canary")
    (out / "hard").hardlink_to(cave.workspace / "canary")
    unpack(warden, tar(("link", b"new"), ("hard", b"new"), ("twice", b"1"), ("twice", b"2")))
    assert (cave.workspace / "canary").read_text() == "safe"
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "link": "new",
        "hard": "new",
        "twice": "2",
    }
    with pytest.raises(Refused, match="is_a_directory"):
        unpack(warden, tar(member("d", FOLDER), ("d", b"evil")))
    with pytest.raises(Refused, match="path_outside"):
        unpack(warden, tar(("link/f", b"through a file")))


def test_places_that_are_not_files_stay_closed(warden: Client) -> None:
    for path, name in (("/", "proc/1/comm"), ("/", "run/ghost/x"), ("/run", "ghost/x")):
        with pytest.raises(Refused, match="path_outside"):
            unpack(warden, tar((name, b"evil")), path=path)
    with pytest.raises(Refused, match="path_outside"):
        unpack(warden, tar(("f", b"evil")), path="/proc/1")


def sized(data: bytes, size: int) -> bytes:
    """The first header with another size, in base 256 as GNU writes large and negative ones."""
    field = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header = bytearray(data[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def pax(*records: bytes) -> bytes:
    """A pax header of raw records before a file."""
    body = b"".join(records)
    info = member("pax", tarfile.XHDTYPE, size=len(body))
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + body + bytes(-len(body) % 512) + tar(("f", b"12345"))


GOOD = tar(("a", b"x" * 2000), member("d", FOLDER), ("d/b", b"y"))
BROKEN: dict[str, tuple[bytes, str]] = {
    "garbage": (b"garbage" * 200, "makes no sense"),
    "cut in a header": (GOOD[:300], "cut off"),
    "cut in a file": (GOOD[:1000], "cut off"),
    "cut in padding": (GOOD[:2600], "cut off"),
    "cut between entries": (GOOD[: 512 + 2048], "cut off"),
    "no end": (GOOD[: 512 * 8], "cut off"),
    "damaged header": (GOOD[:2560] + b"!" + GOOD[2561:], "makes no sense"),
    "negative size": (sized(GOOD, -512), "negative size"),
    "size of 8 EB": (sized(GOOD, 1 << 62), "cut off"),
    "long name of 1 GB": (
        sized(member("x", tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT), 1 << 30),
        "too long",
    ),
    "pax header of 1 GB": (
        sized(member("x", tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT), 1 << 30),
        "too long",
    ),
    "pax length that is none": (pax(b"x path=a\n"), "pax header"),
    "pax length too long": (pax(b"999 path=a\n"), "pax header"),
    "pax length too short": (pax(b"1 path=a\n"), "pax header"),
    "pax without a value": (pax(b"8 path\n\n"), "pax header"),
    "pax size that is none": (pax(b"10 size=x\n"), "a number in a header"),
    "pax negative size": (pax(b"11 size=-5\n"), "negative size"),
    "sparse": (pax(b"22 GNU.sparse.major=1\n"), "sparse"),
    "gzip cut off": (gzip.compress(GOOD)[:-20], "cut off"),
    "gzip damaged": (
        gzip.compress(GOOD)[:30] + b"\xff" * 20 + gzip.compress(GOOD)[50:],
        "damaged",
    ),
    "zip cut off": (zipped("a")[:-30], "not a good archive"),
    "zip damaged": (zipped("a", b"text").replace(b"text", b"tExt", 1), "not a good archive"),
    "hard link to nothing": (tar(member("h", HARD, "none")), "a link to what it does not have"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives_say_why(warden: Client, name: str) -> None:
    data, says = BROKEN[name]
    with pytest.raises(Refused) as refused:
        unpack(warden, data)
    assert refused.value.code == "invalid_argument"
    assert says in refused.value.head["message"]


def test_pax_headers_say_name_size_and_time(cave: Cave, warden: Client) -> None:
    body = b"x" * 700
    records = b"".join((b"14 path=\xc3\xbcber\n", b"12 size=700\n", b"23 mtime=1000000000.25\n"))
    info = member("pax", tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    data = info + records + bytes(512 - len(records)) + member("short").tobuf(tarfile.USTAR_FORMAT)
    unpack(warden, data + body + bytes(1024 - 700) + bytes(1024))
    (path,) = (cave.workspace / "out").iterdir()
    assert (path.name, path.read_bytes()) == ("über", body)
    assert path.stat().st_mtime == 1_000_000_000.25


def test_bad_unpacks_say_why(cave: Cave, warden: Client) -> None:
    (cave.workspace / "file").write_text("")
    for head, code in (
        ({"format": "rar"}, "invalid_argument"),
        ({"strip": "x"}, "invalid_argument"),
        ({"path": "../x"}, "path_outside"),
        ({"path": "file"}, "file_exists"),
        ({"path": "file/x"}, "not_a_directory"),
        ({"format": "zip"}, "invalid_argument"),
        ({"format": "tar.gz"}, "invalid_argument"),
    ):
        with pytest.raises(Refused, match=code):
            unpack(warden, GOOD * 100, **head)


def test_strip(cave: Cave, warden: Client) -> None:
    data = tar(member("top", FOLDER), ("top/a", b"1"), ("top/d/b", b"2"), ("other", b"3"))
    assert unpack(warden, data, strip=1)["entries"] == 2
    assert sorted(tree_of(cave.workspace / "out")) == ["a", "d", "d/b"]


def test_too_many_entries(warden: Client) -> None:
    header = member("d", FOLDER).tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(Refused, match="too_large") as refused:
        unpack(warden, gzip.compress(header * 100_002, 1))
    assert refused.value.head["data"]["entries"] == 100_001


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound itself is 4 GiB: here it is made smaller, so that no disk is filled."""
    monkeypatch.setattr(extracting, "MAX_BYTES", 1 << 20)
    bomb = gzip.compress(tar(("zeros", bytes(4 << 20))))
    read, write = os.pipe()
    assert len(bomb) < 1 << 16
    os.write(write, bomb)
    os.close(write)
    with pytest.raises(WardenError, match="holds more than"):
        archives.unpack({"path": str(tmp_path / "out")}, read)
    assert (tmp_path / "out" / "zeros").stat().st_size == 1 << 20


def test_an_unpack_that_is_given_up_leaves_a_free_warden(cave: Cave, warden: Client) -> None:
    stream = warden.open("unpack", path="out")
    stream.send(GOOD[:1000])
    stream.reset()
    assert unpack(warden, GOOD)["entries"] == 3
    alone(warden)
