"""The walls of a docker cave: what is tried on local caves, where it means the same, and what is docker's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import docker
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.errors import BackendUnavailable
from tests import engine_images
from tests.conftest import held
from tests.security.test_files import (  # noqa: F401 - collected here
    canary,
    test_f1_names_that_only_look_like_traversal_are_names,
    test_f1_traversal,
    test_f1_what_is_no_path,
    test_f3_a_path_that_changes_while_it_is_used,
    test_f4_archives_stay_in_their_folder,
    test_f5_odd_files,
    test_f6_fifty_editors_lose_nothing,
    test_modes_survive_an_overwrite_and_setuid_does_not,
)
from tests.security.test_isolation import (  # noqa: F401 - collected here
    canaries,
    listener,
    test_i1_identity,
    test_i2_no_sysctl_can_be_written,
    test_i3_syscalls_are_refused_and_programs_still_run,
    test_i4_nothing_of_the_host_is_seen,
    test_i4_the_wardens_own_memory_and_files_are_closed_to_programs,
    test_i5_no_network,
    test_i7_caves_do_not_see_each_other,
    test_the_cave_is_writable_where_people_expect_it,
)
from tests.security.test_resources import (  # noqa: F401 - collected here
    test_r1_fork_bomb,
    test_r2_memory_bomb,
    test_r4_cpu,
    test_r5_a_timeout_leaves_no_survivor,
    test_r6_output_flood,
)

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    try:
        client = open_client()
    except BackendUnavailable as exc:
        pytest.skip(f"not run: no container engine answers ({exc})")
    with closing(client):
        yield client


@pytest.fixture(scope="module")
def image(engine: docker.APIClient) -> Iterator[str]:
    yield from engine_images.roomy(engine)


@pytest.fixture
async def ghost(image: str) -> AsyncIterator[Ghost]:
    async with held(Ghost(backend=DockerBackend(image=image, instance="security"))) as opened:
        yield opened


@pytest.fixture
async def cave(ghost: Ghost) -> AsyncIterator[Cave]:
    made = await ghost.create(CaveSpec(ephemeral=True))
    yield made
    await made.destroy()
