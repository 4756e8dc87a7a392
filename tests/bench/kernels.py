# Both sides are in one cave, on its own jupyter_client: what differs is the way to it.
"""A warm Jupyter kernel of a docker cave, against jupyter_client used directly beside it."""

from __future__ import annotations

import os
from functools import partial

from ghost_mcp import CaveSpec, Ghost, Process
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.services.kernels import Kernels
from tests.bench.measure import Row, taken, turns
from tests.bench.place import Place

__all__ = ["warm"]

#: It needs an image with kernels.
IMAGE = os.environ.get("GHOST_IMAGE", "ghost-full:latest")
#: A line asks for one execution, a line tells what it took in milliseconds.
DIRECT = """
import sys, time
from jupyter_client.manager import KernelManager

manager = KernelManager(transport="ipc", ip="/tmp/direct")
for number, port in enumerate(("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), 1):
    setattr(manager, port, number)
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
for line in sys.stdin:
    said = []
    began = time.perf_counter()
    client.execute_interactive("1 + 1", timeout=30, output_hook=said.append)
    spent = time.perf_counter() - began
    assert any(one["msg_type"] == "execute_result" for one in said), said
    print(spent * 1e3, flush=True)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


async def warm(place: Place) -> list[Row]:
    """From the question to the whole answer, the kernel's state kept."""
    backend = DockerBackend(image=IMAGE, instance="bench", cache=place.folder / "docker")
    async with (
        Ghost(backend=backend) as ghost,
        await ghost.create(CaveSpec(ephemeral=True)) as cave,
    ):
        kernels = Kernels(cave)

        async def ours() -> float:
            async def act() -> None:
                done = await kernels.execute("1 + 1")
                assert done["outputs"][0]["data"]["text/plain"] == "2", done

            return await taken(act)

        async with cave.process(["python3", "-c", DIRECT]) as direct:
            sides = await turns(place.rounds(60), ours, partial(_direct, direct), block=3)
    return [
        Row(
            what="jupyter: 1 + 1 in a warm kernel of a docker cave",
            unit="ms",
            samples=sides[0],
            floor=sides[1],
            floor_what="jupyter_client in the same cave",
            goal_ratio=1.5,
        )
    ]


async def _direct(process: Process) -> float:
    await process.send(b"\n")
    said = b""
    while not said.endswith(b"\n"):
        piece = await process.receive()
        assert piece is not None, "the direct client ended"
        said += piece[1] if piece[0] == 1 else b""
    return float(said)
