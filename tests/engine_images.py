# Images for tests come from this machine: no registry is asked.
"""Small images, imported into an engine and removed again."""

from __future__ import annotations

import io
import re
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker

__all__ = ["empty", "imported", "small"]

PROGRAMS = (
    *("sh", "bash", "cat", "echo", "env", "head", "id", "ls", "printf", "pwd"),
    *("setsid", "sleep", "stty", "true", "tty", "wc"),
)


def small(engine: docker.APIClient) -> Iterator[str]:
    """A shell and coreutils of this machine with their libraries, and nothing else: no Python, no /etc."""
    files = {Path("/bin", name): Path(shutil.which(name) or "") for name in PROGRAMS}
    for program in list(files.values()):
        listed = subprocess.run(["ldd", program], capture_output=True, check=True, text=True)
        for library in re.findall(r"(/\S+) \(0x", listed.stdout):
            files[Path(library)] = Path(library)
    with imported(engine, files) as name:
        yield name


def empty(engine: docker.APIClient) -> Iterator[str]:
    """An image with nothing in it."""
    with imported(engine, {}) as name:
        yield name


@contextmanager
def imported(engine: docker.APIClient, files: Mapping[Path, Path]) -> Iterator[str]:
    """An image of files of this machine, by their path in it. What was made from it goes with it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
        archive.addfile(_folder("tmp"))
        for inside, source in files.items():
            archive.add(source, str(inside))
    name = f"ghost-test-{secrets.token_hex(4)}:latest"
    engine.import_image_from_data(packed.getvalue(), repository=name.partition(":")[0])
    try:
        yield name
    finally:
        plain = engine.inspect_image(name)["Id"]
        for dressed in engine.images(filters={"label": f"ghost.dressed={plain}"}):
            engine.remove_image(dressed["Id"], force=True)
        engine.remove_image(name, force=True)


def _folder(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry
