"""Watching a tree through a real warden: every change is told, under its right name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.warden import wire

from .conftest import Cave, Client, Conversation, Refused, alone

Line = dict[str, Any]


class Watch:
    """The lines of one watch, as they come."""

    def __init__(self, client: Client, **head: Any) -> None:
        self.stream: Conversation = client.open("watch", **head)
        self._rest = b""
        self.first = self.line()
        assert self.first["event"] == "watching"

    def line(self) -> Line:
        while b"\n" not in self._rest:
            frame = self.stream.next()
            if frame.kind == wire.CLOSE:
                raise Refused(frame.head)
            self._rest += frame.body
        raw, _, self._rest = self._rest.partition(b"\n")
        found: Line = json.loads(raw)
        return found

    def until(self, wanted: Callable[[Line], bool]) -> list[Line]:
        """The lines up to the first that is wanted."""
        lines = [self.line()]
        while not wanted(lines[-1]):
            lines.append(self.line())
        return lines

    def marked(self, folder: Path) -> list[tuple[str, ...]]:
        """Everything told so far: up to a file that is made now, without it."""
        (folder / "zz-mark").touch()
        lines = self.until(lambda line: line["path"] == "zz-mark")
        os.unlink(folder / "zz-mark")
        self.until(lambda line: line["event"] == "removed" and line["path"] == "zz-mark")
        return once([told(line) for line in lines if line["path"] != "zz-mark"])


def once(found: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What is written in two steps, as a new file is, may be told of twice: a busy machine pauses between them."""
    kept: list[tuple[str, ...]] = []
    for one in found:
        told_before = {("created", *one[1:]), one} & set(kept)
        if not (one[0] == "changed" and told_before):
            kept.append(one)
    return kept


def told(line: Line) -> tuple[str, ...]:
    came_from = (line["from"],) if "from" in line else ()
    return (line["event"], line["path"], line.get("type", ""), *came_from)


def test_each_kind_of_change_is_told(cave: Cave, warden: Client) -> None:
    root = cave.workspace
    (root / "there").write_text("1")
    watch = Watch(warden, path=".", recursive=True)
    assert watch.first["folders"] == 1
    (root / "new").write_text("1")
    assert watch.marked(root) == [("created", "new", "file")]
    (root / "there").write_text("2")
    assert watch.marked(root) == [("changed", "there", "file")]
    (root / "there").rename(root / "here")
    assert watch.marked(root) == [("moved", "here", "file", "there")]
    (root / "here").unlink()
    assert watch.marked(root) == [("removed", "here", "file")]
    (root / "link").symlink_to("new")
    os.mkfifo(root / "pipe")
    assert watch.marked(root) == [("created", "link", "symlink"), ("created", "pipe", "other")]
    outside = root.parent / "outside"
    (root / "new").rename(outside)
    assert watch.marked(root) == [("removed", "new", "file")]
    outside.rename(root / "back")
    assert watch.marked(root) == [("created", "back", "file")]


def test_a_burst_of_writes_is_one_change(cave: Cave, warden: Client) -> None:
    (cave.workspace / "log").touch()
    watch = Watch(warden, path=".")
    warden.run("for i in $(seq 1000); do echo $i; done >> log")
    (cave.workspace / "end").touch()
    lines = [told(line) for line in watch.until(lambda line: line["path"] == "end")]
    assert 1 <= lines.count(("changed", "log", "file")) < 100


def test_new_folders_are_watched_with_what_they_already_have(cave: Cave, warden: Client) -> None:
    root = cave.workspace
    (root / "old" / "inner").mkdir(parents=True)
    watch = Watch(warden, path=".", recursive=True)
    assert watch.first["folders"] == 3
    assert warden.run("mkdir -p a/b/c; echo 1 > a/f; echo 2 > a/b/c/g")[0] == 0
    assert sorted(watch.marked(root)) == [
        ("created", "a", "directory"),
        ("created", "a/b", "directory"),
        ("created", "a/b/c", "directory"),
        ("created", "a/b/c/g", "file"),
        ("created", "a/f", "file"),
    ]
    (root / "a/b/c/g").write_text("3")
    (root / "old/inner/h").touch()
    assert sorted(watch.marked(root)) == [
        ("changed", "a/b/c/g", "file"),
        ("created", "old/inner/h", "file"),
    ]


def test_a_moved_folder_is_told_of_under_its_new_name(cave: Cave, warden: Client) -> None:
    root = cave.workspace
    (root / "a" / "b").mkdir(parents=True)
    watch = Watch(warden, path=".", recursive=True)
    (root / "a").rename(root / "z")
    assert watch.marked(root) == [("moved", "z", "directory", "a")]
    (root / "z/b/f").touch()
    assert watch.marked(root) == [("created", "z/b/f", "file")]
    (root / "z").rename(root.parent / "elsewhere")
    assert watch.marked(root) == [("removed", "z", "directory")]
    (root.parent / "elsewhere/b/g").touch()
    assert watch.marked(root) == []
    shutil.rmtree(root.parent / "elsewhere")


def test_a_removed_tree_is_told(cave: Cave, warden: Client) -> None:
    (cave.workspace / "a" / "b").mkdir(parents=True)
    watch = Watch(warden, path=".", recursive=True)
    shutil.rmtree(cave.workspace / "a")
    assert watch.marked(cave.workspace) == [
        ("removed", "a/b", "directory"),
        ("removed", "a", "directory"),
    ]


def test_only_what_was_asked_for(cave: Cave, warden: Client) -> None:
    root = cave.workspace
    (root / "a").mkdir()
    (root / "node_modules" / "p").mkdir(parents=True)
    flat, deep = Watch(warden, path="."), Watch(warden, path="a", recursive=True)
    all_of_it = Watch(warden, path=".", recursive=True)
    assert all_of_it.first["folders"] == 2
    (root / "a" / "f").touch()
    (root / "node_modules" / "p" / "f").touch()
    assert flat.marked(root) == []
    assert deep.marked(root / "a") == [("created", "f", "file")]
    assert all_of_it.marked(root)[0] == ("created", "a/f", "file")


def test_names_that_are_no_text(cave: Cave, warden: Client) -> None:
    watch = Watch(warden, path=".")
    Path(os.fsdecode(bytes(cave.workspace) + b"/\xff\n")).touch()
    assert watch.marked(cave.workspace) == [("created", os.fsdecode(b"\xff\n"), "file")]


def test_a_watch_ends_with_its_folder(cave: Cave, warden: Client) -> None:
    for name, ended in (("removed", "removed"), ("moved", "moved")):
        folder = cave.workspace / name
        folder.mkdir()
        watch = Watch(warden, path=name)
        folder.rmdir() if ended == "removed" else folder.rename(cave.workspace / "other")
        assert watch.stream.finish()[0] == {
            "ok": True,
            "path": f"/workspace/{name}",
            "ended": ended,
        }


def test_a_watch_ends_with_its_stream_and_its_link(cave: Cave, warden: Client) -> None:
    other = Client(cave.path)
    Watch(warden, path=".").stream.reset()
    Watch(other, path=".")
    other.close()
    alone(warden)


def test_too_many_folders_are_said(cave: Cave, warden: Client) -> None:
    assert warden.run("for i in $(seq 84); do mkdir -p $(seq -f d$i/%g 100); done")[0] == 0
    watch = Watch(warden, path=".", recursive=True)
    assert watch.first["folders"] == 8192
    line = watch.line()
    assert line["event"] == "overflow"
    assert (cave.workspace / line["path"]).is_dir()


@pytest.mark.slow
def test_a_watch_that_nobody_reads_says_what_it_lost(cave: Cave, warden: Client) -> None:
    """The queue of the kernel runs over while the stream is held up by its window."""
    watch = Watch(warden, path=".")
    flood = "import os\nfor n in range(60000): os.close(os.open(f'x{n}' + 'y' * 200, 65)); n % 2 or os.unlink(f'x{n}' + 'y' * 200)"
    watch.stream.hold()
    assert warden.run(f'/usr/bin/python3 -c "{flood}"', timeout_s=60)[0] == 0
    watch.stream.release()
    lines = watch.until(lambda line: line["event"] == "overflow")
    assert lines[-1]["path"] == ""
    warden.run("touch after")
    watch.until(lambda line: line["path"] == "after")


@pytest.mark.parametrize(
    ("path", "code"),
    [("none", "file_not_found"), ("file", "not_a_directory"), ("/proc", "path_outside")],
)
def test_bad_watches_say_why(cave: Cave, warden: Client, path: str, code: str) -> None:
    (cave.workspace / "file").touch()
    with pytest.raises(Refused, match=code):
        warden.call("watch", path=path)
