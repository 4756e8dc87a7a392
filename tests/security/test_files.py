"""Files, group F: no file operation of a cave reaches, keeps hostage or half-writes anything it should not."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import psutil
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.backends.local.backend import LocalBackend
from tests.security.results import LONG

MIB = 1 << 20
OUTSIDE = [
    "../../etc/passwd",
    "..",
    "a/../../../etc/passwd",
    "/proc/self/root/etc/passwd",
    "/proc/1/environ",
    "/workspace/../proc/self/environ",
    "//proc/self/environ",
    "/sys/kernel",
    "/dev/zero",
    "/.ghost/python3",
    "/run/ghost/out",
    "/workspace/../.ghost",
]
BAD = ["", "a\0b", "x" * 5000]


@pytest.fixture
def canary(state_dir: Path) -> Path:
    """A file of the host beside the cave's folders, readable by everyone."""
    file = state_dir / "canary"
    file.write_text("canary")
    file.chmod(0o644)
    return file


OPERATIONS = [
    lambda cave, path: cave.read(path),
    lambda cave, path: cave.write(path, b"x"),
    lambda cave, path: cave.call("stat", {"path": path}),
    lambda cave, path: cave.call("mkdir", {"path": path}),
    lambda cave, path: cave.call("remove", {"path": path, "recursive": True}),
    lambda cave, path: cave.call(
        "move", {"path": "/workspace/there", "to": path, "overwrite": True}
    ),
    lambda cave, path: cave.records("list", {"path": path}),
    lambda cave, path: cave.records("search", {"path": path, "pattern": "x"}),
]


@pytest.mark.parametrize("path", OUTSIDE)
async def test_f1_traversal(cave: Cave, path: str) -> None:
    """Every operation refuses it, with the same code."""
    await cave.write("there", b"x")
    for operation in OPERATIONS:
        with pytest.raises(GhostError) as caught:
            await operation(cave, path)
        assert caught.value.code == "path_outside", caught.value


@pytest.mark.parametrize("path", BAD)
async def test_f1_what_is_no_path(cave: Cave, path: str) -> None:
    for operation in OPERATIONS[:3]:
        with pytest.raises(GhostError) as caught:
            await operation(cave, path)
        assert caught.value.code == "invalid_path", caught.value


async def test_f1_names_that_only_look_like_traversal_are_names(cave: Cave) -> None:
    for name in ("%2e%2e", "..\\..\\x", "...", "/workspace-evil"):
        with pytest.raises(GhostError) as caught:
            await cave.read(name)
        assert caught.value.code in ("file_not_found", "not_a_directory")


async def test_f2_symlinks_lead_nowhere_outside(cave: Cave, canary: Path) -> None:
    """To the host's canary, to Ghost's and the kernel's trees; existing, dangling, chained, in a parent."""
    links = f"ln -s {canary} file; ln -s {canary.parent} dir; ln -s file chain; ln -s /proc proc; ln -s /proc/self/environ env; ln -s /.ghost g"
    await cave.exec(links)
    digest = hashlib.sha256(canary.read_bytes()).hexdigest()
    for path in ("file", "chain", "dir/canary", "dir/new", "proc/self/environ", "env", "g/python3"):
        with pytest.raises(GhostError):
            await cave.read(path)
        with pytest.raises(GhostError):
            await cave.write(path, b"x")
    records, _ = await cave.records("list", {"path": ".", "depth": 10})
    assert not any("/" in record["path"] for record in records), "a link to a folder was followed"
    found, _ = await cave.records("search", {"path": ".", "pattern": "canary"})
    assert found == []
    await cave.call("remove", {"path": "dir", "recursive": True})
    assert hashlib.sha256(canary.read_bytes()).hexdigest() == digest
    assert canary.parent.is_dir()


@pytest.mark.slow
async def test_f3_a_path_that_changes_while_it_is_used(cave: Cave, canary: Path) -> None:
    """A folder that turns into a link to the kernel's tree and back, during thousands of calls."""
    swap = (
        "import os\n"
        "os.makedirs('real', exist_ok=True); open('real/environ', 'w').write('mine')\n"
        "os.symlink('/proc/1', 'evil')\n"
        "os.rename('real', 'd')\n"
        "while True:\n"
        "  os.rename('d', 'a'); os.rename('evil', 'd'); os.rename('d', 'evil'); os.rename('a', 'd')\n"
    )
    before = canary.read_bytes()
    async with cave.process(["python3", "-c", swap]):
        for _ in range(10_000 if LONG else 2000):
            try:
                assert (await cave.read("d/environ")).data in (b"mine", b"ours")
                await cave.write("d/environ", b"ours")
            except GhostError as exc:
                assert exc.code in (
                    *("file_not_found", "path_outside", "permission_refused", "not_a_directory"),
                    *("not_a_file", "io_error", "invalid_path", "invalid_argument"),
                ), exc
    assert canary.read_bytes() == before


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    return member


def _zip(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, "x")
    return out.getvalue()


ARCHIVES = {
    "absolute": _tar((_member("/workspace/escaped"), b"x")),
    "dotdot": _tar((_member("../escaped"), b"x")),
    "symlink": _tar(
        (_member("l", tarfile.SYMTYPE, "/workspace"), b""), (_member("l/escaped"), b"x")
    ),
    "hardlink": _tar((_member("h", tarfile.LNKTYPE, "../secret"), b"")),
    "device": _tar((_member("null", tarfile.CHRTYPE), b"")),
    "long": _tar((_member("a/" * 300 + "../" * 301 + "escaped"), b"x")),
    "zip slip": _zip("../escaped"),
    "zip absolute": _zip("/workspace/escaped"),
}


@pytest.mark.parametrize("name", ARCHIVES)
async def test_f4_archives_stay_in_their_folder(cave: Cave, name: str) -> None:
    """Refused with a clear error, or unpacked to inside: never outside the target."""
    await cave.write("secret", b"secret")
    link = await cave._link()
    async with link.stream("unpack", {"path": "target"}) as stream:
        try:
            await stream.send(ARCHIVES[name])
            await stream.send_eof()
            await stream.answer()
        except GhostError as exc:
            assert exc.code != "internal"
    assert (await cave.exec("ls -A /workspace")).stdout.split() in (
        ["secret", "target"],
        ["secret"],
    )
    odd = await cave.exec("find target -type b -o -type c -o -perm /6000 -o -samefile secret")
    assert odd.stdout == ""


async def test_f5_odd_files(cave: Cave) -> None:
    """A FIFO, a socket, a huge sparse file, a million lines, broken text: quick, bounded answers."""
    await cave.exec(
        "mkfifo fifo; truncate -s 1T sparse; seq 1000000 >lines; printf 'a\\xff\\xfeb' >broken; "
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\""
    )
    me = psutil.Process()
    before = me.memory_info().rss
    with anyio.fail_after(60):
        for path in ("fifo", "sock"):
            for act in (cave.read(path), cave.write(path, b"x")):
                with pytest.raises(GhostError):
                    await act
        assert (await cave.read("sparse", offset=1 << 39, count=4096)).data == bytes(4096)
        with pytest.raises(GhostError) as caught:
            await cave.read("sparse")
        assert caught.value.code == "too_large"
        assert (await cave.read("lines", count=10)).size == 6_888_896
        assert (await cave.read("broken")).data == b"a\xff\xfeb"
    assert me.memory_info().rss - before < 96 * MIB  # the refused answer, up to its bound, was read


@pytest.mark.slow
async def test_f6_a_write_that_is_cut_off_is_whole_or_was_never(state_dir: Path) -> None:
    """The cave is killed at random points of writing: the file is the old one or the new one."""
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        cave = await ghost.create(CaveSpec(name="f6"))
        backend = cave._backend
        assert isinstance(backend, LocalBackend)

        async def kill() -> None:
            pid = backend.state.find(cave.id).warden_pid()
            assert pid is not None
            os.kill(pid, 9)

        await cut_off_writes(cave, kill, rounds=40)
        await cave.destroy()


async def cut_off_writes(cave: Cave, kill: Callable[[], Awaitable[None]], *, rounds: int) -> None:
    left = 0
    for round_ in range(rounds):
        old, new = bytes([round_]) * MIB, bytes([round_ + 1]) * MIB
        await cave.write("file", old)

        async def write(data: bytes = new) -> None:
            try:
                await cave.write("file", data)
            except GhostError:
                return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await anyio.sleep(round_ * 0.008 / rounds)
            await kill()
        await cave.stop()
        await cave.start()
        assert (await cave.read("file")).data in (old, new)
        left += await _others(cave, new)
    assert left <= rounds // 4  # between two system calls, and whole


async def _others(cave: Cave, new: bytes) -> int:
    """How many files there are under a name for the moment: what was to be written, all of it."""
    names = set((await cave.exec("ls -A /workspace")).stdout.split()) - {"file"}
    for name in names:
        assert re.fullmatch(r"\.[0-9a-f]{16}\.part", name)
        assert (await cave.read(name)).data == new
        await cave.exec(["rm", name])
    return len(names)


async def test_f6_fifty_editors_lose_nothing(cave: Cave) -> None:
    """Each adds its line with the version it read: all lines are there, no success was a lie."""
    await cave.write("file", b"")

    async def edit(number: int) -> None:
        while True:
            seen = await cave.read("file")
            try:
                await cave.write("file", seen.data + b"%d\n" % number, version=seen.version)
                return
            except GhostError as exc:
                assert exc.code == "file_changed"

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(edit, number)
    lines = (await cave.read("file")).data.split()
    assert sorted(int(line) for line in lines) == list(range(50))


async def test_modes_survive_an_overwrite_and_setuid_does_not(cave: Cave) -> None:
    await cave.exec("printf '#!/bin/sh\\n' >run; chmod 4755 run")
    await cave.write("run", b"#!/bin/sh\necho ran\n")
    mode = (await cave.call("stat", {"path": "run"}))[0]["mode"]
    assert mode & 0o777 == 0o755
    assert not mode & stat.S_ISUID
