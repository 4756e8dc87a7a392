"""What the contract suite needs of an engine: images made here, without a registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
from docker.errors import APIError

from tests import engine_images
from tests.contract.images import runtime_image


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """A container engine, or a reason why there is none. The runtimes these tests bring to it go with them."""
    with engine_images.opened() as client:
        before = engine_images.runtimes(client)
        yield client
        for volume in engine_images.runtimes(client) - before:
            with suppress(APIError):  # another run on this engine uses it
                client.remove_volume(volume)


@pytest.fixture(scope="session")
def small_image(engine: docker.APIClient) -> Iterator[str]:
    """A shell and coreutils, and nothing else."""
    yield from engine_images.small(engine)


@pytest.fixture(scope="session")
def brought(engine: docker.APIClient, state_dir: Path) -> Iterator[str]:
    """The warden's runtime as an image of the engine that the cluster's node uses."""
    yield from runtime_image(engine, state_dir / "cache" / "kubernetes")


@pytest.fixture(scope="session")
def empty_image(engine: docker.APIClient) -> Iterator[str]:
    """An image with nothing in it."""
    yield from engine_images.empty(engine)
