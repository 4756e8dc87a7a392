# Images for tests come from this machine: no registry is asked.
"""A container engine, if there is one; small images, imported into it and removed again."""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.errors import BackendUnavailable

__all__ = ["empty", "imported", "opened", "roomy", "runtimes", "small"]

PROGRAMS = (
    *("sh", "bash", "cat", "echo", "env", "head", "id", "ls", "printf", "pwd"),
    *("setsid", "sleep", "stty", "true", "tty", "wc"),
)


MORE = (
    *(
        "chmod",
        "cp",
        "dd",
        "du",
        "grep",
        "kill",
        "ln",
        "mkdir",
        "mkfifo",
        "mv",
        "nohup",
        "od",
        "python3",
        "rm",
        "sed",
    ),
    *(
        "seq",
        "sort",
        "stat",
        "tail",
        "tar",
        "touch",
        "tr",
        "truncate",
        "uname",
        "wc",
        "whoami",
        "yes",
    ),
)


@contextmanager
def opened() -> Iterator[docker.APIClient]:
    """The engine, or a reason why there is none."""
    try:
        client = open_client()
    except BackendUnavailable as exc:
        pytest.skip(f"not run: no container engine answers ({exc})")
    try:
        yield client
    finally:
        client.close()


def runtimes(engine: docker.APIClient) -> set[str]:
    """The names of the volumes with the warden's runtime that were brought to the engine."""
    found = engine.volumes(filters={"name": "ghost-runtime-"})["Volumes"] or []
    return {volume["Name"] for volume in found}


def roomy(engine: docker.APIClient) -> Iterator[str]:
    """What tests of walls use: a shell, the distribution's Python with its library, more of coreutils."""
    files = _programs(PROGRAMS + MORE)
    library = Path(os.path.realpath("/usr/bin/python3").replace("/bin/", "/lib/"))
    parts = [path for path in library.rglob("*") if path.is_file() and _wanted(path)]
    files |= {path: path for path in parts}
    files |= _libraries([path for path in parts if path.suffix == ".so"])
    with imported(engine, files) as name:
        yield name


def _wanted(path: Path) -> bool:
    return not {"test", "dist-packages", "idlelib", "lib2to3"} & set(path.parts)


def _programs(names: Sequence[str]) -> dict[Path, Path]:
    paths = [Path(shutil.which(name, path="/usr/bin:/bin") or "") for name in names]
    files = {Path("/bin", path.name): Path(os.path.realpath(path)) for path in paths}
    return files | _libraries(list(files.values()))


def _libraries(binaries: Sequence[Path]) -> dict[Path, Path]:
    found = {}
    for binary in binaries:
        listed = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True)
        for library in re.findall(r"(/\S+) \(0x", listed.stdout):
            found[Path(library)] = Path(library)
    return found


def small(engine: docker.APIClient) -> Iterator[str]:
    """A shell and coreutils of this machine with their libraries, and nothing else: no Python, no /etc."""
    files = _programs(PROGRAMS)
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
