# A disk limit is a file system of that size: nothing a cave writes can take more of the machine's.
"""The image that a local cave with a disk limit keeps its files in."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from ghost_mcp.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_disk"]


def make_disk(image: Path, size_bytes: int, uid: int, gid: int) -> None:
    """An ext4 image that holds the cave's folders, owned by its user. Raises BackendUnavailable."""
    seed = image.with_suffix(".seed")
    for name in ("run", "home", "workspace"):
        (seed / name).mkdir(0o700, parents=True)
        os.chown(seed / name, uid, gid)
    seed.chmod(0o711)
    command = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-d",
        str(seed),
        str(image),
        f"{size_bytes >> 10}k",
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BackendUnavailable(
            f"cannot make the cave's disk: {exc}", hint="apt-get install e2fsprogs"
        ) from exc
    finally:
        shutil.rmtree(seed)
    if done.returncode:
        raise BackendUnavailable(f"cannot make the cave's disk: {done.stderr[-300:]}")
