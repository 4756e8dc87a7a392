"""A value that is looked for everywhere, and the forms it may be found in."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

__all__ = ["canary", "forms", "holding", "left_in", "whose"]

_MARK = 'c4n%ry"/'
_PIECE = 1 << 20
_planted: list[bytes] = []


def canary() -> bytes:
    """A fresh value, which is looked for in all that the tests leave behind: see ``left_in``."""
    _planted.append(f"{_MARK}{os.urandom(16).hex()}+é".encode())
    return _planted[-1]


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
    for path in _files(folder, without):
        data = path.read_bytes()
        found += [path for needle in needles if needle in data][:1]
    return found


def left_in(*folders: Path, without: tuple[str, ...] = ()) -> list[Path]:
    """The files below the folders that hold any canary of this process in any form."""
    if not _planted:
        return []
    # What all canaries share is soon looked for; few files have it, if any.
    marks = re.compile(b"|".join(re.escape(form) for form in forms(_MARK.encode())))
    full = [form for value in _planted for form in forms(value)]
    return [
        path
        for folder in folders
        for path in _files(folder, without)
        if any(form in piece for piece in _pieces(path) if marks.search(piece) for form in full)
    ]


def _files(folder: Path, without: tuple[str, ...]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in without]
        yield from (
            path
            for path in (Path(parent, name) for name in names)
            if path.is_file() and not path.is_symlink()
        )


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes in pieces that overlap by more than a canary."""
    kept = b""
    with suppress(OSError), path.open("rb") as file:
        while data := file.read(_PIECE):
            yield kept + data
            kept = data[-512:]


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
