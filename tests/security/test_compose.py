"""The walls of a cave that has a service beside it: all that is tried on docker caves, in a project's network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from ghost_mcp import CaveInfo, CaveSpec, Ghost, Project
from ghost_mcp.backends.compose.backend import ComposeBackend
from tests.conftest import held
from tests.security.test_docker import *

pytestmark = pytest.mark.docker


class _Beside(ComposeBackend):
    """Gives each cave a service."""

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        service = {"image": self._image, "command": ["sleep", "3600"], "stop_signal": "SIGKILL"}
        project = Project(file={"services": {"side": service}})
        return await super().create(spec.with_(project=project), secrets=secrets)


@pytest.fixture(scope="module")
def beside() -> type[ComposeBackend]:
    return _Beside


@pytest.fixture
async def ghost(image: str, request: pytest.FixtureRequest) -> AsyncIterator[Ghost]:
    # A service changes what a cave reaches and nothing else: see test_the_walls of the contract. To bring it up takes
    # a second or two.
    kind = _Beside if request.function.__name__.startswith("test_i") else ComposeBackend
    async with held(Ghost(backend=kind(image=image, instance="security"))) as opened:
        yield opened


@pytest.fixture
def kind() -> type[ComposeBackend]:
    """Whose caves are tried: what is beside a cave, the contract of these caves tries."""
    return ComposeBackend
