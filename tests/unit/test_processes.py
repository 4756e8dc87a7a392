"""The processes that a command started, as a warden finds them."""

from __future__ import annotations

import subprocess

import psutil

from ghost_mcp.warden.processes import Tree, ticks

# Each shell waits, so that every parent is there as long as its children.
LEAVES = "sleep 60 & sleep 60 & sleep 60 & echo ready; wait"


def test_each_comes_before_what_it_started() -> None:
    line = f"({LEAVES}) & ({LEAVES}) & ({LEAVES}) & wait"
    since = ticks()
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE) as root:
        tree = Tree(root.pid, "1", since, lambda: False)
        try:
            assert root.stdout is not None
            assert [root.stdout.readline() for _ in range(3)] == [b"ready\n"] * 3
            pids = tree.pids()
            parents = {pid: psutil.Process(pid).ppid() for pid in pids}
        finally:
            tree.kill()
    assert len(pids) == 13
    assert all(pids.index(parents[pid]) < at for at, pid in enumerate(pids) if pid != root.pid)
