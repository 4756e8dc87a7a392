"""Jupyter kernels and the desktop in a docker cave of the full image."""

from __future__ import annotations

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_mcp.errors import NotFound
from ghost_mcp.services.kernels import Kernels
from ghost_mcp.spec import MIB, Limits
from tests.built_images import BUILD_S, base, built, engine, full_image

__all__ = ["base", "built", "engine", "full_image"]

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(BUILD_S)]


async def test_kernels_and_services_of_the_full_image(full_image: str) -> None:
    limits = Limits(memory_bytes=3072 * MIB, pids=800)
    async with (
        Ghost(backend="docker") as ghost,
        await ghost.create(CaveSpec(image=full_image, ephemeral=True, limits=limits)) as cave,
    ):
        await _kernels(cave)
        await _services(cave)


async def _kernels(full: Cave) -> None:
    kernels = Kernels(full)
    assert {one["name"] for one in await kernels.kernels()} == {"ir", "julia", "python3"}
    for name, shown in (("python3", "2"), ("ir", "[1] 2"), ("julia", "2")):
        done = await kernels.execute("1 + 1", kernel=name)
        assert done["status"] == "ok", done
        assert done["outputs"][0]["data"]["text/plain"] == shown
    failed = await kernels.execute("x = 5\n1 / 0")
    error = failed["outputs"][0]
    assert (failed["status"], error["name"]) == ("error", "ZeroDivisionError")
    assert "\x1b" not in error["traceback"]
    late = await kernels.execute("while True: pass", timeout_s=0.5)
    assert late["timed_out"]
    assert late["note"] == ""
    asked = await kernels.execute("print(x); input('?')", stdin=["a line"])
    assert [one["type"] for one in asked["outputs"]] == ["stream", "result"]
    assert asked["outputs"][0]["text"] == "5\n"
    short = await kernels.execute("input()", stdin=[])
    assert "more input than was given" in short["note"]
    dead = await kernels.execute("import os; os._exit(1)")
    assert "starts anew" in dead["note"]
    made = await kernels.create(session="own")
    assert (await kernels.execute("1", session="own"))["session"] == "own"
    await kernels.delete(made["session"])
    with pytest.raises(NotFound):
        await kernels.execute("1", session="own")
    await _kept(kernels, full)


async def _kept(kernels: Kernels, full: Cave) -> None:
    """A connection is used again, unless the service has ended meanwhile, or its question was given up."""
    await kernels.execute("x = 6")
    (kernel,) = [one for one in await full.services() if one.name == "kernels"]
    assert kernel.uses == 1
    with anyio.move_on_after(0.3):
        await kernels.execute("import time\nfor turn in range(600): time.sleep(0.1)")
    with anyio.fail_after(30):
        while (await kernels.sessions())[0]["busy"]:  # until it has been interrupted
            await anyio.sleep(0.05)
    assert (await kernels.execute("x"))["outputs"][0]["data"]["text/plain"] == "6"
    await full.service("kernels").stop()
    assert (await kernels.execute("1"))["status"] == "ok"


async def _services(full: Cave) -> None:
    async with full.service("vnc").dial() as stream:
        assert (await stream.receive()).startswith(b"RFB ")
    for name in ("code-server", "jupyter"):
        assert (await full.service(name).start()).state == "ready"
