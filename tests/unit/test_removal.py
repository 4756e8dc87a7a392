"""Removing what a cave has left, whatever its programs have built: depth, closed folders, links, company."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ghost_mcp.backends.local.removal import remove_tree

DEEP = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(3000):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
open("file", "w").close()
"""
# Folders closed to their owner, in one another and beside one another, with something in each.
CLOSED = """
import os, sys
from ghost_mcp.backends.local.removal import remove_tree
for path in ("a/b/c", "a/x", "d"):
    os.makedirs(f"top/{path}")
    open(f"top/{path}/file", "w").close()
for path in ("a/b/c", "a/b", "a/x", "a", "d", ""):
    os.chmod(f"top/{path}", 0)
remove_tree("top")
print(os.listdir("."))
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "top"
    made.mkdir()
    return made


def test_deeper_than_any_path(top: Path) -> None:
    subprocess.run([sys.executable, "-c", DEEP, top], check=True)
    remove_tree(top)
    assert not top.exists()


def test_folders_that_are_closed_to_their_owner(tmp_path: Path) -> None:
    """By an ordinary user, who needs the permission that root does not."""
    tmp_path.chmod(0o777)
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*(ordinary if os.geteuid() == 0 else []), sys.executable, "-B", "-c", CLOSED],
        cwd=_reachable(tmp_path),
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "ModuleNotFoundError" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("not run: an ordinary user cannot read this checkout")
    assert done.stdout == "[]\n", done.stderr


def _reachable(folder: Path) -> Path:
    """The same folder, with those of pytest's own above it open to pass through."""
    for parent in folder.parents:
        if parent.name.startswith("pytest-") or parent.parent.name.startswith("pytest-"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


def test_links_are_removed_and_what_they_lead_to_stays(top: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    (top / "sub").mkdir()
    for folder in (top, top / "sub"):
        (folder / "folder").symlink_to(kept)
        (folder / "file").symlink_to(kept / "file")
        (folder / "nowhere").symlink_to("none")
    remove_tree(top)
    assert not top.exists()
    assert (kept / "file").read_text() == "kept"


def test_several_at_once(top: Path) -> None:
    for number in range(300):
        folder = top / str(number % 7) / str(number)
        folder.mkdir(parents=True)
        for name in "abcdefgh":
            (folder / name).touch()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove_tree, [top] * 8))
    remove_tree(top)  # as the next look at the caves does
    assert not top.exists()


def test_what_is_no_folder_or_not_there(top: Path) -> None:
    (top / "link").symlink_to(top)
    remove_tree(top / "none")
    remove_tree(top / "link")
    assert (top / "link").is_symlink()
