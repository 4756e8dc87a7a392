# Only this file decides where a measurement works, and checks that nothing of it stays.
"""The folder of a run, the Ghosts on it, and the programs it is measured with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghost_mcp import Ghost

__all__ = ["FILESYSTEM", "NODE", "Place", "bare", "opened", "program"]

ROOT = Path(__file__).parents[2]
NPM = ROOT / ".cache/npm"
NODE = NPM / "bin/node"
FILESYSTEM = NPM / "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"
PROGRAM_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run works: a state folder, a folder for files, and how much is wanted."""

    folder: Path
    quick: bool = False
    stretch: bool = False

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def rounds(self, full: int) -> int:
        return max(3, full // 5) if self.quick else full

    def ghost(self, **settings: Any) -> Ghost:
        return Ghost(backend="local", state_dir=self.state, **settings)

    @property
    def environment(self) -> Mapping[str, str]:
        """For programs that are to work in the same state folder."""
        return {**os.environ, "GHOST_STATE_DIR": str(self.state), "GHOST_BACKEND": "local"}

    def check_empty(self) -> None:
        """Raises RuntimeError when a measurement has left a cave behind."""
        left = [p.name for kind in ("caves", "pool") for p in (self.state / kind).glob("*")]
        if left:
            raise RuntimeError(f"caves were left behind: {', '.join(left[:5])}")


@contextmanager
def opened(*, quick: bool, stretch: bool) -> Iterator[Place]:
    """A place of its own for the block. A cave's user must be able to pass through its folders."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="ghost-bench-"))
    os.chmod(folder, 0o711)
    try:
        yield Place(folder=folder, quick=quick, stretch=stretch)
    finally:
        shutil.rmtree(folder)


def bare(*argv: str) -> None:
    """Run a program to its end, as the floor of what Ghost does. Raises when it fails."""
    subprocess.run(argv, check=True, timeout=PROGRAM_S)


def program(name: str) -> str:
    """A program of the environment we run in. Raises FileNotFoundError."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed beside {sys.executable}: make setup")
    return found
