"""Caves of a Docker engine keep the contract, in an image that has little, and in one that has nothing."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import docker
import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.docker import DockerBackend
from ghost_mcp.errors import BackendUnavailable, InvalidArgument
from ghost_mcp.spec import CaveInfo
from ghost_mcp.testing import BackendContract
from ghost_mcp.warden import runtime

pytestmark = pytest.mark.docker


class DockerFixtures:
    # The images here have no Python; the warden's own will do.
    python = tuple(runtime.argv()[:-1])
    measures = frozenset({"memory_bytes", "memory_peak_bytes", "cpu_s", "pids"})
    refused = (
        {"image": "no-such-image:ever"},
        {"network": {"mode": "open"}},
        {"workspace": "/tmp"},
        {"mounts": {"/data": "/no/such/file"}},
        {"limits": {"disk_bytes": 1 << 30}},
        {"env": {"KEY": "x"}, "secrets": ["KEY"]},
    )

    @pytest.fixture(autouse=True)
    def _engine(self, engine: docker.APIClient, small_image: str, state_dir: Path) -> None:
        self.engine, self.image, self.cache = engine, small_image, state_dir / "cache" / "docker"
        self.instance = f"test-{secrets.token_hex(4)}"

    def settings(self) -> dict[str, Any]:
        return {"image": self.image}

    def make(self) -> Backend:
        return DockerBackend(instance=self.instance, cache=self.cache)

    def elsewhere(self) -> str:
        return (
            "from pathlib import Path\n"
            "from ghost_mcp.backends.docker import DockerBackend\n"
            f"cache = Path({str(self.cache)!r})\n"
            f"def make(): return DockerBackend(instance={self.instance!r}, cache=cache)\n"
        )

    async def crash(self, info: CaveInfo) -> None:
        self.engine.kill(f"ghost-{self.instance}-{info.name}")

    async def engine_shows(self, info: CaveInfo) -> str:
        return json.dumps(self.engine.inspect_container(f"ghost-{self.instance}-{info.name}"))

    async def leftovers(self, cave_id: str) -> list[str]:
        shown = self.engine.containers(all=True, filters={"label": f"ghost.id={cave_id}"})
        volumes = self.engine.volumes()["Volumes"] or []
        names = [volume["Name"] for volume in volumes if cave_id in volume["Name"]]
        return [container["Id"] for container in shown] + names


class TestDocker(DockerFixtures, BackendContract):
    pass
