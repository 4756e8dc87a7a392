"""What these tests need of an engine is made as the contract suite makes it."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from tests import engine_images
from tests.contract.conftest import brought, engine, small_image

__all__ = ["brought", "engine", "roomy_image", "small_image"]


@pytest.fixture(scope="session")
def roomy_image(engine: docker.APIClient) -> Iterator[str]:
    """A shell, more of coreutils, a Python."""
    yield from engine_images.roomy(engine)
