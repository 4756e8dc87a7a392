"""What the contract suite needs of an engine: images made here, without a registry."""

from __future__ import annotations

import io
import re
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
from docker.errors import APIError

from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.errors import BackendUnavailable

PROGRAMS = (
    *("sh", "bash", "cat", "echo", "env", "head", "id", "ls", "printf", "pwd"),
    *("setsid", "sleep", "stty", "true", "tty", "wc"),
)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """A container engine, or a reason why there is none. The runtimes these tests bring to it go with them."""
    try:
        client = open_client()
    except BackendUnavailable as exc:
        pytest.skip(f"not run: no container engine answers ({exc})")
    before = _runtimes(client)
    yield client
    for volume in _runtimes(client) - before:
        with suppress(APIError):  # another run on this engine uses it
            client.remove_volume(volume)
    client.close()


def _runtimes(engine: docker.APIClient) -> set[str]:
    found = engine.volumes(filters={"name": "ghost-runtime-"})["Volumes"] or []
    return {volume["Name"] for volume in found}


@pytest.fixture(scope="session")
def small_image(engine: docker.APIClient) -> Iterator[str]:
    """A shell and coreutils of this machine with their libraries, and nothing else: no Python, no /etc."""
    files = {Path("/bin", name): Path(shutil.which(name) or "") for name in PROGRAMS}
    for program in list(files.values()):
        listed = subprocess.run(["ldd", program], capture_output=True, check=True, text=True)
        for library in re.findall(r"(/\S+) \(0x", listed.stdout):
            files[Path(library)] = Path(library)
    yield from _imported(engine, files)


@pytest.fixture(scope="session")
def empty_image(engine: docker.APIClient) -> Iterator[str]:
    """An image with nothing in it."""
    yield from _imported(engine, {})


def _imported(engine: docker.APIClient, files: dict[Path, Path]) -> Iterator[str]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
        archive.addfile(_folder("tmp"))
        for inside, source in files.items():
            archive.add(source, str(inside))
    name = f"ghost-test-{secrets.token_hex(4)}"
    engine.import_image_from_data(packed.getvalue(), repository=name, tag="latest")
    yield f"{name}:latest"
    engine.remove_image(f"{name}:latest", force=True)


def _folder(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry
