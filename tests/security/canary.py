"""A value that is looked for everywhere, and the forms it may be found in."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from urllib.parse import quote

__all__ = ["canary", "forms", "holding", "whose"]


def canary() -> bytes:
    return f'c4n%ry"/{os.urandom(16).hex()}+é'.encode()


def forms(value: bytes) -> list[bytes]:
    """The value as it is, and as it is most often written."""
    shifted = (base64.b64encode(b"x" * pad + value)[4:-4] for pad in range(3))
    hexed = value.hex().encode()
    text = value.decode()
    written = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    return [
        value,
        *shifted,
        hexed,
        hexed.upper(),
        quote(value, safe="").encode(),
        *(form.encode() for form in written),
    ]


def holding(folder: Path, needles: list[bytes], *, without: tuple[str, ...] = ()) -> list[Path]:
    """The files below a folder that hold one of the needles; folders of a name in ``without`` are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in without]
        for path in (Path(parent, name) for name in names):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [path for needle in needles if needle in data][:1]
    return found


def whose(needles: list[bytes]) -> tuple[list[str], set[str]]:
    """Processes with a needle among their arguments; PID namespaces of those with one in their environment."""
    named, spaces = [], set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(needle in (process / "cmdline").read_bytes() for needle in needles):
                named.append(process.name)
            if any(needle in (process / "environ").read_bytes() for needle in needles):
                spaces.add(os.readlink(process / "ns/pid"))
        except OSError:
            continue
    return named, spaces
