# Images are built once for each machine and state of their files; only this file knows how a test comes by one.
"""The images of ``configs/images`` on a base made of Debian's packages, without a registry."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import anyio
import docker
import pytest
from docker.errors import ImageNotFound

from ghost_mcp import images
from ghost_mcp.images import Image, sources
from tests import engine_images

__all__ = ["base", "built", "engine", "full_image", "full_tree"]

# A word that the builds of these tests are given as a setting of this machine: no layer may hold it.
SENTINEL = "settings-of-this-machine.invalid"
BASE_S = 600
BUILD_S = 3000
SAVING_S = 600  # the engine packs a whole image before it sends the first byte
TREES = Path("/var/tmp")
LOCK = TREES / f"ghost-test-images-{os.geteuid()}.lock"
_TREE = "ghost-test-tree-"


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """A container engine, or a reason why there is none."""
    with engine_images.opened() as client:
        client.timeout = SAVING_S
        yield client


@pytest.fixture(scope="session")
def base(engine: docker.APIClient) -> str:
    """The base that ``bootstrap-base`` makes, as a reference."""
    script = sources.folder() / "bootstrap-base"
    key = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    reference = f"ghost-test-base:{key}"
    with _alone():
        try:
            engine.inspect_image(reference)
        except ImageNotFound:
            if os.geteuid() != 0:
                pytest.skip("not run: to make the images' base, the tests run as root")
            done = subprocess.run(
                [script, reference], check=False, capture_output=True, text=True, timeout=BASE_S
            )
            assert done.returncode == 0, done.stderr
    return reference


class _alone:
    """Two runs of the tests on one machine build one after the other, and the second finds all there."""

    def __enter__(self) -> None:
        self._file = LOCK.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.fixture(scope="session")
def built(base: str) -> Callable[[str], Image]:
    """An image by its name, built now if it is not there yet."""

    @cache
    def build(name: str) -> Image:
        with _alone(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIP_TRUSTED_HOST", SENTINEL)
            # In a thread: the caller's may have a loop already, as Playwright's has.
            with ThreadPoolExecutor(1) as pool:
                work = partial(images.build, name, base=base, report=print)
                return pool.submit(anyio.run, work).result()

    return build


@pytest.fixture(scope="session")
def full_image(built: Callable[[str], Image]) -> str:
    """The full image's reference."""
    return built("full").references[0]


@pytest.fixture(scope="session")
def full_tree(engine: docker.APIClient, full_image: str) -> str:
    """The full image's files as a root tree for local caves, kept for this machine's next run."""
    folder = TREES / (_TREE + engine.inspect_image(full_image)["Id"].partition(":")[2][:12])
    if os.geteuid() != 0:
        pytest.skip("not run: to unpack a root tree, the tests run as root")
    with _alone():
        if not folder.is_dir():
            for older in TREES.glob(f"{_TREE}*"):
                shutil.rmtree(older)
            _unpack(engine, full_image, folder)
    return str(folder)


def _unpack(engine: docker.APIClient, image: str, folder: Path) -> None:
    half = folder.with_name(f"{folder.name}.half")
    half.mkdir(mode=0o755)
    container = engine.create_container(image, ["none"])["Id"]
    try:
        argv = ["tar", "-x", "-C", str(half), "--exclude=dev/*", "--exclude=proc/*"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as tar:
            assert tar.stdin is not None
            for piece in engine.export(container):
                tar.stdin.write(piece)
            tar.stdin.close()
        assert tar.returncode == 0
    finally:
        engine.remove_container(container)
    half.rename(folder)
