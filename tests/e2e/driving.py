# A browser gives up what it is loading when an interface of the machine changes, as each container makes one do: this
# one does not hear of it.
"""Chromium, and scripts that drive it; run as a program, ``driving.py PROGRAM ...``, what runs that without netlink."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["MODULES", "MOST_S", "ROOT", "chromium", "drive", "needs_browser", "needs_npm"]

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
MODULES = ROOT / ".cache/npm/node_modules"
MOST_S = 150

needs_npm = pytest.mark.skipif(
    not (NODE.exists() and (MODULES / "esbuild").exists()),
    reason="not run: the npm packages are not installed (scripts/setup --test)",
)
needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="not run: there is no chromium"
)


def drive(script: str, *words: str) -> Any:
    """Run a script beside this file to its end; what it printed, which is JSON. Pictures go to .cache/pictures."""
    given = [MODULES, *words, ROOT / ".cache/pictures"]
    done = subprocess.run(
        [sys.executable, __file__, NODE, Path(__file__).with_name(script), *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def chromium(folder: Path) -> Path:
    """A program to launch in Chromium's place, made in ``folder``: the same without netlink."""
    program = folder / "chromium"
    words = shlex.join([sys.executable, str(Path(__file__)), shutil.which("chromium") or ""])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return program


def _without_netlink() -> None:
    import errno
    import socket

    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    is_netlink = pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_NETLINK)
    rules.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket", is_netlink)
    rules.load()


if __name__ == "__main__":
    _without_netlink()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
