"""Listing, searching, comparing and removing trees, through a real warden."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cave, Client, Refused, alone


def grow(root: Path, tree: dict[str, Any]) -> None:
    """Make files (text or bytes), folders (dicts) and symbolic links (Path)."""
    for name, content in tree.items():
        path = root / name
        if isinstance(content, dict):
            path.mkdir(parents=True, exist_ok=True)
            grow(path, content)
        elif isinstance(content, Path):
            path.symlink_to(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)


def paths(lines: list[dict[str, Any]]) -> list[str]:
    return [line["path"] for line in lines]


# --- list ----------------------------------------------------------------------------------------

TREE: dict[str, Any] = {
    "a": {"x.py": "1", "deep": {"y.py": "22", "z.txt": "333"}},
    "a-b": "4444",
    "a.py": "",
    ".hidden": {"h.py": ""},
    "link": Path("a"),
    "dangling": Path("nowhere"),
}


def test_a_listing_describes_each_entry(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, TREE)
    os.chmod(cave.workspace / "a-b", 0o640)
    os.mkfifo(cave.workspace / "pipe")
    answer, lines = warden.lines("list", path=".")
    assert answer == {
        "ok": True,
        "path": "/workspace",
        "total": 6,
        "truncated": False,
        "unreadable": 0,
    }
    by_path = {line["path"]: line for line in lines}
    assert list(by_path) == ["a", "a-b", "a.py", "dangling", "link", "pipe"]
    assert by_path["a-b"]["type"] == "file"
    assert by_path["a-b"]["size"] == 4
    assert by_path["a-b"]["mode"] == 0o640
    assert by_path["a-b"]["mtime"] == (cave.workspace / "a-b").stat().st_mtime
    assert (by_path["link"]["type"], by_path["link"]["target"]) == ("symlink", "a")
    assert by_path["dangling"]["target"] == "nowhere"
    assert [by_path[p]["type"] for p in ("a", "pipe")] == ["directory", "other"]
    assert "target" not in by_path["a"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"depth": 9}, "a a/deep a/deep/y.py a/deep/z.txt a/x.py a-b a.py dangling link"),
        ({"depth": 2, "types": ["file"]}, "a/x.py a-b a.py"),
        ({"depth": 1, "hidden": True, "types": ["directory"]}, ".hidden a"),
        ({"types": ["symlink"]}, "dangling link"),
        ({"glob": "*.py"}, "a.py"),
        ({"glob": "*.py", "depth": 9}, "a/deep/y.py a/x.py a.py"),
        ({"glob": "**/*.py"}, "a/deep/y.py a/x.py a.py"),
        ({"glob": "a/*.py"}, "a/x.py"),
        ({"glob": "a/**"}, "a/deep a/deep/y.py a/deep/z.txt a/x.py"),
        ({"glob": "a/**/z.*"}, "a/deep/z.txt"),
        ({"glob": "a?b"}, "a-b"),
        ({"glob": "a[.-]*"}, "a-b a.py"),
        ({"glob": "a[!.]*"}, "a-b"),
        ({"glob": ".hid*"}, ".hidden"),
        ({"glob": "**/h.py", "hidden": True}, ".hidden/h.py"),
        ({"glob": "nothing"}, ""),
        (
            {"sort": "size", "depth": 9, "types": ["file"]},
            "a-b a/deep/z.txt a/deep/y.py a/x.py a.py",
        ),
    ],
    ids=str,
)
def test_a_listing_chooses(cave: Cave, warden: Client, head: dict[str, Any], expected: str) -> None:
    grow(cave.workspace, TREE)
    answer, lines = warden.lines("list", path="/workspace", **head)
    assert paths(lines) == expected.split()
    assert answer["total"] == len(lines)


def test_the_newest_comes_first(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"old": "", "new": "", "middle": ""})
    for age, name in enumerate(("new", "middle", "old")):
        os.utime(cave.workspace / name, ns=(0, 10**18 - age))
    assert paths(warden.lines("list", path=".", sort="mtime")[1]) == ["new", "middle", "old"]


def test_a_listing_is_cut_at_its_limit_and_says_so(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {f"f{n:03}": "" for n in range(100)})
    answer, lines = warden.lines("list", path=".", limit=7)
    assert paths(lines) == [f"f{n:03}" for n in range(7)]
    assert (answer["total"], answer["truncated"]) == (100, True)


def test_a_listing_stays_in_its_tree(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"in": {"out": Path("/etc"), "up": Path("..")}})
    assert paths(warden.lines("list", path="in", depth=9)[1]) == ["out", "up"]
    _, lines = warden.lines("list", path="/", depth=2, limit=50_000)
    assert {"proc", "dev", "workspace/in"} <= set(paths(lines))
    assert not [p for p in paths(lines) if p.startswith(("proc/", "dev/", ".ghost/"))]
    assert "run/ghost" in paths(lines)


def test_names_that_are_no_text_come_back_as_they_are(cave: Cave, warden: Client) -> None:
    names = [b"\xff\xfe", "ü".encode(), b"new\nline", b"tab\t\x1b[31m"]
    for name in names:
        Path(os.fsdecode(bytes(cave.workspace) + b"/" + name)).write_bytes(name)
    _, lines = warden.lines("list", path=".")
    assert sorted(os.fsencode(p) for p in paths(lines)) == sorted(names)
    for path in paths(lines):
        assert warden.call("read", path=path)[1] == os.fsencode(path)


def test_unreadable_folders_are_counted(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"open": {"f": ""}, "shut": {"f": ""}})
    warden.run("chmod 0 shut")
    answer, lines = warden.lines("list", path=".", depth=2)
    assert paths(lines) == ["open", "open/f", "shut"]
    assert answer["unreadable"] == 1


@pytest.mark.parametrize(
    ("head", "code", "says"),
    [
        ({"path": "none"}, "file_not_found", "Near names: nine"),
        ({"path": "nine"}, "not_a_directory", "nine"),
        ({"path": "/proc"}, "path_outside", "/proc"),
        ({"path": "../etc"}, "path_outside", "leaves the workspace"),
        ({"path": "out"}, "path_outside", "/proc"),
        ({"path": ""}, "invalid_path", "not a path"),
        ({"path": ".", "sort": "colour"}, "invalid_argument", "colour"),
        ({"path": ".", "glob": "[a"}, "bad_pattern", "[a"),
        ({"path": ".", "glob": "a\\"}, "bad_pattern", "backslash"),
        ({"path": ".", "glob": "/"}, "bad_pattern", "names nothing"),
        ({"path": ".", "glob": 5}, "bad_pattern", "glob"),
        ({"path": ".", "limit": "5"}, "invalid_argument", "limit"),
    ],
    ids=str,
)
def test_bad_listings_say_why(
    cave: Cave, warden: Client, head: dict[str, Any], code: str, says: str
) -> None:
    grow(cave.workspace, {"nine": "", "out": Path("/proc")})
    with pytest.raises(Refused) as refused:
        warden.call("list", **head)
    assert refused.value.code == code
    assert says in json.dumps(refused.value.head)


# --- search --------------------------------------------------------------------------------------


def test_a_search_tells_line_column_and_context(cave: Cave, warden: Client) -> None:
    text = "one\ntwo\nthree needle\r\nfour\nfive needle needle\nsix"
    grow(cave.workspace, {"d": {"f.txt": text}, "g": "nothing"})
    answer, lines = warden.lines("search", path=".", pattern="needle", before=2, after=1)
    assert lines == [
        {
            "path": "d/f.txt",
            "line": 3,
            "column": 7,
            "text": "three needle",
            "before": ["one", "two"],
            "after": ["four"],
        },
        {
            "path": "d/f.txt",
            "line": 5,
            "column": 6,
            "text": "five needle needle",
            "before": ["three needle", "four"],
            "after": ["six"],
        },
    ]
    assert answer == {
        "ok": True,
        "path": "/workspace",
        "matches": 2,
        "files": 1,
        "searched": 2,
        "skipped": 0,
        "truncated": False,
    }


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"pattern": r"^B\d+$"}, ["B2"]),
        ({"pattern": r"^b\d+$", "ignore_case": True}, ["B2"]),
        ({"pattern": "a.c", "fixed": True}, ["a.c"]),
        ({"pattern": "A.C", "fixed": True, "ignore_case": True}, ["a.c"]),
        ({"pattern": "a.c"}, ["abc", "a.c"]),
        ({"pattern": r"\A", "limit": 2}, ["abc", "a.c"]),
        ({"pattern": "ü$"}, ["grün".replace("n", "")]),
        ({"pattern": "(", "fixed": True}, ["("]),
        ({"pattern": "x"}, []),
    ],
    ids=str,
)
def test_patterns(cave: Cave, warden: Client, head: dict[str, Any], expected: list[str]) -> None:
    grow(cave.workspace, {"f": "\ufeffabc\na.c\nB2\n(\ngrü\n"})
    assert [m["text"] for m in warden.lines("search", path="f", **head)[1]] == expected


def test_a_search_through_lines(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"f": "a\nbegin 1\nmid\r\nend 1 end\nz\nbegin 2 end\nq\n"})
    _, lines = warden.lines(
        "search", path=".", pattern=r"begin(?s:.*?)end", multiline=True, before=1, after=1
    )
    assert lines == [
        {
            "path": "f",
            "line": 2,
            "column": 1,
            "text": "begin 1\nmid\r\nend 1 end",
            "end_line": 4,
            "before": ["a"],
            "after": ["z"],
        },
        {
            "path": "f",
            "line": 6,
            "column": 1,
            "text": "begin 2 end",
            "end_line": 6,
            "before": ["z"],
            "after": ["q"],
        },
    ]


def test_a_search_leaves_out_what_is_no_text_and_what_was_not_asked_for(
    cave: Cave, warden: Client
) -> None:
    grow(
        cave.workspace,
        {
            "bin": b"needle\0",
            "late": b"x" * 8192 + b"\nneedle\0",
            "latin": b"\xfc needle\n",
            ".dot": "needle",
            "dir": {"a.py": "needle", "a.txt": "needle", "skip": {"b.py": "needle"}},
            "link.py": Path("dir/a.py"),
            "loop": Path("."),
        },
    )
    with (cave.workspace / "large").open("wb") as file:
        file.write(b"needle\n")
        file.truncate((16 << 20) + 1)
    os.mkfifo(cave.workspace / "pipe")

    def found(**head: Any) -> list[str]:
        return paths(warden.lines("search", path=".", pattern="needle", **head)[1])

    assert found() == ["dir/a.py", "dir/a.txt", "dir/skip/b.py", "late", "latin"]
    assert found(hidden=True)[0] == ".dot"
    assert found(include=["*.py"]) == ["dir/a.py", "dir/skip/b.py"]
    assert found(include=["dir/*.py", "lat*"]) == ["dir/a.py", "late", "latin"]
    assert found(exclude=["dir/skip"], include=["**/*.py"]) == ["dir/a.py"]
    assert found(exclude=["*.py", "la*"]) == ["dir/a.txt"]
    assert warden.call("search", path=".", pattern="needle")[0]["skipped"] == 2


def test_a_search_of_one_file(cave: Cave, warden: Client) -> None:
    grow(
        cave.workspace,
        {".gitignore": "*", "d": {".f": "x\nneedle"}, "bin": b"\0", "l": Path("d/.f")},
    )
    answer, lines = warden.lines("search", path="d/.f", pattern="needle")
    assert (answer["path"], paths(lines)) == ("/workspace/d", [".f"])
    assert paths(warden.lines("search", path="l", pattern="needle")[1]) == [".f"]
    with pytest.raises(Refused, match="binary"):
        warden.call("search", path="bin", pattern="x")


def test_long_lines_are_cut_around_the_match(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"f": "a" * 600 + "needle" + "b" * 600 + "\n" + "needle" + "c" * 600})
    _, (far, near) = warden.lines("search", path=".", pattern="needle", before=1)
    assert far["column"] == 601
    assert far["text"] == "a" * 80 + "needle" + "b" * 414
    assert near["text"] == "needle" + "c" * 494
    assert near["before"] == ["a" * 500]
    assert far["cut"] is near["cut"] is True


def test_a_search_stops_at_its_limit(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {f"f{n}": "needle\nneedle\n" for n in range(5)})
    answer, lines = warden.lines("search", path=".", pattern="needle", limit=3)
    assert [(m["path"], m["line"]) for m in lines] == [("f0", 1), ("f0", 2), ("f1", 1)]
    assert (answer["matches"], answer["truncated"]) == (3, True)
    answer, lines = warden.lines("search", path=".", pattern="needle", limit=10)
    assert (len(lines), answer["truncated"]) == (10, False)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a(b", r"missing \).* at position 1"),
        ("*", "nothing to repeat at position 0"),
        ("[z-a]", "bad character range"),
        ("a{99999999999}", "bad pattern"),
        ("(" * 5000 + ")" * 5000, "bad pattern"),
        ("", "1 to 10000 characters"),
        ("x" * 10_001, "1 to 10000 characters"),
        (None, "1 to 10000 characters"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_bad_patterns_say_why(warden: Client, pattern: Any, says: str) -> None:
    with pytest.raises(Refused) as refused:
        warden.call("search", path=".", pattern=pattern)
    assert refused.value.code == "bad_pattern"
    assert re.search(says, refused.value.head["message"])


def test_bad_globs_of_a_search(warden: Client) -> None:
    for bad in ("*.py", [1], ["x"] * 101):
        with pytest.raises(Refused, match="invalid_argument"):
            warden.call("search", path=".", pattern="x", include=bad)
    with pytest.raises(Refused, match="bad_pattern"):
        warden.call("search", path=".", pattern="x", exclude=["[z"])


def test_a_pattern_that_never_ends_holds_nothing_else_up(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"f": "a" * 60 + "!\n", "g": "fine\n"})
    stuck = warden.open("search", path="f", pattern="(a+)+$")
    assert warden.lines("search", path="g", pattern="fine")[0]["matches"] == 1
    assert warden.run("echo still here")[1] == b"still here\n"
    stuck.reset()
    alone(warden)


def test_search_heeds_gitignore(cave: Cave, warden: Client) -> None:
    grow(
        cave.workspace,
        {
            ".git": {"info": {"exclude": "secret\n"}, "config": "needle"},
            ".gitignore": "*.log\n/build/\n!keep.log\ndocs/*.txt\n",
            "a.log": "needle",
            "keep.log": "needle",
            "secret": "needle",
            "build": {"out": "needle", "keep.log": "needle"},
            "docs": {"a.txt": "needle", "sub": {"a.txt": "needle"}},
            "src": {
                ".gitignore": "local\n!a.log\n",
                "local": "needle",
                "a.log": "needle",
                "build": {"f": "needle"},
            },
        },
    )
    kept = ["docs/sub/a.txt", "keep.log", "src/a.log", "src/build/f"]
    assert paths(warden.lines("search", path=".", pattern="needle")[1]) == kept
    assert paths(warden.lines("search", path="src", pattern="needle")[1]) == ["a.log", "build/f"]
    assert paths(warden.lines("search", path="docs", pattern="needle")[1]) == ["sub/a.txt"]
    shown = paths(warden.lines("search", path=".", pattern="needle", hidden=True)[1])
    assert shown == kept
    everything = warden.lines("search", path=".", pattern="needle", gitignore=False, hidden=True)[1]
    assert len(everything) == 11
    assert {"path": ".git/config", "line": 1, "column": 1, "text": "needle"} in everything


# --- snapshot ------------------------------------------------------------------------------------


def snapshot(
    warden: Client, **head: Any
) -> tuple[dict[str, Any], dict[str, tuple[str, int, int, int]]]:
    answer, data = warden.call("snapshot", **head)
    entries = {}
    for record in data.split(b"\0")[:-1]:
        kind, size, mtime, inode, path = record.split(b" ", 4)
        entries[os.fsdecode(path)] = (kind.decode(), int(size), int(mtime), int(inode))
    return answer, entries


def test_a_snapshot_is_what_stands_there(cave: Cave, warden: Client) -> None:
    grow(
        cave.workspace,
        {
            "a b\nc": {"f": "12345"},
            "l": Path("x"),
            ".hidden": "",
            "node_modules": {"p": {"i.js": ""}, "q": {}},
            "sub": {".venv": {"x": ""}, "__pycache__": "a file of that name"},
        },
    )
    os.mkfifo(cave.workspace / "pipe")
    answer, entries = snapshot(warden, path=".")
    info = (cave.workspace / "a b\nc" / "f").stat()
    assert entries["a b\nc/f"] == ("f", 5, info.st_mtime_ns, info.st_ino)
    kinds = {path: value[:2] for path, value in entries.items()}
    assert kinds == {
        "a b\nc": ("d", 0),
        "a b\nc/f": ("f", 5),
        "l": ("s", 1),
        ".hidden": ("f", 0),
        "node_modules": ("n", 2),
        "pipe": ("o", 0),
        "sub": ("d", 0),
        "sub/.venv": ("n", 1),
        "sub/__pycache__": ("f", 19),
    }
    assert answer == {"ok": True, "path": "/workspace", "entries": 9, "truncated": False}


def test_snapshots_differ_where_something_changed(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"same": "1", "changed": "1", "gone": "1"})
    before = snapshot(warden, path=".")[1]
    warden.run("echo 2 > changed; rm gone; echo 3 > new")
    after = snapshot(warden, path=".")[1]
    assert before["same"] == after["same"]
    assert before["changed"] != after["changed"]
    assert (before.keys() - after.keys(), after.keys() - before.keys()) == ({"gone"}, {"new"})


def test_a_snapshot_is_cut_at_its_limit(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {f"f{n}": "" for n in range(5)})
    answer, entries = snapshot(warden, path=".", limit=3)
    assert (sorted(entries), answer["truncated"]) == (["f0", "f1", "f2"], True)
    answer, entries = snapshot(warden, path=".", limit=5)
    assert (len(entries), answer["truncated"]) == (5, False)


# --- remove --------------------------------------------------------------------------------------


def test_remove_takes_the_name_and_not_what_it_points_to(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"f": "", "d": {"keep": ""}, "l": Path("d"), "empty": {}})
    for path in ("f", "l", "empty"):
        assert warden.call("remove", path=path)[0] == {
            "ok": True,
            "path": f"/workspace/{path}",
            "removed": 1,
        }
    assert os.listdir(cave.workspace) == ["d"]
    assert (cave.workspace / "d" / "keep").exists()


def test_remove_recursive(cave: Cave, warden: Client) -> None:
    grow(
        cave.workspace,
        {
            "d": {"e": {"f": "", "g": {}}, "up": Path(".."), "etc": Path("../keep")},
            "keep": {"f": ""},
        },
    )
    with pytest.raises(Refused, match="not_empty"):
        warden.call("remove", path="d")
    assert warden.call("remove", path="d", recursive=True)[0]["removed"] == 6
    assert os.listdir(cave.workspace) == ["keep"]
    assert (cave.workspace / "keep" / "f").exists()


def test_remove_takes_the_deepest_tree(cave: Cave, warden: Client) -> None:
    script = (
        "import os\nfor n in range(3000): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('f','w')"
    )
    assert warden.run(f'/usr/bin/python3 -c "{script}"')[0] == 0
    answer = warden.call("remove", path="d" * 200, recursive=True)[0]
    assert answer["removed"] == 3001
    assert os.listdir(cave.workspace) == []


@pytest.mark.parametrize(
    "path", ["/", ".", "/workspace", "/home/cave", "/home", "~", "/run", "/workspace/../workspace"]
)
def test_the_caves_own_places_stay(cave: Cave, warden: Client, path: str) -> None:
    grow(cave.workspace, {"f": ""})
    with pytest.raises(Refused, match="permission_refused"):
        warden.call("remove", path=path, recursive=True)
    assert (cave.workspace / "f").exists()


def test_remove_says_what_stopped_it(cave: Cave, warden: Client) -> None:
    with pytest.raises(Refused, match="file_not_found"):
        warden.call("remove", path="none", recursive=True)
    with pytest.raises(Refused, match="path_outside"):
        warden.call("remove", path="/run/ghost/warden")
    grow(cave.workspace, {"d": {"fixed": {"f": ""}, "loose": ""}})
    warden.run("chmod 555 d/fixed")
    with pytest.raises(Refused, match=r"cannot remove /workspace/d/fixed/f: Permission") as refused:
        warden.call("remove", path="d", recursive=True)
    assert refused.value.head["data"] == {"removed": 1}


# --- workers -------------------------------------------------------------------------------------


def test_a_worker_ends_with_its_stream(cave: Cave, warden: Client) -> None:
    """A worker that waits for a slow reader is killed by the reset, and nothing of it stays."""
    grow(cave.workspace, {"f": "x" * 400 + "\n"})
    (cave.workspace / "f").write_text(("x" * 400 + "\n") * 20_000)
    stream = warden.open("search", path="f", pattern="x", limit=10_000)
    stream.fill()
    assert warden.call("stats")[0]["pids"] == 2
    stream.reset()
    warden.call("snapshot", path=".")
    alone(warden)


def test_a_worker_holds_nothing_of_the_warden(cave: Cave, warden: Client) -> None:
    """A command's input ends when it is closed, though a worker was started in between."""
    grow(cave.workspace, {"f": "a" * 60 + "!\n"})
    command = warden.open("exec", argv=["cat"], stdin="open")
    command.send(b"x")
    stuck = warden.open("search", path="f", pattern="(a+)+$")
    warden.call("stat", path="f")
    command.eof()
    assert command.finish()[0]["exit_code"] == 0
    stuck.reset()


@pytest.mark.parametrize(("signal", "code"), [("KILL", "limit_exceeded"), ("XCPU", "timed_out")])
def test_a_killed_worker_is_an_error(cave: Cave, warden: Client, signal: str, code: str) -> None:
    grow(cave.workspace, {"f": "a" * 60 + "!\n"})
    stuck = warden.open("search", path="f", pattern="(a+)+$")
    warden.run(f"kill -{signal} 2")
    with pytest.raises(Refused, match=code):
        stuck.finish()


def test_secrets_stay_out_of_reach_while_a_worker_runs(cave: Cave, warden: Client) -> None:
    grow(cave.workspace, {"f": "a" * 60 + "!\n"})
    stuck = warden.open("search", path="f", pattern="(a+)+$")
    warden.call("stat", path="f")
    code, _, err = warden.run("cat /proc/2/environ /proc/2/maps")
    assert code == 1
    assert err.count(b"Permission denied") == 2
    stuck.reset()
