"""What the command line does with an engine: it gets an image from a registry, and collects what is over."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.testing.basis import PATIENCE_S, until
from tests.contract.registry import registry

pytestmark = pytest.mark.docker

LAYER_BYTES = 4 << 20
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _ghost(*words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ghost_mcp.cli", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={**os.environ, **env},
    )
    assert done.returncode == code, done.stderr
    return done


async def test_an_image_comes_from_a_registry_and_says_how_much_is_there(
    engine: docker.APIClient, state_dir: Path
) -> None:
    """A cave is made of it then, though there is nothing in it but a file."""
    machine = engine.info()["Architecture"]
    name = f"ghost-test-{secrets.token_hex(4)}"
    with registry(name, ARCHITECTURES.get(machine, machine), layer_bytes=LAYER_BYTES) as image:
        try:
            done = _ghost("image", "pull", image)
            assert f"pulled {image}" in done.stdout
            told = [int(tenth) for tenth in re.findall(r": (\d+) % of", done.stderr)]
            assert told == sorted(told)
            assert told[-1] == 100
            missing = _ghost("image", "pull", image.replace(":latest", ":other"), code=2)
            assert "cannot get" in missing.stderr
            backend = DockerBackend(
                image=image, instance=name, cache=state_dir / "cache" / "docker"
            )
            async with Ghost(backend=backend) as ghost:
                cave = await ghost.create(CaveSpec(ephemeral=True))
                assert (await cave.call("stat", {"path": "/blob"}))[0]["size"] == LAYER_BYTES
                await cave.destroy()
        finally:
            for dressed in engine.images(filters={"label": "ghost.dressed"}):
                if dressed["Labels"]["ghost.dressed"] == engine.inspect_image(image)["Id"]:
                    engine.remove_image(dressed["Id"], force=True)
            engine.remove_image(image, force=True)


async def test_gc_lists_and_removes_what_is_over(
    engine: docker.APIClient, small_image: str, state_dir: Path
) -> None:
    """A cave that ended, a container that was never finished, a volume that no cave has; not the one that lives."""
    instance = f"test-{secrets.token_hex(4)}"
    env = {"GHOST_INSTANCE": instance, "GHOST_STATE_DIR": str(state_dir)}
    backend = DockerBackend(
        image=small_image, instance=instance, cache=state_dir / "cache" / "docker"
    )
    async with Ghost(backend=backend) as ghost:
        lives = await ghost.create(CaveSpec(name="lives"))
        await ghost.create(CaveSpec(name="over", timeout_s=2.0))

        async def ended() -> bool:
            return (await ghost.get("over")).info.state == "ended"

        await until(ended)
        labels = engine.inspect_container(f"ghost-{instance}-lives")["Config"]["Labels"]
        half = f"ghost_making_{secrets.token_hex(8)}"
        dead = {**labels, "ghost.id": half[-16:], "ghost.maker": _dead(labels["ghost.maker"])}
        engine.create_container(small_image, ["none"], name=half, labels=dead)
        volume = f"{instance}-alone"
        engine.create_volume(volume, labels={"ghost.instance": instance})
        asked = ["gc", "--backend", "docker", "--json"]
        for dry_run in (["--dry-run"], []):
            said = json.loads(_ghost(*asked, *dry_run, **env).stdout)
            assert said["found"]["docker"]["caves"] == ["over"]
            assert {half, volume} <= set(said["found"]["docker"]["leftovers"]) or not dry_run
        mine = {"label": f"ghost.instance={instance}"}
        shown = [one["Names"][0] for one in engine.containers(all=True, filters=mine)]
        assert shown == [f"/ghost-{instance}-lives"]
        assert volume not in [one["Name"] for one in engine.volumes(filters=mine)["Volumes"]]
        assert (await lives.exec(["echo", "alive"])).stdout == "alive\n"
        await lives.destroy()


def _dead(maker: str) -> str:
    """That process with another start: it was one that had its number before."""
    return f"{maker.rpartition('/')[0]}/1"
