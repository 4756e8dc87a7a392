"""Single files through a real warden: whole or not at all, and never outside."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ghost_mcp.warden import wire

from .conftest import TMP_BYTES, Cave, Client, Refused, alone

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(range(256)) * 4096 * 5  # 5 MiB


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 3 << 16, (3 << 16) + 1, len(LARGE)])
def test_reading_a_whole_file(cave: Cave, warden: Client, size: int) -> None:
    (cave.workspace / "f").write_bytes(LARGE[:size])
    head, data = warden.call("read", path="f")
    assert data == LARGE[:size]
    assert (head["path"], head["size"], head["type"]) == ("/workspace/f", size, "file")


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 10), (5, 0), (100, 400_000), (len(LARGE) - 5, 100), (len(LARGE), 5), (1 << 40, 5)],
)
def test_reading_a_range(cave: Cave, warden: Client, offset: int, count: int) -> None:
    (cave.workspace / "f").write_bytes(LARGE)
    data = warden.call("read", path="f", offset=offset, count=count)[1]
    assert data == LARGE[offset : offset + count]


def test_a_read_waits_for_its_reader(cave: Cave, warden: Client) -> None:
    (cave.workspace / "f").write_bytes(LARGE)
    stream = warden.open("read", path="f")
    stream.fill()
    assert warden.call("read", path="f", count=4)[1] == LARGE[:4]  # others go on meanwhile
    assert sum(len(f.body) for f in stream.frames) == wire.WINDOW
    stream.release()
    assert stream.finish()[1] == LARGE


def test_what_is_given_up_or_fails_leaves_no_descriptor(cave: Cave, warden: Client) -> None:
    (cave.workspace / "f").write_bytes(LARGE)
    warden.call("configure", rlimits={"nofile": 216})
    for _ in range(210):
        warden.open("read", path="f").reset()
        warden.open("write", b"x", path="g", more=True).reset()
        warden.open("exec", line="sleep 60", stdin="open").reset()
        warden.open("unpack", path="out").reset()
        warden.open("search", path=".", pattern="x").reset()
        warden.call("stats")
        large = warden.open("write", b"x", path="/tmp/g", more=True)
        large.send(LARGE)
        for stream in (
            large,
            warden.open("exec", argv=["true"], env={"A": "\0"}),
            warden.open("read", path="/proc/1/mem"),
            warden.open("write", b"x", path="f", version="0"),
            warden.open("dial", port=1),
        ):
            with pytest.raises(Refused) as refused:
                stream.finish()
            assert refused.value.code != "limit_exceeded"
    assert warden.run("echo fine")[1] == b"fine\n"
    alone(warden)


def test_a_file_that_shrinks_while_it_is_read(cave: Cave, warden: Client) -> None:
    (cave.workspace / "f").write_bytes(LARGE)
    stream = warden.open("read", path="f")
    stream.fill()
    os.truncate(cave.workspace / "f", 1000)
    stream.release()
    assert stream.finish()[1] == LARGE[: wire.WINDOW]


def test_odd_files(cave: Cave, warden: Client) -> None:
    os.mkfifo(cave.workspace / "pipe")
    (cave.workspace / "d").mkdir()
    for link, target in (
        ("null", "/dev/null"),
        ("zero", "/dev/zero"),
        ("mem", "/proc/self/mem"),
        ("environ", "/proc/1/environ"),
        ("self", "self"),
        ("dangling", "none"),
        ("socket", "/run/ghost/warden"),
    ):
        (cave.workspace / link).symlink_to(target)
    with (cave.workspace / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for path, code in (
        ("pipe", "not_a_file"),
        ("d", "is_a_directory"),
        ("null", "not_a_file"),
        ("zero", "not_a_file"),
        ("mem", "path_outside"),
        ("environ", "permission_refused|path_outside"),
        ("self", "invalid_path"),
        ("dangling", "file_not_found"),
        ("socket", "path_outside|io_error|not_a_file"),
    ):
        with pytest.raises(Refused, match=code):
            warden.call("read", path=path)
    head, data = warden.call("read", path="sparse", offset=1 << 39, count=100)
    assert (head["size"], data) == (1 << 40, bytes(100))


BAD_PATHS: list[tuple[Any, str]] = [
    ("", "invalid_path"),
    (None, "invalid_path"),
    (5, "invalid_path"),
    ("a\0b", "invalid_path"),
    ("x" * 5000, "invalid_path"),
    ("x" * 300, "invalid_path"),
    ("a/" * 2000 + "b", "file_not_found|invalid_path"),
    ("\ud800", "invalid_path"),
    ("../etc/passwd", "path_outside"),
    ("a/../../etc/passwd", "path_outside"),
    ("../workspace-evil/f", "path_outside"),
    ("/proc/self/root/etc/passwd", "path_outside"),
    ("/proc/self/environ", "path_outside"),
    ("//proc/1/mem", "path_outside"),
    ("///proc/1/mem", "path_outside"),
    ("/./proc/1/mem", "path_outside"),
    ("/etc/../proc/1/mem", "path_outside"),
    ("/dev/zero", "path_outside"),
    ("/sys/kernel", "path_outside"),
    ("/.ghost/warden/wire.py", "path_outside"),
    ("/run/ghost/warden", "path_outside"),
    ("~/../../proc/1/mem", "path_outside"),
    ("none", "file_not_found"),
    ("%2e%2e/etc/passwd", "file_not_found"),
    ("..\\etc\\passwd", "file_not_found"),
    ("file/below", "not_a_directory"),
]
OPERATIONS = ("read", "write", "stat", "mkdir", "remove", "list", "move", "unpack")
MAKERS = ("write", "mkdir", "move", "unpack")


@pytest.mark.parametrize("op", OPERATIONS)
def test_bad_paths(cave: Cave, warden: Client, op: str) -> None:
    (cave.workspace / "file").write_text("safe")
    for path, code in BAD_PATHS:
        if op in MAKERS and code.startswith("file_not_found"):
            continue  # it would be made
        head = {"path": "file", "to": path} if op == "move" else {"path": path}
        with pytest.raises(Refused) as refused:
            warden.call(op, **head)
        assert refused.value.code in code.split("|"), path
        assert (cave.workspace / "file").read_text() == "safe"
        assert names(cave.workspace) == ["file"]


# --- write ---------------------------------------------------------------------------------------


def test_writing(cave: Cave, warden: Client) -> None:
    head, _ = warden.call("write", b"one", path="f")
    assert head["created"] is True
    assert (head["path"], head["written"], head["size"], head["mode"]) == (
        "/workspace/f",
        3,
        3,
        0o644,
    )
    (cave.workspace / "f").chmod(0o640)
    head, _ = warden.call("write", b"two!", path="f")
    assert (head["created"], head["mode"]) == (False, 0o640)
    head, _ = warden.call("write", b" three", path="f", mode="append")
    assert (cave.workspace / "f").read_bytes() == b"two! three"
    assert head["written"] == 6
    warden.call("write", b"new", path="g", mode="append", permissions=0o4755)
    assert (cave.workspace / "g").stat().st_mode == 0o100755
    warden.call("write", b"deep", path="a/b/c", parents=True)
    assert (cave.workspace / "a/b/c").read_bytes() == b"deep"
    assert names(cave.workspace) == ["a", "f", "g"]


def test_a_long_write_comes_in_pieces(cave: Cave, warden: Client) -> None:
    stream = warden.open("write", LARGE[:100], path="f", more=True)
    stream.send(LARGE[100:])
    assert not (cave.workspace / "f").exists()
    stream.eof()
    assert stream.finish()[0]["written"] == len(LARGE)
    assert (cave.workspace / "f").read_bytes() == LARGE


def test_a_write_that_is_given_up_leaves_nothing(cave: Cave, warden: Client) -> None:
    (cave.workspace / "f").write_text("old")
    stream = warden.open("write", b"new", path="f", more=True)
    stream.send(bytes(100_000))
    stream.reset()
    other = Client(cave.path)
    other.open("write", b"new", path="g", more=True).send(b"x")
    other.close()
    warden.call("stats")
    assert (cave.workspace / "f").read_text() == "old"
    assert names(cave.workspace) == ["f"]


def test_a_killed_warden_leaves_whole_files(cave: Cave, warden: Client) -> None:
    warden.call("write", b"old", path="f")
    stream = warden.open("write", b"new", path="f", more=True)
    stream.send(bytes(500_000))
    assert warden.call("stat", path="f")[0]["size"] == 3
    assert names(cave.workspace) == ["f"]


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"path": "d"}, "is_a_directory"),
        ({"path": "pipe"}, "not_a_file"),
        ({"path": "f", "mode": "create"}, "file_exists"),
        ({"path": "f", "mode": "fly"}, "invalid_argument"),
        ({"path": "none/f"}, "file_not_found"),
        ({"path": "f/g"}, "not_a_directory|file_not_found"),
        ({"path": "f", "version": "0-0-0"}, "file_changed"),
        ({"path": "none", "version": "0-0-0"}, "file_changed"),
        ({"path": "fixed"}, "permission_refused"),
        ({"path": "/etc/passwd"}, "read_only|permission_refused"),
        ({"path": "out/f"}, "path_outside"),
        ({"path": "f", "permissions": "x"}, "invalid_argument"),
    ],
    ids=str,
)
def test_bad_writes(cave: Cave, warden: Client, head: dict[str, Any], code: str) -> None:
    (cave.workspace / "f").write_text("old")
    (cave.workspace / "d").mkdir()
    (cave.workspace / "out").symlink_to("/proc/self")
    os.mkfifo(cave.workspace / "pipe")
    warden.run("echo old > fixed; chmod 444 fixed")
    before = names(cave.workspace)
    with pytest.raises(Refused, match=code):
        warden.call("write", b"new", **head)
    assert (cave.workspace / "f").read_text() == "old"
    assert names(cave.workspace) == before


def test_versions_guard_against_lost_updates(cave: Cave, warden: Client) -> None:
    first = warden.call("write", b"1", path="f", version="")[0]["version"]
    second = warden.call("write", b"2", path="f", version=first)[0]["version"]
    assert second != first
    with pytest.raises(Refused, match="file_changed") as refused:
        warden.call("write", b"3", path="f", version=first)
    assert refused.value.head["data"] == {"version": second}
    with pytest.raises(Refused, match="file_changed"):
        warden.call("write", b"3", path="f", version="")
    assert warden.call("read", path="f")[0]["version"] == second


def test_fifty_editors_lose_no_update(cave: Cave) -> None:
    """Each adds its lines by read, change, write with the version it read, and tries again when refused."""
    (cave.workspace / "f").write_text("")
    failures: list[Exception] = []

    def add(client: Client, line: bytes) -> bool:
        head, data = client.call("read", path="f")
        try:
            client.call("write", data + line, path="f", version=head["version"])
        except Refused as exc:
            if exc.code == "file_changed":
                return False
            raise
        return True

    def edit(name: int) -> None:
        client = Client(cave.path)
        try:
            for line in range(4):
                while not add(client, b"%d.%d\n" % (name, line)):
                    continue
        except Exception as exc:  # noqa: BLE001  (told by the main thread)
            failures.append(exc)
        finally:
            client.close()

    editors = [threading.Thread(target=edit, args=(n,)) for n in range(50)]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()
    assert failures == []
    lines = (cave.workspace / "f").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n}.{line}" for n in range(50) for line in range(4))
    assert names(cave.workspace) == ["f"]


def test_a_reader_sees_the_old_or_the_new(cave: Cave, warden: Client) -> None:
    contents = [bytes([n]) * 100_000 for n in range(2)]
    warden.call("write", contents[0], path="f")
    other = Client(cave.path)
    seen = set()
    for n in range(200):
        writing = other.open("write", contents[n % 2], path="f")
        seen.add(warden.call("read", path="f")[1])
        writing.finish()
    other.close()
    assert seen <= set(contents)


def test_symbolic_links_lead_to_their_file(cave: Cave, warden: Client) -> None:
    (cave.workspace / "d").mkdir()
    (cave.workspace / "d/f").write_text("old")
    (cave.workspace / "l").symlink_to("d/f")
    assert warden.call("write", b"new", path="l")[0]["path"] == "/workspace/d/f"
    assert (cave.workspace / "l").is_symlink()
    assert (cave.workspace / "d/f").read_text() == "new"


# --- the rest ------------------------------------------------------------------------------------


def test_stat_mkdir_and_move(cave: Cave, warden: Client) -> None:
    assert warden.call("mkdir", path="a/b/c")[0]["path"] == "/workspace/a/b/c"
    warden.call("mkdir", path="a/b/c")
    (cave.workspace / "l").symlink_to("a")
    head, _ = warden.call("stat", path="l")
    assert (head["type"], head["target"]) == ("symlink", "a")
    assert warden.call("stat", path="a/b")[0]["type"] == "directory"
    warden.call("move", path="l", to="a/m")
    assert (cave.workspace / "a/m").is_symlink()
    (cave.workspace / "f").write_text("f")
    (cave.workspace / "g").write_text("g")
    with pytest.raises(Refused, match="file_exists"):
        warden.call("move", path="f", to="g")
    warden.call("move", path="f", to="g", overwrite=True)
    assert (cave.workspace / "g").read_text() == "f"
    warden.call("move", path="g", to="/tmp/elsewhere")  # another file system
    assert warden.call("read", path="/tmp/elsewhere")[1] == b"f"
    assert names(cave.workspace) == ["a"]


def test_a_missing_file_has_near_names(cave: Cave, warden: Client) -> None:
    (cave.workspace / "report.txt").touch()
    for path, hint in (
        ("reprot.txt", "report.txt"),
        ("none/f", "no folder"),
        ("zzz", "report.txt"),
    ):
        with pytest.raises(Refused) as refused:
            warden.call("read", path=path)
        assert hint in refused.value.head["hint"]


def test_a_full_disk_leaves_the_old(warden: Client) -> None:
    """The cave's /tmp is small: what does not fit is refused whole, and room comes back."""
    warden.call("write", b"old", path="/tmp/f")
    for _ in range(3):
        stream = warden.open("write", b"new", path="/tmp/f", more=True)
        stream.send(LARGE)
        stream.eof()
        with pytest.raises(Refused, match="no_space"):
            stream.finish()
    assert warden.call("read", path="/tmp/f")[1] == b"old"
    piece = bytes(196_000)
    for _ in range(10):
        warden.call("write", piece, path="/tmp/f", mode="append")
    size = 3 + 10 * len(piece)
    warden.run(f"head -c {TMP_BYTES - size - 300_000} /dev/zero > /tmp/fill")
    with pytest.raises(Refused, match="no_space"):
        warden.call("write", piece, path="/tmp/f", mode="append")
    assert warden.call("stat", path="/tmp/f")[0]["size"] == size
    assert warden.run("ls -A /tmp | grep -F .")[1] == b""  # no part of what was refused
