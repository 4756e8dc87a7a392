"""Globs and .gitignore rules, by example and against git itself."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ghost_mcp.warden.patterns import Ignored, Rules, glob
from ghost_mcp.warden.peers import WardenError

if TYPE_CHECKING:
    from pathlib import Path

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="not run: git is not here")


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("a", ["a", "x/a", "x/y/a"], ["b", "ab", "a/b"]),
        ("/a", ["a"], ["x/a"]),
        ("x/a", ["x/a"], ["a", "y/x/a"]),
        ("*.py", ["a.py", ".py", "d/a.py"], ["a.pyc", "a.py/b"]),
        ("d/*", ["d/a"], ["d", "d/a/b"]),
        ("a?c", ["abc", "a.c"], ["ac", "abbc", "a/c"]),
        ("**", ["a", "a/b"], []),
        ("**/a", ["a", "x/a", "x/y/a"], ["xa"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab", "x/a/b"]),
        ("**/a/**", ["a/b", "x/a/b/c"], ["a", "x/a"]),
        ("a/**/**/b", ["a/b", "a/x/y/b"], ["ab"]),
        ("a**b", ["ab", "axxb"], ["a/b"]),
        ("[abc]", ["a", "b"], ["d", "ab", "-"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x"]),
        ("[!a-c]", ["d", "-"], ["a", "/"]),
        ("[^a]", ["b"], ["a"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[!]a]", ["b"], ["]", "a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[[:digit:]x]", ["1", "x"], ["d", ":"]),
        ("[![:space:]]", ["a"], [" ", "\t"]),
        ("[z-a]", [], ["a", "z", "-"]),
        ("[!z-a]", ["a"], ["ab"]),
        (r"[\]]", ["]"], ["\\"]),
        (r"\*", ["*"], ["a"]),
        (r"a\[b", ["a[b"], ["ab"]),
        ("a.c", ["a.c"], ["abc"]),
        ("ü(+)|$", ["ü(+)|$"], ["ü"]),
        ("a b", ["a b"], ["ab"]),
        ("*\n*", ["a\nb"], ["ab"]),
    ],
)
def test_globs(pattern: str, matches: list[str], others: list[str]) -> None:
    match = glob(pattern)
    assert [path for path in matches if match(path) is None] == []
    assert [path for path in others if match(path) is not None] == []


@pytest.mark.parametrize(
    "pattern", ["", "/", "//", "[", "a[b", "[a", "[!", "a\\", "x" * 5000, "[a-", "[/]"]
)
def test_bad_globs(pattern: str) -> None:
    with pytest.raises(WardenError) as refused:
        glob(pattern)
    assert refused.value.head["code"] == "bad_pattern"


@pytest.mark.parametrize(
    ("text", "path", "folder", "verdict"),
    [
        ("a", "a", False, True),
        ("a", "x/a", False, True),
        ("", "a", False, None),
        ("# a", "# a", False, None),
        (r"\# a", "# a", False, True),
        (r"\!a", "!a", False, True),
        ("a\n!a", "a", False, False),
        ("!a\na", "a", False, True),
        ("a/", "a", False, None),
        ("a/", "a", True, True),
        ("/a/", "x/a", True, None),
        ("x/a/", "x/a", True, True),
        ("a   ", "a", False, True),
        ("a\\ ", "a ", False, True),
        ("a\\   ", "a ", False, True),
        ("a\\   ", "a", False, None),
        ("a\r\nb\r\n", "b", False, True),
        ("\ufeffa", "a", False, True),
        ("a\\", "a\\", False, None),
        ("[a\nb", "b", False, True),
        ("[a", "[a", False, None),
        (" a", "a", False, None),
        ("a\tb", "a\tb", False, True),
        ("**/a", "a", False, True),
        ("x" * 5000, "x" * 5000, False, None),
    ],
)
def test_rules(text: str, path: str, folder: bool, verdict: bool | None) -> None:
    assert Rules(text).verdict(path, path.rpartition("/")[2], folder=folder) is verdict


def test_odd_ignore_files_are_no_rules(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".gitignore").mkdir()
    os.mkfifo(tmp_path / ".gitignore")
    ignored = Ignored(str(tmp_path))
    assert not ignored(f"{tmp_path}/d", "d", folder=True)
    assert not ignored(f"{tmp_path}/d/f", "f", folder=False)


def test_the_root_of_all() -> None:
    assert not Ignored("/")("/usr", "usr", folder=True)


PIECES = ["a", "b", "*", "?", "[ab]", "[!a]", "**", "a*", "*b", "a?", r"\a", ".a", "ab", "a**b"]


def random_rules(source: random.Random) -> str:
    lines = []
    for _ in range(source.randint(1, 4)):
        line = "/".join(source.choice(PIECES) for _ in range(source.randint(1, 3)))
        line = source.choice(["", "", "", "!", "/"]) + line + source.choice(["", "", "", "/", " "])
        lines.append(line)
    return "\n".join(lines) + "\n"


def kept_here(root: Path) -> list[str]:
    """What our walk keeps: files not left out, in no folder left out."""
    ignored = Ignored(str(root))
    kept = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            n for n in folders if n != ".git" and not ignored(f"{folder}/{n}", n, folder=True)
        ]
        kept += [f"{folder}/{n}" for n in names if not ignored(f"{folder}/{n}", n, folder=False)]
    return sorted(os.path.relpath(path, root) for path in kept)


@needs_git
@pytest.mark.parametrize("seed", range(12))
def test_rules_mean_what_git_says(tmp_path: Path, seed: int) -> None:
    """Random rules in nested files over one tree: the files git would offer to add are the files we keep."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    root = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(root)], env=env, check=True)
    names = ["a", "b", "ab", ".a", "c"]
    for first in names[:3]:
        for second in names:
            (root / first / second).mkdir(parents=True)
            for third in ("a", "b", "aab"):
                (root / first / second / third).write_text("")
        for third in ("axb", "bb"):
            (root / first / third).write_text("")
    (root / "ba").write_text("")
    source = random.Random(seed)
    for _ in range(8):
        for where in (".git/info/exclude", ".gitignore", "a/.gitignore", "a/b/.gitignore"):
            (root / where).write_text(random_rules(source) if source.random() < 0.7 else "")
        listing = ["git", "-C", str(root), "ls-files", "-z", "--others", "--exclude-standard"]
        said = subprocess.run(listing, env=env, check=True, capture_output=True, text=True).stdout
        rules = {
            p: (root / p).read_text() for p in (".gitignore", "a/.gitignore", "a/b/.gitignore")
        }
        assert kept_here(root) == sorted(said.split("\0")[:-1]), rules
